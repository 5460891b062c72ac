//! `net-conf.json`: the cluster's network, in flannel's format with two keys of ours.
//!
//! | key | meaning, default |
//! |---|---|
//! | `Network`, `IPv6Network` | the pods' networks |
//! | `EnableIPv4` (true), `EnableIPv6` (false) | which of them are in use |
//! | `SubnetLen`, `IPv6SubnetLen` | a node's prefix length: 24 in a network of /22 or larger (IPv6: 64 of /62), else two more than the network's |
//! | `SubnetMin`, `SubnetMax`, `IPv6…` | first and last subnet that a node may get: the second (the first is left free) and the last |
//! | `Backend` | `Type` vxlan (default), host-gw or alloc, and its settings |
//! | `EnableNFTables` | nft is used whatever it says |
//! | `Allocate` | `auto` (default), `always`, `never`: whether flanneld gives out subnets itself |
//! | `NoMasquerade` | destinations that pods reach with their own address |

use std::net::IpAddr;
use std::ops::RangeInclusive;

use hostnet::vocab::names::{DEFAULT_VNI, VXLAN_PORT};
use hostnet::vocab::{Cidr, Family, Subnet};
use serde_json::Value;

use super::reader::{KeyError, Reader};
use crate::ByFamily;
use crate::backend::least_mtu;

/// The network's configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// The networks of the families in use; at least one.
    pub networks: ByFamily<Network>,
    /// How packets reach other nodes.
    pub backend: Backend,
    /// Whether flanneld gives out subnets itself.
    pub allocate: Allocate,
    /// Destinations that pods reach with their own address, beside the pods' network.
    pub no_masquerade: Vec<Subnet>,
}

/// One family's network, and how it is cut into subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// All nodes' pods.
    pub network: Subnet,
    /// The prefix length of one node's subnet.
    pub subnet_len: u8,
    /// The first subnet that a node may get.
    pub subnet_min: Subnet,
    /// The last subnet that a node may get.
    pub subnet_max: Subnet,
}

/// How packets reach other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Inside UDP.
    Vxlan(Vxlan),
    /// As they are, over a link that all nodes share.
    HostGw,
    /// Not by us: somebody else routes the subnets.
    Alloc,
}

/// The settings of the vxlan backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: u32,
    /// The UDP port, on every node alike.
    pub port: u16,
    /// The underlay's MTU in bytes, if it is less than the interface's.
    pub mtu: Option<u32>,
    /// The group policy extension.
    pub gbp: bool,
    /// The device learns remotes from the packets that come in.
    pub learning: bool,
    /// Nodes on the same link are reached without VXLAN.
    pub direct_routing: bool,
}

/// Whether flanneld gives out subnets itself, where `spec.podCIDRs` is not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocate {
    /// If no controller-manager does.
    #[default]
    Auto,
    /// At once.
    Always,
    /// Never: it waits for the assignment.
    Never,
}

/// A `net-conf.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON.
    #[error("not JSON")]
    Json(#[from] serde_json::Error),
    /// JSON, but no object.
    #[error("expected a JSON object {{…}}")]
    NotAnObject,
    /// Wrong values, all of them.
    #[error("{}", list(.0))]
    Values(Vec<KeyError>),
}

fn list(errors: &[KeyError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

impl Default for Vxlan {
    fn default() -> Vxlan {
        Vxlan {
            vni: DEFAULT_VNI,
            port: VXLAN_PORT,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
        }
    }
}

impl Backend {
    /// Flannel's name for it, which nodes publish.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Vxlan(_) => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Alloc => "alloc",
        }
    }
}

impl NetConf {
    /// Reads the text of `net-conf.json`. Returns the configuration, and a line for each key without
    /// effect and each value that was put right.
    ///
    /// # Errors
    /// All wrong values at once, each with its key and what is allowed.
    pub fn parse(text: &str) -> Result<(NetConf, Vec<String>), Error> {
        let Value::Object(map) = serde_json::from_str(text)? else {
            return Err(Error::NotAnObject);
        };
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        let mut reader = Reader::new("", map, &mut errors, &mut warnings);
        let networks = networks(&mut reader);
        let backend = backend(&mut reader, &networks);
        let allocate = allocate(&mut reader);
        let no_masquerade = no_masquerade(&mut reader);
        if reader.bool("EnableNFTables") == Some(false) {
            reader
                .warnings
                .push("EnableNFTables false has no effect: the rules are in nftables".to_owned());
        }
        reader.finish();
        if !errors.is_empty() {
            return Err(Error::Values(errors));
        }
        let conf = NetConf {
            networks,
            backend,
            allocate,
            no_masquerade,
        };
        Ok((conf, warnings))
    }
}

struct Keys {
    enable: &'static str,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    /// The longest network that is cut into subnets of the usual length.
    usual_up_to: u8,
    usual: u8,
    example: &'static str,
}

