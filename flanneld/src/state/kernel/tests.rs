use hostnet::netlink::link;
use hostnet::netlink::neigh::NeighState;
use hostnet::netlink::route::PROTOCOL_BOOT;
use hostnet::vocab::Mac;

use super::*;
use crate::fixture::{mac, subnet};

const ETH0: u32 = 2;
const FLANNEL: u32 = 3;

fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: name.parse().unwrap(),
        kind,
        mac: Some(mac(1)),
        mtu: 1450,
        up: true,
        promisc: false,
        carrier: true,
        operational: true,
        master: None,
        port: None,
        peer: None,
        addr_gen_mode: None,
    }
}

fn vxlan(device: Option<u32>) -> LinkKind {
    LinkKind::Vxlan(link::Vxlan {
        vni: 1,
        port: 8472,
        local: None,
        device,
        learning: false,
        gbp: false,
    })
}

/// A host with a network card and `flannel.1`.
fn host() -> Kernel {
    Kernel {
        links: vec![
            link(ETH0, "eth0", LinkKind::Other(String::new())),
            link(FLANNEL, "flannel.1", vxlan(Some(ETH0))),
        ],
        ..Kernel::default()
    }
}

fn flannel(state: &State) -> &Device {
    &state.devices[&"flannel.1".parse().unwrap()]
}

#[test]
fn devices_are_ours_by_name() {
    for name in [
        "flannel.1",
        "flannel.4096",
        "flannel-v6.1",
        "flannel-old",
        "flannel-v6-old",
    ] {
        assert!(is_our_device(name), "{name}");
    }
    for name in [
        "flannel",
        "flannel.",
        "flannel0",
        "flannel.1x",
        "flannel-wg",
        "flannel.ipip",
        "eth0",
        "vxlan.1",
    ] {
        assert!(!is_our_device(name), "{name}");
    }
}

#[test]
fn a_device_is_seen_with_its_parent_by_name() {
    let state = host().ours();
    assert_eq!(state.devices.len(), 1);
    let DeviceKind::Vxlan(vxlan) = &flannel(&state).kind else {
        panic!("{state:?}");
    };
    assert_eq!(vxlan.parent.as_deref(), Some("eth0"));
    // A card that was taken away and put back has another index.
    let mut kernel = host();
    kernel.links[0].index = 9;
    let DeviceKind::Vxlan(vxlan) = flannel(&kernel.ours()).kind.clone() else {
        panic!("{state:?}");
    };
    assert_eq!(vxlan.parent, None);
}

#[test]
fn something_else_of_our_name_is_seen_as_what_it_is() {
    let mut kernel = host();
    kernel.links[1].kind = LinkKind::Other("dummy".to_owned());
    assert_eq!(
        flannel(&kernel.ours()).kind,
        DeviceKind::Other("dummy".to_owned())
    );
}

#[test]
fn addresses_of_others_and_link_local_ones_are_not_ours() {
    let addr = |link, cidr: &str, scope| Addr {
        scope,
        ..Addr::new(link, cidr.parse().unwrap())
    };
    let kernel = Kernel {
        addrs: vec![
            addr(ETH0, "192.0.2.1/24", Scope::GLOBAL),
            addr(FLANNEL, "10.244.1.0/32", Scope::GLOBAL),
            addr(FLANNEL, "fe80::1/64", Scope::LINK),
        ],
        ..host()
    };
    let state = kernel.ours();
    let addrs = &flannel(&state).addrs;
    assert_eq!(
        addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.244.1.0/32"]
    );
}

#[test]
fn learned_neighbours_and_entries_are_not_ours() {
    let addr = "10.244.3.0".parse().unwrap();
    let dst = std::net::IpAddr::from([192, 0, 2, 3]);
    let neigh = |link, state| Neigh {
        state,
        ..Neigh::permanent(link, addr, mac(3))
    };
    let entry = |n, link, state, dst| FdbEntry {
        state,
        dst,
        ..FdbEntry::vxlan(link, mac(n), "192.0.2.3".parse().unwrap())
    };
    let kernel = Kernel {
        neighs: vec![
            neigh(FLANNEL, NeighState::Stale),
            neigh(ETH0, NeighState::Permanent),
        ],
        fdb: vec![
            entry(2, FLANNEL, NeighState::Other(0xc0), Some(dst)),
            entry(3, FLANNEL, NeighState::Permanent, Some(dst)),
            entry(4, FLANNEL, NeighState::Reachable, Some(dst)),
            entry(5, FLANNEL, NeighState::Permanent, None),
            entry(6, ETH0, NeighState::Permanent, Some(dst)),
        ],
        ..host()
    };
    let state = kernel.ours();
    assert!(flannel(&state).neighs.is_empty());
    assert_eq!(
        flannel(&state).fdb,
        [(mac(2), dst.into()), (mac(3), dst.into())].into()
    );
    let kernel = Kernel {
        neighs: vec![neigh(FLANNEL, NeighState::Permanent)],
        ..host()
    };
    let expected: BTreeMap<_, Mac> = [(addr, mac(3))].into();
    assert_eq!(flannel(&kernel.ours()).neighs, expected);
}

#[test]
fn routes_are_ours_by_device_or_by_protocol() {
    let route = |dst, link| netlink::Route::new(subnet(dst), None, link);
    let by = |protocol, route| netlink::Route { protocol, ..route };
    let ours = [
        route("10.244.3.0/24", Some(FLANNEL)),
        by(names::ROUTE_PROTOCOL, route("10.244.4.0/24", Some(ETH0))),
    ];
    let not_ours = [
        by(PROTOCOL_KERNEL, route("10.244.5.0/24", Some(FLANNEL))),
        by(PROTOCOL_BOOT, route("10.244.6.0/24", Some(ETH0))),
        netlink::Route {
            table: 100,
            ..route("10.244.7.0/24", Some(FLANNEL))
        },
        netlink::Route {
            kind: RouteKind::Local,
            ..route("10.244.1.0/32", Some(FLANNEL))
        },
        // Several next hops, or a device that is gone by now.
        route("10.244.8.0/24", None),
        by(names::ROUTE_PROTOCOL, route("10.244.9.0/24", Some(77))),
    ];
    let kernel = Kernel {
        routes: ours.iter().chain(&not_ours).cloned().collect(),
        ..host()
    };
    let state = kernel.ours();
    let seen: Vec<String> = state
        .routes
        .iter()
        .map(|(key, route)| format!("{} dev {}", key.dst, route.dev))
        .collect();
    assert_eq!(
        seen,
        ["10.244.3.0/24 dev flannel.1", "10.244.4.0/24 dev eth0"]
    );
}

#[test]
fn of_routes_with_one_key_the_first_is_in_force() {
    let route = |gateway: &str| {
        netlink::Route::onlink(subnet("10.244.3.0/24"), gateway.parse().unwrap(), FLANNEL)
    };
    let kernel = Kernel {
        routes: vec![route("10.244.3.0"), route("10.244.9.0")],
        ..host()
    };
    let state = kernel.ours();
    let gateways: Vec<_> = state.routes.values().map(|route| route.gateway).collect();
    assert_eq!(gateways, ["10.244.3.0".parse().ok()]);
}
