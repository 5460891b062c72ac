//! The bridge plugin's form of the configuration: each key, by what it does.

use std::fs;

use hostnet::netlink::link::{self, Change};
use hostnet::testkit::{EchoServer, Ns, Snapshot, ask_tcp, ask_udp, join_bridge};
use hostnet::vocab::Mac;
use serde_json::{Value, json};

use crate::runtime::Node;

fn ranges() -> Value {
    json!({"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]})
}

fn with(keys: Value) -> Value {
    let mut all = json!({"bridge": "br9", "isGateway": true, "ipam": ranges()});
    for (key, value) in keys.as_object().unwrap() {
        match (&mut all[key], value) {
            (Value::Object(there), Value::Object(more)) => there.extend(more.clone()),
            (slot, value) => *slot = value.clone(),
        }
    }
    all
}

fn ips(result: &Value) -> Vec<String> {
    let list = result["ips"].as_array().unwrap().iter();
    list.map(|ip| ip["address"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_conflist_in_which_only_the_type_was_changed() {
    let node = Node::plain(json!({
        "bridge": "br9", "isDefaultGateway": true, "ipMasq": true, "mtu": 1400, "hairpinMode": true,
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.20", "rangeEnd": "10.9.0.21",
                 "gateway": "10.9.0.254", "routes": [{"dst": "198.51.100.0/24", "gw": "10.9.0.253", "mtu": 1300, "priority": 7}]}
    }));
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    let result = node.add("a", &a).result();
    assert_eq!(ips(&result), ["10.9.0.20/24"]);
    assert_eq!(
        result["routes"],
        json!([
            {"dst": "198.51.100.0/24", "gw": "10.9.0.253", "mtu": 1300, "priority": 7},
            {"dst": "0.0.0.0/0", "gw": "10.9.0.254"}
        ])
    );
    assert_eq!(ips(&node.add("b", &b).result()), ["10.9.0.21/24"]);
    let (host, inside) = (node.snapshot(), Snapshot::of(&a));
    assert!(host.mentions("addr br9 10.9.0.254/24"), "{host}");
    assert!(host.mentions("mtu 1400 up master br9"), "{host}");
    assert!(
        inside.mentions("route 198.51.100.0/24 via 10.9.0.253 dev eth0 proto 3 scope 0 metric 7"),
        "{inside}"
    );
    let _server = EchoServer::start(&b, "b", "10.9.0.21:80");
    assert_eq!(
        ask_tcp(&a, "10.9.0.21:80").unwrap().source.ip().to_string(),
        "10.9.0.20"
    );
    let (code, msg) = node.add("c", &Ns::new("c")).error();
    assert_eq!(code, 11);
    assert!(
        msg.contains("no address is left for a pod in 10.9.0.0/24"),
        "{msg}"
    );
}

#[test]
fn several_ranges_and_addresses_that_are_asked_for() {
    let mut node = Node::plain(with(json!({})));
    let pods = [
        Ns::new("a"),
        Ns::new("b"),
        Ns::new("c"),
        Ns::new("d"),
        Ns::new("e"),
    ];
    assert_eq!(
        ips(&node.add("a", &pods[0]).result()),
        ["10.9.0.2/24", "fd09::2/64"]
    );
    node.set_extra(with(
        json!({"runtimeConfig": {"ips": ["10.9.0.50/24"], "mac": "02:00:00:00:00:50"}}),
    ));
    let result = node.add("b", &pods[1]).result();
    assert_eq!(ips(&result), ["10.9.0.50/24", "fd09::3/64"]);
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:50");
    assert_eq!(pods[1].link("eth0").mac, Some(Mac([2, 0, 0, 0, 0, 0x50])));
    node.set_extra(with(json!({"args": {"cni": {"ips": ["fd09::60"]}}})));
    node.set_args("IgnoreUnknown=1;IP=10.9.0.60;MAC=02:00:00:00:00:60");
    let result = node.add("c", &pods[2]).result();
    assert_eq!(ips(&result), ["10.9.0.60/24", "fd09::60/64"]);
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:60");
    // By whom it is taken; and nothing is left of the call.
    let kept = node.kept();
    node.set_extra(with(json!({})));
    let (code, msg) = node.add("d", &pods[3]).error();
    assert_eq!(code, 11);
    assert!(
        msg.contains("10.9.0.60 is asked for, and is reserved for container c interface eth0"),
        "{msg}"
    );
    assert_eq!(node.kept(), kept);
    // Ranges of the runtime's come first.
    node.set_args("");
    node.set_extra(with(
        json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.8.0.0/24"}]]}}),
    ));
    assert_eq!(
        ips(&node.add("e", &pods[4]).result()),
        ["10.8.0.2/24", "10.9.0.3/24", "fd09::4/64"]
    );
}

#[test]
fn a_bridge_alone() {
    let node = Node::plain(json!({"bridge": "br9"}));
    let pod = Ns::new("pod");
    let result = node.add("c1", &pod).result();
    assert_eq!(result["ips"], json!([]));
    assert!(pod.link("eth0").up);
    assert!(!node.path("networks").exists());
    node.del("c1", "");
    assert_eq!(node.kept(), Vec::<String>::new());

    let node = Node::plain(json!({"bridge": "br9", "disableContainerInterface": true}));
    let pod = Ns::new("pod");
    let result = node.add("c1", &pod).result();
    assert!(!pod.link("eth0").up);
    let mut node = node;
    node.set_extra(
        json!({"bridge": "br9", "disableContainerInterface": true, "prevResult": result}),
    );
    let reply = node.call("CHECK", "c1", &pod.path());
    assert!(reply.ok, "{:#}", reply.json);
    node.set_extra(with(json!({"disableContainerInterface": true})));
    let (code, msg) = node.add("c2", &Ns::new("other")).error();
    assert_eq!(code, 7);
    assert!(
        msg.starts_with("disableContainerInterface is true"),
        "{msg}"
    );
}

#[test]
fn a_foreign_address_stands_in_the_way_unless_forced() {
    let mut node = Node::plain(with(json!({})));
    let pod = Ns::new("pod");
    node.host.bridge("br9");
    node.host.addr("br9", "192.0.2.77/24");
    node.host.addr("br9", "fd77::1/64");
    let before = node.snapshot();
    let (code, msg) = node.add("c1", &pod).error();
    assert_eq!(code, 7);
    assert!(
        msg.contains("br9 has the address 192.0.2.77/24") && msg.contains("forceAddress"),
        "{msg}"
    );
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
    assert_eq!(node.kept(), Vec::<String>::new());
    node.set_extra(with(json!({"forceAddress": true})));
    node.add("c1", &pod).result();
    let after = node.snapshot();
    assert!(
        !after.mentions("192.0.2.77") && after.mentions("addr br9 10.9.0.1/24"),
        "{after}"
    );
    assert!(
        after.mentions("fd77::1/64"),
        "another IPv6 subnet stays\n{after}"
    );
}

#[test]
fn promiscuous_or_hairpin_but_not_both() {
    let mut node = Node::plain(with(json!({"promiscMode": true})));
    node.add("c1", &Ns::new("pod")).result();
    assert!(node.host.link("br9").promisc);
    // Also on a bridge that is there.
    node.host.change(
        "br9",
        Change {
            promisc: Some(false),
            ..Change::default()
        },
    );
    node.add("c2", &Ns::new("other")).result();
    assert!(node.host.link("br9").promisc);
    node.set_extra(with(json!({"promiscMode": true, "hairpinMode": true})));
    let (code, msg) = node.add("c3", &Ns::new("third")).error();
    assert_eq!(code, 7);
    assert!(msg.starts_with("promiscMode is true"), "{msg}");
}

#[test]
fn a_pod_that_forges_its_mac_is_not_heard() {
    let node = Node::plain(with(json!({"macspoofchk": true})));
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    node.add("a", &a).result();
    node.add("b", &b).result();
    let _server = EchoServer::start(&b, "b", "10.9.0.3:80");
    ask_tcp(&a, "10.9.0.3:80").unwrap();
    let own = a.link("eth0").mac;
    let forged = |mac| {
        a.change(
            "eth0",
            Change {
                mac,
                ..Change::default()
            },
        )
    };
    forged(Some(Mac([2, 0, 0, 0, 0, 9])));
    ask_udp(&a, "10.9.0.3:80").unwrap_err();
    forged(own);
    ask_udp(&a, "10.9.0.3:80").unwrap();
}

#[test]
fn duplicate_addresses_are_noticed_where_asked_for() {
    let node = Node::plain(with(
        json!({"enabledad": true, "ipam": {"ranges": [[{"subnet": "fd09::/64"}]]}}),
    ));
    let (squatter, pod) = (Ns::new("squatter"), Ns::new("pod"));
    node.host.bridge("br9");
    join_bridge(&node.host, "br9", "squat", &squatter, "eth0");
    squatter.addr("eth0", "fd09::2/64");
    hostnet::testkit::wait_until(
        "the squatter's port",
        std::time::Duration::from_secs(20),
        || node.host.link("squat").operational,
    );
    let (code, msg) = node.add("c1", &pod).error();
    assert_eq!(code, 11);
    assert!(
        msg.contains("somebody on the network has the address fd09::2"),
        "{msg}"
    );
    assert!(pod.find_link("eth0").is_none());
    // The next in the round is free, and usable when ADD has returned.
    let result = node.add("c1", &pod).result();
    assert_eq!(ips(&result), ["fd09::3/64"]);
    let index = pod.link("eth0").index;
    assert_eq!(pod.rtnl().unconfirmed(index).unwrap(), []);
}

#[test]
fn name_servers_are_told() {
    let mut node = Node::plain(json!({}));
    node.put("resolv.conf", "nameserver 10.9.0.53\nsearch example.org\n");
    node.set_extra(with(
        json!({"ipam": {"resolvConf": node.path("resolv.conf")}}),
    ));
    let result = node.add("c1", &Ns::new("pod")).result();
    assert_eq!(
        result["dns"],
        json!({"nameservers": ["10.9.0.53"], "search": ["example.org"]})
    );
    node.set_extra(with(json!({"ipam": {"resolvConf": "/no/such/file"}})));
    let (code, msg) = node.add("c2", &Ns::new("other")).error();
    assert_eq!(code, 7);
    assert!(msg.contains("/no/such/file"), "{msg}");
}

#[test]
fn what_was_made_before_is_passed_on() {
    let mut node = Node::plain(json!({}));
    let before = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "tap0", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]}
    });
    node.set_extra(with(json!({"prevResult": before})));
    let pod = Ns::new("pod");
    let result = node.add("c1", &pod).result();
    assert_eq!(result["interfaces"][0], before["interfaces"][0]);
    assert_eq!(result["interfaces"][3]["name"], "eth0");
    assert_eq!(ips(&result), ["192.0.2.9/24", "10.9.0.2/24", "fd09::2/64"]);
    assert_eq!(result["ips"][1]["interface"], 3);
    assert_eq!(result["dns"], before["dns"]);
    // CHECK is given all of it, and what plugins behind us added.
    node.set_extra(with(json!({"prevResult": result})));
    let reply = node.call("CHECK", "c1", &pod.path());
    assert!(reply.ok, "{:#}", reply.json);
}

