//! A range of addresses and the order in which they are tried. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostnet::vocab::{Cidr, Family, Subnet};

/// The addresses of a subnet that pods may have: all but the network's own, the gateway's (the
/// first after it) and, in IPv4, the broadcast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: Subnet,
    gateway: Cidr,
    /// The places after the subnet's base of the first and last address.
    first: u128,
    last: u128,
}

/// A subnet that has no address for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the subnet {subnet} is too small: beside the gateway no address is left for a pod")]
pub struct RangeError {
    subnet: Subnet,
}

impl Range {
    /// The range of a whole subnet.
    pub fn of_subnet(subnet: Subnet) -> Result<Range, RangeError> {
        let error = RangeError { subnet };
        let gateway = subnet.gateway().ok_or(error)?;
        let size = offset(subnet.base(), subnet.last());
        let last = match subnet.family() {
            Family::V4 => size.saturating_sub(1),
            Family::V6 => size,
        };
        let first = 2;
        if first > last {
            return Err(error);
        }
        Ok(Range {
            subnet,
            gateway,
            first,
            last,
        })
    }

    /// The subnet.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The gateway's address with the subnet's prefix length.
    pub fn gateway_cidr(&self) -> Cidr {
        self.gateway
    }

    /// An address of the range with the subnet's prefix length.
    pub fn cidr(&self, addr: IpAddr) -> Option<Cidr> {
        Cidr::new(addr, self.subnet.prefix()).ok()
    }

    /// Each address once, in the order in which to try them: round robin from the one after
    /// `last`, so that an address that was just freed rests. A `last` from elsewhere (the node's
    /// subnet has changed) counts as none.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + use<> {
        let Range {
            subnet,
            first,
            last: end,
            ..
        } = *self;
        let start = last
            .filter(|addr| subnet.contains(*addr))
            .map(|addr| offset(subnet.base(), addr) + 1)
            .filter(|place| (first..=end).contains(place))
            .unwrap_or(first);
        (start..=end)
            .chain(first..start)
            .filter_map(move |place| subnet.nth(place))
    }
}

/// How many places `addr` is after `base`.
fn offset(base: IpAddr, addr: IpAddr) -> u128 {
    let bits = |addr| match addr {
        IpAddr::V4(v4) => u128::from(Ipv4Addr::to_bits(v4)),
        IpAddr::V6(v6) => Ipv6Addr::to_bits(v6),
    };
    bits(addr).saturating_sub(bits(base))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> Range {
        Range::of_subnet(text.parse().unwrap()).unwrap()
    }

    fn texts(range: &Range, last: Option<&str>) -> Vec<String> {
        let last = last.map(|text| text.parse().unwrap());
        range
            .candidates(last)
            .map(|addr| addr.to_string())
            .collect()
    }

    #[test]
    fn never_the_network_the_gateway_or_the_broadcast_address() {
        let all = texts(&range("10.244.3.0/24"), None);
        assert_eq!(all.len(), 253);
        assert_eq!(
            (all[0].as_str(), all[252].as_str()),
            ("10.244.3.2", "10.244.3.254")
        );
        assert_eq!(texts(&range("10.0.0.4/30"), None), ["10.0.0.6"]);
        assert_eq!(texts(&range("fd00::/126"), None), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn the_round_goes_on_after_the_last_one() {
        let small = range("10.0.0.0/29");
        assert_eq!(
            texts(&small, Some("10.0.0.4")),
            ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        );
        let from_the_start = texts(&small, None);
        for foreign in ["10.0.0.6", "10.0.0.7", "192.0.2.1", "fd00::1"] {
            assert_eq!(texts(&small, Some(foreign)), from_the_start);
        }
    }

    #[test]
    fn huge_ranges_are_not_walked() {
        let first = range("fd00::/64")
            .candidates(Some("fd00::ffff:ffff:ffff:ffff".parse().unwrap()))
            .next();
        assert_eq!(first.unwrap().to_string(), "fd00::2");
    }

    #[test]
    fn a_subnet_without_room_is_named() {
        for text in ["10.0.0.1/32", "10.0.0.0/31", "fd00::/128", "fd00::/127"] {
            let error = Range::of_subnet(text.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_address_comes_up_exactly_once(prefix in 20u8..=30, base: u32, last: u32) {
            let subnet = Cidr::new(Ipv4Addr::from_bits(base).into(), prefix).unwrap().subnet();
            let range = Range::of_subnet(subnet).unwrap();
            let last = Ipv4Addr::from_bits(last);
            let mut all: Vec<_> = range.candidates(Some(last.into())).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), count);
            prop_assert_eq!(count, (1usize << (32 - prefix)) - 3);
            for forbidden in [subnet.base(), subnet.last(), range.gateway_cidr().addr()] {
                prop_assert!(!all.contains(&forbidden));
            }
            prop_assert!(all.iter().all(|addr| subnet.contains(*addr)));
        }
    }
}
