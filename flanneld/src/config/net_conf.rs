//! net-conf.json: the cluster's network, in flannel's keys and with flannel's defaults.
//!
//! The text is read into a JSON object, then key by key into [`NetConf`], so that each error can name the key, the
//! value and what is allowed. A key that is not known is a warning: a newer flannel, or a slip of the pen.

use std::net::IpAddr;

use hostnet::vocab::{Cidr, Family, Subnet, names};
use serde_json::{Map, Value};

/// The cluster's network. At least one family is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// IPv4, unless `EnableIPv4` is false.
    pub v4: Option<Network>,
    /// IPv6, if `EnableIPv6` is true.
    pub v6: Option<Network>,
    /// How packets get to other nodes.
    pub backend: Backend,
    /// When to pick a subnet ourselves.
    pub allocate: Allocate,
}

/// One family's pod network, and how nodes' subnets are cut out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// `Network`: all pods' addresses.
    pub network: Subnet,
    /// `SubnetLen`: prefix length of a node's subnet.
    pub subnet_len: u8,
    /// `SubnetMin`: the first subnet that may be picked.
    pub subnet_min: Subnet,
    /// `SubnetMax`: the last subnet that may be picked.
    pub subnet_max: Subnet,
}

/// How packets get to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN (RFC 7348) in flannel's shape.
    Vxlan(Vxlan),
}

impl Backend {
    /// The name in net-conf.json and in the annotation `backend-type`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
        }
    }
}

/// The settings of the vxlan backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The underlay's MTU in bytes, in place of the interface's.
    pub mtu: Option<u32>,
    /// Group policy extension.
    pub gbp: bool,
    /// Whether the device learns remotes from the packets that come in.
    pub learning: bool,
}

/// Whether to pick a subnet for a Node that has no `spec.podCIDRs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocate {
    /// Unless a controller-manager seems to do it.
    #[default]
    Auto,
    /// Always, at once.
    Always,
    /// Never: wait for `spec.podCIDRs`.
    Never,
}

/// What is wrong with a net-conf.json.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a JSON object.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Not an object.
    #[error(
        "not a JSON object: want {{\"Network\": \"10.244.0.0/16\", \"Backend\": {{\"Type\": \"vxlan\"}}}}"
    )]
    NotAnObject,
    /// A key's value is wrong.
    #[error("{key}: {value} is not allowed: want {want}")]
    Value {
        /// The key, with its parent: `Backend.VNI`.
        key: String,
        /// The value, as JSON.
        value: String,
        /// What is allowed.
        want: String,
    },
    /// A key must be there.
    #[error("{key} is missing: want {want}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What is allowed.
        want: &'static str,
    },
    /// No family is left.
    #[error("EnableIPv4 is false and EnableIPv6 is not true: want at least one of them true")]
    NoFamily,
}

impl NetConf {
    /// Reads the text of a net-conf.json. Returns the configuration, and warnings about keys without effect.
    ///
    /// # Errors
    /// The first key whose value is wrong.
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), Error> {
        let Value::Object(object) = serde_json::from_str(text)? else {
            return Err(Error::NotAnObject);
        };
        let mut keys = Keys {
            prefix: "",
            object,
            warnings: Vec::new(),
        };
        let v4 = keys.bool("EnableIPv4", true)?;
        let v6 = keys.bool("EnableIPv6", false)?;
        let _ = keys.take("EnableNFTables").map(|on| {
            if on == Value::Bool(false) {
                keys.warn("EnableNFTables is false: nftables is used all the same, it is the only way here");
            }
        });
        let conf = Self {
            v4: v4.then(|| network(&mut keys, Family::V4)).transpose()?,
            v6: v6.then(|| network(&mut keys, Family::V6)).transpose()?,
            allocate: keys.word(
                "Allocate",
                &[
                    ("auto", Allocate::Auto),
                    ("always", Allocate::Always),
                    ("never", Allocate::Never),
                ],
            )?,
            backend: backend(&mut keys, v6)?,
        };
        if conf.v4.is_none() && conf.v6.is_none() {
            return Err(Error::NoFamily);
        }
        Ok((conf, keys.finish()))
    }

    /// The network of a family, if it is enabled.
    #[must_use]
    pub fn network(&self, family: Family) -> Option<&Network> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The enabled families' networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.v4.iter().chain(&self.v6)
    }
}

