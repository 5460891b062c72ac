//! Many calls at once, for many pods and for one.

use std::collections::BTreeSet;

use hostnet::testkit::{Ns, require_tool};
use serde_json::json;

use crate::runtime::{Node, SUBNET, finish};

/// How many elements there are in the tables.
fn rules(node: &Node) -> usize {
    require_tool("nft", "nftables");
    let listed = node.host.sh("nft", &["list", "ruleset"]);
    listed.matches("/eth0@cbr0").count()
}

#[test]
fn thirty_two_with_host_ports_and_masquerade() {
    let mut node = Node::new();
    node.set_subnet(&SUBNET.replace("IPMASQ=true", "IPMASQ=false"));
    let pods: Vec<Ns> = (0..32).map(|n| Ns::new(&format!("pod{n}"))).collect();
    let mut calls = Vec::new();
    for (n, pod) in pods.iter().enumerate() {
        let port = json!({"hostPort": 8000 + n, "containerPort": 80, "protocol": "udp"});
        node.set_extra(json!({"runtimeConfig": {"portMappings": [port]}}));
        calls.push(node.start("ADD", &format!("c{n}"), &pod.path()));
    }
    let addrs: BTreeSet<String> = calls.into_iter().map(|call| finish(call).addr()).collect();
    assert_eq!(addrs.len(), 32);
    // Port, hairpin, 127.0.0.1, masquerade and its exception, of each.
    assert_eq!(rules(&node), 5 * 32);
    let calls: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(n, pod)| node.start("DEL", &format!("c{n}"), &pod.path()))
        .collect();
    for call in calls {
        let reply = finish(call);
        assert!(reply.ok, "{:#}", reply.json);
    }
    assert_eq!(rules(&node), 0);
    assert_eq!(node.kept(), Vec::<String>::new());
    assert_eq!(node.ports(), Vec::<String>::new());
}

/// A runtime that gives up waiting calls DEL while ADD is at work. Whoever wins, a last DEL leaves
/// nothing, and what ADD says is true.
#[test]
fn add_and_del_of_one_pod_at_the_same_moment() {
    let mut node = Node::new();
    // Held: the namespace of a pod that is dropped takes its cable along, some time later.
    let keep = Ns::new("keep");
    node.add("keep", &keep).result();
    node.set_extra(json!({"runtimeConfig": {
        "portMappings": [{"hostPort": 8080, "containerPort": 80}],
        "bandwidth": {"egressRate": 8_000_000, "egressBurst": 800_000},
    }}));
    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    node.del("c1", "");
    let (before, kept) = (node.snapshot(), node.kept());
    for round in 0..40 {
        let add = node.start("ADD", "c1", &pod.path());
        let dels = [0, 1].map(|_| node.start("DEL", "c1", &pod.path()));
        let added = finish(add);
        for del in dels {
            let reply = finish(del);
            assert!(reply.ok, "round {round}: {:#}", reply.json);
        }
        if !added.ok {
            // It was undone, or DEL did it.
            assert_eq!(node.kept(), kept, "round {round}: {:#}", added.json);
            assert_eq!(
                before.changes(&node.snapshot()),
                Vec::<String>::new(),
                "round {round}"
            );
            assert_eq!(rules(&node), 0, "round {round}");
        }
        node.del("c1", "");
        assert_eq!(node.kept(), kept, "round {round}");
        assert_eq!(
            before.changes(&node.snapshot()),
            Vec::<String>::new(),
            "round {round}"
        );
        assert_eq!(rules(&node), 0, "round {round}");
    }
}
