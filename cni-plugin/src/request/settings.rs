//! What making an attachment needs to know, of the whole configuration.

use std::net::IpAddr;
use std::path::PathBuf;

use hostnet::netlink::addr::Scope;
use hostnet::vocab::{Cidr, Subnet};
use serde::Deserialize;
use serde_json::Value;

use super::args::Args;
use super::bridge;
pub use super::bridge::BridgeSettings;
use super::fields::Fields;
use super::ipam;
pub use super::ipam::{Addressing, Asked};
use super::ports::{self, PortMapping};
use super::rates::{self, Rates};
use crate::error::CniError;

/// What making an attachment needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where addresses come from.
    pub addressing: Addressing,
    /// The bridge.
    pub bridge: BridgeSettings,
    /// `ipam.routes`, beside those that follow from the rest.
    pub routes: Vec<ConfigRoute>,
    /// `ipam.resolvConf`: a file whose name servers are told to the runtime.
    pub resolv_conf: Option<PathBuf>,
    /// Host ports.
    pub ports: Vec<PortMapping>,
    /// `snat` (true): the node's own 127.0.0.1 and the pod itself reach the host ports too.
    pub snat: bool,
    /// `masqAll`: whoever reaches a host port is masqueraded.
    pub masq_all: bool,
    /// Bandwidth.
    pub rates: Rates,
    /// What is asked for this pod in particular.
    pub asked: Asked,
    /// The pod's namespace and name, if the runtime told them.
    pub pod: Option<String>,
}

/// A route asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct ConfigRoute {
    /// Where to.
    #[serde(deserialize_with = "network")]
    pub dst: Subnet,
    /// By which next hop; the pod's gateway if none is given.
    #[serde(default)]
    pub gw: Option<IpAddr>,
    /// The route's MTU in bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The TCP segment size to announce, in bytes.
    #[serde(default)]
    pub advmss: Option<u32>,
    /// The metric.
    #[serde(default)]
    pub priority: Option<u32>,
    /// The table's number.
    #[serde(default)]
    pub table: Option<u32>,
    /// How far the destination is (`RT_SCOPE_*`).
    #[serde(default)]
    pub scope: Option<u8>,
}

impl ConfigRoute {
    /// A route with nothing but its next hop.
    pub fn new(dst: Subnet, gw: Option<IpAddr>) -> ConfigRoute {
        ConfigRoute {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    /// The scope in the kernel's terms.
    pub fn kernel_scope(&self) -> Option<Scope> {
        self.scope.map(Scope)
    }
}

/// The reference plugins pass over bits behind the prefix length.
fn network<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Subnet, D::Error> {
    Ok(Cidr::deserialize(deserializer)?.subnet())
}

pub(super) fn read(document: &Fields<'_>, args: &Args) -> Result<Settings, CniError> {
    let delegate = document.object("delegate")?;
    let ipam = document.object("ipam")?;
    let flannels = ipam::is_flannels(document)?;
    // Flannel's rule: what it works out itself must not be given.
    for key in ["name", "ipam"] {
        if let Some(value) = delegate.value(key) {
            return Err(delegate.wrong(key, value, "none: it follows from subnet.env"));
        }
    }
    if let Some(value) = delegate.value("type").filter(|value| *value != "bridge") {
        return Err(delegate.unsupported("type", value));
    }
    if let Some(value) = document.value("runtimeConfig").filter(|v| !v.is_object()) {
        return Err(document.wrong("runtimeConfig", value, "an object"));
    }
    refuse_conditions(document)?;
    let fields = if flannels { &delegate } else { document };
    let bridge = bridge::read(fields, flannels)?;
    let addressing = ipam::addressing(document)?;
    if bridge.pod_down && addressing != Addressing::None {
        let expected = "false: an interface that is down has no use for addresses";
        let value = Value::Bool(true);
        return Err(fields.wrong("disableContainerInterface", &value, expected));
    }
    let ports = ports::read(&document.object("runtimeConfig")?)?;
    let resolv_conf: Option<String> = ipam.get("resolvConf", "a path")?;
    Ok(Settings {
        addressing,
        bridge,
        routes: ipam
            .get(
                "routes",
                "a list of {\"dst\": \"10.0.0.0/8\", \"gw\": \"10.244.3.1\"}",
            )?
            .unwrap_or_default(),
        resolv_conf: resolv_conf
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        ports,
        snat: document.get("snat", "true or false")?.unwrap_or(true),
        masq_all: document.flag("masqAll")?,
        rates: rates::read(document)?,
        asked: ipam::asked(document, args)?,
        pod: args.pod.clone(),
    })
}

/// Of portmap's keys those that would be rules in the language of another program. The others
/// that say how portmap works inside (`backend`, `markMasqBit`, `externalSetMarkChain`) mean
/// nothing here: there are no marks.
fn refuse_conditions(document: &Fields<'_>) -> Result<(), CniError> {
    for key in ["conditionsV4", "conditionsV6"] {
        if let Some(value) = document.value(key).filter(|value| bridge::is_on(value)) {
            return Err(document.unsupported(key, value));
        }
    }
    Ok(())
}