/// A JSON object whose keys are taken out one by one, so that what is left is what nobody knew. As in flannel, upper
/// and lower case do not matter in keys.
struct Keys {
    prefix: &'static str,
    object: Map<String, Value>,
    warnings: Vec<String>,
}

impl Keys {
    fn take(&mut self, key: &str) -> Option<Value> {
        let found = self
            .object
            .keys()
            .find(|k| k.eq_ignore_ascii_case(key))?
            .clone();
        self.object.remove(&found).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, want: impl Into<String>) -> Error {
        // A hostile or broken value may be long; a log line shall not be.
        let value = value.to_string().chars().take(100).collect();
        Error::Value {
            key: format!("{}{key}", self.prefix),
            value,
            want: want.into(),
        }
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    fn bool(&mut self, key: &str, default: bool) -> Result<bool, Error> {
        match self.take(key) {
            None => Ok(default),
            Some(Value::Bool(on)) => Ok(on),
            Some(other) => Err(self.wrong(key, &other, "true or false")),
        }
    }

    fn number(&mut self, key: &str, min: u32, max: u32) -> Result<Option<u32>, Error> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| (min..=max).contains(n))
        {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, &value, format!("a whole number from {min} to {max}"))),
        }
    }

    fn word<T: Copy + Default>(&mut self, key: &str, words: &[(&str, T)]) -> Result<T, Error> {
        let Some(value) = self.take(key) else {
            return Ok(T::default());
        };
        let known = words.iter().find(|(word, _)| value.as_str() == Some(word));
        known.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let allowed: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(key, &value, allowed.join(", "))
        })
    }

    /// An address inside `network`, cut to a subnet of `len` bits.
    fn subnet(
        &mut self,
        key: &str,
        network: Subnet,
        len: u8,
        default: Subnet,
    ) -> Result<Subnet, Error> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        let addr = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        let subnet = addr
            .and_then(|addr| Subnet::new(addr, len).ok())
            .filter(|subnet| network.contains_subnet(*subnet));
        subnet.ok_or_else(|| {
            self.wrong(
                key,
                &value,
                format!("the first address of a /{len} inside {network}"),
            )
        })
    }

    fn finish(mut self) -> Vec<String> {
        for key in self.object.keys() {
            self.warnings.push(format!(
                "{}{key} is not known; it has no effect",
                self.prefix
            ));
        }
        self.warnings
    }
}

/// The keys of one family.
struct NetworkKeys {
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    example: &'static str,
    /// flannel's default prefix length of a subnet, taken where the network leaves it two bits at least.
    default_len: u8,
    /// The longest prefix that leaves a node room for a gateway and pods.
    longest: u8,
}

fn network_keys(family: Family) -> NetworkKeys {
    match family {
        Family::V4 => NetworkKeys {
            network: "Network",
            len: "SubnetLen",
            min: "SubnetMin",
            max: "SubnetMax",
            example: "an IPv4 network such as \"10.244.0.0/16\"",
            default_len: 24,
            longest: 30,
        },
        Family::V6 => NetworkKeys {
            network: "IPv6Network",
            len: "IPv6SubnetLen",
            min: "IPv6SubnetMin",
            max: "IPv6SubnetMax",
            example: "an IPv6 network such as \"fd00:10:244::/56\"",
            default_len: 64,
            longest: 126,
        },
    }
}

fn network(keys: &mut Keys, family: Family) -> Result<Network, Error> {
    let names = network_keys(family);
    let value = keys.take(names.network).ok_or(Error::Missing {
        key: names.network,
        want: names.example,
    })?;
    let cidr: Cidr = value
        .as_str()
        .and_then(|text| text.parse().ok())
        .filter(|cidr: &Cidr| {
            cidr.family() == family && (1..names.longest).contains(&cidr.prefix())
        })
        .ok_or_else(|| keys.wrong(names.network, &value, names.example))?;
    let network = cidr.subnet();
    if network.base() != cidr.addr() {
        keys.warn(format!(
            "{}: {cidr} has bits set behind its prefix length; {network} is taken",
            names.network
        ));
    }
    let default_len = if network.prefix() + 2 <= names.default_len {
        names.default_len
    } else {
        network.prefix() + 2
    };
    let longest = names.longest;
    let subnet_len = keys
        .number(names.len, u32::from(network.prefix()) + 1, longest.into())?
        .and_then(|len| u8::try_from(len).ok())
        .unwrap_or_else(|| default_len.min(longest));
    // As in flannel the first subnet is left out unless asked for; a network of two subnets has no such room.
    let (first, last) = (
        subnet_at(network, subnet_len, 1),
        cut(network.last(), subnet_len),
    );
    let subnet_min = keys.subnet(names.min, network, subnet_len, first.unwrap_or(last))?;
    let subnet_max = keys.subnet(names.max, network, subnet_len, last)?;
    if subnet_max < subnet_min {
        let value = Value::String(subnet_max.base().to_string());
        return Err(keys.wrong(
            names.max,
            &value,
            format!(
                "an address from {}, which is {}, on",
                subnet_min.base(),
                names.min
            ),
        ));
    }
    Ok(Network {
        network,
        subnet_len,
        subnet_min,
        subnet_max,
    })
}

