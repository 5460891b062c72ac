//! `subnet.env`, the file by which flanneld tells the CNI plugin of this node's subnet: flannel's
//! keys, so that either daemon serves either plugin.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use super::{Cidr, CidrError, Family, Subnet};

/// The contents of `subnet.env`. At least one family has both networks and a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// IPv4: `FLANNEL_NETWORK` and `FLANNEL_SUBNET`.
    pub v4: Option<FamilyEnv>,
    /// IPv6: `FLANNEL_IPV6_NETWORK` and `FLANNEL_IPV6_SUBNET`.
    pub v6: Option<FamilyEnv>,
    /// `FLANNEL_MTU`: the MTU of pods' interfaces in bytes.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: whether flanneld masquerades the pods' traffic, so that the plugin must
    /// not.
    pub ip_masq: bool,
}

/// One family's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyEnv {
    /// The networks of all nodes' pods; at least one, in the file's order.
    pub networks: Vec<Subnet>,
    /// This node's subnet, with the address of the bridge: `10.244.3.1/24`.
    pub subnet: Cidr,
}

/// What is wrong with the text of a `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetEnvError {
    /// A line without `=`.
    #[error("line {number} is not KEY=VALUE: {line:?}")]
    Line {
        /// Counted from one.
        number: usize,
        /// The line.
        line: String,
    },
    /// A network or subnet that cannot be read.
    #[error("{key}={value:?}: {source}")]
    Cidr {
        /// The key.
        key: &'static str,
        /// Its whole value.
        value: String,
        /// Why.
        source: CidrError,
    },
    /// An address of the other family.
    #[error("{key}={value:?}: expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its whole value.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A key that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Neither family is given.
    #[error("neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET is given")]
    NoSubnet,
}

struct Keys {
    network: &'static str,
    subnet: &'static str,
    expected: &'static str,
}

fn keys(family: Family) -> Keys {
    match family {
        Family::V4 => Keys {
            network: "FLANNEL_NETWORK",
            subnet: "FLANNEL_SUBNET",
            expected: "IPv4 addresses",
        },
        Family::V6 => Keys {
            network: "FLANNEL_IPV6_NETWORK",
            subnet: "FLANNEL_IPV6_SUBNET",
            expected: "IPv6 addresses",
        },
    }
}

const MTU: &str = "FLANNEL_MTU";
const IP_MASQ: &str = "FLANNEL_IPMASQ";

/// The least MTU that carries IPv4 (RFC 791), and the most that a device can have.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

impl SubnetEnv {
    /// The part of a family, if given.
    pub fn family(&self, family: Family) -> Option<&FamilyEnv> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The families that are given, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = &FamilyEnv> {
        self.v4.iter().chain(&self.v6)
    }
}

impl FromStr for SubnetEnv {
    type Err = SubnetEnvError;

    /// Reads the file's text. Empty lines and `#` comments are passed over, as are unknown keys
    /// (a newer flannel may have some); of a key given twice the last counts, as in a shell.
    fn from_str(text: &str) -> Result<SubnetEnv, SubnetEnvError> {
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| SubnetEnvError::Line {
                number: index + 1,
                line: line.to_owned(),
            })?;
            lines.push((key, value));
        }
        let get = |key: &'static str| {
            lines
                .iter()
                .rev()
                .find(|(k, v)| *k == key && !v.is_empty())
                .map(|(_, value)| *value)
        };
        let v4 = family_part(Family::V4, get)?;
        let v6 = family_part(Family::V6, get)?;
        if v4.is_none() && v6.is_none() {
            return Err(SubnetEnvError::NoSubnet);
        }
        let mtu = get(MTU).ok_or(SubnetEnvError::Missing(MTU))?;
        let ip_masq = get(IP_MASQ).ok_or(SubnetEnvError::Missing(IP_MASQ))?;
        let wrong = |key, value: &str, expected| SubnetEnvError::Value {
            key,
            value: value.to_owned(),
            expected,
        };
        Ok(SubnetEnv {
            v4,
            v6,
            mtu: mtu
                .parse()
                .ok()
                .filter(|mtu| MTU_RANGE.contains(mtu))
                .ok_or_else(|| wrong(MTU, mtu, "bytes from 68 to 65535"))?,
            ip_masq: ip_masq
                .parse()
                .map_err(|_| wrong(IP_MASQ, ip_masq, "true or false"))?,
        })
    }
}

