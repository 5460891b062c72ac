//! Where addresses come from: the node's subnet in `subnet.env` (flannel's form), ranges of the
//! configuration (host-local's keys), another program, or nowhere.

use std::net::IpAddr;
use std::path::PathBuf;

use hostnet::vocab::{Cidr, Mac, names};
use serde_json::{Map, Value};

use super::args::Args;
use super::bridge::{self, is_on};
use super::fields::Fields;
use crate::error::{CniError, Code};
use crate::ipam::{Range, RangeSet};

/// Where a pod's addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// The node's subnet, which flanneld tells in this file.
    SubnetFile(PathBuf),
    /// One address of each set of ranges.
    Ranges(Vec<RangeSet>),
    /// An IPAM plugin of this name in `CNI_PATH`.
    Foreign(String),
    /// None: the bridge is all.
    None,
}

/// What is asked for this pod in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Addresses, of which each must be in a range of its own.
    pub ips: Vec<IpAddr>,
    /// The MAC of the pod's end.
    pub mac: Option<Mac>,
}

/// The plugin that is meant when `ipam.type` is missing, and whose directory is ours.
pub(super) const HOST_LOCAL: &str = "host-local";

/// The name of another IPAM plugin, if one is configured.
pub(super) fn foreign(ipam: &Fields<'_>) -> Result<Option<String>, CniError> {
    let expected = "the name of an IPAM plugin in CNI_PATH";
    let kind: Option<String> = ipam.get("type", expected)?;
    let kind = kind.filter(|kind| !kind.is_empty() && kind != HOST_LOCAL);
    match kind {
        // It names a program in a directory, and nothing outside of it.
        Some(kind) if kind.contains('/') || kind.starts_with('.') => {
            Err(ipam.wrong("type", &kind.into(), expected))
        }
        other => Ok(other),
    }
}

/// Whether the configuration is flannel's: its own keys are there, or nothing says otherwise.
pub(super) fn is_flannels(document: &Fields<'_>) -> Result<bool, CniError> {
    let ipam = document.object("ipam")?;
    let runtime = document.object("runtimeConfig")?;
    Ok(document.has_any(&["delegate", "subnetFile"])
        || !(ipam.has_any(&["subnet", "ranges"])
            || runtime.value("ipRanges").is_some_and(is_on)
            || foreign(&ipam)?.is_some()
            || document.has_any(&bridge::KEYS)))
}

/// Reads where addresses come from.
pub(super) fn addressing(document: &Fields<'_>) -> Result<Addressing, CniError> {
    let ipam = document.object("ipam")?;
    let runtime = document.object("runtimeConfig")?;
    let sets = range_sets(&ipam, &runtime)?;
    if let Some(kind) = foreign(&ipam)? {
        return Ok(Addressing::Foreign(kind));
    }
    if is_flannels(document)? {
        if !sets.is_empty() {
            let msg = "ipam.subnet, ipam.ranges and ipRanges cannot be given beside delegate or \
                       subnetFile: the range is the node's subnet";
            return Err(CniError::new(Code::InvalidConfig, msg));
        }
        let file = super::config::path(document, "subnetFile", names::SUBNET_ENV)?;
        return Ok(Addressing::SubnetFile(file));
    }
    if !sets.is_empty() {
        return Ok(Addressing::Ranges(sets));
    }
    match document.value("ipam").filter(|ipam| is_on(ipam)) {
        None => Ok(Addressing::None),
        Some(_) => Err(ipam.missing("ranges", "a list of lists of {\"subnet\": \"10.0.0.0/24\"}")),
    }
}

/// host-local's order: ranges of the runtime's, the single one at the top, then the list.
fn range_sets(ipam: &Fields<'_>, runtime: &Fields<'_>) -> Result<Vec<RangeSet>, CniError> {
    let mut sets = lists(runtime, "ipRanges")?;
    if ipam.value("subnet").is_some() {
        sets.push(RangeSet::new(vec![range(ipam)?]).map_err(|e| in_config(ipam, "subnet", &e))?);
    } else {
        for key in ["rangeStart", "rangeEnd", "gateway"] {
            if let Some(value) = ipam.value(key) {
                return Err(ipam.wrong(key, value, "none without ipam.subnet"));
            }
        }
    }
    sets.extend(lists(ipam, "ranges")?);
    for (index, set) in sets.iter().enumerate() {
        if let Some(other) = sets[..index].iter().find(|other| other.overlaps(set)) {
            let msg = format!(
                "{}: {set} overlaps with {other}: each set of ranges needs addresses of its own",
                ipam.name("ranges")
            );
            return Err(CniError::new(Code::InvalidConfig, msg));
        }
    }
    Ok(sets)
}