/// The subnet of `len` bits that holds `addr`.
fn cut(addr: IpAddr, len: u8) -> Subnet {
    Cidr::new(addr, len).map_or_else(|_| Subnet::host(addr), Cidr::subnet)
}

/// The `n`th subnet of `len` bits in `network`, counted from zero.
pub(crate) fn subnet_at(network: Subnet, len: u8, n: u128) -> Option<Subnet> {
    let size = 1u128.checked_shl(u32::from(network.family().bits().checked_sub(len)?))?;
    Subnet::new(network.nth(n.checked_mul(size)?)?, len).ok()
}

/// Keys of flannel's other platforms, which mean nothing here.
const WINDOWS: [&str; 2] = ["MacPrefix", "Name"];

fn backend(keys: &mut Keys, v6: bool) -> Result<Backend, Error> {
    let object = match keys.take("Backend") {
        None => Map::new(),
        Some(Value::Object(object)) => object,
        Some(other) => {
            return Err(keys.wrong("Backend", &other, "an object such as {\"Type\": \"vxlan\"}"));
        }
    };
    let mut backend = Keys {
        prefix: "Backend.",
        object,
        warnings: Vec::new(),
    };
    match backend.take("Type") {
        None => (),
        Some(Value::String(kind)) if kind == "vxlan" => (),
        Some(other) => return Err(backend.wrong("Type", &other, "vxlan")),
    }
    // The IPv6 device's name, flannel-v6.VNI, must not be longer than the kernel allows.
    let vni = backend.number("VNI", 1, if v6 { 9_999 } else { 0xff_ffff })?;
    let port = backend
        .number("Port", 0, u16::MAX.into())?
        .and_then(|port| u16::try_from(port).ok());
    let vxlan = Vxlan {
        vni: vni.unwrap_or(names::DEFAULT_VNI),
        port: port.filter(|port| *port != 0).unwrap_or(names::VXLAN_PORT),
        mtu: backend.number("MTU", if v6 { 1_350 } else { 626 }, 65_535)?,
        gbp: backend.bool("GBP", false)?,
        learning: backend.bool("Learning", false)?,
    };
    if backend.bool("DirectRouting", false)? {
        backend.warn(
            "Backend.DirectRouting has no effect: all traffic between nodes goes through VXLAN",
        );
    }
    for key in WINDOWS {
        let _ = backend.take(key);
    }
    let warnings = backend.finish();
    keys.warnings.extend(warnings);
    Ok(Backend::Vxlan(vxlan))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> NetConf {
        let (conf, warnings) = NetConf::parse(text).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        conf
    }

    fn error(text: &str) -> String {
        NetConf::parse(text).unwrap_err().to_string()
    }

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn the_usual_file_has_flannels_defaults() {
        let conf = parse(
            r#"{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#,
        );
        let network = Network {
            network: subnet("10.244.0.0/16"),
            subnet_len: 24,
            subnet_min: subnet("10.244.1.0/24"),
            subnet_max: subnet("10.244.255.0/24"),
        };
        let vxlan = Vxlan {
            vni: 1,
            port: 8472,
            mtu: None,
            gbp: false,
            learning: false,
        };
        let backend = Backend::Vxlan(vxlan);
        assert_eq!(
            conf,
            NetConf {
                v4: Some(network),
                v6: None,
                backend,
                allocate: Allocate::Auto
            }
        );
    }

    #[test]
    fn small_networks_are_cut_two_bits_further() {
        let v4 = parse(r#"{"Network": "10.244.0.0/23"}"#).v4.unwrap();
        assert_eq!(
            (v4.subnet_len, v4.subnet_min),
            (25, subnet("10.244.0.128/25"))
        );
        let conf =
            parse(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/63"}"#);
        assert_eq!((conf.v4, conf.v6.unwrap().subnet_len), (None, 65));
    }

    #[test]
    fn every_key_is_taken() {
        let conf = parse(
            r#"{"network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0",
                "EnableIPv6": true, "IPv6Network": "fd00::/48", "Allocate": "never",
                "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "MTU": 1400, "GBP": true, "Learning": true, "MacPrefix": "0E"}}"#,
        );
        let v4 = conf.v4.unwrap();
        assert_eq!(
            (v4.subnet_min, v4.subnet_max),
            (subnet("10.10.0.0/20"), subnet("10.99.0.0/20"))
        );
        assert_eq!(conf.v6.unwrap().subnet_len, 64);
        assert_eq!(conf.allocate, Allocate::Never);
        let vxlan = Vxlan {
            vni: 7,
            port: 4789,
            mtu: Some(1400),
            gbp: true,
            learning: true,
        };
        assert_eq!(conf.backend, Backend::Vxlan(vxlan));
    }

    #[test]
    fn keys_without_effect_are_named() {
        let text = r#"{"Network": "10.244.0.1/16", "Netwrok": 1, "EnableNFTables": false, "Backend": {"Foo": 1, "DirectRouting": true}}"#;
        let (conf, warnings) = NetConf::parse(text).unwrap();
        assert_eq!(conf.v4.unwrap().network, subnet("10.244.0.0/16"));
        let text = warnings.join("\n");
        for part in [
            "Netwrok",
            "EnableNFTables",
            "Backend.Foo",
            "Backend.DirectRouting",
            "10.244.0.1/16",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn errors_name_key_value_and_what_is_allowed() {
        for (text, parts) in [
            (
                r#"{"Network": "10.244.0.0/33"}"#,
                ["Network", "10.244.0.0/33", "10.244.0.0/16"],
            ),
            (
                r#"{"Network": "fd00::/56"}"#,
                ["Network", "fd00::/56", "IPv4"],
            ),
            (r#"{"Network": 7}"#, ["Network", "7", "IPv4"]),
            (r#"{}"#, ["Network", "missing", "IPv4"]),
            (
                r#"{"Network": "10.244.0.0/16", "SubnetLen": 16}"#,
                ["SubnetLen", "16", "17 to 30"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "SubnetMin": "10.244.1.1"}"#,
                ["SubnetMin", "10.244.1.1", "/24"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "SubnetMax": "10.245.0.0"}"#,
                ["SubnetMax", "10.245.0.0", "10.244.0.0/16"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "SubnetMin": "10.244.9.0", "SubnetMax": "10.244.8.0"}"#,
                ["SubnetMax", "10.244.8.0", "10.244.9.0"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "EnableIPv4": "yes"}"#,
                ["EnableIPv4", "yes", "true or false"],
            ),
            (
                r#"{"EnableIPv4": false}"#,
                ["EnableIPv4", "EnableIPv6", "at least one"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "Allocate": "maybe"}"#,
                ["Allocate", "maybe", "auto, always, never"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "Backend": "vxlan"}"#,
                ["Backend", "vxlan", "object"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}"#,
                ["Backend.Type", "wireguard", "vxlan"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "Backend": {"Port": 66000}}"#,
                ["Backend.Port", "66000", "0 to 65535"],
            ),
            (
                r#"{"Network": "10.244.0.0/16", "Backend": {"VNI": 16777216}}"#,
                ["Backend.VNI", "16777216", "1 to 16777215"],
            ),
            ("[]", ["JSON object", "Network", "vxlan"]),
            ("{", ["JSON", "EOF", "line 1"]),
        ] {
            let error = error(text);
            for part in parts {
                assert!(error.contains(part), "{part:?} in {error:?} for {text}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_network_that_is_read_holds_its_subnets(
            base in any::<u32>(), prefix in 0u8..=32, len in 0u32..=33,
        ) {
            let addr = std::net::Ipv4Addr::from_bits(base);
            let text = format!(r#"{{"Network": "{addr}/{prefix}", "SubnetLen": {len}}}"#);
            if let Ok((conf, _)) = NetConf::parse(&text) {
                let v4 = conf.v4.unwrap();
                prop_assert!(v4.network.contains_subnet(v4.subnet_min) && v4.network.contains_subnet(v4.subnet_max));
                prop_assert!(v4.subnet_min <= v4.subnet_max);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = NetConf::parse(&text);
        }
    }
}
