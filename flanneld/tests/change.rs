//! A change of net-conf.json's Backend that reaches the nodes one after another, with packets at each step: nobody is
//! cut off meanwhile, and nothing of the old one is left in the end.

mod common;

use std::{sync::Arc, time::Duration};

use agent::sync::Pass;
use common::{TestNode, cluster, config, introduce};
use flanneld::{diff::Op, host::Host, reconcile::Reconciler};
use hostnet::testkit::{Snapshot, ask_tcp};

fn conf(backend: &str) -> String {
    format!(
        r#"{{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {backend}}}"#
    )
}

/// Each pod asks each other one, in both families.
fn all_talk(nodes: &[TestNode], when: &str) {
    for from in nodes {
        for to in nodes.iter().filter(|to| to.number != from.number) {
            for address in [to.pod_v4(), to.pod_v6()] {
                let answer = ask_tcp(&from.pod, &address).unwrap_or_else(|error| {
                    panic!("{when}: pod{} to {address}: {error}", from.number)
                });
                assert_eq!(answer.server, format!("pod{}", to.number), "{when}");
            }
        }
    }
}

fn everyone_looks(nodes: &mut [TestNode]) {
    introduce(nodes);
    for node in nodes {
        node.pass(Pass::Dirty);
    }
}

/// How a node learns of the new configuration.
#[derive(Clone, Copy, Debug)]
enum By {
    /// The file has changed under the daemon.
    File,
    /// The daemon is started anew.
    Restart,
}

fn follow(node: &mut TestNode, by: By, conf: &str) {
    node.config = Arc::new(config(node.number, conf, &[]));
    if let By::Restart = by {
        let open = || Host::open(hostnet::sysctl::ROOT.into());
        let host = node.ns.run(open).unwrap();
        node.reconciler = Reconciler::new(host).with_grace(Duration::ZERO);
    }
    node.pass(Pass::Dirty);
}

#[test]
fn a_new_backend_goes_from_node_to_node_and_nobody_is_cut_off() {
    const VXLAN: &str = r#"{"Type": "vxlan"}"#;
    const VNI_7: &str = r#"{"Type": "vxlan", "VNI": 7}"#;
    const PORT: &str = r#"{"Type": "vxlan", "Port": 4789}"#;
    const VNI_AND_PORT: &str = r#"{"Type": "vxlan", "VNI": 7, "Port": 4790}"#;
    const DIRECT: &str = r#"{"Type": "vxlan", "DirectRouting": true}"#;
    const HOST_GW: &str = r#"{"Type": "host-gw"}"#;
    for (by, from, to) in [
        (By::File, VXLAN, VNI_7),
        (By::Restart, VNI_7, VXLAN),
        (By::File, VXLAN, PORT),
        (By::Restart, PORT, VXLAN),
        (By::File, PORT, VNI_AND_PORT),
        (By::File, VXLAN, HOST_GW),
        (By::Restart, VXLAN, HOST_GW),
        (By::File, HOST_GW, VXLAN),
        (By::Restart, HOST_GW, VXLAN),
        (By::File, VXLAN, DIRECT),
        (By::File, DIRECT, HOST_GW),
    ] {
        let (from, to) = (conf(from), conf(to));
        let (_underlay, mut nodes) = cluster(3, &from, &[]);
        for index in 0..nodes.len() {
            let when = format!("{by:?} {from} -> {to}: node {}", index + 1);
            follow(&mut nodes[index], by, &to);
            all_talk(&nodes, &format!("{when} has changed"));
            everyone_looks(&mut nodes);
            all_talk(&nodes, &format!("{when} has told the others"));
        }
        everyone_looks(&mut nodes);
        // As a node that never knew the old one.
        let (_other_underlay, fresh) = cluster(3, &to, &[]);
        for (node, fresh) in nodes.iter_mut().zip(&fresh) {
            let is = |node: &TestNode| {
                let links = node.ns.rtnl().links().unwrap();
                let mut names: Vec<String> =
                    links.iter().map(|link| link.name.to_string()).collect();
                names.sort();
                names
            };
            assert_eq!(
                is(node),
                is(fresh),
                "{from} -> {to}: no device is left over"
            );
            let ops = node.pass(Pass::Full).ops;
            assert_eq!(ops, [], "{from} -> {to}: nothing is left to do");
        }
    }
}

#[test]
fn other_settings_of_the_same_device_cost_no_device() {
    let from = conf(r#"{"Type": "vxlan"}"#);
    let (_underlay, mut nodes) = cluster(2, &from, &[]);
    let before = Snapshot::of(&nodes[0].ns);
    let to = conf(r#"{"Type": "vxlan", "MTU": 1400, "Learning": true}"#);
    follow(&mut nodes[0], By::File, &to);
    assert_eq!(nodes[0].ns.link("flannel.1").mtu, 1350);
    assert_eq!(nodes[0].ns.link("flannel-v6.1").mtu, 1330);
    all_talk(&nodes, "one node has other settings");
    let report = nodes[0].pass(Pass::Full);
    assert_eq!(report.ops, []);
    nodes[0].config = Arc::new(config(1, &from, &[]));
    let ops = nodes[0].pass(Pass::Dirty).ops;
    let words: Vec<String> = ops.iter().map(ToString::to_string).collect();
    assert!(
        ops.iter()
            .all(|op| matches!(op, Op::SetVxlan { .. } | Op::SetMtu { .. })),
        "{words:?}"
    );
    assert_eq!(
        before.changes(&Snapshot::of(&nodes[0].ns)),
        Vec::<String>::new()
    );
}