fn lists(fields: &Fields<'_>, key: &str) -> Result<Vec<RangeSet>, CniError> {
    let expected = "a list of lists of {\"subnet\": \"10.0.0.0/24\"}";
    let lists: Vec<Vec<Map<String, Value>>> = fields.get(key, expected)?.unwrap_or_default();
    let mut sets = Vec::new();
    for (outer, list) in lists.iter().enumerate() {
        let path = |inner: usize| format!("{}[{outer}][{inner}]", fields.name(key));
        let ranges = list
            .iter()
            .enumerate()
            .map(|(inner, object)| range(&Fields::at(&path(inner), object)))
            .collect::<Result<Vec<Range>, CniError>>()?;
        let set = RangeSet::new(ranges)
            .map_err(|error| in_config(fields, &format!("{key}[{outer}]"), &error))?;
        sets.push(set);
    }
    Ok(sets)
}

fn range(fields: &Fields<'_>) -> Result<Range, CniError> {
    let expected = "a network such as 10.0.0.0/24";
    let subnet: Cidr = fields
        .parsed("subnet", expected)?
        .ok_or_else(|| fields.missing("subnet", expected))?;
    let subnet = subnet.subnet();
    let ip = |key| fields.parsed::<IpAddr>(key, "an address inside the subnet");
    Range::new(subnet, ip("rangeStart")?, ip("rangeEnd")?, ip("gateway")?)
        .map_err(|error| in_config(fields, "subnet", &error))
}

fn in_config(fields: &Fields<'_>, key: &str, error: &dyn std::fmt::Display) -> CniError {
    let msg = format!("{}: {error}", fields.name(key));
    CniError::new(Code::InvalidConfig, msg)
}

/// What is asked for this pod: addresses from all three places, the MAC from the last that has
/// one (`CNI_ARGS`, `args.cni`, `runtimeConfig`).
pub(super) fn asked(document: &Fields<'_>, args: &Args) -> Result<Asked, CniError> {
    let cni = document.object("args")?.object("cni")?;
    let runtime = document.object("runtimeConfig")?;
    let mut asked = Asked::default();
    for text in &args.ips {
        let ip = bare(text).ok_or_else(|| {
            let msg = format!("CNI_ARGS has IP={text:?}: expected an address");
            CniError::new(Code::InvalidEnvironment, msg)
        })?;
        asked.ips.push(ip);
    }
    for fields in [&cni, &runtime] {
        let expected = "a list of addresses";
        let texts: Vec<String> = fields.get("ips", expected)?.unwrap_or_default();
        for text in texts {
            let ip = bare(&text).ok_or_else(|| fields.wrong("ips", &text.into(), expected))?;
            asked.ips.push(ip);
        }
    }
    let mut unique = Vec::new();
    asked.ips.retain(|ip| {
        let new = !unique.contains(ip);
        unique.push(*ip);
        new
    });

    let expected = "the MAC of one interface, such as 0a:58:0a:f4:03:02";
    let unicast = |mac: &Mac| mac.is_unicast();
    if let Some(text) = &args.mac {
        let msg = || format!("CNI_ARGS has MAC={text:?}: expected {expected}");
        let mac = text.parse().ok().filter(unicast);
        asked.mac = Some(mac.ok_or_else(|| CniError::new(Code::InvalidEnvironment, msg()))?);
    }
    for fields in [&cni, &runtime] {
        if let Some(mac) = fields.parsed::<Mac>("mac", expected)? {
            if !unicast(&mac) {
                return Err(fields.wrong("mac", &mac.to_string().into(), expected));
            }
            asked.mac = Some(mac);
        }
    }
    Ok(asked)
}

/// An address, with or without a prefix length.
fn bare(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    match text.parse::<Cidr>() {
        Ok(cidr) => Some(cidr.addr()),
        Err(_) => text.parse().ok(),
    }
}