#[test]
fn a_reboot_frees_what_was_reserved() {
    let node = Node::plain(with(
        json!({"ipam": {"ranges": [[{"subnet": "10.9.0.0/30"}]]}}),
    ));
    let pod = Ns::new("pod");
    node.add("before", &pod).result();
    // As after a reboot: the links are gone, the files are not.
    let record = node.path("twill/before-eth0.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    json["boot"] = json!("0d0a0000-0000-0000-0000-000000000000");
    node.put("twill/before-eth0.json", &json.to_string());
    node.put("twill/cbr0.boot", "0d0a0000-0000-0000-0000-000000000000");
    node.host.apply(link::delete(node.host.link("br9").index));
    node.host.apply(link::delete(
        hostnet::vocab::IfName::new(json["veth"].as_str().unwrap()).unwrap(),
    ));
    // The only address is free again, and STATUS says so before.
    let reply = node.call("STATUS", "", "");
    assert!(reply.ok, "{:#}", reply.json);
    let after = Ns::new("after");
    assert_eq!(node.add("after", &after).addr(), "10.9.0.2");
    assert_eq!(node.kept(), ["10.9.0.2", "after-eth0.json"]);
    // In this boot nothing is freed by itself.
    assert_eq!(node.call("STATUS", "", "").error().0, 50);
    // DEL of the one before comes late, and takes nothing from the new one.
    node.del("before", "");
    assert_eq!(node.kept(), ["10.9.0.2", "after-eth0.json"]);
}