const KEYS_V4: Keys = Keys {
    enable: "EnableIPv4",
    network: "Network",
    len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    usual_up_to: 22,
    usual: 24,
    example: "an IPv4 network such as 10.244.0.0/16",
};

const KEYS_V6: Keys = Keys {
    enable: "EnableIPv6",
    network: "IPv6Network",
    len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    usual_up_to: 62,
    usual: 64,
    example: "an IPv6 network such as fd00:10:244::/56",
};

fn networks(reader: &mut Reader<'_>) -> ByFamily<Network> {
    let mut any_enabled = false;
    let networks = ByFamily::from_fn(|family| {
        let (keys, default) = match family {
            Family::V4 => (&KEYS_V4, true),
            Family::V6 => (&KEYS_V6, false),
        };
        let enabled = reader.bool(keys.enable).unwrap_or(default);
        any_enabled |= enabled;
        network(reader, family, keys, enabled).filter(|_| enabled)
    });
    if !any_enabled {
        reader.refuse(
            "EnableIPv4",
            false,
            "without EnableIPv6 there is no network at all",
        );
    }
    networks
}

fn network(reader: &mut Reader<'_>, family: Family, keys: &Keys, enabled: bool) -> Option<Network> {
    // All keys are read even if one is wrong, so that none of them counts as unknown.
    let network = reader.text(keys.network).filter(|text| !text.is_empty());
    let longest = family.bits() - 2;
    let len = reader.number(keys.len, 1..=u32::from(longest));
    let [min, max] = [keys.min, keys.max].map(|key| Some((key, reader.text(key)?)));
    if network.is_some() && !enabled {
        let (network, enable) = (keys.network, keys.enable);
        reader
            .warnings
            .push(format!("{network} has no effect: {enable} is not true"));
    }
    let Some(network) = network else {
        if enabled {
            let why = format!("expected {}, since {} is in use", keys.example, family);
            reader.missing(keys.network, why);
        }
        return None;
    };
    let network = parse_network(reader, keys.network, &network, family, keys.example)?;
    // The first subnet is left free, and two nodes need one each.
    let shortest = network.prefix() + 2;
    if shortest > longest {
        let why = format!(
            "expected /{} or shorter, to be cut into subnets",
            longest - 2
        );
        reader.refuse(keys.network, network, why);
        return None;
    }
    let subnet_len = match len.and_then(|len| u8::try_from(len).ok()) {
        Some(len) if len < shortest => {
            let why = format!("expected a number from {shortest} to {longest} in {network}");
            reader.refuse(keys.len, len, why);
            return None;
        }
        Some(len) => len,
        None if network.prefix() <= keys.usual_up_to => keys.usual,
        None => shortest,
    };
    let nth = |n| subnet_at(network, subnet_len, n);
    let last = nth((1u128 << (subnet_len - network.prefix())) - 1)?;
    let mut either = |given: Option<(&str, String)>, default: Subnet| match given {
        None => Some(default),
        Some((key, text)) => bound(reader, key, &text, network, subnet_len),
    };
    let (subnet_min, subnet_max) = (either(min, nth(1)?)?, either(max, last)?);
    if subnet_min > subnet_max {
        let why = format!(
            "expected {} or higher, from {}",
            subnet_min.base(),
            keys.min
        );
        reader.refuse(keys.max, subnet_max.base(), why);
        return None;
    }
    Some(Network {
        network,
        subnet_len,
        subnet_min,
        subnet_max,
    })
}

fn parse_network(
    reader: &mut Reader<'_>,
    key: &str,
    text: &str,
    family: Family,
    example: &str,
) -> Option<Subnet> {
    match text.parse::<Cidr>() {
        Ok(cidr) if cidr.family() == family => {
            let subnet = cidr.subnet();
            if subnet.base() != cidr.addr() {
                reader
                    .warnings
                    .push(format!("{key} {cidr} is read as {subnet}"));
            }
            Some(subnet)
        }
        _ => {
            reader.refuse(key, format_args!("{text:?}"), format!("expected {example}"));
            None
        }
    }
}

/// The `n`th subnet of `len` bits in `network`, counted from zero.
pub(crate) fn subnet_at(network: Subnet, len: u8, n: u128) -> Option<Subnet> {
    let size = 1u128.checked_shl(u32::from(network.family().bits().checked_sub(len)?))?;
    Subnet::new(network.nth(n.checked_mul(size)?)?, len).ok()
}

/// The first or last subnet, by its first address.
fn bound(
    reader: &mut Reader<'_>,
    key: &str,
    text: &str,
    network: Subnet,
    subnet_len: u8,
) -> Option<Subnet> {
    let subnet = text
        .parse::<IpAddr>()
        .ok()
        .and_then(|addr| Subnet::new(addr, subnet_len).ok())
        .filter(|subnet| network.contains_subnet(*subnet));
    if subnet.is_none() {
        let why = format!("expected the first address of a /{subnet_len} in {network}");
        reader.refuse(key, format_args!("{text:?}"), why);
    }
    subnet
}

