use insta::assert_snapshot;

use super::*;
use crate::config::Vxlan;
use crate::diff::diff;
use crate::fixture::{own_of, peer, subnet};

fn ops(backend: &Backend, families: &[Family], masquerade: bool) -> String {
    let far = |family| match family {
        Family::V4 => "198.51.100.3",
        Family::V6 => "2001:db8:1::3",
    };
    let mut peers = Vec::new();
    for family in families {
        peers.push(peer(*family, 2));
        // The other one is behind a router.
        peers.push(Peer {
            public: far(*family).parse().unwrap(),
            ..peer(*family, 3)
        });
    }
    let own = own_of(families);
    let state = desired(&Inputs {
        backend,
        masquerade: masquerade.then_some(Masquerade { fully_random: true }),
        no_masquerade: &[subnet("192.168.0.0/16")],
        own: &own,
        peers: &peers,
        former: None,
        gated: &[],
    });
    let ops = diff(&State::default(), &state);
    ops.iter().map(|op| format!("{op}\n")).collect()
}

#[test]
fn vxlan_for_ipv4_has_flannels_shapes() {
    assert_snapshot!(ops(&Backend::Vxlan(Vxlan::default()), &[Family::V4], true));
}

#[test]
fn vxlan_for_ipv6_is_the_same_but_for_the_addresses() {
    assert_snapshot!(ops(&Backend::Vxlan(Vxlan::default()), &[Family::V6], false));
}

#[test]
fn vxlan_with_direct_routing_leaves_out_the_tunnel_on_the_link() {
    let conf = Vxlan {
        direct_routing: true,
        gbp: true,
        learning: true,
        ..Vxlan::default()
    };
    assert_snapshot!(ops(&Backend::Vxlan(conf), &[Family::V4], false));
}

#[test]
fn host_gw_has_no_device() {
    assert_snapshot!(ops(&Backend::HostGw, &Family::ALL, false));
}

#[test]
fn alloc_only_keeps_forwarding_and_masquerade() {
    assert_eq!(
        ops(&Backend::Alloc, &[Family::V4], false),
        "sysctl -w net/ipv4/ip_forward=1\n"
    );
    assert!(ops(&Backend::Alloc, &[Family::V4], true).contains("table ip twill-flannel"));
}

#[test]
fn peers_of_a_family_that_is_not_ours_change_nothing() {
    let own = own_of(&[Family::V4]);
    let inputs = Inputs {
        backend: &Backend::Vxlan(Vxlan::default()),
        masquerade: None,
        no_masquerade: &[],
        own: &own,
        peers: &[],
        former: None,
        gated: &[],
    };
    let alone = desired(&inputs);
    let peers = [peer(Family::V6, 2)];
    assert_eq!(
        desired(&Inputs {
            peers: &peers,
            former: None,
            gated: &[],
            ..inputs
        }),
        alone
    );
}
