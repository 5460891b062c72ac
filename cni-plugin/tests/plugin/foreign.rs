//! An IPAM plugin of somebody else's.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use hostnet::testkit::Ns;
use serde_json::{Value, json};

use crate::runtime::Node;

/// A node with an IPAM plugin that answers ADD with this, exits with a code for this verb, and
/// writes down what it was asked.
fn node_with(answer: &Value, fails: &str) -> Node {
    let mut node = Node::plain(json!({}));
    let script = format!(
        "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\" >> {log}\n\
         cat >> {log}.input\n\
         if [ \"$CNI_COMMAND\" = \"{fails}\" ]; then echo '{{\"code\": 11, \"msg\": \"no more\", \"details\": \"d\"}}'; exit 1; fi\n\
         if [ \"$CNI_COMMAND\" = ADD ]; then echo '{answer}'; fi\n",
        log = node.path("log").display(),
    );
    node.put("bin/addresses", &script);
    let program = node.path("bin/addresses");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    node.set_path(node.path("bin"));
    node.set_extra(json!({"bridge": "br9", "isDefaultGateway": true, "ipam": {"type": "addresses", "pool": "p1"}}));
    node
}

fn log(node: &Node) -> Vec<String> {
    let text = fs::read_to_string(node.path("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn answer() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.7.0.5/24"}, {"address": "fd07::5/64", "gateway": "fd07::9"}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"nameservers": ["10.7.0.53"]}
    })
}

#[test]
fn its_addresses_are_used_and_all_verbs_reach_it() {
    let mut node = node_with(&answer(), "");
    let pod = Ns::new("pod");
    let result = node.add("c1", &pod).result();
    assert_eq!(
        result["ips"],
        json!([
            {"interface": 2, "address": "10.7.0.5/24", "gateway": "10.7.0.1"},
            {"interface": 2, "address": "fd07::5/64", "gateway": "fd07::9"},
        ])
    );
    assert_eq!(result["dns"]["nameservers"][0], "10.7.0.53");
    let inside = hostnet::testkit::Snapshot::of(&pod);
    for text in [
        "route 0.0.0.0/0 via 10.7.0.1",
        "route 198.51.100.0/24 via 10.7.0.1",
        "route ::/0 via fd07::9",
    ] {
        assert!(inside.mentions(text), "{text}\n{inside}");
    }
    assert!(node.snapshot().mentions("addr br9 10.7.0.1/24"));
    // Our own configuration reached it whole.
    let input = fs::read_to_string(node.path("log.input")).unwrap();
    assert!(input.contains("\"pool\":\"p1\""), "{input}");

    let extra = json!({"bridge": "br9", "isDefaultGateway": true, "ipam": {"type": "addresses"}, "prevResult": result,
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]});
    node.set_extra(extra);
    for verb in ["CHECK", "STATUS", "GC", "DEL"] {
        let reply = node.call(verb, "c1", &pod.path());
        assert!(reply.ok, "{verb} {:#}", reply.json);
    }
    assert_eq!(
        log(&node),
        [
            "ADD c1 eth0",
            "CHECK c1 eth0",
            "STATUS c1 eth0",
            "GC c1 eth0",
            "DEL c1 eth0"
        ]
    );
    assert_eq!(node.kept(), Vec::<String>::new());
    assert!(pod.find_link("eth0").is_none());
}

#[test]
fn its_failures_are_told_and_undone() {
    let node = node_with(&answer(), "ADD");
    let pod = Ns::new("pod");
    let before = node.snapshot();
    let (code, msg) = node.add("c1", &pod).error();
    assert_eq!(
        (code, msg.as_str()),
        (11, "ipam addresses ADD: no more (its code 11)")
    );
    assert_eq!(log(&node), ["ADD c1 eth0", "DEL c1 eth0"]);
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
    assert_eq!(node.kept(), Vec::<String>::new());

    // What fails after it gave addresses gives them back.
    let mut unreachable = answer();
    unreachable["routes"] = json!([{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}]);
    let node = node_with(&unreachable, "");
    let before = node.snapshot();
    assert_eq!(node.add("c1", &pod).error().0, 100);
    assert_eq!(log(&node), ["ADD c1 eth0", "DEL c1 eth0"]);
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());

    // A result that is none.
    let node = node_with(&json!({"ips": []}), "");
    assert_eq!(node.add("c1", &pod).error().0, 6);
    assert_eq!(log(&node), ["ADD c1 eth0", "DEL c1 eth0"]);
}

#[test]
fn its_failing_del_does_not_stop_ours() {
    let node = node_with(&answer(), "DEL");
    let pod = Ns::new("pod");
    let before = node.snapshot();
    node.add("c1", &pod).result();
    let (_, msg) = node.call("DEL", "c1", "").error();
    assert!(msg.starts_with("ipam addresses DEL: no more"), "{msg}");
    assert!(pod.find_link("eth0").is_none());
    assert_eq!(node.kept(), Vec::<String>::new());
    let left = before.changes(&node.snapshot());
    assert!(left.iter().all(|line| line.contains("br9")), "{left:?}");
}

#[test]
fn one_that_is_not_there() {
    let mut node = Node::plain(json!({"bridge": "br9", "ipam": {"type": "nowhere"}}));
    node.set_path(node.path("bin"));
    let (code, msg) = node.add("c1", &Ns::new("pod")).error();
    assert_eq!(code, 7);
    assert!(
        msg.starts_with("ipam.type is \"nowhere\": there is no such program in CNI_PATH"),
        "{msg}"
    );
    assert_eq!(node.kept(), Vec::<String>::new());
}
