//! ADD and DEL: what they make, what they tell, and that nothing stays.

use std::collections::BTreeSet;
use std::fs;

use hostnet::testkit::{Ns, Snapshot, join_bridge};
use serde_json::{Value, json};

use crate::runtime::{DUAL, Node, finish};

#[test]
fn add_makes_what_flannels_chain_makes() {
    let node = Node::new();
    let pod = Ns::new("pod");
    let result = node.add("c1", &pod).result();

    let veth = node.ports().pop().unwrap();
    let host = node.snapshot();
    for line in [
        "link cni0 Bridge(Bridge { nf_call_iptables: true, nf_call_ip6tables: true, vlan_filtering: false }) mac 0a:58:0a:f4:03:01 mtu 1450 up",
        "addr cni0 10.244.3.1/24",
        "route 10.244.3.0/24 dev cni0 src 10.244.3.1 proto 2 scope 253 metric 0",
        "mtu 1450 up master cni0 BridgePort { hairpin: true, isolated: false, locked: false }",
    ] {
        assert!(host.mentions(line), "{line}\n{host}");
    }
    let inside = Snapshot::of(&pod);
    for line in [
        "link eth0 Veth mac 0a:58:0a:f4:03:02 mtu 1450 up",
        "addr eth0 10.244.3.2/24",
        "route 10.244.0.0/16 via 10.244.3.1 dev eth0",
        "route 0.0.0.0/0 via 10.244.3.1 dev eth0",
        "route 10.244.3.0/24 dev eth0 src 10.244.3.2 proto 2",
    ] {
        assert!(inside.mentions(line), "{line}\n{inside}");
    }
    assert_eq!(node.host.sysctl("ipv4/ip_forward"), "1");
    assert_eq!(node.host.sysctl("ipv6/conf/cni0/accept_ra"), "0");
    assert_eq!(pod.sysctl("ipv6/conf/eth0/accept_ra"), "0");

    let veth_mac = node.host.link(&veth).mac.unwrap();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": "0a:58:0a:f4:03:01", "mtu": 1450},
                {"name": veth, "mac": veth_mac, "mtu": 1450},
                {"name": "eth0", "mac": "0a:58:0a:f4:03:02", "mtu": 1450, "sandbox": pod.path()},
            ],
            "ips": [{"interface": 2, "address": "10.244.3.2/24", "gateway": "10.244.3.1"}],
            "routes": [{"dst": "10.244.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.3.1"}],
        })
    );
    let record: Value =
        serde_json::from_slice(&fs::read(node.path("twill/c1-eth0.json")).unwrap()).unwrap();
    assert_eq!(record["veth"], json!(veth));
    assert_eq!(
        record["addresses"],
        json!([{"address": "10.244.3.2/24", "gateway": "10.244.3.1"}])
    );
    assert_eq!(
        fs::read(node.path("networks/cbr0/10.244.3.2")).unwrap(),
        b"c1\r\neth0"
    );
}

#[test]
fn del_takes_everything_away_however_often_and_whatever_is_missing() {
    let node = Node::new();
    let first = Ns::new("first");
    node.add("keep", &first).result();
    let before = node.snapshot();
    let kept = node.kept();
    for (case, netns) in [
        ("with its namespace", None),
        ("without a namespace", Some(String::new())),
        (
            "with a namespace that is gone",
            Some("/run/netns/no-such".to_owned()),
        ),
        (
            "with a plain file",
            Some(node.path("subnet.env").display().to_string()),
        ),
        ("with the node's own namespace", Some(node.host.path())),
        ("with another container's namespace", Some(first.path())),
    ] {
        let pod = Ns::new("pod");
        node.add("c1", &pod).result();
        let netns = netns.unwrap_or_else(|| pod.path());
        for _ in 0..2 {
            node.del("c1", &netns);
            assert_eq!(
                before.changes(&node.snapshot()),
                Vec::<String>::new(),
                "{case}"
            );
            assert_eq!(node.kept(), kept, "{case}");
        }
        assert!(pod.find_link("eth0").is_none(), "{case}");
        assert!(first.find_link("eth0").is_some(), "{case}");
    }
}

