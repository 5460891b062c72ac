//! The network configuration on standard input: flannel's keys, with `delegate` for those of the
//! bridge. Unknown keys are ignored, as the specification allows; a known key with a function
//! that is not there is refused, because a pod that silently lacks what was asked for is worse
//! than one that does not start.

use std::net::IpAddr;
use std::path::PathBuf;

use hostnet::vocab::{IfName, Subnet, names};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::is_name;
use crate::error::{CniError, Code};
use crate::version::Version;

/// Where flannel's own plugin kept its rendered configurations, by container id.
const FLANNEL_DIR: &str = "/var/lib/cni/flannel";

/// What every verb needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The version in which to answer.
    pub version: Version,
    /// The network's name, which is also its directory's in host-local's layout.
    pub network: String,
    /// `ipam.dataDir`: where reservations lie, one directory per network.
    pub ipam_dir: PathBuf,
    /// `stateDir`: where attachment records lie.
    pub state_dir: PathBuf,
    /// `dataDir`: where flannel's plugin left a file per container that it attached.
    pub flannel_dir: PathBuf,
}

/// What making an attachment needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `subnetFile`: where flanneld tells of the node's subnet.
    pub subnet_file: PathBuf,
    /// `delegate.bridge`
    pub bridge: IfName,
    /// `delegate.isGateway` (flannel's default: true): the bridge has the gateway's address.
    pub gateway: bool,
    /// `delegate.isDefaultGateway`: pods' default route leads to the bridge.
    pub default_gateway: bool,
    /// `delegate.hairpinMode`
    pub hairpin: bool,
    /// `delegate.portIsolation`
    pub isolated: bool,
    /// `delegate.mtu` in bytes, in place of flanneld's.
    pub mtu: Option<u32>,
    /// `ipam.routes`, beside those to the cluster's networks.
    pub routes: Vec<ConfigRoute>,
}

/// A route asked for in `ipam.routes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct ConfigRoute {
    /// Where to.
    pub dst: Subnet,
    /// By which next hop; the bridge's address if none is given.
    pub gw: Option<IpAddr>,
}

/// A configuration that was decoded, its version and names checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// What every verb needs.
    pub place: Place,
    document: Map<String, Value>,
}

impl Config {
    /// Decodes standard input.
    ///
    /// The error comes with the version in which to tell it: the configuration's own, if it got
    /// that far.
    pub fn decode(bytes: &[u8]) -> Result<Config, (CniError, Version)> {
        let document: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| {
            let what = if bytes.is_empty() {
                "it is empty"
            } else {
                "it is not a JSON object"
            };
            let msg =
                format!("the network configuration on standard input cannot be decoded: {what}");
            let details = error.to_string();
            (
                CniError {
                    details,
                    ..CniError::new(Code::Decode, msg)
                },
                Version::LATEST,
            )
        })?;
        let fields = Fields::document(&document);
        let version = match fields.get::<String>("cniVersion", "a version such as \"1.1.0\"") {
            Ok(None) => Version::UNNAMED,
            Ok(Some(text)) => text.parse().map_err(|error| {
                (
                    CniError::of(Code::IncompatibleVersion, &error),
                    Version::LATEST,
                )
            })?,
            Err(error) => return Err((error, Version::LATEST)),
        };
        let place = place(fields, version).map_err(|error| (error, version))?;
        Ok(Config { place, document })
    }

    /// The result of ADD that CHECK is given.
    pub fn prev_result(&self) -> Result<PrevResult, CniError> {
        let expected = "the result of ADD";
        let given = Fields::document(&self.document).get("prevResult", expected)?;
        given.ok_or_else(|| {
            let msg = format!("prevResult is missing: expected {expected}");
            CniError::new(Code::InvalidConfig, msg)
        })
    }

    /// Refuses to be another than the first plugin of a list.
    pub fn refuse_prev_result(&self) -> Result<(), CniError> {
        let document = Fields::document(&self.document);
        match document.value("prevResult") {
            None => Ok(()),
            Some(value) => {
                let brief = Value::from(if value.is_object() {
                    "given"
                } else {
                    "no object"
                });
                let expected = "none: twill-cni must be the first plugin of its list";
                Err(document.wrong("prevResult", &brief, expected))
            }
        }
    }

    /// The attachments that stand, as GC is told. `None` where the key is absent: nothing is
    /// known then. `null` says as an empty list that none stands.
    pub fn valid_attachments(&self) -> Result<Option<Vec<ValidAttachment>>, CniError> {
        let key = "cni.dev/valid-attachments";
        if !self.document.contains_key(key) {
            return Ok(None);
        }
        let expected = "a list of {\"containerID\": \"…\", \"ifname\": \"…\"}";
        let listed = Fields::document(&self.document).get(key, expected)?;
        Ok(Some(listed.unwrap_or_default()))
    }

    /// Reads what making an attachment needs, and refuses what is not supported.
    pub fn settings(&self) -> Result<Settings, CniError> {
        let document = Fields::document(&self.document);
        let delegate = document.object("delegate")?;
        let ipam = document.object("ipam")?;
        refuse_unsupported(document, delegate, ipam)?;
        let default_gateway = delegate.get("isDefaultGateway", BOOL)?.unwrap_or(false);
        Ok(Settings {
            subnet_file: path(document, "subnetFile", names::SUBNET_ENV)?,
            bridge: delegate
                .get("bridge", "an interface's name of at most 15 bytes")?
                .map_or_else(bridge_default, Ok)?,
            gateway: delegate.get("isGateway", BOOL)?.unwrap_or(true) || default_gateway,
            default_gateway,
            hairpin: delegate.get("hairpinMode", BOOL)?.unwrap_or(false),
            isolated: delegate.get("portIsolation", BOOL)?.unwrap_or(false),
            mtu: mtu(delegate)?,
            routes: ipam
                .get(
                    "routes",
                    "a list of {\"dst\": \"10.0.0.0/8\", \"gw\": \"10.244.3.1\"}",
                )?
                .unwrap_or_default(),
        })
    }
}

