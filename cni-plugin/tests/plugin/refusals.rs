//! What is refused is refused before anything is touched; what fails later is undone.

use std::process::{Command, Stdio};

use hostnet::testkit::{Ns, Snapshot};
use serde_json::{Value, json};

use crate::runtime::{Node, Reply, SUBNET};

/// A call that must fail and change nothing, on the node, in the pod or on disk.
fn fails_cleanly(node: &Node, pod: &Ns, call: impl FnOnce() -> Reply) -> (u64, String) {
    let (host, inside, kept) = (node.snapshot(), Snapshot::of(pod), node.kept());
    let forward = node.host.sysctl("ipv4/ip_forward");
    let reply = call();
    assert_eq!(reply.json["cniVersion"], "1.1.0", "{:#}", reply.json);
    assert_eq!(host.changes(&node.snapshot()), Vec::<String>::new());
    assert_eq!(inside.changes(&Snapshot::of(pod)), Vec::<String>::new());
    assert_eq!(node.kept(), kept);
    assert_eq!(node.host.sysctl("ipv4/ip_forward"), forward);
    reply.error()
}

#[test]
fn a_namespace_that_cannot_be() {
    let node = Node::new();
    let pod = Ns::new("pod");
    let file = node.path("subnet.env").display().to_string();
    for (netns, code, text) in [
        (node.host.path(), 4, "is the node's own namespace"),
        (
            "/run/netns/no-such".to_owned(),
            3,
            "CNI_NETNS /run/netns/no-such does not exist",
        ),
        (file, 4, "is not a network namespace"),
        (String::new(), 4, "CNI_NETNS is missing"),
    ] {
        let (found, msg) = fails_cleanly(&node, &pod, || node.call("ADD", "c1", &netns));
        assert_eq!(found, code, "{msg}");
        assert!(msg.contains(text), "{msg}");
    }
}

#[test]
fn no_subnet_yet() {
    let node = Node::without_subnet();
    let pod = Ns::new("pod");
    let (code, msg) = fails_cleanly(&node, &pod, || node.add("c1", &pod));
    assert_eq!(code, 11);
    assert!(
        msg.contains("subnet.env is not there: flanneld writes it"),
        "{msg}"
    );
    node.set_subnet("FLANNEL_NETWORK=10.244.0.0/16\n");
    let (code, msg) = fails_cleanly(&node, &pod, || node.add("c1", &pod));
    assert_eq!(code, 7);
    assert!(
        msg.ends_with("subnet.env: FLANNEL_SUBNET is missing"),
        "{msg}"
    );
}

#[test]
fn a_full_range() {
    let node = Node::new();
    node.set_subnet(&SUBNET.replace("/24", "/30"));
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    node.add("a", &a).result();
    let (code, msg) = fails_cleanly(&node, &b, || node.add("b", &b));
    assert_eq!(code, 11);
    assert!(
        msg.contains("no address is left for a pod in 10.244.3.0/30"),
        "{msg}"
    );
    node.del("a", "");
    assert_eq!(node.add("b", &b).addr(), "10.244.3.2");
}

