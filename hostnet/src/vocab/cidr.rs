//! Addresses with a prefix length: [`Cidr`] keeps its host bits (an interface's address),
//! [`Subnet`] has none (a route's destination, a node's range).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;

use super::Family;

/// An address with its prefix length, such as `10.244.3.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNetwork);

/// A network without host bits, such as `10.244.3.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet(IpNetwork);

/// A text or pair that is no address with prefix length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `ADDRESS/LENGTH`.
    #[error(
        "{0:?} is not an address with prefix length: expected a form such as 10.244.0.0/16 or fd00::/64"
    )]
    Text(String),
    /// The length is beyond the family's.
    #[error("prefix length {prefix} is too long for {addr}: at most {}", Family::of(*addr).bits())]
    Prefix {
        /// The address.
        addr: IpAddr,
        /// The length asked for.
        prefix: u8,
    },
    /// A network was wanted, and bits are set behind the prefix.
    #[error("{given} has bits set behind its prefix length: did you mean {meant}?")]
    HostBits {
        /// What was given.
        given: Cidr,
        /// The network that holds it.
        meant: Subnet,
    },
}

impl Cidr {
    /// Joins an address and a prefix length in bits.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Cidr, CidrError> {
        IpNetwork::new(addr, prefix)
            .map(Cidr)
            .map_err(|_| CidrError::Prefix { addr, prefix })
    }

    /// The address alone: /32 or /128.
    pub fn host(addr: IpAddr) -> Cidr {
        Cidr(IpNetwork::from(addr))
    }

    /// The address, host bits included.
    pub fn addr(self) -> IpAddr {
        self.0.ip()
    }

    /// The prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.0.prefix()
    }

    /// The family of the address.
    pub fn family(self) -> Family {
        Family::of(self.addr())
    }

    /// The network that the address lies in.
    pub fn subnet(self) -> Subnet {
        Subnet(match self.0 {
            IpNetwork::V4(net) => IpNetwork::V4(masked_v4(net)),
            IpNetwork::V6(net) => IpNetwork::V6(masked_v6(net)),
        })
    }
}

fn masked_v4(net: ipnetwork::Ipv4Network) -> ipnetwork::Ipv4Network {
    // The prefix was checked when `net` was made, so this cannot fail; the fallback is itself.
    ipnetwork::Ipv4Network::new(net.network(), net.prefix()).unwrap_or(net)
}

fn masked_v6(net: ipnetwork::Ipv6Network) -> ipnetwork::Ipv6Network {
    ipnetwork::Ipv6Network::new(net.network(), net.prefix()).unwrap_or(net)
}

impl Subnet {
    /// Joins a network's first address and its prefix length; host bits are refused.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Subnet, CidrError> {
        Subnet::try_from(Cidr::new(addr, prefix)?)
    }

    /// Everything of a family: 0.0.0.0/0 or ::/0.
    pub fn any(family: Family) -> Subnet {
        Subnet(match family {
            Family::V4 => IpNetwork::V4(Ipv4Addr::UNSPECIFIED.into()),
            Family::V6 => IpNetwork::V6(Ipv6Addr::UNSPECIFIED.into()),
        })
        .with_prefix(0)
    }

    /// What of a family is this host's own, whatever its interfaces: 127.0.0.0/8 (RFC 1122), ::1/128 (RFC 4291).
    pub fn loopback(family: Family) -> Subnet {
        let (addr, prefix) = match family {
            Family::V4 => (IpAddr::from([127, 0, 0, 0]), 8),
            Family::V6 => (IpAddr::from(Ipv6Addr::LOCALHOST), 128),
        };
        Subnet::new(addr, prefix).unwrap_or_else(|_| Subnet::host(addr))
    }

    /// The network of one address: /32 or /128.
    pub fn host(addr: IpAddr) -> Subnet {
        Subnet(IpNetwork::from(addr))
    }

    fn with_prefix(self, prefix: u8) -> Subnet {
        Subnet(IpNetwork::new(self.0.ip(), prefix).unwrap_or(self.0))
    }

    /// The first address, the network's own.
    pub fn base(self) -> IpAddr {
        self.0.ip()
    }

    /// The prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.0.prefix()
    }

    /// The family.
    pub fn family(self) -> Family {
        Family::of(self.base())
    }

    /// The last address (for IPv4 the broadcast address, RFC 919).
    pub fn last(self) -> IpAddr {
        self.0.broadcast()
    }

    /// The address `n` places after the base, if it lies inside.
    pub fn nth(self, n: u128) -> Option<IpAddr> {
        let addr = match self.base() {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(
                base.to_bits().checked_add(u32::try_from(n).ok()?)?,
            )),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().checked_add(n)?)),
        };
        self.contains(addr).then_some(addr)
    }

    /// The first address after the base with the subnet's prefix length: by convention the
    /// gateway's, `10.244.3.1/24`. `None` for a network of a single address.
    pub fn gateway(self) -> Option<Cidr> {
        Cidr::new(self.nth(1)?, self.prefix()).ok()
    }

    /// Whether the address lies inside.
    pub fn contains(self, addr: IpAddr) -> bool {
        self.0.contains(addr)
    }

    /// Whether all of `other` lies inside (a network holds itself).
    pub fn contains_subnet(self, other: Subnet) -> bool {
        self.prefix() <= other.prefix() && self.contains(other.base())
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains_subnet(other) || other.contains_subnet(self)
    }
}

