//! The network configuration on standard input. Unknown keys are ignored, as the specification
//! allows; a known key with a function that is not there is refused, because a pod that silently
//! lacks what was asked for is worse than one that does not start.

use std::path::PathBuf;

use hostnet::vocab::names;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::args::Args;
use super::fields::Fields;
use super::prev::{self, PrevResult};
use super::settings::{self, Settings};
use super::{bridge, ipam, is_name};
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
    /// `ipam.type`, if another program gives the addresses.
    pub foreign_ipam: Option<String>,
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
        let place = place(&fields, version).map_err(|error| (error, version))?;
        Ok(Config { place, document })
    }

    /// The result of the plugins before this one.
    pub fn prev_result(&self) -> Result<Option<PrevResult>, CniError> {
        prev::read(&Fields::document(&self.document))
    }

    /// The result of ADD that CHECK is given, and has to be.
    pub fn checked_result(&self) -> Result<PrevResult, CniError> {
        let missing =
            || Fields::document(&self.document).missing("prevResult", "the result of ADD");
        self.prev_result()?.ok_or_else(missing)
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
    pub fn settings(&self, args: &Args) -> Result<Settings, CniError> {
        settings::read(&Fields::document(&self.document), args)
    }

    /// The keys that mean nothing here, with their paths.
    pub fn unknown_keys(&self) -> Vec<String> {
        let of = |path: &str, known: &[&[&str]]| {
            let object = match path {
                "" => Some(&self.document),
                _ => self.document.get(path).and_then(Value::as_object),
            };
            let keys = object.into_iter().flat_map(Map::keys);
            let unknown = keys.filter(|key| {
                !key.starts_with("cni.dev/") && !known.iter().any(|k| k.contains(&key.as_str()))
            });
            let dot = if path.is_empty() { "" } else { "." };
            unknown
                .map(|key| format!("{path}{dot}{key}"))
                .collect::<Vec<_>>()
        };
        let mut unknown = of("", &[&KEYS, &bridge::KEYS]);
        unknown.extend(of("delegate", &[&DELEGATE_KEYS, &bridge::KEYS]));
        if self.place.foreign_ipam.is_none() {
            unknown.extend(of("ipam", &[&IPAM_KEYS]));
        }
        unknown.extend(of("runtimeConfig", &[&RUNTIME_KEYS]));
        unknown
    }
}

/// What is known at the top of the configuration beside the bridge's keys: libcni's, our own and
/// those of the plugins whose work is done here.
const KEYS: [&str; 24] = [
    "args",
    "backend",
    "capabilities",
    "cniVersion",
    "conditionsV4",
    "conditionsV6",
    "dataDir",
    "delegate",
    "dns",
    "egressBurst",
    "egressRate",
    "externalSetMarkChain",
    "ingressBurst",
    "ingressRate",
    "ipam",
    "markMasqBit",
    "masqAll",
    "name",
    "prevResult",
    "runtimeConfig",
    "snat",
    "stateDir",
    "subnetFile",
    "type",
];
const DELEGATE_KEYS: [&str; 3] = ["ipam", "name", "type"];
const IPAM_KEYS: [&str; 9] = [
    "dataDir",
    "gateway",
    "rangeEnd",
    "rangeStart",
    "ranges",
    "resolvConf",
    "routes",
    "subnet",
    "type",
];
const RUNTIME_KEYS: [&str; 5] = ["bandwidth", "ipRanges", "ips", "mac", "portMappings"];

pub(super) fn path(fields: &Fields<'_>, key: &str, default: &str) -> Result<PathBuf, CniError> {
    let text: Option<String> = fields
        .get(key, "a path")?
        .filter(|text: &String| !text.is_empty());
    Ok(text.map_or_else(|| PathBuf::from(default), PathBuf::from))
}

