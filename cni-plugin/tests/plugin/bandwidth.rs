//! Bandwidth, measured by what passes in a time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use hostnet::testkit::{Ns, Snapshot};
use serde_json::{Value, json};

use crate::runtime::Node;

/// Bytes per second of a stream of this many bytes.
fn throughput(from: &Ns, to: &Ns, addr: &str, bytes: usize) -> f64 {
    let listener = to.run(|| TcpListener::bind((addr, 5001))).unwrap();
    let sender = std::thread::spawn({
        let (ns, addr) = (from.ns().clone(), addr.to_owned());
        move || {
            let mut stream = ns
                .run_in(|| TcpStream::connect((addr.as_str(), 5001)))
                .unwrap()
                .unwrap();
            stream.write_all(&vec![0; bytes]).unwrap();
        }
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let start = Instant::now();
    let mut received = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            length => received += length,
        }
    }
    sender.join().unwrap();
    assert_eq!(received, bytes);
    bytes as f64 / start.elapsed().as_secs_f64()
}

fn bandwidth(ingress: u64, egress: u64) -> Value {
    let mut keys = json!({});
    for (rate, name) in [(ingress, "ingress"), (egress, "egress")] {
        if rate > 0 {
            keys[format!("{name}Rate")] = json!(rate * 8);
            keys[format!("{name}Burst")] = json!(20_000 * 8);
        }
    }
    json!({"runtimeConfig": {"bandwidth": keys}})
}

/// A stream of 1 MB at 500 kB/s takes two seconds; without a limit some milliseconds. A loaded
/// machine makes it slower, never faster.
#[test]
fn each_direction_has_its_own_rate() {
    const RATE: u64 = 500_000;
    const BYTES: usize = 1_000_000;
    for (ingress, egress) in [(RATE, 0), (0, RATE)] {
        let mut node = Node::new();
        let pod = Ns::new("pod");
        node.set_extra(bandwidth(ingress, egress));
        let addr = node.add("c1", &pod).addr();
        let to_pod = throughput(&node.host, &pod, &addr, BYTES);
        let from_pod = throughput(&pod, &node.host, "10.244.3.1", BYTES);
        let limit = RATE as f64 * 1.25;
        let (limited, free) = if ingress > 0 {
            (to_pod, from_pod)
        } else {
            (from_pod, to_pod)
        };
        assert!(limited < limit, "{limited} bytes per second are too many");
        assert!(free > limit * 2.0, "the other way is free: {free}");
    }
}

#[test]
fn the_shaper_is_told_and_goes_with_the_pod() {
    let mut node = Node::new();
    let (keep, pod) = (Ns::new("keep"), Ns::new("pod"));
    node.add("keep", &keep).result();
    let (before, kept) = (node.snapshot(), node.kept());
    node.set_extra(bandwidth(1_000_000, 1_000_000));
    let result = node.add("c1", &pod).result();
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 4);
    let name = interfaces[3]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("bwp"), "{name}");
    assert_eq!(result["ips"][0]["interface"], 2);
    assert!(node.host.find_link(&name).is_some());
    assert!(pod.find_link(&name).is_none(), "out of the pod's reach");

    let check = json!({"prevResult": result});
    let mut config = bandwidth(1_000_000, 1_000_000);
    config["prevResult"] = check["prevResult"].clone();
    node.set_extra(config);
    let reply = node.call("CHECK", "c1", &pod.path());
    assert!(reply.ok, "{:#}", reply.json);
    let veth = interfaces[1]["name"].as_str().unwrap();
    for (arguments, text) in [
        (
            vec![
                "qdisc", "replace", "dev", veth, "root", "tbf", "rate", "1mbit", "burst", "20k",
                "latency", "25ms",
            ],
            "does not shape to 1000000 bytes per second",
        ),
        (
            vec!["qdisc", "del", "dev", veth, "ingress"],
            "does not redirect to bwp",
        ),
        (
            vec!["qdisc", "del", "dev", &name, "root"],
            "does not shape to",
        ),
    ] {
        hostnet::testkit::require_tool("tc", "iproute2");
        node.host.sh("tc", &arguments);
        let (code, msg) = node.call("CHECK", "c1", &pod.path()).error();
        assert_eq!(code, 101);
        assert!(msg.contains(text), "{text}: {msg}");
    }

    // DEL is not stopped by a configuration that cannot be.
    node.set_extra(json!({"runtimeConfig": {"bandwidth": {"ingressRate": "much"}}}));
    node.del("c1", "");
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
    assert_eq!(node.kept(), kept);

    // Also when nothing is known of it.
    node.set_extra(bandwidth(0, 1_000_000));
    node.add("c1", &Ns::new("again")).result();
    std::fs::remove_file(node.path("twill/c1-eth0.json")).unwrap();
    node.del("c1", "");
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
}

#[test]
fn garbage_collection_takes_shapers_and_ports() {
    let mut node = Node::new();
    let (keep, pod) = (Ns::new("keep"), Ns::new("pod"));
    node.add("keep", &keep).result();
    let before = node.snapshot();
    let mut config = bandwidth(1_000_000, 1_000_000);
    config["runtimeConfig"]["portMappings"] = json!([{"hostPort": 80, "containerPort": 80}]);
    node.set_extra(config);
    node.add("c1", &pod).result();
    // One whose record was lost has its rules all the same.
    let lost = Ns::new("lost");
    node.set_extra(
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 81, "containerPort": 80}]}}),
    );
    node.add("c2", &lost).result();
    std::fs::remove_file(node.path("twill/c2-eth0.json")).unwrap();
    node.set_extra(
        json!({"cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]}),
    );
    let reply = node.call("GC", "", "");
    assert!(reply.ok, "{:#}", reply.json);
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
    let ruleset = node.host.sh("nft", &["list", "ruleset"]);
    assert!(!ruleset.contains("eth0@cbr0"), "{ruleset}");
}

#[test]
fn a_failed_add_leaves_no_shaper() {
    let mut node = Node::new();
    let pod = Ns::new("pod");
    // The device's name is taken by something that cannot shape: its redirection fails late.
    let mut config = bandwidth(0, 1_000_000);
    config["ipam"] = json!({"routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}]});
    node.set_extra(config);
    let before = (node.snapshot(), Snapshot::of(&pod));
    node.add("c1", &pod).error();
    assert_eq!(before.0.changes(&node.snapshot()), Vec::<String>::new());
    assert_eq!(before.1.changes(&Snapshot::of(&pod)), Vec::<String>::new());
    assert_eq!(node.kept(), Vec::<String>::new());
}
