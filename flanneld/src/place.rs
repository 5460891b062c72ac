//! Our own place in the network: the subnets that we hold, the interface to other nodes, and our VTEPs' addresses. Pure.

use std::net::IpAddr;

use hostnet::vocab::{AnnotationKeys, BackendData, Family, Mac, Subnet, names};

use crate::{
    ByFamily,
    announce::{Announcement, Side},
    backend::{self, Own, vxlan},
    config::{Backend, Config},
    iface::{self, IfaceError, Seen, Wishes},
    node::NodeObject,
    state::{Kernel, State},
};

/// Finds our place for the subnets that are held. `kernel` and `ours` are one observation; `former` is a backend that
/// some nodes still speak.
///
/// # Errors
/// No interface can be used; the candidates are listed.
pub fn place(
    config: &Config,
    node: &NodeObject,
    held: &ByFamily<Subnet>,
    kernel: &Kernel,
    ours: &State,
    former: Option<&Backend>,
) -> Result<ByFamily<Own>, Box<IfaceError>> {
    let keys = &config.annotations;
    let networks = ByFamily::from_fn(|family| Some(config.net.networks.get(family)?.network));
    let seen = Seen {
        links: &kernel.links,
        addrs: &kernel.addrs,
        routes: &kernel.routes,
    };
    let mut own = ByFamily::default();
    for (family, subnet) in held.iter() {
        let Some(network) = networks.get(family) else {
            continue;
        };
        let wishes = Wishes {
            flags: &config.iface,
            node_public: addresses(node, [&keys.node_public_ip, &keys.node_public_ipv6]),
            overwrite: addresses(
                node,
                [&keys.public_ip_overwrite, &keys.public_ipv6_overwrite],
            ),
            networks,
            least_mtu: backend::least_mtu(&config.net.backend, family),
        };
        *own.get_mut(family) = Some(Own {
            network: *network,
            subnet: *subnet,
            uplink: iface::choose(family, seen, &wishes)?,
            vtep: vtep(config, node, family, ours, former),
        });
    }
    Ok(own)
}

/// The addresses that a user has written into annotations of our Node, for IPv4 and IPv6. One that is none is as good
/// as not there.
fn addresses(node: &NodeObject, keys: [&String; 2]) -> ByFamily<IpAddr> {
    ByFamily::from_fn(|family| {
        let key = match family {
            Family::V4 => keys[0],
            Family::V6 => keys[1],
        };
        let addr = node.annotations().get(key)?.parse().ok()?;
        (Family::of(addr) == family).then_some(addr)
    })
}

fn vtep(
    config: &Config,
    node: &NodeObject,
    family: Family,
    ours: &State,
    former: Option<&Backend>,
) -> Mac {
    // One MAC for both while there are two devices.
    let ((Backend::Vxlan(vxlan), _) | (_, Some(Backend::Vxlan(vxlan)))) =
        (&config.net.backend, former)
    else {
        return Mac::ZERO;
    };
    let there = names::vxlan_device(family, vxlan.vni)
        .ok()
        .and_then(|name| ours.devices.get(&name)?.mac);
    vxlan::vtep_mac(
        &config.node_name,
        family,
        vxlan.vni,
        published(node, &config.annotations, family),
        there,
    )
}

fn published(node: &NodeObject, keys: &AnnotationKeys, family: Family) -> Option<Mac> {
    let key = match family {
        Family::V4 => &keys.backend_data,
        Family::V6 => &keys.backend_v6_data,
    };
    Some(
        BackendData::parse(node.annotations().get(key)?)
            .ok()?
            .vtep_mac,
    )
}

/// What other nodes need to know of this place.
#[must_use]
pub fn announcement(config: &Config, own: &ByFamily<Own>) -> Announcement {
    let backend = &config.net.backend;
    let data = |own: &Own| match backend {
        Backend::Vxlan(vxlan) => Some(BackendData {
            vni: Some(vxlan.vni),
            vtep_mac: own.vtep,
        }),
        Backend::HostGw | Backend::Alloc => None,
    };
    Announcement {
        backend_type: backend.name(),
        port: match backend {
            Backend::Vxlan(vxlan) => Some(vxlan.port),
            Backend::HostGw | Backend::Alloc => None,
        },
        sides: ByFamily::from_fn(|family| {
            let own = own.get(family)?;
            Some(Side {
                public: own.uplink.public,
                data: data(own),
            })
        }),
        set_condition: config.set_condition,
    }
}
