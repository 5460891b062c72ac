use proptest::prelude::*;

use super::*;
use crate::config::Vxlan;
use crate::fixture::{mac, node_subnet, own, own_of, subnet};

const VXLAN: Backend = Backend::Vxlan(Vxlan {
    vni: 1,
    port: 8472,
    mtu: None,
    gbp: false,
    learning: false,
    direct_routing: false,
});

/// A good IPv4 peer as flannel publishes it, without a Lease.
fn node(n: u8) -> NodeFacts {
    NodeFacts {
        name: format!("node-{n}").into(),
        uid: format!("uid-{n}"),
        created: i64::from(n),
        pod_cidrs: vec![node_subnet(Family::V4, n).to_string()],
        published: Published {
            backend_port: None,
            backend_type: Some("vxlan".to_owned()),
            backend_data: ByFamily {
                v4: Some(format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n))),
                v6: None,
            },
            public: ByFamily {
                v4: Some(format!("192.0.2.{n}")),
                v6: None,
            },
        },
        leases: ByFamily::default(),
    }
}

fn with_lease(mut node: NodeFacts, created: i64) -> NodeFacts {
    node.leases.v4 = Some(LeaseRank {
        created,
        uid: format!("lease-{}", node.uid),
    });
    node
}

fn select_v4(nodes: &[NodeFacts]) -> Selection {
    select(
        nodes,
        "node-1",
        &own_of(&[Family::V4]),
        &VXLAN,
        Past::default(),
    )
}

/// Why one changed node is left out beside a good one, which is not.
fn reason(change: impl FnOnce(&mut NodeFacts)) -> Reason {
    let mut bad = node(3);
    change(&mut bad);
    let selection = select_v4(&[node(1), bad, node(2)]);
    assert_eq!(names(&selection), ["node-2"], "the good peer stays");
    let [skipped] = <[Skipped; 1]>::try_from(selection.skipped).unwrap();
    assert_eq!((&*skipped.node, skipped.family), ("node-3", Family::V4));
    skipped.reason
}

fn names(selection: &Selection) -> Vec<&str> {
    selection.peers.iter().map(|peer| &*peer.node).collect()
}

#[test]
fn a_flannel_node_is_a_peer_and_our_own_is_not() {
    let selection = select_v4(&[node(1), node(2)]);
    assert_eq!(selection.peers, [crate::fixture::peer(Family::V4, 2)]);
    assert_eq!(selection.skipped, []);
}