impl TryFrom<Cidr> for Subnet {
    type Error = CidrError;

    fn try_from(given: Cidr) -> Result<Subnet, CidrError> {
        let meant = given.subnet();
        if meant.base() == given.addr() {
            Ok(meant)
        } else {
            Err(CidrError::HostBits { given, meant })
        }
    }
}

impl From<Subnet> for Cidr {
    fn from(subnet: Subnet) -> Cidr {
        Cidr(subnet.0)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.prefix())
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix())
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let error = || CidrError::Text(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(error)?;
        let addr: IpAddr = addr.parse().map_err(|_| error())?;
        // `u8::from_str` takes a leading plus sign.
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        Cidr::new(addr, prefix.parse().map_err(|_| error())?)
    }
}

impl FromStr for Subnet {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Subnet, CidrError> {
        Subnet::try_from(text.parse::<Cidr>()?)
    }
}

super::serde_as_text!(Cidr, "an address with prefix length such as 10.244.3.1/24");
super::serde_as_text!(Subnet, "a network such as 10.244.0.0/16");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn host_bits_are_kept_in_a_cidr_and_refused_in_a_subnet() {
        let cidr: Cidr = "10.244.3.1/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.244.3.1/24");
        assert_eq!(cidr.subnet(), subnet("10.244.3.0/24"));
        let error = "10.244.3.1/24".parse::<Subnet>().unwrap_err().to_string();
        assert_eq!(
            error,
            "10.244.3.1/24 has bits set behind its prefix length: did you mean 10.244.3.0/24?"
        );
    }

    #[test]
    fn bad_text_is_named() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "fd00::/x",
        ] {
            assert_eq!(bad.parse::<Cidr>(), Err(CidrError::Text(bad.into())));
        }
        let error = "10.0.0.0/33".parse::<Cidr>().unwrap_err().to_string();
        assert_eq!(
            error,
            "prefix length 33 is too long for 10.0.0.0: at most 32"
        );
    }

    #[test]
    fn places_in_a_subnet() {
        let net = subnet("10.244.3.0/24");
        assert_eq!(net.gateway().unwrap().to_string(), "10.244.3.1/24");
        assert_eq!(net.last().to_string(), "10.244.3.255");
        assert_eq!(net.nth(255), Some(net.last()));
        assert_eq!(net.nth(256), None);
        assert_eq!(subnet("255.255.255.255/32").nth(1), None);
        assert_eq!(subnet("10.0.0.1/32").gateway(), None);
        assert_eq!(
            subnet("fd00:0:0:3::/64").gateway().unwrap().to_string(),
            "fd00:0:0:3::1/64"
        );
        assert_eq!(Subnet::any(Family::V4).to_string(), "0.0.0.0/0");
        assert_eq!(Subnet::any(Family::V6).to_string(), "::/0");
    }

    #[test]
    fn families_never_overlap() {
        assert!(!Subnet::any(Family::V4).overlaps(Subnet::any(Family::V6)));
        assert!(!Subnet::any(Family::V6).contains("10.0.0.1".parse().unwrap()));
    }

    fn any_cidr() -> impl Strategy<Value = Cidr> {
        prop_oneof![
            (any::<u32>(), 0u8..=32)
                .prop_map(|(a, p)| Cidr::new(Ipv4Addr::from_bits(a).into(), p).unwrap()),
            (any::<u128>(), 0u8..=128).prop_map(|(a, p)| Cidr::new(
                Ipv6Addr::from_bits(a).into(),
                p
            )
            .unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn text_round_trip(cidr in any_cidr()) {
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
            prop_assert_eq!(cidr.subnet().to_string().parse::<Subnet>().unwrap(), cidr.subnet());
            let json = serde_json::to_string(&cidr).unwrap();
            prop_assert_eq!(serde_json::from_str::<Cidr>(&json).unwrap(), cidr);
        }

        #[test]
        fn overlap_is_containment_of_a_base(a in any_cidr(), b in any_cidr()) {
            let (a, b) = (a.subnet(), b.subnet());
            prop_assert_eq!(a.overlaps(b), a.contains(b.base()) || b.contains(a.base()));
            prop_assert_eq!(a.overlaps(b), b.overlaps(a));
            prop_assert!(a.overlaps(a));
        }
    }
}