const BOOL: &str = "true or false";

fn bridge_default() -> Result<IfName, CniError> {
    IfName::new(names::BRIDGE).map_err(|error| CniError::of(Code::InvalidConfig, &error))
}

fn path(fields: Fields<'_>, key: &str, default: &str) -> Result<PathBuf, CniError> {
    let text: Option<String> = fields
        .get(key, "a path")?
        .filter(|text: &String| !text.is_empty());
    Ok(text.map_or_else(|| PathBuf::from(default), PathBuf::from))
}

fn place(fields: Fields<'_>, version: Version) -> Result<Place, CniError> {
    let expected = "a network's name of letters, digits, '_', '.' and '-'";
    let network: String = fields.get("name", expected)?.ok_or_else(|| {
        CniError::new(
            Code::InvalidConfig,
            format!("name is missing: expected {expected}"),
        )
    })?;
    if !is_name(&network) {
        return Err(fields.wrong("name", &Value::String(network), expected));
    }
    Ok(Place {
        version,
        network,
        ipam_dir: path(fields.object("ipam")?, "dataDir", names::IPAM_DIR)?,
        state_dir: path(fields, "stateDir", names::ATTACHMENTS_DIR)?,
        flannel_dir: path(fields, "dataDir", FLANNEL_DIR)?,
    })
}

/// An attachment in `cni.dev/valid-attachments`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface inside it.
    pub ifname: String,
}

/// What CHECK needs of the result of ADD. Plugins behind us may have added to it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
pub struct PrevResult {
    /// The routes.
    #[serde(default)]
    pub routes: Vec<ConfigRoute>,
}

/// The bridge plugin's rule: 0 is the same as none. The bounds are those of `subnet.env`.
fn mtu(delegate: Fields<'_>) -> Result<Option<u32>, CniError> {
    let expected = "bytes from 68 to 65535";
    match delegate.get::<u32>("mtu", expected)? {
        None | Some(0) => Ok(None),
        Some(mtu @ 68..=65535) => Ok(Some(mtu)),
        Some(other) => Err(delegate.wrong("mtu", &Value::from(other), expected)),
    }
}