#[test]
fn a_kernel_refusal_in_the_middle_is_undone_and_the_retry_succeeds() {
    let mut node = Node::new();
    let pod = Ns::new("pod");
    // A next hop that is out of reach: refused after bridge, cable and address were made.
    let broken = json!({"ipam": {"routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}]}});
    node.set_extra(broken.clone());
    let (code, msg) = fails_cleanly(&node, &pod, || node.add("c1", &pod));
    assert_eq!(code, 100);
    assert!(
        msg.contains("cannot add route 198.51.100.0/24 via 192.0.2.1")
            && msg.contains("Nexthop has invalid gateway"),
        "{msg}"
    );
    node.set_extra(json!({}));
    node.add("c1", &pod).result();

    // The same on a bridge that is in use.
    let other = Ns::new("other");
    node.set_extra(broken);
    fails_cleanly(&node, &other, || node.add("c2", &other));
    assert_eq!(node.ports().len(), 1);
}

#[test]
fn wrong_configurations_are_told_with_key_and_value() {
    let mut node = Node::new();
    let pod = Ns::new("pod");
    for (extra, code, text) in [
        (
            json!({"delegate": {"hairpinMode": 1}}),
            7,
            "delegate.hairpinMode is 1: expected true or false",
        ),
        (
            json!({"conditionsV4": ["-m", "tcp"]}),
            2,
            r#"conditionsV4 is ["-m","tcp"]: this is not supported"#,
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80}]}}),
            7,
            "runtimeConfig.portMappings[0].containerPort is missing",
        ),
        (
            json!({"prevResult": {"ips": [5]}}),
            7,
            "prevResult.ips is 5: expected a list of objects",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 65536, "containerPort": 80}]}}),
            7,
            "portMappings[0].hostPort is 65536: expected a port from 1 to 65535",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "fd00::1"}]}}),
            7,
            "hostPort [fd00::1]:80/tcp: the pod has no IPv6 address",
        ),
        (
            json!({"runtimeConfig": {"bandwidth": {"egressRate": 8000}}}),
            7,
            "runtimeConfig.bandwidth.egressBurst is missing",
        ),
        (
            json!({"conditionsV4": ["-s", "10.0.0.0/8"]}),
            2,
            "conditionsV4 is [\"-s\",\"10.0.0.0/8\"]: this is not supported",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.244.3.1"]}}),
            7,
            "the address 10.244.3.1 is asked for, and is not in 10.244.3.2-10.244.3.254",
        ),
        (json!({"name": "a/b"}), 7, "name is \"a/b\""),
        (
            json!({"cniVersion": "7.0.0"}),
            1,
            "cniVersion \"7.0.0\" is not supported",
        ),
    ] {
        node.set_extra(extra);
        let (found, msg) = fails_cleanly(&node, &pod, || node.add("c1", &pod));
        assert_eq!(found, code, "{msg}");
        assert!(msg.contains(text), "{msg}");
    }
}

#[test]
fn hostile_names_are_refused() {
    let node = Node::new();
    let pod = Ns::new("pod");
    let (code, msg) = fails_cleanly(&node, &pod, || {
        node.call("ADD", "../../etc/passwd", &pod.path())
    });
    assert_eq!(code, 4);
    assert!(msg.contains("CNI_CONTAINERID"), "{msg}");
    let reply = node.call("DEL", "..", "");
    assert_eq!(reply.error().0, 4);
}

#[test]
fn verbs_that_are_not_there_say_so() {
    let node = Node::new();
    let pod = Ns::new("pod");
    let (code, msg) = fails_cleanly(&node, &pod, || node.call("FROB", "c1", ""));
    assert_eq!(code, 4);
    assert!(msg.contains("\"FROB\""), "{msg}");
}

fn by_hand(arguments: &[&str], command: Option<&str>) -> (bool, String, String) {
    let mut binary = Command::new(env!("CARGO_BIN_EXE_twill-cni"));
    binary.args(arguments).env_clear().stdin(Stdio::null());
    if let Some(command) = command {
        binary.env("CNI_COMMAND", command);
    }
    let output = binary.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_person_is_told_what_it_is() {
    let (ok, stdout, stderr) = by_hand(&["--help"], None);
    assert!(ok && stdout.contains("CNI_COMMAND") && stderr.is_empty());
    let (ok, stdout, _) = by_hand(&["--version"], None);
    assert!(ok && stdout.starts_with("twill-cni 0."));
    let (ok, stdout, stderr) = by_hand(&[], None);
    assert!(ok && stdout.is_empty() && stderr.contains("called by the container runtime"));
    let (ok, _, stderr) = by_hand(&["--frob"], None);
    assert!(!ok && stderr.contains("\"--frob\""));
}

#[test]
fn version_needs_no_configuration() {
    let (ok, stdout, _) = by_hand(&[], Some("VERSION"));
    assert!(ok);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 7);
    assert_eq!(answer["cniVersion"], "1.1.0");
    // An empty configuration for the others is an error of decoding.
    let (ok, stdout, _) = by_hand(&[], Some("ADD"));
    assert!(!ok);
    let error: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(error["code"], 6);
}

#[test]
fn the_file_system_is_full_or_read_only() {
    let mut node = Node::new();
    let pod = Ns::new("pod");
    // A file where the directory should be.
    node.put("blocked", "");
    for extra in [
        json!({"ipam": {"dataDir": node.path("blocked")}}),
        json!({"stateDir": node.path("blocked/twill")}),
    ] {
        node.set_extra(extra);
        let (code, msg) = fails_cleanly(&node, &pod, || node.add("c1", &pod));
        assert_eq!(code, 5, "{msg}");
    }
}
