//! The vxlan backend: each family has one device; each peer a neighbour, a forwarding entry and a
//! route, of the same shape as flannel's, so that the two can share a cluster.
//!
//! A packet to pod 10.244.3.81 takes the route `10.244.3.0/24 via 10.244.3.0 dev flannel.1
//! onlink`. The neighbour 10.244.3.0 gives the MAC of the peer's VTEP, the inner destination; the
//! forwarding entry of that MAC gives the peer's address in the underlay, the outer one.

use std::collections::{BTreeMap, BTreeSet};

use hostnet::vocab::{Cidr, Family, IfName, Mac, names};
use sha2::{Digest, Sha256};

use super::{Own, direct_route, tunnel_route};
use crate::config::Vxlan;
use crate::peers::Peer;
use crate::state::{self, Device, DeviceKind, Remote, State};

/// What VXLAN puts around a packet in bytes: the inner Ethernet header (14), VXLAN (8), UDP (8) and
/// the outer IP header (20, or 40 for IPv6).
pub fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The device's MTU in bytes. `MTU` in net-conf.json is the underlay's; the kernel allows no more
/// than the interface's own.
pub fn mtu(conf: &Vxlan, family: Family, link_mtu: u32) -> u32 {
    conf.mtu
        .unwrap_or(link_mtu)
        .min(link_mtu)
        .saturating_sub(overhead(family))
}

/// The MAC for our VTEP: stable over restarts and reboots, since peers keep it in their tables.
///
/// It is the one that we have `published` in our annotation; else that of the device that is
/// `there`, since peers may know it; else six bytes of SHA-256 over the node's name, the family and
/// the VNI, made unicast and locally administered. A node that lost its annotation, its device and
/// even its Node object so has the same MAC as before.
pub fn vtep_mac(
    node: &str,
    family: Family,
    vni: u32,
    published: Option<Mac>,
    there: Option<Mac>,
) -> Mac {
    let usable = |mac: &Mac| mac.is_unicast();
    published
        .filter(usable)
        .or(there.filter(usable))
        .unwrap_or_else(|| {
            let hash = Sha256::digest(format!("twill vtep {family} {vni} {node}"));
            let mut bytes = [0; 6];
            bytes.copy_from_slice(&hash[..6]);
            Mac::local_from(bytes)
        })
}

/// The name of a family's device.
fn device_name(family: Family, vni: u32, is_former: bool) -> Option<IfName> {
    // VNIs whose name would be too long are refused in net-conf.json.
    match is_former {
        true => names::former_vxlan_device(family).parse().ok(),
        false => names::vxlan_device(family, vni).ok(),
    }
}

/// Adds the device of one family, and what the peers need on it. A former one stays while peers may still send to its
/// port, and has a successor of the same VNI.
pub(super) fn program<'a>(
    conf: &Vxlan,
    is_former: bool,
    own: &Own,
    peers: impl Iterator<Item = &'a Peer>,
    state: &mut State,
) {
    let family = own.subnet.family();
    let Some(name) = device_name(family, conf.vni, is_former) else {
        return;
    };
    if family == Family::V4 {
        // Loose: a peer may answer by another way than the one that its packets come by (one side has DirectRouting,
        // or is a version behind). Of this and `all` the kernel takes the greater value, so it holds where `all` is
        // strict.
        let rp_filter = format!("ipv4/conf/{name}/rp_filter");
        state.sysctls.insert(rp_filter, "2".to_owned());
    }
    if family == Family::V6 {
        // The tunnel has no routers: what is announced there is not meant for this host.
        let accept_ra = format!("ipv6/conf/{name}/accept_ra");
        state.sysctls.insert(accept_ra, "0".to_owned());
    }
    let mut neighs = BTreeMap::new();
    let mut fdb = BTreeSet::new();
    for peer in peers {
        let (key, route) = match peer.vtep {
            _ if conf.direct_routing && own.uplink.is_direct(peer.public) => {
                direct_route(peer, &own.uplink)
            }
            Some(mac) => {
                neighs.insert(peer.subnet.base(), mac);
                let port = peer.port.filter(|port| *port != conf.port);
                let addr = peer.public;
                fdb.insert((mac, Remote { addr, port }));
                tunnel_route(peer, name.clone())
            }
            None => continue,
        };
        state.routes.insert(key, route);
    }
    let device = Device {
        kind: DeviceKind::Vxlan(state::Vxlan {
            vni: conf.vni,
            port: conf.port,
            local: Some(own.uplink.addr.addr()),
            parent: Some(own.uplink.name.clone()),
            learning: conf.learning,
            gbp: conf.gbp,
        }),
        mac: Some(own.vtep),
        mtu: mtu(conf, family, own.uplink.mtu),
        up: true,
        addrs: [Cidr::host(own.subnet.base())].into(),
        neighs,
        fdb,
    };
    state.devices.insert(name, device);
}

#[cfg(test)]
mod tests;
