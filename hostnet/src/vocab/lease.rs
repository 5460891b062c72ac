//! The name of the Lease that holds a subnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Subnet;

const PREFIX: &str = "subnet";

/// `subnet-10-244-3-0-24`; IPv6 with all eight groups, `subnet-fd00-10-244-3-0-0-0-0-64`. One subnet has one name.
pub fn lease_name(subnet: Subnet) -> String {
    format!("{PREFIX}-{}", dashed(subnet))
}

/// The subnet with dashes in place of dots, colons and the slash: it can be a label's value, too.
pub fn dashed(subnet: Subnet) -> String {
    let parts: Vec<String> = match subnet.base() {
        IpAddr::V4(v4) => v4.octets().iter().map(|part| part.to_string()).collect(),
        IpAddr::V6(v6) => v6
            .segments()
            .iter()
            .map(|part| format!("{part:x}"))
            .collect(),
    };
    format!("{}-{}", parts.join("-"), subnet.prefix())
}

/// The subnet that a Lease of this name holds; `None` if the name is no subnet's.
pub fn parse_lease_name(name: &str) -> Option<Subnet> {
    let parts: Vec<&str> = name
        .strip_prefix(PREFIX)?
        .strip_prefix('-')?
        .split('-')
        .collect();
    let (prefix, addr) = parts.split_last()?;
    let addr = match addr.len() {
        4 => {
            let mut octets = [0; 4];
            octets
                .iter_mut()
                .zip(addr)
                .try_for_each(|(octet, part)| part.parse().map(|n| *octet = n))
                .ok()?;
            IpAddr::from(Ipv4Addr::from(octets))
        }
        8 => {
            let mut groups = [0; 8];
            let read = |part: &&str| u16::from_str_radix(part, 16);
            groups
                .iter_mut()
                .zip(addr)
                .try_for_each(|(group, part)| read(part).map(|n| *group = n))
                .ok()?;
            IpAddr::from(Ipv6Addr::from(groups))
        }
        _ => return None,
    };
    let subnet = Subnet::new(addr, prefix.parse().ok()?).ok()?;
    // Only the one way to write it counts: no leading zeroes or signs.
    (lease_name(subnet) == name).then_some(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::Cidr;
    use proptest::prelude::*;

    #[test]
    fn names_are_as_documented() {
        for (subnet, name) in [
            ("10.244.3.0/24", "subnet-10-244-3-0-24"),
            ("fd00:10:244:3::/64", "subnet-fd00-10-244-3-0-0-0-0-64"),
        ] {
            assert_eq!(lease_name(subnet.parse().unwrap()), name);
            assert_eq!(parse_lease_name(name), Some(subnet.parse().unwrap()));
        }
    }

    #[test]
    fn other_names_are_no_subnets() {
        for name in [
            "",
            "subnet",
            "subnet-",
            "node-10-244-3-0-24",
            "subnet-10-244-3-24",
            "subnet-10-244-03-0-24",
            "subnet-10-244-3-1-24",
            "subnet-10-244-3-0-33",
            "subnet-10-244-256-0-24",
            "subnet-10-244-3-0-+24",
            "subnet-FD00-10-244-3-0-0-0-0-64",
            "subnet-10-244-3-0-24-",
        ] {
            assert_eq!(parse_lease_name(name), None, "{name}");
        }
    }

    fn any_subnet() -> impl Strategy<Value = Subnet> {
        prop_oneof![
            (any::<u32>(), 0u8..=32)
                .prop_map(|(bits, len)| (IpAddr::from(Ipv4Addr::from_bits(bits)), len)),
            (any::<u128>(), 0u8..=128)
                .prop_map(|(bits, len)| (IpAddr::from(Ipv6Addr::from_bits(bits)), len)),
        ]
        .prop_map(|(addr, len)| Cidr::new(addr, len).unwrap().subnet())
    }

    proptest! {
        #[test]
        fn a_name_is_one_subnets(subnet in any_subnet()) {
            let name = lease_name(subnet);
            prop_assert_eq!(parse_lease_name(&name), Some(subnet));
            // RFC 1123: an object's name.
            prop_assert!(name.len() <= 63 && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')));
        }

        #[test]
        fn no_text_makes_it_panic(name in "subnet-[0-9a-f-]{0,50}") {
            if let Some(subnet) = parse_lease_name(&name) {
                prop_assert_eq!(lease_name(subnet), name);
            }
        }
    }
}