#[test]
fn del_needs_neither_subnet_env_nor_a_right_delegate() {
    let mut node = Node::new();
    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    fs::remove_file(node.path("subnet.env")).unwrap();
    node.set_extra(json!({"delegate": {"hairpinMode": "nonsense", "vlan": 7}}));
    node.del("c1", &pod.path());
    assert_eq!(node.kept(), Vec::<String>::new());
}

#[test]
fn a_second_add_is_refused_and_harms_nothing() {
    let node = Node::new();
    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    let (before, inside, kept) = (node.snapshot(), Snapshot::of(&pod), node.kept());
    let (code, msg) = node.add("c1", &pod).error();
    assert_eq!(code, 4);
    assert!(msg.starts_with("CNI_IFNAME eth0 is there already"), "{msg}");
    // The same container in another namespace.
    let (code, msg) = node.add("c1", &Ns::new("other")).error();
    assert_eq!(code, 4);
    assert!(
        msg.starts_with("container c1 has an interface eth0 already"),
        "{msg}"
    );
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
    assert_eq!(inside.changes(&Snapshot::of(&pod)), Vec::<String>::new());
    assert_eq!(node.kept(), kept);
}

#[test]
fn sixty_four_at_once_have_sixty_four_addresses() {
    let node = Node::new();
    let before = node.snapshot();
    let pods: Vec<Ns> = (0..64).map(|n| Ns::new(&format!("pod{n}"))).collect();
    let calls: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(n, pod)| node.start("ADD", &format!("c{n}"), &pod.path()))
        .collect();
    let addrs: BTreeSet<String> = calls.into_iter().map(|call| finish(call).addr()).collect();
    assert_eq!(addrs.len(), 64);
    assert_eq!(node.reserved(), addrs);
    assert_eq!(node.ports().len(), 64);

    let calls: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(n, pod)| node.start("DEL", &format!("c{n}"), &pod.path()))
        .collect();
    for call in calls {
        assert!(finish(call).ok);
    }
    assert_eq!(node.kept(), Vec::<String>::new());
    assert_eq!(node.ports(), Vec::<String>::new());
    node.host
        .apply(hostnet::netlink::link::delete(node.host.link("cni0").index));
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
}

#[test]
fn freed_addresses_rest() {
    let node = Node::new();
    let pods = [Ns::new("a"), Ns::new("b"), Ns::new("c")];
    assert_eq!(node.add("a", &pods[0]).addr(), "10.244.3.2");
    assert_eq!(node.add("b", &pods[1]).addr(), "10.244.3.3");
    node.del("a", &pods[0].path());
    assert_eq!(node.add("c", &pods[2]).addr(), "10.244.3.4");
    assert_eq!(node.add("a", &pods[0]).addr(), "10.244.3.5");
}

#[test]
fn every_version_is_answered_in_its_own_shape() {
    for version in [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ] {
        let node = Node::new().with_version(version);
        let pod = Ns::new("pod");
        let result = node.add("c1", &pod).result();
        assert_eq!(result["cniVersion"], version);
        let address = match version {
            "0.1.0" | "0.2.0" => &result["ip4"]["ip"],
            _ => &result["ips"][0]["address"],
        };
        assert_eq!(address, "10.244.3.2/24");
        node.del("c1", &pod.path());
    }
}

#[test]
fn both_families_from_one_node() {
    let node = Node::new();
    node.set_subnet(DUAL);
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    // Some runtimes turn IPv6 off in every namespace that they make.
    b.set_sysctl("ipv6/conf/default/disable_ipv6", "1");
    node.add("a", &a).result();
    let result = node.add("b", &b).result();
    assert_eq!(result["ips"][1]["address"], "fd00:0:0:3::3/64");
    let _server = hostnet::testkit::EchoServer::start(&b, "b", "[::]:80");
    let answer = hostnet::testkit::ask_tcp(&a, "[fd00:0:0:3::3]:80").unwrap();
    assert_eq!(answer.source.ip().to_string(), "fd00:0:0:3::2");
    assert_eq!(node.host.sysctl("ipv6/conf/all/forwarding"), "1");
    node.del("a", "");
    node.del("b", "");
    assert_eq!(node.kept(), Vec::<String>::new());
}

