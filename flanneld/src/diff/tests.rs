//! The golden texts of what happens to a node, and the properties of any difference, on a model of
//! the kernel.

mod model;

use hostnet::vocab::Family;
use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::backend::Own;
use crate::config::{Backend, Masquerade, Vxlan};
use crate::desired::{Inputs, desired};
use crate::fixture::{mac, own_of, peer};
use crate::peers::Peer;
use crate::state::DeviceKind;
use model::{Model, desired_states, observed_states};

/// A node with two IPv4 peers by vxlan, and a change of what it follows from.
fn node(change: impl FnOnce(&mut Vxlan, &mut Own, &mut Vec<Peer>)) -> State {
    let mut conf = Vxlan::default();
    let mut own = own_of(&[Family::V4]);
    let mut peers = vec![peer(Family::V4, 2), peer(Family::V4, 3)];
    if let Some(own) = &mut own.v4 {
        change(&mut conf, own, &mut peers);
    }
    desired(&Inputs {
        backend: &Backend::Vxlan(conf),
        masquerade: Some(Masquerade { fully_random: true }),
        no_masquerade: &[],
        own: &own,
        peers: &peers,
        former: None,
        gated: &[],
    })
}

fn usual() -> State {
    node(|_, _, _| {})
}

/// What happens after somebody has changed what the kernel holds.
fn mended(harm: impl FnOnce(&mut State)) -> String {
    let mut observed = usual();
    harm(&mut observed);
    commands(&diff(&observed, &usual()))
}

fn commands(ops: &[Op]) -> String {
    ops.iter().map(|op| format!("{op}\n")).collect()
}

fn flannel(state: &mut State) -> &mut Device {
    state
        .devices
        .get_mut(&"flannel.1".parse().unwrap())
        .unwrap()
}

#[test]
fn what_is_right_is_left_alone() {
    assert_eq!(diff(&usual(), &usual()), []);
}

#[test]
fn a_new_peer_gets_its_route_last() {
    let state = node(|_, _, peers| peers.push(peer(Family::V4, 4)));
    assert_snapshot!(commands(&diff(&usual(), &state)));
}

#[test]
fn a_peer_that_left_loses_its_route_first() {
    let state = node(|_, _, peers| {
        peers.pop();
    });
    assert_snapshot!(commands(&diff(&usual(), &state)));
}

#[test]
fn a_peer_that_moved_is_replaced_in_place() {
    let state = node(|_, _, peers| peers[0].public = "192.0.2.22".parse().unwrap());
    assert_snapshot!(commands(&diff(&usual(), &state)));
}

#[test]
fn a_peer_with_a_new_mac_loses_the_old_entry_last() {
    let state = node(|_, _, peers| peers[0].vtep = Some(mac(22)));
    assert_snapshot!(commands(&diff(&usual(), &state)));
}

#[test]
fn a_device_that_was_deleted_comes_back_with_all_that_lay_on_it() {
    assert_snapshot!(mended(|state| {
        state.devices.clear();
        state.routes.clear();
    }));
}

#[test]
fn what_was_deleted_from_a_device_comes_back() {
    assert_eq!(
        mended(|state| {
            let device = flannel(state);
            device.addrs.clear();
            device.neighs.pop_last();
            device.fdb.pop_last();
            device.up = false;
            device.mtu = 1400;
            state.routes.pop_last();
            state.sysctls.clear();
        }),
        "ip link set flannel.1 mtu 1450\n\
         sysctl -w net/ipv4/conf/flannel.1/rp_filter=2\nsysctl -w net/ipv4/ip_forward=1\n\
         ip link set flannel.1 up\n\
         ip addr add 10.244.1.0/32 dev flannel.1\n\
         bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 self permanent\n\
         ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent\n\
         ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto boot onlink\n"
    );
}

#[test]
fn what_others_put_on_our_device_goes() {
    assert_snapshot!(mended(|state| {
        let device = flannel(state);
        device.addrs.insert("10.9.9.9/24".parse().unwrap());
        device.neighs.insert("10.9.9.1".parse().unwrap(), mac(9));
        let dst = IpAddr::from([192, 0, 2, 9]).into();
        device.fdb.extend([(mac(9), dst), (Mac::ZERO, dst)]);
        let (key, route) = state.routes.last_key_value().unwrap();
        let (mut key, route) = (*key, route.clone());
        key.metric = 50;
        state.routes.insert(key, route);
    }));
}

#[test]
fn a_changed_mac_costs_the_kernel_all_neighbours() {
    assert_eq!(
        mended(|state| flannel(state).mac = Some(mac(99))),
        "ip link set flannel.1 address 02:00:00:00:00:01\n\
         ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent\n\
         ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent\n"
    );
}

#[test]
fn another_kind_of_device_of_our_name_makes_way() {
    let text = mended(|state| {
        *flannel(state) = Device {
            kind: DeviceKind::Other("dummy".to_owned()),
            mac: None,
            mtu: 1500,
            up: false,
            addrs: BTreeSet::new(),
            neighs: BTreeMap::new(),
            fdb: BTreeSet::new(),
        };
        state.routes.clear();
    });
    assert!(
        text.starts_with("ip link del flannel.1\nip link add flannel.1 "),
        "{text}"
    );
}

