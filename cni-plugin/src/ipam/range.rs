//! A range of addresses and the order in which they are tried. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostnet::vocab::{Cidr, Family, Subnet};

/// Addresses of a subnet that pods may have: never the network's own, the gateway's or, in IPv4,
/// the broadcast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: Subnet,
    gateway: Cidr,
    /// The places after the subnet's base of the first and last address.
    first: u128,
    last: u128,
}

/// A range that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// It has no address for a pod.
    #[error("the subnet {0} is too small: beside the gateway no address is left for a pod")]
    TooSmall(Subnet),
    /// A bound or the gateway is not in the subnet.
    #[error("{key} {addr} is outside of {subnet}")]
    Outside {
        /// `rangeStart`, `rangeEnd` or `gateway`.
        key: &'static str,
        /// Its value.
        addr: IpAddr,
        /// The subnet.
        subnet: Subnet,
    },
    /// The bounds are the wrong way round, or leave nothing between them.
    #[error("rangeEnd {end} is before rangeStart {start}, or nothing is left between them")]
    Empty {
        /// The first address.
        start: IpAddr,
        /// The last one.
        end: IpAddr,
    },
    /// A set without ranges.
    #[error("a set of ranges has at least one")]
    NoRange,
    /// Two ranges of a set share an address.
    #[error("{0} overlaps with {1}")]
    Overlap(Box<Range>, Box<Range>),
    /// A set that mixes families.
    #[error("a set of ranges is of one family, and has {0} and {1}")]
    Families(Subnet, Subnet),
}

impl Range {
    /// The range of a whole subnet.
    pub fn of_subnet(subnet: Subnet) -> Result<Range, RangeError> {
        Range::new(subnet, None, None, None)
    }

