//! CHECK, STATUS and GC tell and do the truth.

use std::collections::BTreeSet;
use std::fs;

use hostnet::netlink::link::{self, BridgePort, Change};
use hostnet::netlink::route::{self, Route};
use hostnet::netlink::{Addr, addr};
use hostnet::testkit::Ns;
use hostnet::vocab::Mac;
use serde_json::{Value, json};

use crate::runtime::{Node, SUBNET};

/// A node with one pod, ready for CHECK with ADD's result.
fn attached() -> (Node, Ns, String) {
    let mut node = Node::new();
    let pod = Ns::new("pod");
    let result = node.add("c1", &pod).result();
    let veth = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    node.set_extra(json!({"prevResult": result}));
    (node, pod, veth)
}

#[test]
fn check_is_content_with_what_add_made() {
    let (node, pod, _) = attached();
    let reply = node.call("CHECK", "c1", &pod.path());
    assert!(reply.ok, "{:#}", reply.json);
    assert_eq!(reply.json, Value::Null);
    // Another plugin may add things.
    pod.addr("eth0", "192.0.2.7/24");
    pod.route("198.51.100.0/24", "192.0.2.1");
    assert!(node.call("CHECK", "c1", &pod.path()).ok);
}

#[test]
fn check_notices_each_thing_that_is_lost_or_changed() {
    type Harm = (&'static str, fn(&Node, &Ns, &str));
    let harms: [Harm; 15] = [
        ("eth0 is gone", |_, pod, _| {
            pod.apply(link::delete(pod.link("eth0").index))
        }),
        ("eth0 is down", |_, pod, _| pod.set_down("eth0")),
        ("eth0 has not the MAC 0a:58:0a:f4:03:02", |_, pod, _| {
            let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
            pod.change(
                "eth0",
                Change {
                    mac,
                    ..Change::default()
                },
            );
        }),
        ("eth0 has the MTU 1300, not 1450", |_, pod, _| {
            pod.change(
                "eth0",
                Change {
                    mtu: Some(1300),
                    ..Change::default()
                },
            );
        }),
        ("eth0 has not the address 10.244.3.2/24", |_, pod, _| {
            let index = pod.link("eth0").index;
            pod.apply(addr::delete(&Addr::new(
                index,
                "10.244.3.2/24".parse().unwrap(),
            )));
        }),
        ("the pod has not the route to 0.0.0.0/0", |_, pod, _| {
            let gateway = Some("10.244.3.1".parse().unwrap());
            pod.apply(route::delete(&Route::new(
                "0.0.0.0/0".parse().unwrap(),
                gateway,
                None,
            )));
        }),
        ("the pod has not the route to 0.0.0.0/0", |_, pod, _| {
            let other = Some("10.244.3.9".parse().unwrap());
            let index = Some(pod.link("eth0").index);
            pod.apply(route::replace(&Route::new(
                "0.0.0.0/0".parse().unwrap(),
                other,
                index,
            )));
        }),
        ("is down", |node, _, veth| node.host.set_down(veth)),
        ("is not on cni0", |node, _, veth| {
            node.host.change(
                veth,
                Change {
                    master: Some(0),
                    ..Change::default()
                },
            );
        }),
        (
            "has not hairpin true and isolated false",
            |node, _, veth| {
                let index = node.host.link(veth).index;
                node.host
                    .apply(link::set_port(index, BridgePort::default()));
            },
        ),
        ("cni0 is down", |node, _, _| node.host.set_down("cni0")),
        ("cni0 is gone", |node, _, _| {
            node.host.apply(link::delete(node.host.link("cni0").index));
        }),
        ("cni0 has not the address 10.244.3.1", |node, _, _| {
            let index = node.host.link("cni0").index;
            node.host.apply(addr::delete(&Addr::new(
                index,
                "10.244.3.1/24".parse().unwrap(),
            )));
        }),
        ("the address 10.244.3.2 is not reserved", |node, _, _| {
            fs::remove_file(node.path("networks/cbr0/10.244.3.2")).unwrap();
        }),
        ("the node does not forward IPv4", |node, _, _| {
            node.host.set_sysctl("ipv4/ip_forward", "0");
        }),
    ];
    for (text, harm) in harms {
        let (node, pod, veth) = attached();
        harm(&node, &pod, &veth);
        let (code, msg) = node.call("CHECK", "c1", &pod.path()).error();
        assert_eq!(code, 101, "{msg}");
        assert!(msg.contains(text), "{text}: {msg}");
    }
}

#[test]
fn check_of_what_was_never_attached() {
    let (node, pod, _) = attached();
    let (code, msg) = node.call("CHECK", "stranger", &pod.path()).error();
    assert_eq!(code, 101);
    assert!(
        msg.starts_with("there is no record of container stranger"),
        "{msg}"
    );
}

#[test]
fn status_says_whether_the_next_add_succeeds() {
    let mut node = Node::without_subnet();
    let (code, msg) = node.call("STATUS", "", "").error();
    assert_eq!(code, 50);
    assert!(msg.contains("subnet.env is not there"), "{msg}");

    node.set_subnet(&SUBNET.replace("/24", "/30"));
    let before = node.snapshot();
    assert!(node.call("STATUS", "", "").ok);
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
    assert!(!node.path("networks").exists(), "STATUS makes nothing");

    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    let (code, msg) = node.call("STATUS", "", "").error();
    assert_eq!(code, 50);
    assert!(
        msg.contains("no address is left for a pod in 10.244.3.0/30"),
        "{msg}"
    );
    node.del("c1", "");
    assert!(node.call("STATUS", "", "").ok);

    node.set_extra(json!({"delegate": {"bridge": "lo"}}));
    let (code, msg) = node.call("STATUS", "", "").error();
    assert_eq!(code, 50);
    assert!(msg.starts_with("lo is not a bridge"), "{msg}");
    node.set_extra(json!({"delegate": {"mtu": "large"}}));
    assert_eq!(node.call("STATUS", "", "").error().0, 7);

    // Pods that stand have no network either.
    node.set_extra(json!({}));
    node.set_subnet(SUBNET);
    let again = Ns::new("again");
    node.add("c1", &again).result();
    assert!(node.call("STATUS", "", "").ok);
    node.host.set_down("cni0");
    fs::remove_file(node.path("subnet.env")).unwrap();
    assert_eq!(node.call("STATUS", "", "").error().0, 51);
}

#[test]
fn gc_takes_down_what_is_not_named_and_nothing_else() {
    let mut node = Node::new();
    let pods = [Ns::new("a"), Ns::new("b"), Ns::new("c")];
    for (id, pod) in ["a", "b", "c"].into_iter().zip(&pods) {
        node.add(id, pod).result();
    }
    // host-local's, and one whose record was lost.
    node.put("networks/cbr0/10.244.3.77", "old\r\neth0");
    fs::remove_file(node.path("twill/c-eth0.json")).unwrap();

    // Without the key nothing is known.
    let kept = node.kept();
    assert!(node.call("GC", "", "").ok);
    assert_eq!(node.kept(), kept);

    node.set_extra(json!({"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}));
    for _ in 0..2 {
        let reply = node.call("GC", "", "");
        assert!(reply.ok, "{:#}", reply.json);
        assert_eq!(node.reserved(), BTreeSet::from(["10.244.3.2".to_owned()]));
        let there: Vec<bool> = pods.iter().map(|p| p.find_link("eth0").is_some()).collect();
        assert_eq!(there, [true, false, false]);
        assert_eq!(node.ports().len(), 1);
    }
    // Null names none.
    node.set_extra(json!({"cni.dev/valid-attachments": null}));
    assert!(node.call("GC", "", "").ok);
    assert_eq!(node.kept(), Vec::<String>::new());
    assert_eq!(node.ports().len(), 0);
}

#[test]
fn gc_goes_on_past_failures_and_tells_them() {
    let mut node = Node::new();
    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    // What cannot be a container's is not touched.
    node.put("networks/cbr0/10.244.3.66", "../odd\r\neth0");
    node.set_extra(json!({"cni.dev/valid-attachments": []}));
    let (_, msg) = node.call("GC", "", "").error();
    assert!(msg.contains("\"../odd\""), "{msg}");
    assert!(pod.find_link("eth0").is_none());
    assert_eq!(node.reserved(), BTreeSet::from(["10.244.3.66".to_owned()]));
}

#[test]
fn verbs_are_as_old_as_the_configurations_version() {
    for (verb, version, ok) in [
        ("STATUS", "1.0.0", false),
        ("STATUS", "1.1.0", true),
        ("GC", "0.4.0", false),
        ("CHECK", "0.3.1", false),
    ] {
        let node = Node::new().with_version(version);
        let reply = node.call(verb, "c1", &node.host.path());
        assert_eq!(reply.ok, ok, "{:#}", reply.json);
        if !ok {
            assert_eq!(reply.error().0, 1);
        }
    }
}