fn refuse_unsupported(
    document: Fields<'_>,
    delegate: Fields<'_>,
    ipam: Fields<'_>,
) -> Result<(), CniError> {
    // Flannel's rule: what it works out itself must not be given.
    for key in ["name", "ipam"] {
        if let Some(value) = delegate.value(key) {
            return Err(delegate.wrong(key, value, "none: it follows from subnet.env"));
        }
    }
    for (fields, key, only) in [(delegate, "type", "bridge"), (ipam, "type", "host-local")] {
        if let Some(value) = fields.value(key).filter(|value| *value != only) {
            return Err(fields.unsupported(key, value));
        }
    }
    // Off, or zero, or empty is what there is without the function.
    let off = |value: &&Value| match value {
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(keys) => !keys.is_empty(),
        Value::Null => false,
    };
    for key in [
        "disableContainerInterface",
        "enabledad",
        "ipMasq",
        "macspoofchk",
        "promiscMode",
        "vlan",
        "vlanTrunk",
    ] {
        if let Some(value) = delegate.value(key).filter(off) {
            return Err(delegate.unsupported(key, value));
        }
    }
    if let Some(value) = ipam.value("resolvConf").filter(off) {
        return Err(ipam.unsupported("resolvConf", value));
    }
    let runtime = document.object("runtimeConfig")?;
    for key in ["bandwidth", "ipRanges", "ips", "mac"] {
        if let Some(value) = runtime.value(key).filter(off) {
            return Err(runtime.unsupported(key, value));
        }
    }
    match runtime.value("portMappings") {
        // A host port of 0 means none.
        Some(Value::Array(ports)) => {
            match ports
                .iter()
                .find(|port| port.get("hostPort").filter(off).is_some())
            {
                Some(port) => Err(runtime.unsupported("portMappings", port)),
                None => Ok(()),
            }
        }
        Some(other) => Err(runtime.wrong("portMappings", other, "a list")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(json: &str) -> Result<Settings, CniError> {
        Config::decode(json.as_bytes())
            .map_err(|(error, _)| error)?
            .settings()
    }

    const MINIMAL: &str = r#"{"cniVersion":"1.1.0","name":"cbr0","type":"twill-cni"}"#;

    fn with(extra: &str) -> String {
        MINIMAL.replace('}', &format!(",{extra}}}"))
    }

    #[test]
    fn flannels_conflist_entry_is_understood() {
        let json = with(
            r#""delegate":{"hairpinMode":true,"isDefaultGateway":true,"forceAddress":true},"future":1"#,
        );
        let config = Config::decode(json.as_bytes()).unwrap();
        assert_eq!(config.place.network, "cbr0");
        assert_eq!(
            config.place.ipam_dir.to_str(),
            Some("/var/lib/cni/networks")
        );
        assert_eq!(config.place.state_dir.to_str(), Some("/var/lib/cni/twill"));
        let settings = config.settings().unwrap();
        assert_eq!(settings.bridge, "cni0");
        assert!(
            settings.hairpin && settings.default_gateway && settings.gateway && !settings.isolated
        );
        assert_eq!(
            settings.subnet_file.to_str(),
            Some("/run/flannel/subnet.env")
        );
    }

    #[test]
    fn paths_can_be_moved() {
        let json = with(
            r#""dataDir":"/a","stateDir":"/b","subnetFile":"/c","ipam":{"dataDir":"/d","type":"host-local"}"#,
        );
        let config = Config::decode(json.as_bytes()).unwrap();
        let place = &config.place;
        assert_eq!(
            [
                &place.flannel_dir,
                &place.state_dir,
                &config.settings().unwrap().subnet_file,
                &place.ipam_dir
            ],
            ["/a", "/b", "/c", "/d"].map(PathBuf::from).each_ref()
        );
    }

    #[test]
    fn no_version_means_the_oldest() {
        let config = Config::decode(br#"{"name":"n"}"#).unwrap();
        assert_eq!(config.place.version, Version::V0_1_0);
    }

    #[test]
    fn wrong_values_are_named_with_their_keys() {
        for (extra, code, msg) in [
            (
                r#""delegate":{"hairpinMode":"yes"}"#,
                Code::InvalidConfig,
                r#"delegate.hairpinMode is "yes": expected true or false"#,
            ),
            (
                r#""delegate":{"mtu":70000}"#,
                Code::InvalidConfig,
                "delegate.mtu is 70000: expected bytes from 68 to 65535",
            ),
            (
                r#""delegate":[1]"#,
                Code::InvalidConfig,
                "delegate is [1]: expected an object",
            ),
            (
                r#""delegate":{"bridge":"a/b"}"#,
                Code::InvalidConfig,
                r#"delegate.bridge is "a/b": expected an interface's name of at most 15 bytes"#,
            ),
            (
                r#""delegate":{"vlan":7}"#,
                Code::UnsupportedField,
                "delegate.vlan is 7: this is not supported",
            ),
            (
                r#""delegate":{"ipam":{}}"#,
                Code::InvalidConfig,
                "delegate.ipam is {}: expected none: it follows from subnet.env",
            ),
            (
                r#""ipam":{"type":"dhcp"}"#,
                Code::UnsupportedField,
                r#"ipam.type is "dhcp": this is not supported"#,
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80}]}"#,
                Code::UnsupportedField,
                r#"runtimeConfig.portMappings is {"hostPort":80}: this is not supported"#,
            ),
            (
                r#""subnetFile":5"#,
                Code::InvalidConfig,
                "subnetFile is 5: expected a path",
            ),
        ] {
            let error = decode(&with(extra)).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (code, msg));
        }
        let error = decode(r#"{"name":"../x"}"#).unwrap_err();
        assert!(
            error.msg.starts_with(r#"name is "../x": expected"#),
            "{error}"
        );
        assert!(decode("{}").unwrap_err().msg.starts_with("name is missing"));
        assert_eq!(decode("").unwrap_err().code, Code::Decode);
        assert_eq!(decode("[]").unwrap_err().code, Code::Decode);
        let error = decode(r#"{"cniVersion":"9.9.9","name":"n"}"#).unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion);
    }

    #[test]
    fn what_is_off_is_no_reason_to_refuse() {
        decode(&with(
            r#""delegate":{"vlan":0,"ipMasq":false,"vlanTrunk":[],"promiscMode":false,"type":"bridge"},
               "runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80}],"bandwidth":{},"ips":[]}"#,
        ))
        .unwrap();
    }
}