#[test]
fn annotations_are_read_under_their_prefix() {
    let keys = AnnotationKeys::new("flannel.example.com").unwrap();
    let annotations = [
        ("flannel.example.com/backend-type", "vxlan"),
        ("flannel.example.com/public-ip", "192.0.2.3"),
        ("flannel.example.com/backend-v6-data", "{}"),
        ("flannel.alpha.coreos.com/public-ipv6", "2001:db8::3"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let published = Published::new(&keys, &annotations.into());
    assert_eq!(published.backend_type.as_deref(), Some("vxlan"));
    assert_eq!(published.public.v4.as_deref(), Some("192.0.2.3"));
    assert_eq!(published.public.v6, None);
    assert_eq!(published.backend_data.v6.as_deref(), Some("{}"));
}

#[test]
fn a_node_that_is_not_ready_is_pending() {
    for (pending, label) in [
        (
            reason(|node| node.published = Published::default()),
            "not-published",
        ),
        (reason(|node| node.pod_cidrs.clear()), "no-subnet"),
        (reason(|node| node.published.public.v4 = None), "no-address"),
        (
            reason(|node| node.published.backend_data.v4 = Some("null".to_owned())),
            "no-vtep",
        ),
    ] {
        assert!(pending.is_pending());
        assert_eq!(pending.label(), label);
    }
}

#[test]
fn a_bad_subnet_is_told() {
    let pods = |text: &str| {
        let reason = reason(|node| node.pod_cidrs = vec![text.to_owned()]);
        assert!(!reason.is_pending());
        reason.to_string()
    };
    for (text, why) in [
        ("10.244.3.0", r#"its pod CIDR "10.244.3.0" cannot be read"#),
        (
            "0.0.0.0/0",
            "its subnet 0.0.0.0/0 is not inside the network 10.244.0.0/16",
        ),
        (
            "10.245.3.0/24",
            "its subnet 10.245.3.0/24 is not inside the network 10.244.0.0/16",
        ),
        (
            "192.0.2.0/24",
            "its subnet 192.0.2.0/24 is not inside the network 10.244.0.0/16",
        ),
        (
            "10.244.0.0/16",
            "its subnet 10.244.0.0/16 is of a length that no node can have in 10.244.0.0/16",
        ),
        (
            "10.244.3.1/32",
            "its subnet 10.244.3.1/32 is of a length that no node can have in 10.244.0.0/16",
        ),
        (
            "10.244.1.0/24",
            "its subnet 10.244.1.0/24 overlaps ours, 10.244.1.0/24",
        ),
        (
            "10.244.0.0/17",
            "its subnet 10.244.0.0/17 overlaps ours, 10.244.1.0/24",
        ),
        (
            "10.244.1.128/25",
            "its subnet 10.244.1.128/25 overlaps ours, 10.244.1.0/24",
        ),
    ] {
        assert_eq!(pods(text), why);
    }
}

#[test]
fn a_bad_address_is_told() {
    let addr =
        |text: &str| reason(|node| node.published.public.v4 = Some(text.to_owned())).to_string();
    for (text, why) in [
        (
            "192.0.2.300",
            r#"its public address "192.0.2.300" cannot be read"#,
        ),
        (
            "2001:db8::3",
            r#"its public address "2001:db8::3" cannot be read"#,
        ),
        (
            "0.0.0.0",
            "its address 0.0.0.0 cannot be used: it is unspecified",
        ),
        (
            "0.1.2.3",
            "its address 0.1.2.3 cannot be used: it is unspecified",
        ),
        (
            "127.0.0.1",
            "its address 127.0.0.1 cannot be used: it is loopback",
        ),
        (
            "224.0.0.1",
            "its address 224.0.0.1 cannot be used: it is multicast",
        ),
        (
            "255.255.255.255",
            "its address 255.255.255.255 cannot be used: it is broadcast",
        ),
        (
            "192.0.2.255",
            "its address 192.0.2.255 cannot be used: it is our link's broadcast",
        ),
        (
            "192.0.2.0",
            "its address 192.0.2.0 cannot be used: it is our link's network",
        ),
        ("192.0.2.1", "its address 192.0.2.1 is our own"),
        (
            "10.244.3.1",
            "its address 10.244.3.1 is inside the pods' network 10.244.0.0/16",
        ),
    ] {
        assert_eq!(addr(text), why);
    }
}

#[test]
fn bad_ipv6_addresses_are_told() {
    let mut bad = node(3);
    bad.pod_cidrs = vec![node_subnet(Family::V6, 3).to_string()];
    for (text, label) in [
        ("fe80::3", "address-unusable"),
        ("::ffff:192.0.2.3", "address-unusable"),
        ("::1", "address-unusable"),
        ("ff02::1", "address-unusable"),
        ("fd00:244:0:3::1", "address-in-network"),
        ("192.0.2.3", "unreadable"),
    ] {
        bad.published.public.v6 = Some(text.to_owned());
        let selection = select(
            [&bad],
            "node-1",
            &own_of(&[Family::V6]),
            &VXLAN,
            Past::default(),
        );
        assert_eq!(selection.skipped[0].reason.label(), label, "{text}");
    }
}

#[test]
fn a_bad_vtep_is_told() {
    let data = |text: &str| {
        reason(|node| node.published.backend_data.v4 = Some(text.to_owned())).to_string()
    };
    let vtep = |mac: &str| data(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#));
    assert_eq!(
        vtep("00:00:00:00:00:00"),
        "its VTEP's MAC 00:00:00:00:00:00 is not unicast"
    );
    assert_eq!(
        vtep("ff:ff:ff:ff:ff:ff"),
        "its VTEP's MAC ff:ff:ff:ff:ff:ff is not unicast"
    );
    assert_eq!(
        vtep("01:00:5e:00:00:01"),
        "its VTEP's MAC 01:00:5e:00:00:01 is not unicast"
    );
    assert_eq!(
        vtep("02:00:00:00:00:01"),
        "its VTEP's MAC 02:00:00:00:00:01 is our own"
    );
    assert!(vtep("02:00:00:00:00:01:02:03").contains("cannot be read"));
    assert_eq!(
        data(r#"{"VNI":2,"VtepMAC":"02:00:00:00:00:03"}"#),
        "its VNI is 2, ours is 1"
    );
    assert_eq!(
        data(&"x".repeat(1_000_000)),
        "its backend data has 1000000 bytes"
    );
}

#[test]
fn a_vtep_without_a_vni_is_taken_as_ours() {
    let mut old = node(3);
    old.published.backend_data.v4 = Some(r#"{"VtepMAC":"02:00:00:00:00:03"}"#.to_owned());
    assert_eq!(names(&select_v4(&[old])), ["node-3"]);
}

#[test]
fn a_port_is_followed_where_it_is_told() {
    let mut other = node(3);
    let peers = |node: &NodeFacts| select_v4(std::slice::from_ref(node)).peers;
    assert_eq!(peers(&other)[0].port, None);
    other.published.backend_port = Some("4789".to_owned());
    assert_eq!(peers(&other)[0].port, Some(4789));
    for bad in ["0", "65536", "-1", "8472 "] {
        let reason = reason(|node| node.published.backend_port = Some(bad.to_owned()));
        assert_eq!(
            reason.to_string(),
            format!("its backend port {bad:?} cannot be read")
        );
    }
}

#[test]
fn another_backend_is_told_and_its_name_cut() {
    let reason = reason(|node| node.published.backend_type = Some("x".repeat(1000)));
    assert_eq!(reason.label(), "other-backend");
    assert!(reason.to_string().len() < 150);
}

#[test]
fn of_two_claims_the_older_wins_whatever_the_order() {
    let mut younger = node(4);
    younger.pod_cidrs = vec!["10.244.2.0/23".to_owned()];
    let all = [younger, node(2), node(3)];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let selection = select_v4(&order.map(|index| all[index].clone()));
        assert_eq!(names(&selection), ["node-2", "node-3"]);
        assert_eq!(
            selection.skipped[0].reason.to_string(),
            "its subnet 10.244.2.0/23 overlaps 10.244.3.0/24 of node node-3, whose claim is older"
        );
    }
}

#[test]
fn a_lease_wins_over_an_older_node_and_an_older_lease_over_both() {
    let claim = |n: u8| NodeFacts {
        pod_cidrs: vec!["10.244.9.0/24".to_owned()],
        ..node(n)
    };
    let selection = select_v4(&[
        claim(2),
        with_lease(claim(3), 200),
        with_lease(claim(4), 100),
    ]);
    assert_eq!(names(&selection), ["node-4"]);
    let skipped: Vec<_> = selection
        .skipped
        .iter()
        .map(|skipped| (&*skipped.node, skipped.reason.label()))
        .collect();
    assert_eq!(
        skipped,
        [("node-3", "subnet-taken"), ("node-2", "subnet-taken")]
    );
}

#[test]
fn a_lease_keeps_its_subnet_while_its_node_cannot_be_reached() {
    let mut away = with_lease(node(2), 100);
    away.published = Published::default();
    let thief = NodeFacts {
        pod_cidrs: away.pod_cidrs.clone(),
        ..node(3)
    };
    let selection = select_v4(&[thief.clone(), away.clone()]);
    assert_eq!(names(&selection), [] as [&str; 0]);
    // Without the Lease there is nothing to tell the two apart by.
    away.leases = ByFamily::default();
    assert_eq!(names(&select_v4(&[thief, away])), ["node-3"]);
}

#[test]
fn two_nodes_with_one_mac_are_told_apart_by_age() {
    let mut copy = node(4);
    copy.published.backend_data = node(3).published.backend_data;
    let selection = select_v4(&[copy, node(3)]);
    assert_eq!(names(&selection), ["node-3"]);
    assert_eq!(
        selection.skipped[0].reason.to_string(),
        "its VTEP's MAC 02:00:00:00:00:03 is that of node node-3, whose claim is older"
    );
}

#[test]
fn families_are_judged_apart() {
    let mut node = node(3);
    node.pod_cidrs.push("not a network".to_owned());
    node.published.public.v6 = Some("::1".to_owned());
    let own = own_of(&Family::ALL);
    let selection = select([&node], "node-1", &own, &VXLAN, Past::default());
    assert_eq!(names(&selection), ["node-3"]);
    assert_eq!(selection.skipped[0].family, Family::V6);
}

#[test]
fn host_gw_needs_the_link_and_no_vtep() {
    let mut near = node(2);
    near.published.backend_type = Some("host-gw".to_owned());
    near.published.backend_data.v4 = Some("null".to_owned());
    let mut far = near.clone();
    far.name = "far".into();
    far.pod_cidrs = vec!["10.244.7.0/24".to_owned()];
    far.published.public.v4 = Some("198.51.100.7".to_owned());
    let selection = select(
        [&near, &far],
        "node-1",
        &own_of(&[Family::V4]),
        &Backend::HostGw,
        Past::default(),
    );
    assert_eq!(names(&selection), ["node-2"]);
    assert_eq!(selection.peers[0].vtep, None);
    assert_eq!(
        selection.skipped[0].reason.to_string(),
        "its address 198.51.100.7 is behind a router: backend host-gw needs all nodes on the link of eth0"
    );
}

/// VXLAN with another VNI.
const VNI_7: Backend = Backend::Vxlan(Vxlan {
    vni: 7,
    port: 8472,
    mtu: None,
    gbp: false,
    learning: false,
    direct_routing: false,
});

fn with_vni_7(mut node: NodeFacts, n: u8) -> NodeFacts {
    node.published.backend_data.v4 = Some(format!(r#"{{"VNI":7,"VtepMAC":"{}"}}"#, mac(n)));
    node
}

#[test]
fn who_still_speaks_the_backend_that_we_had_is_reached_by_it() {
    let own = own_of(&[Family::V4]);
    let past = Past {
        former: Some(&VXLAN),
        peers: &[],
    };
    let nodes = [with_vni_7(node(2), 2), with_lease(node(3), 1)];
    let selection = select(&nodes, "node-1", &own, &VNI_7, past);
    assert_eq!(names(&selection), ["node-2"]);
    assert_eq!(selection.former, [crate::fixture::peer(Family::V4, 3)]);
    assert_eq!(selection.skipped, []);
    // Neither backend makes a bad peer a good one.
    let mut bad = node(3);
    bad.pod_cidrs = vec!["10.244.2.0/24".to_owned()];
    let selection = select([&nodes[0], &bad], "node-1", &own, &VNI_7, past);
    assert_eq!(selection.former, []);
    assert_eq!(selection.skipped.len(), 1);
}

#[test]
fn who_has_learned_of_a_change_before_us_is_kept_as_it_was() {
    let own = own_of(&[Family::V4]);
    let before = select_v4(&[node(2), node(3)]).peers;
    let past = Past {
        former: None,
        peers: &before,
    };
    let ahead = with_vni_7(node(3), 3);
    let selection = select([&node(2), &ahead], "node-1", &own, &VXLAN, past);
    assert_eq!(selection.peers, before);
    assert_eq!(
        selection.skipped[0].reason.label(),
        "other-vni",
        "and it is told"
    );
    let mut moved = ahead.clone();
    moved.published.public.v4 = Some("192.0.2.99".to_owned());
    let selection = select([&node(2), &moved], "node-1", &own, &VXLAN, past);
    assert_eq!(names(&selection), ["node-2"], "it is no longer what it was");
    let selection = select([&ahead], "node-1", &own, &VXLAN, Past::default());
    assert_eq!(names(&selection), [""; 0], "nothing was known of it");
}

/// Subnets of many lengths in a small range, so that they often overlap.
fn some_nodes() -> impl Strategy<Value = Vec<NodeFacts>> {
    let one = (0u32..0x1000, 20u8..=30, 2u8..20, any::<Option<i64>>());
    prop::collection::vec(one, 0..30).prop_map(|all| {
        let node = |(index, (host, prefix, id, lease)): (usize, (u32, u8, u8, Option<i64>))| {
            let base = std::net::Ipv4Addr::from_bits(0x0af4_0000 | host << 4);
            let mut node = node(id);
            node.name = format!("node-{index:03}").into();
            node.pod_cidrs = vec![format!("{base}/{prefix}")];
            match lease {
                Some(created) => with_lease(node, created),
                None => node,
            }
        };
        all.into_iter().enumerate().map(node).collect()
    })
}

/// Nodes by name that seldom are in each other's way.
fn a_quiet_cluster() -> impl Strategy<Value = BTreeMap<String, NodeFacts>> {
    let one = (2u8..60, 2u8..200, 0u32..20, 0u32..20);
    prop::collection::vec(one, 0..12).prop_map(|all| {
        let node = |(id, other, odd, leased): (u8, u8, u32, u32)| {
            let mut node = node(id);
            match odd {
                0 => node.published = Published::default(),
                1 => node.published.backend_data = self::node(other).published.backend_data,
                2 => node.pod_cidrs = self::node(other).pod_cidrs,
                3 => node.published.public.v4 = Some("192.0.2.1".to_owned()),
                4 => node.pod_cidrs.clear(),
                _ => node.published.public.v4 = Some(format!("192.0.2.{other}")),
            }
            if leased < 3 {
                node = with_lease(node, leased.into());
            }
            (node.name.to_string(), node)
        };
        all.into_iter().map(node).collect()
    })
}

#[test]
fn of_a_few_changed_nodes_only_they_are_looked_at_if_they_concern_no_other() {
    let own = own_of(&[Family::V4]);
    let mut selection = select_v4(&[node(2), node(3)]);
    let (before, mut moved, new) = (selection.peers.clone(), node(3), node(4));
    moved.published.public.v4 = Some("192.0.2.33".to_owned());
    let facts = |name: &str| [&moved, &new].into_iter().find(|node| *node.name == *name);
    let changed = ["node-2", "node-3", "node-4"].into_iter();
    let amendment = amend(&mut selection, changed, facts, &own, &VXLAN).unwrap();
    assert_eq!(amendment.gone, before);
    assert_eq!(
        amendment.come,
        select_v4(&[moved.clone(), new.clone()]).peers
    );
    assert_eq!(selection, select_v4(&[moved.clone(), new.clone()]));
    // One that is in another's way is a matter for all.
    let thief = NodeFacts {
        pod_cidrs: moved.pod_cidrs.clone(),
        ..node(5)
    };
    let facts = |_: &str| Some(&thief);
    assert_eq!(
        amend(&mut selection, ["node-5"].into_iter(), facts, &own, &VXLAN),
        None
    );
}

proptest! {
    #[test]
    fn an_amended_selection_is_as_one_made_anew(
        before in a_quiet_cluster(), later in a_quiet_cluster(), left in 2u8..60,
    ) {
        let mut after = before.clone();
        after.extend(later.clone());
        let left = format!("node-{left}");
        after.remove(&left);
        let select = |nodes: &BTreeMap<String, NodeFacts>| {
            let nodes: Vec<NodeFacts> = nodes.values().cloned().collect();
            select_v4(&nodes)
        };
        let (was, is) = (select(&before), select(&after));
        let mut selection = was.clone();
        let changed = later.keys().map(String::as_str).chain([&*left]);
        let own = own_of(&[Family::V4]);
        let amended = amend(&mut selection, changed, |name| after.get(name), &own, &VXLAN);
        if let Some(Amendment { gone, come }) = amended {
            let sorted = |selection: &Selection| {
                let mut selection = selection.clone();
                selection.peers.sort_by_key(|peer| peer.node.clone());
                selection.skipped.sort_by_key(|skipped| skipped.node.clone());
                selection
            };
            prop_assert_eq!(sorted(&selection), sorted(&is));
            // The kernel's state follows from what is given beside it.
            let state = |peers: &[Peer]| crate::desired::desired(&crate::desired::Inputs {
                backend: &VXLAN,
                masquerade: None,
                no_masquerade: &[],
                own: &own,
                peers,
                former: None,
                gated: &[],
            });
            let mut exchanged = state(&was.peers);
            exchanged.exchange(&state(&gone), state(&come));
            prop_assert_eq!(exchanged, state(&is.peers));
        }
    }

    #[test]
    fn peers_never_share_what_only_one_can_have(nodes in some_nodes()) {
        let selection = select_v4(&nodes);
        let ours = own(Family::V4);
        for (index, peer) in selection.peers.iter().enumerate() {
            prop_assert!(subnet("10.244.0.0/16").contains_subnet(peer.subnet));
            prop_assert!(!peer.subnet.overlaps(ours.subnet));
            for other in &selection.peers[..index] {
                prop_assert!(!peer.subnet.overlaps(other.subnet));
                prop_assert_ne!(peer.vtep, other.vtep);
            }
        }
        prop_assert_eq!(selection.peers.len() + selection.skipped.len(), nodes.len());
    }

    #[test]
    fn the_outcome_does_not_depend_on_the_order(
        nodes in some_nodes().prop_flat_map(|nodes| (Just(nodes.clone()), Just(nodes).prop_shuffle())),
    ) {
        prop_assert_eq!(select_v4(&nodes.0), select_v4(&nodes.1));
    }

    #[test]
    fn no_text_makes_it_panic(
        pods in "\\PC{0,40}", kind in "\\PC{0,20}", addr in "\\PC{0,40}", data in "\\PC{0,60}",
    ) {
        let mut node = node(3);
        node.pod_cidrs = vec![pods];
        node.published.backend_type = Some(kind);
        node.published.public.v4 = Some(addr);
        node.published.backend_data.v4 = Some(data);
        let selection = select_v4(&[node, super::tests::node(2)]);
        prop_assert_eq!(names(&selection), ["node-2"]);
    }
}