    /// A range of a subnet, from `start` to `end`, both included; all of it if not given. The
    /// gateway is the subnet's first address if not given.
    pub fn new(
        subnet: Subnet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Range, RangeError> {
        for (key, addr) in [
            ("rangeStart", start),
            ("rangeEnd", end),
            ("gateway", gateway),
        ] {
            if let Some(addr) = addr.filter(|addr| !subnet.contains(*addr)) {
                return Err(RangeError::Outside { key, addr, subnet });
            }
        }
        let size = offset(subnet.base(), subnet.last());
        let usable_end = match subnet.family() {
            Family::V4 => size.saturating_sub(1),
            Family::V6 => size,
        };
        let too_small = RangeError::TooSmall(subnet);
        let gateway = match gateway {
            Some(addr) => Cidr::new(addr, subnet.prefix()).ok(),
            None => subnet.gateway(),
        };
        let gateway = gateway.ok_or(too_small.clone())?;
        let place = |addr| offset(subnet.base(), addr);
        let first = start.map_or(1, place).max(1);
        let last = end.map_or(usable_end, place).min(usable_end);
        let range = Range {
            subnet,
            gateway,
            first,
            last,
        };
        if (range.first..=range.last).any(|place| subnet.nth(place) != Some(gateway.addr())) {
            return Ok(range);
        }
        Err(match (start, end) {
            (None, None) => too_small,
            _ => RangeError::Empty {
                start: start.unwrap_or(subnet.base()),
                end: end.unwrap_or(subnet.last()),
            },
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

    /// Whether a pod may have the address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.subnet.contains(addr)
            && (self.first..=self.last).contains(&offset(self.subnet.base(), addr))
            && addr != self.gateway.addr()
    }

    fn overlaps(&self, other: &Range) -> bool {
        let ends = |range: &Range| [range.first, range.last].map(|n| range.subnet.nth(n));
        let ([a, b], [c, d]) = (ends(self), ends(other));
        self.subnet.family() == other.subnet.family() && a <= d && c <= b
    }

    /// The addresses from one place to another.
    fn between(self, from: u128, to: u128) -> impl Iterator<Item = IpAddr> {
        (from..=to)
            .filter_map(move |place| self.subnet.nth(place))
            .filter(move |addr| *addr != self.gateway.addr())
    }

    /// The place from which on to try after an address was given out. One from elsewhere (the
    /// node's subnet has changed), or the last one, counts as none.
    fn place_after(&self, last: IpAddr) -> Option<u128> {
        Some(last)
            .filter(|addr| self.subnet.contains(*addr))
            .map(|addr| offset(self.subnet.base(), addr) + 1)
            .filter(|place| (self.first + 1..=self.last + 1).contains(place))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_gateway = |place| self.subnet.nth(place) == Some(self.gateway.addr());
        let first = self.first + u128::from(is_gateway(self.first));
        let last = self.last - u128::from(is_gateway(self.last));
        match (self.subnet.nth(first), self.subnet.nth(last)) {
            (Some(first), Some(last)) => write!(f, "{first}-{last}"),
            _ => write!(f, "{}", self.subnet),
        }
    }
}

/// Ranges of one family of which a pod gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// A set of ranges that do not overlap.
    pub fn new(ranges: Vec<Range>) -> Result<RangeSet, RangeError> {
        let first = ranges.first().ok_or(RangeError::NoRange)?;
        for (index, range) in ranges.iter().enumerate() {
            if range.subnet.family() != first.subnet.family() {
                return Err(RangeError::Families(first.subnet, range.subnet));
            }
            if let Some(other) = ranges[..index].iter().find(|other| other.overlaps(range)) {
                return Err(RangeError::Overlap(Box::new(*range), Box::new(*other)));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// The ranges; at least one.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The range that an address lies in.
    pub fn range_of(&self, addr: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(addr))
    }

    /// Whether two sets share an address.
    pub fn overlaps(&self, other: &RangeSet) -> bool {
        self.0
            .iter()
            .any(|range| other.0.iter().any(|other| range.overlaps(other)))
    }

    /// The family of all its addresses; `None` of an empty set, which there is not.
    pub fn family(&self) -> Option<Family> {
        self.0.first().map(|range| range.subnet.family())
    }

    /// Each address once, in the order in which to try them: round robin from the one after
    /// `last`, so that an address that was just freed rests.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + use<> {
        let ranges = self.0.clone();
        let start = last.and_then(|last| {
            let found = ranges.iter().enumerate();
            let mut found = found.filter_map(|(n, range)| Some((n, range.place_after(last)?)));
            found.next()
        });
        let (at, place) = start.unwrap_or((0, ranges.first().map_or(0, |range| range.first)));
        let after: Vec<Range> = ranges[at..].into();
        let after = after.into_iter().enumerate();
        let after = after.flat_map(move |(n, range)| {
            range.between(if n == 0 { place } else { range.first }, range.last)
        });
        let before: Vec<Range> = ranges[..=at].into();
        let before = before.into_iter().enumerate();
        let before = before.flat_map(move |(n, range)| {
            let end = if n == at {
                place.saturating_sub(1)
            } else {
                range.last
            };
            range.between(range.first, end)
        });
        after.chain(before)
    }
}

impl From<Range> for RangeSet {
    fn from(range: Range) -> RangeSet {
        RangeSet(vec![range])
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
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
        set_texts(&RangeSet::from(*range), last)
    }

    fn set_texts(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        let last = last.map(|text| text.parse().unwrap());
        set.candidates(last).map(|addr| addr.to_string()).collect()
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
        let first = RangeSet::from(range("fd00::/64"))
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

    #[test]
    fn bounds_and_a_gateway_of_its_own() {
        let ip = |text: &str| Some(text.parse().unwrap());
        let bounded = |start, end, gateway| {
            Range::new(
                "10.0.0.0/29".parse().unwrap(),
                ip(start),
                ip(end),
                ip(gateway),
            )
        };
        let range = bounded("10.0.0.2", "10.0.0.5", "10.0.0.4").unwrap();
        assert_eq!(texts(&range, None), ["10.0.0.2", "10.0.0.3", "10.0.0.5"]);
        assert_eq!(
            texts(&range, Some("10.0.0.3")),
            ["10.0.0.5", "10.0.0.2", "10.0.0.3"]
        );
        assert!(!range.contains("10.0.0.4".parse().unwrap()));
        // The network's and the broadcast address are never given out.
        let range = bounded("10.0.0.0", "10.0.0.7", "10.0.0.6").unwrap();
        assert_eq!(range.to_string(), "10.0.0.1-10.0.0.5");
        bounded("10.0.0.4", "10.0.0.4", "10.0.0.4").unwrap_err();
        bounded("10.0.0.5", "10.0.0.4", "10.0.0.1").unwrap_err();
    }

    #[test]
    fn a_set_is_one_round() {
        let small = |text: &str| {
            let base: IpAddr = text.parse().unwrap();
            let subnet = Cidr::new(base, 30).unwrap().subnet();
            Range::of_subnet(subnet).unwrap()
        };
        let set = RangeSet::new(vec![
            small("10.0.0.0"),
            small("10.0.1.0"),
            small("10.0.2.0"),
        ]);
        let set = set.unwrap();
        let all = ["10.0.0.2", "10.0.1.2", "10.0.2.2"];
        assert_eq!(set_texts(&set, None), all);
        assert_eq!(set_texts(&set, Some(all[2])), all);
        assert_eq!(set_texts(&set, Some(all[0])), [all[1], all[2], all[0]]);
        assert_eq!(set_texts(&set, Some(all[1])), [all[2], all[0], all[1]]);
        RangeSet::new(vec![small("10.0.0.0"), small("10.0.0.0")]).unwrap_err();
    }

    proptest! {
        #[test]
        fn a_round_of_several_ranges_has_every_address_once(
            bounds in prop::collection::vec((1u8..60, 1u8..60, 0u8..64), 1..5), last: u8, which: u8
        ) {
            let ranges: Vec<Range> = bounds.iter().enumerate().filter_map(|(n, (a, b, gateway))| {
                let ip = |low: u8| IpAddr::from(Ipv4Addr::new(10, 0, n as u8, low));
                let subnet = Cidr::new(ip(0), 26).unwrap().subnet();
                Range::new(subnet, Some(ip(*a.min(b))), Some(ip(*a.max(b))), Some(ip(*gateway))).ok()
            }).collect();
            prop_assume!(!ranges.is_empty());
            let set = RangeSet::new(ranges.clone()).unwrap();
            let last = IpAddr::from(Ipv4Addr::new(10, 0, which % 6, last));
            let round: Vec<IpAddr> = set.candidates(Some(last)).collect();
            let mut sorted = round.clone();
            sorted.sort();
            let mut model: Vec<IpAddr> = (0..6u8)
                .flat_map(|n| (0..64u8).map(move |low| IpAddr::from(Ipv4Addr::new(10, 0, n, low))))
                .filter(|addr| ranges.iter().any(|range| range.contains(*addr)))
                .collect();
            model.sort();
            prop_assert_eq!(&sorted, &model);
            // The one that was given out last comes last.
            if model.contains(&last) {
                prop_assert_eq!(round.last(), Some(&last));
            }
        }

        #[test]
        fn every_address_comes_up_exactly_once(prefix in 20u8..=30, base: u32, last: u32) {
            let subnet = Cidr::new(Ipv4Addr::from_bits(base).into(), prefix).unwrap().subnet();
            let range = Range::of_subnet(subnet).unwrap();
            let last = Ipv4Addr::from_bits(last);
            let mut all: Vec<_> = RangeSet::from(range).candidates(Some(last.into())).collect();
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
