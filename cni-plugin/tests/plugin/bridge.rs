//! What becomes of `cni0` over time.

use hostnet::netlink::Addr;
use hostnet::netlink::addr;
use hostnet::netlink::link::{self, LinkKind, NewLink, NewPeer};
use hostnet::testkit::{EchoServer, Ns, ask_tcp};
use hostnet::vocab::{IfName, Mac};

use crate::runtime::{Node, SUBNET};

fn bridge_mac(node: &Node) -> Mac {
    node.host.link("cni0").mac.unwrap()
}

fn bridge_addrs(node: &Node) -> Vec<String> {
    let index = node.host.link("cni0").index;
    let addrs: Vec<Addr> = node.host.rtnl().addrs(Some(index)).unwrap();
    let v4 = addrs.iter().filter(|addr| addr.broadcast.is_some());
    v4.map(|addr| addr.cidr.to_string()).collect()
}

#[test]
fn its_mac_stays_while_pods_come_and_go() {
    let node = Node::new();
    let pods: Vec<Ns> = (0..4).map(|n| Ns::new(&format!("pod{n}"))).collect();
    node.add("c0", &pods[0]).result();
    let mac = bridge_mac(&node);
    for (n, pod) in pods.iter().enumerate().skip(1) {
        node.add(&format!("c{n}"), pod).result();
        assert_eq!(bridge_mac(&node), mac);
    }
    for n in 0..4 {
        node.del(&format!("c{n}"), "");
        assert_eq!(bridge_mac(&node), mac);
    }
}

#[test]
fn it_forwards_at_once_and_says_nothing_later() {
    let node = Node::new();
    node.add("c0", &Ns::new("pod")).result();
    let told = node.host.sh("ip", &["-d", "link", "show", "cni0"]);
    assert!(
        told.contains("forward_delay 0 ") && told.contains("stp_state 0 "),
        "{told}"
    );
}

#[test]
fn one_that_others_made_without_a_mac_is_taken_over() {
    let node = Node::new();
    // No port, so the kernel shows a MAC of zeroes or a random one that the first port replaces.
    node.host.bridge("cni0");
    node.host.set_down("cni0");
    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    let mac = bridge_mac(&node);
    assert!(mac.is_unicast());
    assert_eq!(bridge_addrs(&node), ["10.244.3.1/24"]);
    let before = node.snapshot();
    assert!(before.mentions("nf_call_iptables: true"));
    // A port with the lowest possible MAC would give it its own.
    let peer = NewPeer {
        name: IfName::new("low-far").unwrap(),
        mac: Some(Mac([2, 0, 0, 0, 0, 2])),
        mtu: None,
        ns: None,
    };
    let low = NewLink {
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        master: Some(node.host.link("cni0").index),
        up: true,
        ..NewLink::veth(IfName::new("low").unwrap(), peer)
    };
    node.host.apply(link::create(&low));
    assert_eq!(bridge_mac(&node), mac);
}

#[test]
fn it_follows_a_changed_subnet_and_old_pods_keep_their_gateway() {
    let node = Node::new();
    let (old, young, last) = (Ns::new("old"), Ns::new("young"), Ns::new("last"));
    node.add("old", &old).result();
    let mac = bridge_mac(&node);
    // An administrator's own.
    node.host.addr("cni0", "192.0.2.1/24");

    node.set_subnet(&SUBNET.replace("10.244.3.1", "10.244.5.1"));
    assert_eq!(node.add("young", &young).addr(), "10.244.5.2");
    let mut addrs = bridge_addrs(&node);
    addrs.sort();
    assert_eq!(addrs, ["10.244.3.1/24", "10.244.5.1/24", "192.0.2.1/24"]);
    assert_eq!(bridge_mac(&node), mac);
    // Old and new reach each other by the node.
    let _server = EchoServer::start(&young, "young", "10.244.5.2:80");
    let answer = ask_tcp(&old, "10.244.5.2:80").unwrap();
    assert_eq!(answer.source.ip().to_string(), "10.244.3.2");

    // Once the old pods are gone, so is the old address.
    node.del("old", &old.path());
    node.add("last", &last).result();
    let mut addrs = bridge_addrs(&node);
    addrs.sort();
    assert_eq!(addrs, ["10.244.5.1/24", "192.0.2.1/24"]);
}

#[test]
fn what_it_lost_comes_back_with_the_next_pod() {
    let node = Node::new();
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    node.add("a", &a).result();
    let index = node.host.link("cni0").index;
    node.host.apply(addr::delete(&Addr::new(
        index,
        "10.244.3.1/24".parse().unwrap(),
    )));
    node.host.set_down("cni0");
    node.host.set_sysctl("ipv4/ip_forward", "0");
    node.add("b", &b).result();
    assert_eq!(bridge_addrs(&node), ["10.244.3.1/24"]);
    assert!(node.host.link("cni0").up);
    assert_eq!(node.host.sysctl("ipv4/ip_forward"), "1");
    let _server = EchoServer::start(&b, "b", "10.244.3.3:80");
    ask_tcp(&a, "10.244.3.3:80").unwrap();
}

#[test]
fn a_link_of_its_name_that_is_no_bridge_is_left_alone() {
    let node = Node::new();
    let pod = Ns::new("pod");
    let peer = NewPeer {
        name: IfName::new("far").unwrap(),
        mac: None,
        mtu: None,
        ns: None,
    };
    node.host.apply(link::create(&NewLink::veth(
        IfName::new("cni0").unwrap(),
        peer,
    )));
    let before = node.snapshot();
    let (code, msg) = node.add("c1", &pod).error();
    assert_eq!(code, 7);
    assert!(msg.starts_with("cni0 is not a bridge but veth"), "{msg}");
    assert_eq!(before.changes(&node.snapshot()), Vec::<String>::new());
    assert_eq!(node.kept(), Vec::<String>::new());
    assert_eq!(node.host.link("cni0").kind, LinkKind::Veth);
}