/// The usual node after a change of its port to 4789; a peer is a version behind, and the old port has a listener.
fn at_another_port() -> State {
    let conf = Vxlan {
        port: 4789,
        ..Vxlan::default()
    };
    let mut peers = vec![peer(Family::V4, 2), peer(Family::V4, 3)];
    peers[1].port = Some(8472);
    desired(&Inputs {
        backend: &Backend::Vxlan(conf),
        masquerade: Some(Masquerade { fully_random: true }),
        no_masquerade: &[],
        own: &own_of(&[Family::V4]),
        peers: &peers,
        former: Some((&Backend::Vxlan(Vxlan::default()), &[])),
        gated: &[],
    })
}

#[test]
fn at_another_port_the_old_device_goes_on_under_another_name() {
    assert_snapshot!(commands(&diff(&usual(), &at_another_port())));
    let everyone_has_followed = node(|conf, _, peers| {
        conf.port = 4789;
        peers[1].port = Some(4789);
    });
    assert_eq!(
        commands(&diff(&at_another_port(), &everyone_has_followed)),
        "bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 self permanent\n\
         ip link del flannel-old\n"
    );
}

#[test]
fn a_port_that_is_taken_back_swaps_the_devices() {
    let conf = |port| {
        Backend::Vxlan(Vxlan {
            port,
            ..Vxlan::default()
        })
    };
    let back = desired(&Inputs {
        backend: &conf(8472),
        masquerade: Some(Masquerade { fully_random: true }),
        no_masquerade: &[],
        own: &own_of(&[Family::V4]),
        peers: &[],
        former: Some((&conf(4789), &[])),
        gated: &[],
    });
    let text = commands(&diff(&at_another_port(), &back));
    let links =
        "ip link del flannel-old\nip link set flannel.1 name flannel-old\nip link add flannel.1 ";
    assert!(text.starts_with(links), "{text}");
}

#[test]
fn another_vni_is_made_before_the_old_one_breaks() {
    let state = node(|conf, _, _| conf.vni = 2);
    assert_snapshot!(commands(&diff(&usual(), &state)));
}

#[test]
fn from_vxlan_to_direct_routes_the_routes_are_replaced_in_place() {
    let state = node(|conf, _, _| conf.direct_routing = true);
    assert_eq!(
        commands(&diff(&usual(), &state)),
        "ip route replace 10.244.2.0/24 via 192.0.2.2 dev eth0 proto 84\n\
         ip route replace 10.244.3.0/24 via 192.0.2.3 dev eth0 proto 84\n\
         ip neigh del 10.244.2.0 dev flannel.1\n\
         ip neigh del 10.244.3.0 dev flannel.1\n\
         bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self\n\
         bridge fdb del 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 self\n"
    );
}

#[test]
fn another_subnet_of_ours_is_there_before_the_old_one_goes() {
    let state = node(|_, own, _| own.subnet = crate::fixture::subnet("10.244.7.0/24"));
    let text = commands(&diff(&usual(), &state));
    let place = |op: &str| text.find(op).unwrap_or_else(|| panic!("{op} in {text}"));
    assert!(
        place("ip addr add 10.244.7.0/32 dev flannel.1")
            < place("ip addr del 10.244.1.0/32 dev flannel.1")
    );
    assert!(
        text.contains("ip saddr 10.244.7.0/24"),
        "the table follows: {text}"
    );
}

#[test]
fn a_flushed_or_left_over_table_is_mended_or_removed() {
    let text = mended(|state| {
        let table = state.tables.values_mut().next().unwrap();
        for chain in table.chains.values_mut() {
            chain.rules.clear();
        }
    });
    assert!(
        text.contains("add rule ip twill-flannel postrouting"),
        "{text}"
    );
    let mut without = usual();
    without.tables.clear();
    assert_eq!(
        commands(&diff(&usual(), &without)),
        "delete table ip twill-flannel\n"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_difference_no_operations(state in observed_states()) {
        prop_assert_eq!(diff(&state, &state), []);
    }

    #[test]
    fn the_operations_lead_from_one_to_the_other(a in observed_states(), b in desired_states()) {
        let mut model = Model::new(a.clone(), &b);
        for op in diff(&a, &b) {
            model.apply(&op);
        }
        prop_assert_eq!(model.into_state(), b);
    }

    /// Of what is in both states nothing is missing at any moment, but for what lies on a device
    /// that has to be made anew, and for IPv6 routes that move between devices.
    #[test]
    fn what_stays_is_never_missing(a in observed_states(), b in desired_states()) {
        let anew = |dev: &IfName| {
            let kind = |state: &State| state.devices.get(dev).map(|device| device.kind.clone());
            kind(&a) != kind(&b)
        };
        let mut model = Model::new(a.clone(), &b);
        for op in diff(&a, &b) {
            model.apply(&op);
            for (key, route) in &b.routes {
                let had = a.routes.get(key);
                let stays = had.is_some_and(|had| {
                    let falls = anew(&had.dev) && b.devices.contains_key(&had.dev);
                    let moves = key.dst.family() == Family::V6 && had.dev != route.dev;
                    !falls && !moves
                });
                if stays {
                    prop_assert!(model.state.routes.contains_key(key), "{op}: {key:?} {route:?}");
                }
            }
            for (name, device) in b.devices.iter().filter(|(name, _)| !anew(name)) {
                let now = &model.state.devices[name];
                let had = &a.devices[name];
                for addr in device.addrs.intersection(&had.addrs) {
                    prop_assert!(now.addrs.contains(addr), "{op}: {addr}");
                }
                for (mac, _) in &device.fdb {
                    prop_assert!(!has_mac(&had.fdb, *mac) || has_mac(&now.fdb, *mac), "{op}: {mac}");
                }
            }
        }
    }
}
