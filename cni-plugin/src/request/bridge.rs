//! The keys of the bridge: those of the `bridge` plugin, at the top of the configuration or, in
//! flannel's form, in `delegate`.

use hostnet::vocab::{IfName, names};
use serde_json::Value;

use super::fields::Fields;
use super::vlans;
use crate::error::{CniError, Code};
use crate::vlans::Vlans;

/// What the bridge and the pod's cable to it shall be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSettings {
    /// `bridge`
    pub name: IfName,
    /// `isGateway`: the bridge has the gateway's address.
    pub gateway: bool,
    /// `isDefaultGateway`: pods' default route leads to the bridge.
    pub default_gateway: bool,
    /// `forceAddress`: other IPv4 addresses of the bridge are removed.
    pub force_address: bool,
    /// `ipMasq`: what pods send outside is masqueraded by the plugin. `None` follows `subnet.env`.
    pub ip_masq: Option<bool>,
    /// `mtu` in bytes.
    pub mtu: Option<u32>,
    /// `hairpinMode`
    pub hairpin: bool,
    /// `promiscMode`: the bridge receives frames for any MAC.
    pub promisc: bool,
    /// `portIsolation`
    pub isolated: bool,
    /// `macspoofchk`: frames with another source MAC than the pod's are dropped.
    pub mac_spoof_check: bool,
    /// `enabledad`: IPv6 addresses are used only once nobody else has them.
    pub dad: bool,
    /// `disableContainerInterface`: the pod's end stays down.
    pub pod_down: bool,
    /// `vlan`, `vlanTrunk`, `preserveDefaultVlan`
    pub vlans: Vlans,
}

/// The keys that only `bridge` has, by which its configuration is told from flannel's.
pub(super) const KEYS: [&str; 16] = [
    "bridge",
    "disableContainerInterface",
    "enabledad",
    "forceAddress",
    "hairpinMode",
    "ipMasq",
    "ipMasqBackend",
    "isDefaultGateway",
    "isGateway",
    "macspoofchk",
    "mtu",
    "portIsolation",
    "preserveDefaultVlan",
    "promiscMode",
    "vlan",
    "vlanTrunk",
];

/// Reads them. `gateway` is what `isGateway` is if it is not given: flannel's form says true.
pub(super) fn read(fields: &Fields<'_>, gateway: bool) -> Result<BridgeSettings, CniError> {
    let expected = "iptables or nftables (nftables is used for either)";
    match fields.get::<String>("ipMasqBackend", expected)?.as_deref() {
        None | Some("" | "iptables" | "nftables") => {}
        Some(other) => return Err(fields.wrong("ipMasqBackend", &other.into(), expected)),
    }
    let default_gateway = fields.flag("isDefaultGateway")?;
    let settings = BridgeSettings {
        name: fields
            .get("bridge", "an interface's name of at most 15 bytes")?
            .map_or_else(bridge_default, Ok)?,
        gateway: fields.get("isGateway", BOOL)?.unwrap_or(gateway) || default_gateway,
        default_gateway,
        force_address: fields.flag("forceAddress")?,
        ip_masq: fields.get("ipMasq", BOOL)?,
        mtu: mtu(fields)?,
        hairpin: fields.flag("hairpinMode")?,
        promisc: fields.flag("promiscMode")?,
        isolated: fields.flag("portIsolation")?,
        mac_spoof_check: fields.flag("macspoofchk")?,
        dad: fields.flag("enabledad")?,
        pod_down: fields.flag("disableContainerInterface")?,
        vlans: vlans::read(fields)?,
    };
    if settings.hairpin && settings.promisc {
        let expected = "false beside hairpinMode: a frame would come back to its sender twice";
        return Err(fields.wrong("promiscMode", &Value::Bool(true), expected));
    }
    if let Err(error) = settings.vlans.gateway(&settings.name)
        && settings.gateway
    {
        let msg = format!(
            "{}: the gateway of the pod's VLAN has its own interface, and {error}",
            fields.name("vlan")
        );
        return Err(CniError::new(Code::InvalidConfig, msg));
    }
    Ok(settings)
}

const BOOL: &str = "true or false";

fn bridge_default() -> Result<IfName, CniError> {
    IfName::new(names::BRIDGE).map_err(|error| CniError::of(Code::InvalidConfig, &error))
}

/// The bridge plugin's rule: 0 is the same as none. The bounds are those of `subnet.env`.
fn mtu(fields: &Fields<'_>) -> Result<Option<u32>, CniError> {
    let expected = "bytes from 68 to 65535";
    match fields.get::<u32>("mtu", expected)? {
        None | Some(0) => Ok(None),
        Some(mtu @ 68..=65535) => Ok(Some(mtu)),
        Some(other) => Err(fields.wrong("mtu", &Value::from(other), expected)),
    }
}

/// Off, or zero, or empty is what there is without the function.
pub(super) fn is_on(value: &Value) -> bool {
    match value {
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(keys) => !keys.is_empty(),
        Value::Null => false,
    }
}