fn family_part<'a>(
    family: Family,
    get: impl Fn(&'static str) -> Option<&'a str>,
) -> Result<Option<FamilyEnv>, SubnetEnvError> {
    let keys = keys(family);
    let bad = |key, value: &str, source| SubnetEnvError::Cidr {
        key,
        value: value.to_owned(),
        source,
    };
    let other_family = |key, value: &str| SubnetEnvError::Value {
        key,
        value: value.to_owned(),
        expected: keys.expected,
    };
    let (network, subnet) = match (get(keys.network), get(keys.subnet)) {
        (None, None) => return Ok(None),
        (Some(network), Some(subnet)) => (network, subnet),
        (None, Some(_)) => return Err(SubnetEnvError::Missing(keys.network)),
        (Some(_), None) => return Err(SubnetEnvError::Missing(keys.subnet)),
    };
    let mut networks = Vec::new();
    for part in network.split(',') {
        // Flannel writes the configured Network as it stands; only its network part counts.
        let part: Cidr = part
            .trim()
            .parse()
            .map_err(|e| bad(keys.network, network, e))?;
        if part.family() != family {
            return Err(other_family(keys.network, network));
        }
        networks.push(part.subnet());
    }
    let cidr: Cidr = subnet.parse().map_err(|e| bad(keys.subnet, subnet, e))?;
    if cidr.family() != family {
        return Err(other_family(keys.subnet, subnet));
    }
    Ok(Some(FamilyEnv {
        networks,
        subnet: cidr,
    }))
}

impl fmt::Display for SubnetEnv {
    /// Writes the file's text, keys in flannel's order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in Family::ALL {
            let Some(part) = self.family(family) else {
                continue;
            };
            let keys = keys(family);
            let mut networks = String::new();
            for (index, network) in part.networks.iter().enumerate() {
                write!(networks, "{}{network}", if index == 0 { "" } else { "," })?;
            }
            writeln!(f, "{}={networks}", keys.network)?;
            writeln!(f, "{}={}", keys.subnet, part.subnet)?;
        }
        writeln!(f, "{MTU}={}", self.mtu)?;
        writeln!(f, "{IP_MASQ}={}", self.ip_masq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:3::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn flannels_file_reads_and_writes_back() {
        let env: SubnetEnv = DUAL.parse().unwrap();
        assert_eq!(env.v4.as_ref().unwrap().networks.len(), 2);
        assert_eq!(env.v4.as_ref().unwrap().subnet.to_string(), "10.244.3.1/24");
        assert_eq!((env.mtu, env.ip_masq), (1450, true));
        assert_eq!(env.to_string(), DUAL);
    }

    #[test]
    fn one_family_is_enough() {
        let text = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:3::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";
        let env: SubnetEnv = text.parse().unwrap();
        assert!(env.v4.is_none());
        assert_eq!(env.to_string(), text);
    }

    #[test]
    fn comments_blank_lines_and_unknown_keys_are_passed_over() {
        let text = format!("# made by flanneld\n\nFLANNEL_FUTURE=1\r\n{DUAL}");
        assert_eq!(text.parse::<SubnetEnv>().unwrap(), DUAL.parse().unwrap());
    }

    #[test]
    fn errors_name_the_key_and_the_value() {
        let with = |from: &str, to: &str| {
            DUAL.replace(from, to)
                .parse::<SubnetEnv>()
                .unwrap_err()
                .to_string()
        };
        assert_eq!(with("FLANNEL_MTU=1450\n", ""), "FLANNEL_MTU is missing");
        assert_eq!(
            with("=1450", "=67"),
            "FLANNEL_MTU=\"67\": expected bytes from 68 to 65535"
        );
        assert_eq!(
            with("=true", "=yes"),
            "FLANNEL_IPMASQ=\"yes\": expected true or false"
        );
        assert_eq!(
            with("FLANNEL_SUBNET=10.244.3.1/24\n", ""),
            "FLANNEL_SUBNET is missing"
        );
        assert!(
            with("=10.244.3.1/24", "=10.244.3.1").starts_with("FLANNEL_SUBNET=\"10.244.3.1\": ")
        );
        assert_eq!(
            with("=10.244.3.1/24", "=fd00::1/64"),
            "FLANNEL_SUBNET=\"fd00::1/64\": expected IPv4 addresses"
        );
        assert!(
            with(",10.245", ",x.245")
                .starts_with("FLANNEL_NETWORK=\"10.244.0.0/16,x.245.0.0/16\": ")
        );
        assert_eq!(
            "garbage".parse::<SubnetEnv>().unwrap_err().to_string(),
            "line 1 is not KEY=VALUE: \"garbage\""
        );
        assert_eq!(
            "".parse::<SubnetEnv>().unwrap_err(),
            SubnetEnvError::NoSubnet
        );
    }
}