#[test]
fn pods_that_flannels_plugins_made_are_taken_down() {
    let node = Node::new();
    let (old, young) = (Ns::new("old"), Ns::new("young"));
    // As bridge and host-local leave them: a random veth, a reservation, flannel's file, no record.
    node.host.bridge("cni0");
    node.host.addr("cni0", "10.244.3.1/24");
    join_bridge(&node.host, "cni0", "veth5f00d", &old, "eth0");
    old.addr("eth0", "10.244.3.7/24");
    node.put("networks/cbr0/10.244.3.7", "old\r\neth0");
    node.put("networks/cbr0/last_reserved_ip.0", "10.244.3.7");
    node.put("flannel/old", "{}");

    assert_eq!(node.add("young", &young).addr(), "10.244.3.8");
    // Its namespace was taken over by another container: only what is surely its own goes.
    node.del("old", &young.path());
    assert!(young.find_link("eth0").is_some());
    assert_eq!(node.reserved(), BTreeSet::from(["10.244.3.8".to_owned()]));

    node.put("networks/cbr0/10.244.3.7", "old\r\neth0");
    node.del("old", &old.path());
    assert!(old.find_link("eth0").is_none());
    assert!(!node.path("flannel/old").exists());
    assert_eq!(node.reserved(), BTreeSet::from(["10.244.3.8".to_owned()]));
}

#[test]
fn chains_of_portmap_and_bridge_go_with_the_pod() {
    hostnet::testkit::require_tool("iptables-nft", "iptables");
    let node = Node::new();
    // SHA-512 of "cbr0old" and of "cbr0other".
    let (dn, masq) = ("CNI-DN-OLD", "CNI-OLD");
    let hash = |id: &str| {
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("printf cbr0{id} | sha512sum")])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let name = |prefix: &str, id: &str| format!("{prefix}{}", hash(id))[..28].to_owned();
    let iptables = |line: &str| {
        let line = line
            .replace(dn, &name("CNI-DN-", "old"))
            .replace(masq, &name("CNI-", "old"))
            .replace("CNI-DN-KEEP", &name("CNI-DN-", "other"));
        let words: Vec<&str> = line.split(' ').collect();
        node.host
            .sh("iptables-nft", &[&["-t", "nat"], &words[..]].concat());
    };
    for line in [
        "-N CNI-HOSTPORT-DNAT",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-N CNI-DN-OLD",
        "-A CNI-DN-OLD -p tcp --dport 8080 -j DNAT --to-destination 10.244.3.7:80",
        "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --destination-ports 8080 -j CNI-DN-OLD",
        "-N CNI-DN-KEEP",
        "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --destination-ports 9090 -j CNI-DN-KEEP",
        "-N CNI-OLD",
        "-A CNI-OLD -d 10.244.3.0/24 -j ACCEPT",
        "-A POSTROUTING -s 10.244.3.7 -j CNI-OLD",
    ] {
        iptables(line);
    }
    node.put("networks/cbr0/10.244.3.7", "old\r\neth0");
    node.del("old", "");
    let left = node.host.sh("iptables-nft", &["-t", "nat", "-S"]);
    assert!(
        !left.contains("8080") && !left.contains("10.244.3.7"),
        "{left}"
    );
    assert!(!left.contains(&name("CNI-", "old")), "{left}");
    assert!(
        left.contains("9090") && left.contains(&name("CNI-DN-", "other")),
        "{left}"
    );
    assert_eq!(node.kept(), Vec::<String>::new());
}

#[test]
fn del_finds_an_attachment_whose_record_was_lost() {
    let node = Node::new();
    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    fs::remove_file(node.path("twill/c1-eth0.json")).unwrap();
    node.del("c1", "");
    assert!(pod.find_link("eth0").is_none());
    assert_eq!(node.kept(), Vec::<String>::new());
}
