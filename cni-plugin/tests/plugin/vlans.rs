//! Pods in VLANs of their own. A kernel whose bridges do not filter by VLAN has to say so; what a port's VLANs become
//! there in bytes is shown by the tests of `hostnet`.

use std::process::Command;

use cni_plugin::rebuild;
use cni_plugin::record::Records;
use hostnet::nft::Nft;
use hostnet::sysctl::Sysctl;
use hostnet::testkit::{EchoServer, Ns, ask_tcp};
use serde_json::{Value, json};

use crate::install::uninstall;
use crate::runtime::Node;

fn config(keys: Value) -> Value {
    let mut config =
        json!({"bridge": "cni0", "ipam": {"subnet": "10.7.0.0/24", "gateway": "10.7.0.1"}});
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// What iproute2 makes of the same wish.
fn kernel_filters(node: &Node) -> bool {
    let mut command = Command::new("ip");
    command.args("link add probe type bridge vlan_filtering 1".split(' '));
    let filters = node.host.run(|| command.output()).unwrap().status.success();
    if filters {
        node.host.sh("ip", &["link", "del", "probe"]);
    }
    filters
}

/// What `bridge vlan` shows of a pod's port.
fn vlans(node: &Node, result: &Value) -> String {
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    let shown = node.host.sh("bridge", &["vlan", "show", "dev", port]);
    shown
        .split_whitespace()
        .skip(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn mend(node: &Node) -> Vec<String> {
    let records = Records::new(&node.path("twill"));
    let mut nft = node.host.run(Nft::open).unwrap();
    let mut rtnl = node.host.rtnl();
    let switches = Sysctl::default();
    let done = (node.host).run(|| rebuild::mend(&mut rtnl, &mut nft, &switches, &records));
    done.unwrap()
}

#[test]
fn pods_reach_those_of_their_vlan_and_its_gateway_and_no_others() {
    let mut node = Node::plain(config(json!({"vlan": 100, "isGateway": true})));
    let before = node.snapshot();
    if !kernel_filters(&node) {
        refused(&mut node);
        return;
    }
    let pods = ["a", "b", "other", "trunk"].map(Ns::new);
    let [a, b, other, trunk] = &pods;
    let of_a = node.add("a", a).result();
    assert_eq!(
        vlans(&node, &of_a),
        "1 Egress Untagged 100 PVID Egress Untagged"
    );
    let shown = node
        .host
        .sh("ip", &["-o", "addr", "show", "dev", "cni0.100"]);
    assert!(shown.contains("10.7.0.1/24"), "{shown}");

    node.set_extra(config(
        json!({"vlan": 100, "isGateway": true, "preserveDefaultVlan": false}),
    ));
    let of_b = node.add("b", b).result();
    assert_eq!(vlans(&node, &of_b), "100 PVID Egress Untagged");
    let _server = EchoServer::start(b, "b", "0.0.0.0:80");
    let addr = of_b["ips"][0]["address"].as_str().unwrap();
    let at = format!("{}:80", addr.split('/').next().unwrap());
    assert_eq!(ask_tcp(a, &at).unwrap().server, "b");
    assert_eq!(ask_tcp(&node.host, &at).unwrap().server, "b");

    node.set_extra(config(json!({"vlan": 200, "preserveDefaultVlan": false})));
    node.add("other", other).result();
    assert!(ask_tcp(other, &at).is_err(), "another VLAN");

    let tags = json!([{"minID": 100, "maxID": 102}, {"id": 300}]);
    node.set_extra(config(
        json!({"vlanTrunk": tags, "preserveDefaultVlan": false}),
    ));
    let of_trunk = node.add("trunk", trunk).result();
    assert_eq!(vlans(&node, &of_trunk), "100 101 102 300");
    for line in [
        "link add link eth0 name eth0.100 type vlan id 100",
        "addr add 10.7.0.200/24 dev eth0.100",
        "link set eth0.100 up",
        "route replace 10.7.0.0/24 dev eth0.100",
    ] {
        trunk.sh("ip", &line.split(' ').collect::<Vec<_>>());
    }
    assert_eq!(ask_tcp(trunk, &at).unwrap().server, "b");

    // What somebody takes away is seen by CHECK and put back.
    node.set_extra(config(
        json!({"vlan": 100, "isGateway": true, "preserveDefaultVlan": false, "prevResult": of_b}),
    ));
    let check = |node: &Node| node.call("CHECK", "b", &b.path());
    assert!(check(&node).ok && mend(&node).is_empty());
    let port = of_b["interfaces"][1]["name"].as_str().unwrap();
    let links = node.snapshot();
    for harm in [
        format!("bridge vlan del dev {port} vid 100"),
        format!("bridge vlan add dev {port} vid 7"),
        "ip link set cni0 type bridge vlan_filtering 0".to_owned(),
        "ip link del cni0.100".to_owned(),
        "ip link del cni0".to_owned(),
    ] {
        let words: Vec<&str> = harm.split(' ').collect();
        node.host.sh(words[0], &words[1..]);
        let (_, msg) = check(&node).error();
        assert!(
            msg.contains("VLAN") || msg.contains("cni0"),
            "{harm}: {msg}"
        );
        assert!(!mend(&node).is_empty(), "{harm}");
        assert!(check(&node).ok, "{harm}");
        assert_eq!(mend(&node), Vec::<String>::new(), "{harm}");
        assert_eq!(
            links.changes(&node.snapshot()),
            Vec::<String>::new(),
            "{harm}"
        );
    }
    assert_eq!(ask_tcp(a, &at).unwrap().server, "b");

    for id in ["a", "b", "other", "trunk"] {
        node.del(id, "");
    }
    assert_eq!(node.kept(), Vec::<String>::new());
    let told = uninstall(&node);
    assert!(told.contains("removed cni0.100\nremoved cni0\n"), "{told}");
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
}

/// Nothing of it is left, whether the bridge was there before or not.
fn refused(node: &mut Node) {
    let keys = [
        json!({"vlan": 100}),
        json!({"vlan": 100, "isGateway": true}),
        json!({"vlanTrunk": [{"id": 5}]}),
    ];
    let expected =
        "vlan and vlanTrunk need bridges that filter by VLAN, which this kernel does not have";
    let plain = Ns::new("plain");
    for bridge in [false, true] {
        if bridge {
            node.set_extra(config(json!({"isGateway": true})));
            node.add("plain", &plain).result();
        }
        let (before, kept) = (node.snapshot(), node.kept());
        for keys in &keys {
            node.set_extra(config(keys.clone()));
            let (code, msg) = node.add("c1", &Ns::new("pod")).error();
            assert_eq!(code, 7, "{msg}");
            assert!(msg.starts_with(expected), "{msg}");
            assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
            assert_eq!(node.kept(), kept);
        }
    }
}