fn place(fields: &Fields<'_>, version: Version) -> Result<Place, CniError> {
    let expected = "a network's name of letters, digits, '_', '.' and '-'";
    let network: String = fields
        .get("name", expected)?
        .ok_or_else(|| fields.missing("name", expected))?;
    if !is_name(&network) {
        return Err(fields.wrong("name", &Value::String(network), expected));
    }
    let ipam = fields.object("ipam")?;
    Ok(Place {
        version,
        network,
        ipam_dir: path(&ipam, "dataDir", names::IPAM_DIR)?,
        state_dir: path(fields, "stateDir", names::ATTACHMENTS_DIR)?,
        flannel_dir: path(fields, "dataDir", FLANNEL_DIR)?,
        foreign_ipam: ipam::foreign(&ipam)?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::settings::Addressing;

    fn decode(json: &str) -> Result<Settings, CniError> {
        Config::decode(json.as_bytes())
            .map_err(|(error, _)| error)?
            .settings(&Args::default())
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
        let settings = config.settings(&Args::default()).unwrap();
        let bridge = &settings.bridge;
        assert_eq!(bridge.name, "cni0");
        assert!(bridge.hairpin && bridge.default_gateway && bridge.gateway && !bridge.isolated);
        assert_eq!(
            settings.addressing,
            Addressing::SubnetFile("/run/flannel/subnet.env".into())
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
            [&place.flannel_dir, &place.state_dir, &place.ipam_dir],
            ["/a", "/b", "/d"].map(PathBuf::from).each_ref()
        );
        assert_eq!(
            config.settings(&Args::default()).unwrap().addressing,
            Addressing::SubnetFile("/c".into())
        );
    }

    #[test]
    fn keys_that_mean_nothing_are_found() {
        let json = with(
            r#""future":1,"snat":true,"delegate":{"mtu":0,"colour":"red"},"ipam":{"shape":[]},
               "runtimeConfig":{"ips":[],"infinibandGUID":""},"cni.dev/valid-attachments":[]"#,
        );
        let config = Config::decode(json.as_bytes()).unwrap();
        let unknown = [
            "future",
            "delegate.colour",
            "ipam.shape",
            "runtimeConfig.infinibandGUID",
        ];
        assert_eq!(config.unknown_keys(), unknown);
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
                r#""delegate":{"vlan":4095}"#,
                Code::InvalidConfig,
                "delegate.vlan is 4095: expected a VLAN from 1 to 4094, or 0 for none",
            ),
            (
                r#""delegate":{"vlanTrunk":[{"id":5},{"minID":9,"maxID":7}]}"#,
                Code::InvalidConfig,
                "delegate.vlanTrunk[1].maxID is 7: expected a VLAN from minID 9 on",
            ),
            (
                r#""delegate":{"vlanTrunk":[{"minID":9}]}"#,
                Code::InvalidConfig,
                "delegate.vlanTrunk[0].maxID is missing: expected the last VLAN of the run",
            ),
            (
                r#""delegate":{"vlan":7,"vlanTrunk":[{"id":5}]}"#,
                Code::InvalidConfig,
                r#"delegate.vlanTrunk is [{"id":5}]: expected none beside vlan: a port has tags or has not"#,
            ),
            (
                r#""delegate":{"bridge":"a-long-bridge","vlan":100}"#,
                Code::InvalidConfig,
                r#"delegate.vlan: the gateway of the pod's VLAN has its own interface, and "a-long-bridge.100" cannot name a network interface: it is longer than 15 bytes"#,
            ),
            (
                r#""delegate":{"ipam":{}}"#,
                Code::InvalidConfig,
                "delegate.ipam is {}: expected none: it follows from subnet.env",
            ),
            (
                r#""ipam":{"type":"../dhcp"}"#,
                Code::InvalidConfig,
                r#"ipam.type is "../dhcp": expected the name of an IPAM plugin in CNI_PATH"#,
            ),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":80}]}"#,
                Code::InvalidConfig,
                "runtimeConfig.portMappings[0].containerPort is missing: expected a port from 1 to 65535",
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
    fn whose_form_it_is() {
        let kind = |extra: &str| decode(&with(extra)).unwrap().addressing;
        let flannels = Addressing::SubnetFile(names::SUBNET_ENV.into());
        for extra in [
            r#""delegate":{}"#,
            r#""ipam":{"routes":[]}"#,
            r#""ipam":{"type":"host-local"}"#,
            r#""snat":false"#,
        ] {
            assert_eq!(kind(extra), flannels, "{extra}");
        }
        let bridges = r#""bridge":"br0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.1.2.3/24"}"#;
        let Addressing::Ranges(sets) = kind(bridges) else {
            panic!("{bridges}")
        };
        assert_eq!(sets[0].to_string(), "10.1.2.2-10.1.2.254");
        assert_eq!(kind(r#""bridge":"br0""#), Addressing::None);
        assert_eq!(
            kind(r#""ipam":{"type":"static"}"#),
            Addressing::Foreign("static".to_owned())
        );
        let error = decode(&with(r#""bridge":"br0","ipam":{"type":"host-local"}"#)).unwrap_err();
        assert!(error.msg.starts_with("ipam.ranges is missing"), "{error}");
        let error = decode(&with(r#""delegate":{},"ipam":{"subnet":"10.1.2.0/24"}"#)).unwrap_err();
        assert!(error.msg.contains("beside delegate"), "{error}");
    }

    #[test]
    fn ranges_are_checked_before_anything_is_touched() {
        for (ipam, text) in [
            (
                r#"{"ranges":[[{"subnet":"10.0.0.0/31"}]]}"#,
                "ipam.ranges[0][0].subnet: the subnet 10.0.0.0/31 is too small",
            ),
            (
                r#"{"ranges":[[{"subnet":"ten"}]]}"#,
                r#"ipam.ranges[0][0].subnet is "ten": expected a network"#,
            ),
            (
                r#"{"ranges":[[{}]]}"#,
                "ipam.ranges[0][0].subnet is missing",
            ),
            (
                r#"{"ranges":[[]]}"#,
                "ipam.ranges[0]: a set of ranges has at least one",
            ),
            (
                r#"{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.5"}"#,
                "rangeStart 10.0.1.5 is outside of 10.0.0.0/24",
            ),
            (
                r#"{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.5"}"#,
                "rangeEnd 10.0.0.5 is before rangeStart 10.0.0.9",
            ),
            (
                r#"{"subnet":"10.0.0.0/24","gateway":"10.9.0.1"}"#,
                "gateway 10.9.0.1 is outside of 10.0.0.0/24",
            ),
            (
                r#"{"subnet":"10.0.0.0/24","gateway":"x"}"#,
                r#"ipam.gateway is "x""#,
            ),
            (
                r#"{"rangeStart":"10.0.0.9"}"#,
                r#"ipam.rangeStart is "10.0.0.9": expected none without ipam.subnet"#,
            ),
            (
                r#"{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.128/25"}]]}"#,
                "overlaps with",
            ),
            (
                r#"{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.128/25"}]]}"#,
                "overlaps with",
            ),
            (
                r#"{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]}"#,
                "of one family",
            ),
        ] {
            let error = decode(&with(&format!(r#""bridge":"br0","ipam":{ipam}"#))).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.msg.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn the_mac_that_comes_last_wins() {
        let with_args = |args: Args, extra: &str| {
            let config = Config::decode(with(extra).as_bytes()).unwrap();
            config.settings(&args).map(|settings| settings.asked)
        };
        let args = Args {
            mac: Some("02:00:00:00:00:01".to_owned()),
            ips: vec!["10.0.0.7".to_owned()],
            ..Args::default()
        };
        let first = with_args(args.clone(), r#""a":1"#).unwrap();
        assert_eq!(first.mac.unwrap().to_string(), "02:00:00:00:00:01");
        let second = r#""args":{"cni":{"mac":"02:00:00:00:00:02","ips":["10.0.0.8/24"]}}"#;
        let asked = with_args(args.clone(), second).unwrap();
        assert_eq!(asked.mac.unwrap().to_string(), "02:00:00:00:00:02");
        let third = format!(
            r#"{second},"runtimeConfig":{{"mac":"02:00:00:00:00:03","ips":["10.0.0.9","10.0.0.7"]}}"#
        );
        let asked = with_args(args.clone(), &third).unwrap();
        assert_eq!(asked.mac.unwrap().to_string(), "02:00:00:00:00:03");
        let ips: Vec<_> = asked.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.7", "10.0.0.8", "10.0.0.9"]);

        let error = with_args(
            args.clone(),
            r#""runtimeConfig":{"mac":"01:00:00:00:00:03"}"#,
        );
        assert!(error.unwrap_err().msg.starts_with("runtimeConfig.mac is"));
        let bad = Args {
            ips: vec!["nine".to_owned()],
            ..Args::default()
        };
        let error = with_args(bad, r#""a":1"#).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
    }

    #[test]
    fn vlans_are_read_in_order() {
        let json = r#""delegate":{"vlanTrunk":[{"minID":200,"maxID":210},{"id":5},{"id":211,"minID":205,"maxID":206},{}],"preserveDefaultVlan":false}"#;
        let vlans = decode(&with(json)).unwrap().bridge.vlans;
        assert_eq!(vlans.trunk, [(5, 5), (200, 211)]);
        assert!(vlans.only && vlans.access.is_none());
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
