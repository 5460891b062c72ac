//! Backends: how packets reach the other nodes. Each is a pure function from our own place and the
//! peers to devices, neighbours, forwarding entries and routes.

mod host_gw;
pub mod vxlan;

use hostnet::netlink::route::PROTOCOL_BOOT;
use hostnet::vocab::{Family, IfName, Mac, Subnet, names};

use crate::ByFamily;
use crate::config::{Backend, Vxlan};
use crate::iface::Uplink;
use crate::peers::Peer;
use crate::state::{DeviceKind, Route, RouteKey, State};

/// This node's own place in one family's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The network of all nodes' pods.
    pub network: Subnet,
    /// Our lease: the subnet of this node's pods.
    pub subnet: Subnet,
    /// The interface by which we reach other nodes.
    pub uplink: Uplink,
    /// The MAC of our VTEP, from [`vxlan::vtep_mac`]; other backends have no use for it.
    pub vtep: Mac,
}

/// Adds to `state` what one family needs. `successor` is the backend that follows upon this one.
pub(crate) fn program<'a>(
    backend: &Backend,
    successor: Option<&Backend>,
    own: &Own,
    peers: impl Iterator<Item = &'a Peer>,
    state: &mut State,
) {
    match backend {
        Backend::Vxlan(conf) => {
            let has_our_name = |successor: &Backend| match successor {
                Backend::Vxlan(successor) => successor.vni == conf.vni,
                Backend::HostGw | Backend::Alloc => false,
            };
            let is_former = successor.is_some_and(has_our_name);
            vxlan::program(conf, is_former, own, peers, state);
        }
        Backend::HostGw => host_gw::program(own, peers, state),
        // Somebody else routes the subnets: a cloud's route table, a router.
        Backend::Alloc => {}
    }
}

/// Whether nodes of the two backends tell each other apart by what they publish: by type, and VXLAN by its VNI and port.
pub fn is_another(one: &Backend, other: &Backend) -> bool {
    match (one, other) {
        (Backend::Vxlan(one), Backend::Vxlan(other)) => {
            (one.vni, one.port) != (other.vni, other.port)
        }
        (one, other) => one.name() != other.name(),
    }
}

/// The backend that an earlier process has left in the kernel, if it is another than ours: nodes that still speak it
/// are reached by it until they have learned of the change, too.
pub fn left_behind(ours: &State, backend: &Backend) -> Option<Backend> {
    let vxlan = ours.devices.values().find_map(|device| match &device.kind {
        DeviceKind::Vxlan(vxlan) => Some(Backend::Vxlan(Vxlan {
            vni: vxlan.vni,
            port: vxlan.port,
            gbp: vxlan.gbp,
            learning: vxlan.learning,
            ..Vxlan::default()
        }))
        .filter(|found| is_another(found, backend)),
        DeviceKind::Other(_) => None,
    });
    let has_direct_routes = || {
        let mut routes = ours.routes.values();
        routes.any(|route| route.protocol == names::ROUTE_PROTOCOL)
    };
    let is_direct = |backend: &Backend| match backend {
        Backend::Vxlan(vxlan) => vxlan.direct_routing,
        Backend::HostGw => true,
        Backend::Alloc => false,
    };
    vxlan.or_else(|| (!is_direct(backend) && has_direct_routes()).then_some(Backend::HostGw))
}

/// The MTU in bytes of the way to other nodes' pods, for pods' own interfaces.
pub fn pod_mtu(backend: &Backend, own: &ByFamily<Own>) -> Option<u32> {
    let mtus = own.iter().map(|(family, own)| match backend {
        Backend::Vxlan(conf) => vxlan::mtu(conf, family, own.uplink.mtu),
        Backend::HostGw | Backend::Alloc => own.uplink.mtu,
    });
    mtus.min()
}

/// The least MTU in bytes that an underlay interface must have: what is left of it must carry IPv4
/// (68 bytes, RFC 791) or IPv6 (1280, RFC 8200 section 5).
pub fn least_mtu(backend: &Backend, family: Family) -> u32 {
    let inside = match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    };
    match backend {
        Backend::Vxlan(_) => inside + vxlan::overhead(family),
        Backend::HostGw | Backend::Alloc => inside,
    }
}

/// The metric of a route that is set without one: IPv6 makes it 1024 (`IP6_RT_PRIO_USER`).
fn key(dst: Subnet) -> RouteKey {
    let metric = match dst.family() {
        Family::V4 => 0,
        Family::V6 => 1024,
    };
    RouteKey { dst, metric }
}

/// A route to a peer through one of our own devices, in flannel's form.
fn tunnel_route(peer: &Peer, dev: IfName) -> (RouteKey, Route) {
    let route = Route {
        gateway: Some(peer.subnet.base()),
        dev,
        onlink: true,
        protocol: PROTOCOL_BOOT,
        src: None,
        mtu: None,
    };
    (key(peer.subnet), route)
}

/// A route to a peer on our own link. It is ours by its protocol number alone.
fn direct_route(peer: &Peer, uplink: &Uplink) -> (RouteKey, Route) {
    let route = Route {
        gateway: Some(peer.public),
        dev: uplink.name.clone(),
        onlink: false,
        protocol: names::ROUTE_PROTOCOL,
        src: None,
        mtu: None,
    };
    (key(peer.subnet), route)
}
