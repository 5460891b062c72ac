//! Packets: the first one already, from pod to pod, node and service.

use hostnet::netlink::link::{self, Bridge};
use hostnet::testkit::{EchoServer, Ns, ask_tcp, ask_udp, require_tool};
use serde_json::json;

use crate::runtime::Node;

/// What a service proxy does for one service, with the test's own rules.
fn service(node: &Node, address: &str, endpoint: &str) {
    let rules = format!(
        "table ip test {{
            chain pre {{ type nat hook prerouting priority -100; ip daddr {address} dnat to {endpoint}; }}
            chain post {{ type nat hook postrouting priority 100; ip saddr {endpoint} ip daddr {endpoint} masquerade; }}
        }}"
    );
    require_tool("nft", "nftables");
    node.put("rules", &rules);
    node.host
        .sh("nft", &["-f", node.path("rules").to_str().unwrap()]);
}

#[test]
fn two_pods_and_their_node_reach_each_other_at_once() {
    let node = Node::new();
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    let (addr_a, addr_b) = (node.add("a", &a).addr(), node.add("b", &b).addr());
    let _servers = [
        EchoServer::start(&a, "a", "0.0.0.0:80"),
        EchoServer::start(&b, "b", "0.0.0.0:80"),
        EchoServer::start(&node.host, "node", "0.0.0.0:80"),
    ];
    for (client, from, to, name) in [
        (&a, addr_a.as_str(), addr_b.as_str(), "b"),
        (&b, &addr_b, &addr_a, "a"),
        (&a, &addr_a, "10.244.3.1", "node"),
        (&node.host, "10.244.3.1", &addr_b, "b"),
    ] {
        for answer in [
            ask_tcp(client, &format!("{to}:80")),
            ask_udp(client, &format!("{to}:80")),
        ] {
            let answer = answer.unwrap();
            assert_eq!(
                (
                    answer.server.as_str(),
                    answer.source.ip().to_string().as_str()
                ),
                (name, from)
            );
        }
    }
}

#[test]
fn the_first_packet_of_a_new_pod_arrives() {
    for _ in 0..20 {
        let node = Node::new();
        let pod = Ns::new("pod");
        let addr = node.add("c1", &pod).addr();
        // A question for the pod's MAC that is lost is not asked again, so the datagram fails.
        node.host.set_sysctl("ipv4/neigh/cni0/mcast_solicit", "1");
        let _server = EchoServer::start(&pod, "pod", &format!("{addr}:80"));
        ask_udp(&node.host, &format!("{addr}:80")).unwrap();
    }
}

#[test]
fn an_address_that_moves_to_another_pod_answers_at_once() {
    let node = Node::new();
    let client = Ns::new("client");
    node.add("client", &client).result();
    node.set_subnet(&crate::runtime::SUBNET.replace("/24", "/29"));
    let mut seen = std::collections::BTreeMap::new();
    for n in 0..10 {
        let pod = Ns::new("pod");
        let addr = node.add(&format!("c{n}"), &pod).addr();
        let _server = EchoServer::start(&pod, &format!("pod{n}"), &format!("{addr}:80"));
        let answer = ask_tcp(&client, &format!("{addr}:80")).unwrap();
        assert_eq!(answer.server, format!("pod{n}"));
        *seen.entry(addr).or_insert(0) += 1;
        node.del(&format!("c{n}"), "");
    }
    assert!(
        seen.values().any(|count| *count > 1),
        "no address came up twice: {seen:?}"
    );
}

#[test]
fn a_service_whose_endpoint_is_on_the_same_bridge() {
    let node = Node::new();
    let (client, server) = (Ns::new("client"), Ns::new("server"));
    let from = node.add("client", &client).addr();
    let endpoint = node.add("server", &server).addr();
    service(&node, "10.96.0.10", &endpoint);
    let _server = EchoServer::start(&server, "server", &format!("{endpoint}:80"));
    // What the whole node says does not count, the bridge's own switch does.
    for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        node.host.set_sysctl(&format!("bridge/{key}"), "0");
    }
    let answer = ask_tcp(&client, "10.96.0.10:80").unwrap();
    assert_eq!(
        (answer.server.as_str(), answer.source.ip().to_string()),
        ("server", from)
    );

    // And it is this switch that does it: without it the answer comes from a stranger.
    node.host.apply(link::set_bridge(
        node.host.link("cni0").index,
        &Bridge::default(),
    ));
    ask_tcp(&client, "10.96.0.10:80").unwrap_err();
    // The next pod turns it on again.
    node.add("other", &Ns::new("other")).result();
    ask_tcp(&client, "10.96.0.10:80").unwrap();
}

#[test]
fn a_pod_reaches_itself_by_its_service() {
    let mut node = Node::new();
    for hairpin in [true, false] {
        node.set_extra(json!({"delegate": {"hairpinMode": hairpin}}));
        let pod = Ns::new("pod");
        let endpoint = node.add("c1", &pod).addr();
        service(&node, "10.96.0.10", &endpoint);
        let _server = EchoServer::start(&pod, "pod", &format!("{endpoint}:80"));
        let answer = ask_tcp(&pod, "10.96.0.10:80");
        assert_eq!(answer.is_ok(), hairpin, "{answer:?}");
        node.host.sh("nft", &["delete", "table", "ip", "test"]);
        node.del("c1", "");
    }
}

#[test]
fn isolated_pods_reach_the_node_but_not_each_other() {
    let mut node = Node::new();
    node.set_extra(json!({"delegate": {"portIsolation": true}}));
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    node.add("a", &a).result();
    let addr_b = node.add("b", &b).addr();
    let _servers = [
        EchoServer::start(&b, "b", &format!("{addr_b}:80")),
        EchoServer::start(&node.host, "node", "10.244.3.1:80"),
    ];
    ask_tcp(&a, "10.244.3.1:80").unwrap();
    ask_tcp(&a, &format!("{addr_b}:80")).unwrap_err();
}
