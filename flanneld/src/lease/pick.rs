//! Picking free subnets. Pure.

use std::{collections::BTreeMap, hash::Hasher, net::IpAddr};

use hostnet::vocab::Subnet;

use crate::config::{Network, net_conf::subnet_at};

/// How many free subnets are looked at, at least: nodes that pick at the same moment spread over them.
const WINDOW: usize = 16;

/// What cannot be picked.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Last addresses by first ones; ranges that overlap or touch are one.
    ranges: BTreeMap<IpAddr, IpAddr>,
}

impl Taken {
    /// Takes a subnet.
    pub fn insert(&mut self, subnet: Subnet) {
        let (mut first, mut last) = (subnet.base(), subnet.last());
        while let Some((from, to)) = self.overlapping(first, last) {
            self.ranges.remove(&from);
            (first, last) = (first.min(from), last.max(to));
        }
        self.ranges.insert(first, last);
    }

    /// The last range that shares an address with this one.
    fn overlapping(&self, first: IpAddr, last: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let (from, to) = self.ranges.range(..=last).next_back()?;
        // IPv4 orders before IPv6, so the last range before an IPv6 one may be an IPv4 one: it ends before, too.
        (*to >= first).then_some((*from, *to))
    }
}

impl Extend<Subnet> for Taken {
    fn extend<T: IntoIterator<Item = Subnet>>(&mut self, subnets: T) {
        subnets.into_iter().for_each(|subnet| self.insert(subnet));
    }
}

/// Free subnets to try, best first. `rivals` is the number of nodes that may pick at the same moment, `node` the name
/// of ours: each node begins at a place of its own among the first free ones, so that few meet and numbers stay small.
/// Empty if the network is exhausted.
#[must_use]
pub fn pick(network: &Network, taken: &Taken, rivals: usize, node: &str) -> Vec<Subnet> {
    let window = WINDOW.max(rivals.saturating_mul(4));
    let mut free = Vec::new();
    let mut next = Some(network.subnet_min);
    while let Some(subnet) =
        next.filter(|subnet| *subnet <= network.subnet_max && free.len() < window)
    {
        let end = match taken.overlapping(subnet.base(), subnet.last()) {
            None => {
                free.push(subnet);
                subnet.last()
            }
            // All up to the end of what is taken is jumped over at once.
            Some((_, to)) => to.max(subnet.last()),
        };
        next = following(network, end);
    }
    if !free.is_empty() {
        let start = hash(node) % free.len();
        free.rotate_left(start);
    }
    free
}

/// The first subnet of the network's length behind an address.
fn following(network: &Network, addr: IpAddr) -> Option<Subnet> {
    let size_bits = u32::from(network.network.family().bits() - network.subnet_len);
    let bits = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let offset = bits(addr).checked_sub(bits(network.network.base()))?;
    subnet_at(
        network.network,
        network.subnet_len,
        (offset >> size_bits) + 1,
    )
}

/// FNV-1a (the same on every version and machine, so that a node begins at the same place each time).
fn hash(text: &str) -> usize {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    fnv.write(text.as_bytes());
    // Only the low bits are asked for.
    (fnv.finish() >> 16) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetConf;
    use hostnet::vocab::Family;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn network(conf: &str, family: Family) -> Network {
        *NetConf::parse(conf)
            .unwrap()
            .0
            .networks
            .get(family)
            .unwrap()
    }

    fn v4(conf: &str) -> Network {
        network(conf, Family::V4)
    }

    fn taken(subnets: &[&str]) -> Taken {
        let mut taken = Taken::default();
        taken.extend(subnets.iter().map(|text| text.parse::<Subnet>().unwrap()));
        taken
    }

    fn sorted(mut subnets: Vec<Subnet>) -> Vec<String> {
        subnets.sort();
        subnets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_free_ones_from_min_to_max_are_offered() {
        let network = v4(r#"{"Network": "10.244.0.0/16", "SubnetMax": "10.244.5.0"}"#);
        let free = pick(
            &network,
            &taken(&["10.244.2.0/24", "10.244.4.128/25", "10.0.0.0/16"]),
            1,
            "n1",
        );
        assert_eq!(
            sorted(free),
            ["10.244.1.0/24", "10.244.3.0/24", "10.244.5.0/24"]
        );
    }

    #[test]
    fn an_exhausted_network_offers_nothing() {
        let network = v4(r#"{"Network": "10.244.0.0/22", "SubnetLen": 24}"#);
        assert!(pick(&network, &taken(&["10.244.0.0/16"]), 1, "n1").is_empty());
        assert_eq!(
            pick(
                &network,
                &taken(&["10.244.0.0/23", "10.244.2.0/24"]),
                1,
                "n1"
            )
            .len(),
            1
        );
        let last = v4(r#"{"Network": "255.255.255.0/24"}"#);
        assert_eq!(
            sorted(pick(&last, &Taken::default(), 1, "n1"))
                .last()
                .unwrap(),
            "255.255.255.192/26"
        );
    }

    #[test]
    fn a_large_network_is_not_walked_through() {
        let conf = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/16", "IPv6SubnetLen": 112}"#;
        let network = network(conf, Family::V6);
        let free = pick(&network, &taken(&["fd00::/17", "10.0.0.0/8"]), 1, "n1");
        assert_eq!(sorted(free)[0], "fd00:8000::/112");
    }

    #[test]
    fn nodes_that_pick_together_spread() {
        let network = v4(r#"{"Network": "10.244.0.0/16"}"#);
        let first = |n: usize| pick(&network, &Taken::default(), 50, &format!("node-{n}"))[0];
        let firsts: HashSet<_> = (0..50).map(first).collect();
        assert!(firsts.len() > 35, "{} different of 50", firsts.len());
        assert_eq!(first(7), first(7));
    }

    proptest! {
        #[test]
        fn what_is_offered_is_free_and_different(
            blocks in prop::collection::vec((0u8..16, 20u8..=28), 0..12), rivals in 0usize..20,
        ) {
            let network = v4(r#"{"Network": "10.244.0.0/20", "SubnetLen": 24}"#);
            let blocks: Vec<Subnet> = blocks.iter().map(|(third, len)| {
                hostnet::vocab::Cidr::new(IpAddr::from([10, 244, *third, 0]), *len).unwrap().subnet()
            }).collect();
            let mut taken = Taken::default();
            taken.extend(blocks.iter().copied());
            let offered = pick(&network, &taken, rivals, "n1");
            let all = (1..16).filter_map(|n| subnet_at(network.network, 24, n));
            let free: Vec<Subnet> = all.filter(|subnet| !blocks.iter().any(|block| block.overlaps(*subnet))).collect();
            prop_assert_eq!(sorted(offered), sorted(free));
        }
    }
}
