//! The checks of one node's values, each on its own.

use std::net::IpAddr;

use hostnet::vocab::{BackendData, Cidr, Family, Mac, Subnet};

use super::{NodeFacts, Reason};
use crate::backend::Own;
use crate::config::Backend;

/// The longest value that is looked at: flannel's longest is below 60 bytes.
const MAX_LEN: usize = 1024;

/// The longest text of a peer that is repeated in a log line.
const MAX_QUOTE: usize = 64;

fn bounded<'a>(what: &'static str, text: &'a str) -> Result<&'a str, Reason> {
    if text.len() > MAX_LEN {
        return Err(Reason::TooLong {
            what,
            bytes: text.len(),
        });
    }
    Ok(text)
}

fn quote(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

fn unreadable(what: &'static str, text: &str) -> Reason {
    Reason::Unreadable {
        what,
        text: quote(text),
    }
}

/// The backend must be ours.
pub(super) fn backend_type(node: &NodeFacts, ours: &Backend) -> Result<(), Reason> {
    match node.published.backend_type.as_deref() {
        None | Some("") => Err(Reason::NotPublished),
        Some(theirs) if theirs == ours.name() => Ok(()),
        Some(theirs) => Err(Reason::OtherBackend {
            theirs: quote(theirs),
            ours: ours.name(),
        }),
    }
}

/// The subnet must lie inside the network, leave room for others and for pods, and not be ours.
pub(super) fn subnet(node: &NodeFacts, family: Family, own: &Own) -> Result<Subnet, Reason> {
    const WHAT: &str = "pod CIDR";
    let mut subnet = None;
    for text in &node.pod_cidrs {
        let cidr: Cidr = bounded(WHAT, text)?
            .parse()
            .map_err(|_| unreadable(WHAT, text))?;
        if cidr.family() == family {
            subnet = Some(cidr.subnet());
            break;
        }
    }
    let subnet = subnet.ok_or(Reason::NoSubnet(family))?;
    let network = own.network;
    if subnet == network || (network.contains_subnet(subnet) && subnet.prefix() > family.bits() - 2)
    {
        return Err(Reason::SubnetLength { subnet, network });
    }
    if !network.contains_subnet(subnet) {
        return Err(Reason::SubnetOutside { subnet, network });
    }
    if subnet.overlaps(own.subnet) {
        return Err(Reason::SubnetOurs {
            subnet,
            ours: own.subnet,
        });
    }
    Ok(subnet)
}

/// The address must be one that a host can have, and that leads neither here nor to a pod.
pub(super) fn public(node: &NodeFacts, family: Family, own: &Own) -> Result<IpAddr, Reason> {
    const WHAT: &str = "public address";
    let text = match node.published.public.get(family).map(String::as_str) {
        None | Some("") => return Err(Reason::NoAddress(family)),
        Some(text) => bounded(WHAT, text)?,
    };
    let addr: IpAddr = text
        .parse()
        .ok()
        .filter(|addr| Family::of(*addr) == family)
        .ok_or_else(|| unreadable(WHAT, text))?;
    if let Some(why) = unusable(addr, own.uplink.addr) {
        return Err(Reason::AddressUnusable { addr, why });
    }
    if addr == own.uplink.public || addr == own.uplink.addr.addr() {
        return Err(Reason::AddressOurs(addr));
    }
    if own.network.contains(addr) {
        return Err(Reason::AddressInNetwork {
            addr,
            network: own.network,
        });
    }
    Ok(addr)
}

/// Why no other host can have this address, seen from the link that `local` is on.
fn unusable(addr: IpAddr, local: Cidr) -> Option<&'static str> {
    let host = match addr {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("broadcast"),
        // 0.0.0.0/8 is this network (RFC 791), not only its first address.
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("unspecified"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address in disguise"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        addr if addr.is_unspecified() => Some("unspecified"),
        addr if addr.is_loopback() => Some("loopback"),
        addr if addr.is_multicast() => Some("multicast"),
        _ => None,
    };
    let link = local.subnet();
    let has_broadcast = addr.is_ipv4() && link.prefix() < 31;
    host.or_else(|| (has_broadcast && addr == link.last()).then_some("our link's broadcast"))
        .or_else(|| (has_broadcast && addr == link.base()).then_some("our link's network"))
}

/// The VTEP's MAC must be one that a device can have, and not ours.
pub(super) fn vtep(node: &NodeFacts, family: Family, own: &Own, vni: u32) -> Result<Mac, Reason> {
    const WHAT: &str = "backend data";
    let text = match node.published.backend_data.get(family).map(String::as_str) {
        None | Some("" | "null") => return Err(Reason::NoVtep(family)),
        Some(text) => bounded(WHAT, text)?,
    };
    let data = BackendData::parse(text).map_err(|_| unreadable(WHAT, text))?;
    if let Some(theirs) = data.vni.filter(|theirs| *theirs != vni) {
        return Err(Reason::OtherVni { theirs, ours: vni });
    }
    let mac = data.vtep_mac;
    if !mac.is_unicast() {
        return Err(Reason::VtepNotUnicast(mac));
    }
    if mac == own.vtep {
        return Err(Reason::VtepOurs(mac));
    }
    Ok(mac)
}

/// The UDP port of the VTEP, where it is told.
pub(super) fn port(node: &NodeFacts) -> Result<Option<u16>, Reason> {
    const WHAT: &str = "backend port";
    let Some(text) = &node.published.backend_port else {
        return Ok(None);
    };
    let port = bounded(WHAT, text)?.parse().ok().filter(|port| *port != 0);
    port.map(Some).ok_or_else(|| unreadable(WHAT, text))
}