fn backend(reader: &mut Reader<'_>, networks: &ByFamily<Network>) -> Backend {
    const OBJECT: &str = r#"an object such as {"Type": "vxlan"}"#;
    let map = reader
        .get("Backend", OBJECT, |value| value.as_object().cloned())
        .unwrap_or_default();
    let mut reader = Reader::new("Backend.", map, reader.errors, reader.warnings);
    let kind = reader.text("Type").unwrap_or_default();
    let backend = match kind.to_ascii_lowercase().as_str() {
        "" | "vxlan" => Backend::Vxlan(vxlan_conf(&mut reader, networks)),
        "host-gw" => Backend::HostGw,
        "alloc" => Backend::Alloc,
        _ => {
            let why = "expected \"vxlan\", \"host-gw\" or \"alloc\"; no other backend is built in";
            reader.refuse("Type", format_args!("{kind:?}"), why);
            // What belongs to another backend is not unknown, only out of place.
            return Backend::Alloc;
        }
    };
    reader.finish();
    backend
}

fn vxlan_conf(reader: &mut Reader<'_>, networks: &ByFamily<Network>) -> Vxlan {
    let defaults = Vxlan::default();
    Vxlan {
        vni: reader.number("VNI", vnis(networks)).unwrap_or(defaults.vni),
        // Flannel leaves 0 to the kernel, whose own default this is.
        port: reader
            .number("Port", 0..=u16::MAX.into())
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
            .unwrap_or(defaults.port),
        mtu: mtu(reader, networks),
        gbp: reader.bool("GBP").unwrap_or(defaults.gbp),
        learning: reader.bool("Learning").unwrap_or(defaults.learning),
        direct_routing: reader
            .bool("DirectRouting")
            .unwrap_or(defaults.direct_routing),
    }
}

/// The network identifiers that fit into 24 bits and into the device's name: of `flannel.N` 15
/// bytes leave seven digits, of `flannel-v6.N` four.
fn vnis(networks: &ByFamily<Network>) -> RangeInclusive<u32> {
    match networks.v6 {
        Some(_) => 0..=9_999,
        None => 0..=9_999_999,
    }
}

/// The underlay's MTU; 0 is as none.
fn mtu(reader: &mut Reader<'_>, networks: &ByFamily<Network>) -> Option<u32> {
    // Of the other settings none has a say in it.
    let backend = Backend::Vxlan(Vxlan::default());
    let least = networks
        .iter()
        .map(|(family, _)| least_mtu(&backend, family));
    let least = least.max().unwrap_or(0);
    let expected = format!("0 or a number from {least} to 65535");
    let mtu = reader.get("MTU", &expected, |value| {
        let mtu = u32::try_from(value.as_u64()?).ok()?;
        (mtu == 0 || (least..=65535).contains(&mtu)).then_some(mtu)
    });
    mtu.filter(|mtu| *mtu != 0)
}

fn allocate(reader: &mut Reader<'_>) -> Allocate {
    let allocate = reader.get(
        "Allocate",
        r#""auto", "always" or "never""#,
        |value| match value.as_str()? {
            "auto" => Some(Allocate::Auto),
            "always" => Some(Allocate::Always),
            "never" => Some(Allocate::Never),
            _ => None,
        },
    );
    allocate.unwrap_or_default()
}

fn no_masquerade(reader: &mut Reader<'_>) -> Vec<Subnet> {
    const KEY: &str = "NoMasquerade";
    const NETWORKS: &str = r#"networks such as ["192.168.0.0/16", "fd00::/8"]"#;
    let list = reader.get(KEY, &format!("a list of {NETWORKS}"), |value| {
        value.as_array().cloned()
    });
    let mut networks = Vec::new();
    for item in list.unwrap_or_default() {
        match item.as_str().and_then(|text| text.parse::<Cidr>().ok()) {
            Some(cidr) => networks.push(cidr.subnet()),
            None => reader.refuse(KEY, item, format!("expected {NETWORKS}")),
        }
    }
    merged(networks)
}

/// Sorted, without networks that another one holds: nf_tables refuses overlapping intervals.
fn merged(mut networks: Vec<Subnet>) -> Vec<Subnet> {
    networks.sort_by_key(|network| (network.family(), network.prefix(), network.base()));
    let mut merged: Vec<Subnet> = Vec::new();
    for network in networks {
        if !merged.iter().any(|wider| wider.contains_subnet(network)) {
            merged.push(network);
        }
    }
    merged.sort();
    merged
}

#[cfg(test)]
mod tests;
