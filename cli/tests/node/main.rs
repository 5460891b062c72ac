//! `trace` on a real kernel: a node with two pods, a peer behind a tunnel and a client outside. The verdict is compared
//! with a real connection, and each hop that is broken is named, alone, with its remedy.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use cli::kernel::Kernel;
use cli::pods::{PodTable, pods};
use cli::report::{Arrival, Trace};
use cli::trace::{PodNetwork, Question, trace};
use hostnet::nft::Proto;
use hostnet::testkit::{EchoServer, Ns, ask_tcp, connect, join_bridge, require_tool};
use hostnet::vocab::Family;
use proxy::backend::Backend;
use proxy::nft::NftBackend;
use proxy::plan::{
    At, Endpoint, FamilyRuleset, Frontend, Masquerade, NodeRules, PodTraffic, PortKey, PortName,
    Protocol, Ruleset, ServicePort, Verdict, View,
};

struct World {
    node: Ns,
    /// Pods `a` (10.244.2.5, serves 8080) and `b` (10.244.2.6).
    a: Ns,
    b: Ns,
    outside: Ns,
    /// The other node, which is its pod 10.244.3.2 too.
    peer: Ns,
    records: tempfile::TempDir,
    _servers: Vec<EchoServer>,
}

const PEER_MAC: &str = "0e:00:00:00:03:00";
const NODE_MAC: &str = "0e:00:00:00:02:00";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl World {
    fn new() -> World {
        require_tool("ip", "iproute2");
        require_tool("nft", "nftables");
        let [node, a, b, outside, peer] = ["node", "a", "b", "outside", "peer"].map(Ns::new);
        connect(&node, "eth0", &peer, "eth0");
        connect(&node, "eth1", &outside, "eth0");
        node.addr("eth0", "172.30.0.12/24");
        peer.addr("eth0", "172.30.0.13/24");
        node.addr("eth1", "198.51.100.254/24");
        outside.addr("eth0", "198.51.100.1/24");
        outside.route("default", "198.51.100.254");
        node.route("default", "198.51.100.1");
        node.forward();
        node.bridge("cni0");
        for (pod, port, address) in [(&a, "vetha", "10.244.2.5"), (&b, "vethb", "10.244.2.6")] {
            join_bridge(&node, "cni0", port, pod, "eth0");
            pod.addr("eth0", &format!("{address}/24"));
        }
        run(&node, "bridge link set dev vetha hairpin on");
        node.addr("cni0", "10.244.2.1/24");
        for pod in [&a, &b] {
            pod.route("default", "10.244.2.1");
        }
        tunnel(&node, NODE_MAC, "172.30.0.12", "10.244.2.0");
        tunnel(&peer, PEER_MAC, "172.30.0.13", "10.244.3.0");
        leads(&node, "10.244.3.0", PEER_MAC, "172.30.0.13");
        leads(&peer, "10.244.2.0", NODE_MAC, "172.30.0.12");
        peer.addr("lo", "10.244.3.2/32");
        let records = tempfile::tempdir().unwrap();
        for (name, pod, veth, address) in [
            ("a", &a, "vetha", "10.244.2.5"),
            ("b", &b, "vethb", "10.244.2.6"),
        ] {
            let record = serde_json::json!({
                "containerId": name, "ifName": "eth0", "network": "cbr0", "pod": format!("default/{name}"),
                "netns": pod.path(), "bridge": "cni0", "veth": veth, "mac": pod.link("eth0").mac,
                "mtu": 1450, "hairpin": true, "isolated": false,
                "addresses": [{"address": format!("{address}/24"), "gateway": "10.244.2.1"}],
            });
            let path = records.path().join(format!("{name}-eth0.json"));
            #[expect(clippy::disallowed_methods, reason = "read after it is written")]
            fs::write(path, record.to_string()).unwrap();
        }
        let mut backend = node.run(NftBackend::open).unwrap();
        backend.replace(&services()).unwrap();
        let servers = vec![
            EchoServer::start(&a, "a", "10.244.2.5:8080"),
            EchoServer::start(&peer, "far", "10.244.3.2:8080"),
        ];
        World {
            node,
            a,
            b,
            outside,
            peer,
            records,
            _servers: servers,
        }
    }

    fn trace(&self, from: &str, to: &str) -> Trace {
        let mut kernel = Kernel::of(self.node.ns().clone(), self.records.path()).unwrap();
        let question = Question {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            proto: Proto::TCP,
            family: Family::V4,
        };
        trace(&mut kernel, &networks(), &question).unwrap()
    }

    fn sender(&self, from: &str) -> &Ns {
        match from {
            "outside" => &self.outside,
            "node" => &self.node,
            "pod/default/a" => &self.a,
            _ => &self.b,
        }
    }
}

fn networks() -> [PodNetwork; 1] {
    [PodNetwork {
        network: "10.244.0.0/16".parse().unwrap(),
        own: "10.244.2.0/24".parse().unwrap(),
    }]
}

fn run(ns: &Ns, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    ns.sh(words[0], &words[1..]);
}

fn tunnel(ns: &Ns, mac: &str, local: &str, address: &str) {
    run(
        ns,
        &format!(
            "ip link add flannel.1 address {mac} type vxlan id 1 dstport 8472 local {local} dev eth0 nolearning"
        ),
    );
    ns.set_up("flannel.1");
    ns.addr("flannel.1", &format!("{address}/32"));
}

fn leads(ns: &Ns, base: &str, mac: &str, node: &str) {
    run(
        ns,
        &format!("ip neighbour add {base} lladdr {mac} dev flannel.1 nud permanent"),
    );
    run(
        ns,
        &format!("bridge fdb add {mac} dst {node} dev flannel.1"),
    );
    run(
        ns,
        &format!("ip route add {base}/24 via {base} dev flannel.1 onlink"),
    );
}

fn services() -> Ruleset {
    let endpoint = |address: &str, local| Endpoint {
        address: ip(address),
        port: 8080,
        local,
    };
    let (near, far) = (endpoint("10.244.2.5", true), endpoint("10.244.3.2", false));
    let balance = Verdict::Balance(View::Cluster);
    let frontend = |at, port, inside, outside, masquerade| Frontend {
        at,
        port,
        inside,
        outside,
        masquerade,
        sources: None,
    };
    let at = |n: u8, verdict| {
        let at = At::ClusterIp(IpAddr::from([10, 96, 0, n]));
        frontend(at, 80, verdict, verdict, Masquerade::NotPods)
    };
    let node_port =
        |port, outside| frontend(At::NodePort, port, balance, outside, Masquerade::Always);
    let guarded = Frontend {
        sources: Some(vec!["192.0.2.0/24".parse().unwrap()].into()),
        ..frontend(
            At::LoadBalancer(ip("203.0.113.5")),
            80,
            balance,
            balance,
            Masquerade::Always,
        )
    };
    let service = |frontends: Vec<Frontend>, cluster: &[Endpoint]| ServicePort {
        frontends,
        cluster: cluster.into(),
        ..ServicePort::default()
    };
    let stays = |seconds| ServicePort {
        affinity: std::num::NonZeroU32::new(seconds),
        ..service(vec![at(15, balance)], &[near, far])
    };
    let ports: BTreeMap<PortKey, Arc<ServicePort>> = [
        (
            "web",
            service(vec![at(10, balance), node_port(30_080, balance)], &[near]),
        ),
        ("far", service(vec![at(11, balance)], &[far])),
        ("none", service(vec![at(12, Verdict::Reject)], &[])),
        ("both", service(vec![at(13, balance)], &[near, far])),
        ("guarded", service(vec![at(14, balance), guarded], &[near])),
        ("stays", stays(60)),
        (
            "local",
            service(
                vec![at(16, balance), node_port(30_081, Verdict::Drop)],
                &[far],
            ),
        ),
    ]
    .into_iter()
    .map(|(name, port)| {
        let name = PortName::new("default", name, "");
        let protocol = Protocol::Tcp;
        (PortKey { name, protocol }, Arc::new(port))
    })
    .collect();
    Ruleset {
        v4: FamilyRuleset {
            node: NodeRules {
                pods: PodTraffic::From(vec!["10.244.0.0/16".parse().unwrap()]),
                node_ports: [ip("172.30.0.12")].into(),
                service_networks: ["10.96.0.0/12".parse().unwrap()].into(),
                ..NodeRules::default()
            },
            ports,
        },
        ..Ruleset::default()
    }
}

const B: &str = "pod/default/b";

#[test]
fn what_is_said_to_arrive_arrives() {
    let world = World::new();
    for (from, to, address) in [
        ("outside", "svc/default/web", "172.30.0.12:30080"),
        ("outside", "svc/default/both", "10.96.0.13:80"),
        ("node", "svc/default/web", "10.96.0.10:80"),
        ("node", "svc/default/far", "10.96.0.11:80"),
        (B, "svc/default/web", "10.96.0.10:80"),
        (B, "svc/default/far", "10.96.0.11:80"),
        (B, "svc/default/stays", "10.96.0.15:80"),
        (B, "pod/default/a:8080", "10.244.2.5:8080"),
        (B, "10.244.3.2:8080", "10.244.3.2:8080"),
        ("pod/default/a", "svc/default/guarded", "10.96.0.14:80"),
        ("pod/default/a", "svc/default/web", "10.96.0.10:80"),
        ("outside", "pod/default/a:8080", "10.244.2.5:8080"),
    ] {
        let told = world.trace(from, to);
        assert_eq!(told.arrives, Arrival::Yes, "{told}");
        // Bridge netfilter is the host's module: without it, pods of one bridge do not see their Service's answer.
        let answer = ask_tcp(world.sender(from), address);
        assert!(answer.is_ok(), "{from} {to}: {answer:?}\n{told}");
    }
}

#[test]
fn endpoints_have_their_chances_and_the_reason_for_masquerade() {
    let world = World::new();
    for service in ["both", "stays"] {
        let told = world.trace(B, &format!("svc/default/{service}"));
        let chances: Vec<Option<f64>> = (told.hops.iter())
            .filter(|hop| hop.stage == "endpoint")
            .map(|hop| hop.chance)
            .collect();
        assert_eq!(chances, [Some(0.5), Some(0.5)], "{told}");
    }
    let told = world.trace("pod/default/a", "svc/default/web").to_string();
    assert!(told.contains("an endpoint that meets itself"), "{told}");
    let told = world.trace("outside", "svc/default/web").to_string();
    assert!(told.contains("masq-always"), "{told}");
}

/// What is broken, who sends where (by name, and by address for the real connection), and what is to be said: the
/// stage, a part of the cause, a part of the remedy.
type Row = (
    &'static str,
    &'static [(&'static str, &'static str)],
    [&'static str; 3],
    [&'static str; 3],
);

const WEB: [&str; 3] = [B, "svc/default/web", "10.96.0.10:80"];
const WEB_OUT: [&str; 3] = ["outside", "svc/default/web", "172.30.0.12:30080"];
const FAR: [&str; 3] = [B, "svc/default/far", "10.96.0.11:80"];
const POD: [&str; 3] = [B, "pod/default/a:8080", "10.244.2.5:8080"];
const POD_OUT: [&str; 3] = ["outside", "pod/default/a:8080", "10.244.2.5:8080"];

const FAULTS: &[Row] = &[
    (
        "element of vips",
        &[(
            "node",
            "nft delete element ip twill-proxy vips { 10.96.0.10 . tcp . 80 }",
        )],
        WEB,
        [
            "rules",
            "map vips has no element for 10.96.0.10:80",
            "twill-proxy",
        ],
    ),
    (
        "element of nodeports",
        &[(
            "node",
            "nft delete element ip twill-proxy nodeports { tcp . 30080 }",
        )],
        WEB_OUT,
        [
            "rules",
            "map nodeports has no element for 172.30.0.12:30080",
            "twill-proxy",
        ],
    ),
    (
        "slot",
        &[(
            "node",
            "nft delete element ip twill-proxy endpoints { 10.96.0.10 . tcp . 80 . 0 }",
        )],
        WEB,
        [
            "rules",
            "map endpoints has nothing at 10.96.0.10 . tcp . 80 . 0",
            "twill-proxy",
        ],
    ),
    (
        "base chain",
        &[("node", "nft delete chain ip twill-proxy prerouting")],
        WEB,
        ["rules", "its base chain is gone", "twill-proxy"],
    ),
    (
        "no endpoint",
        &[],
        [B, "svc/default/none", "10.96.0.12:80"],
        ["rules", "no endpoint that is ready", "service-name=none"],
    ),
    (
        "source ranges",
        &[],
        ["outside", "203.0.113.5:80", "203.0.113.5:80"],
        [
            "rules",
            "lets only some sources in",
            "loadBalancerSourceRanges",
        ],
    ),
    (
        "local policy",
        &[],
        ["outside", "svc/default/local", "172.30.0.12:30081"],
        ["rules", "policy is Local", "Cluster"],
    ),
    (
        "no such port",
        &[],
        ["outside", "10.96.0.10:81", "10.96.0.10:81"],
        ["rules", "has no such port", "a port of the Service"],
    ),
    (
        "no such address",
        &[],
        ["outside", "10.96.99.99:80", "10.96.99.99:80"],
        [
            "rules",
            "no Service has the address 10.96.99.99",
            "kubectl get services",
        ],
    ),
    (
        "forwarding",
        &[("node", "sysctl -q -w net.ipv4.ip_forward=0")],
        POD_OUT,
        ["forward", "does not forward", "net.ipv4.ip_forward=1"],
    ),
    (
        "foreign rule",
        &[
            ("node", "nft add table ip wall"),
            (
                "node",
                "nft add chain ip wall gate { type filter hook forward priority 0 ; }",
            ),
            ("node", "nft add rule ip wall gate ip daddr 10.244.2.5 drop"),
        ],
        POD_OUT,
        [
            "forward",
            "chain ip wall gate drops it: ip daddr 10.244.2.5 drop",
            "nft -a list chain ip wall gate",
        ],
    ),
    (
        "foreign policy",
        &[
            ("node", "nft add table inet wall"),
            (
                "node",
                "nft add chain inet wall gate { type filter hook forward priority 0 ; policy drop ; }",
            ),
        ],
        POD_OUT,
        [
            "forward",
            "chain inet wall gate drops it: policy drop",
            "nft add rule inet wall gate ip daddr 10.244.0.0/16 accept",
        ],
    ),
    (
        "foreign input",
        &[
            ("node", "nft add table ip wall"),
            (
                "node",
                "nft add chain ip wall early { type filter hook prerouting priority -300 ; }",
            ),
            ("node", "nft add rule ip wall early tcp dport 30080 drop"),
        ],
        WEB_OUT,
        [
            "rules",
            "in chain ip wall early",
            "nft -a list chain ip wall early",
        ],
    ),
    (
        "route to a peer",
        &[("node", "ip route del 10.244.3.0/24")],
        FAR,
        ["route", "the route to 10.244.3.0/24 is missing", "flanneld"],
    ),
    (
        "tunnel down",
        &[("node", "ip link set flannel.1 down")],
        FAR,
        ["route", "flannel.1 is down", "ip link set flannel.1 up"],
    ),
    (
        "peer's neighbour",
        &[("node", "ip neighbour del 10.244.3.0 dev flannel.1")],
        FAR,
        ["neighbour", "no neighbour 10.244.3.0", "flanneld"],
    ),
    (
        "forwarding entry",
        &[("node", "bridge fdb del 0e:00:00:00:03:00 dev flannel.1")],
        FAR,
        [
            "fdb",
            "no forwarding entry for 0e:00:00:00:03:00",
            "flanneld",
        ],
    ),
    (
        "wrong forwarding entry",
        &[(
            "node",
            "bridge fdb replace 0e:00:00:00:03:00 dst 172.30.0.12 dev flannel.1",
        )],
        FAR,
        ["fdb", "this node itself", "flanneld"],
    ),
    (
        "peer not reached",
        &[
            (
                "node",
                "bridge fdb replace 0e:00:00:00:03:00 dst 203.0.113.77 dev flannel.1",
            ),
            ("node", "ip route del default"),
        ],
        FAR,
        [
            "tunnel",
            "no route to the other node, 203.0.113.77",
            "ip route",
        ],
    ),
    (
        "veth down",
        &[("node", "ip link set vetha down")],
        POD_OUT,
        ["port", "vetha is down", "ip link set vetha up"],
    ),
    (
        "veth no port",
        &[("node", "ip link set vetha nomaster")],
        POD_OUT,
        [
            "port",
            "vetha is no port of cni0",
            "ip link set vetha master cni0",
        ],
    ),
    (
        "veth gone",
        &[("node", "ip link del vetha")],
        POD_OUT,
        ["port", "vetha is gone", "delete the pod"],
    ),
    (
        "sender's veth",
        &[("node", "ip link set vethb down")],
        FAR,
        ["port", "vethb is down", "ip link set vethb up"],
    ),
    (
        "isolated ports",
        &[
            ("node", "bridge link set dev vetha isolated on"),
            ("node", "bridge link set dev vethb isolated on"),
        ],
        POD,
        ["port", "both isolated", "isolated off"],
    ),
    (
        "pod's end down",
        &[("a", "ip link set eth0 down")],
        POD_OUT,
        ["port", "no carrier", "ip link set eth0 up"],
    ),
    (
        "pod's address",
        &[("a", "ip address flush dev eth0")],
        POD_OUT,
        ["pod", "does not have 10.244.2.5 any more", "delete the pod"],
    ),
    (
        "pod's route",
        &[("b", "ip route del default")],
        FAR,
        ["pod", "no route to 10.96.0.11", "delete the pod"],
    ),
    (
        "nobody listens",
        &[],
        ["outside", "10.244.2.5:8081", "10.244.2.5:8081"],
        [
            "pod",
            "nothing in the pod listens at tcp port 8081",
            "targetPort",
        ],
    ),
    (
        "endpoint gone",
        &[],
        ["outside", "10.244.2.99:8080", "10.244.2.99:8080"],
        [
            "port",
            "no pod of this node has the address 10.244.2.99",
            "endpointslices",
        ],
    ),
    (
        "bridge down",
        &[("node", "ip link set cni0 down")],
        POD_OUT,
        ["route", "cni0 is down", "ip link set cni0 up"],
    ),
    (
        "bridge's address",
        &[("node", "ip address flush dev cni0")],
        POD_OUT,
        [
            "route",
            "the route to 10.244.2.0/24 is missing",
            "twill-cni",
        ],
    ),
    (
        "wrong neighbour",
        &[(
            "node",
            "ip neighbour replace 10.244.2.5 lladdr 0e:00:00:00:00:99 dev cni0 nud permanent",
        )],
        POD_OUT,
        [
            "neighbour",
            "an earlier pod's",
            "ip neighbour del 10.244.2.5 dev cni0",
        ],
    ),
    (
        "nothing on the node",
        &[],
        ["outside", "172.30.0.12:9", "172.30.0.12:9"],
        [
            "socket",
            "no process of this node listens",
            "start the server",
        ],
    ),
    (
        "the node's route",
        &[("node", "ip route del default")],
        ["node", "svc/default/web", "10.96.0.10:80"],
        ["node", "no route to 10.96.0.10", "ip route add default"],
    ),
];

#[test]
fn each_broken_hop_is_named_alone_with_its_remedy() {
    let mut wrong = Vec::new();
    for (what, broken, [from, to, address], [stage, cause, remedy]) in FAULTS {
        let world = World::new();
        if !broken.is_empty() {
            let told = world.trace(from, to);
            assert_eq!(told.arrives, Arrival::Yes, "{what}, before: {told}");
        }
        for (place, line) in *broken {
            let ns = match *place {
                "a" => &world.a,
                "b" => &world.b,
                _ => &world.node,
            };
            run(ns, line);
        }
        let told = world.trace(from, to);
        let faults = told.faults();
        let is_named = match &faults[..] {
            [(at, fault)] => {
                at == stage && fault.cause.contains(cause) && fault.remedy.contains(remedy)
            }
            _ => false,
        };
        if !is_named || told.arrives != Arrival::No {
            wrong.push(format!("{what}: {told}"));
        }
        if let Ok(answer) = ask_tcp(world.sender(from), address) {
            wrong.push(format!("{what}: {} answers", answer.server));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_of_two_endpoints_that_is_lost_is_told_with_its_chance() {
    let world = World::new();
    run(&world.node, "ip route del 10.244.3.0/24");
    let told = world.trace(B, "svc/default/both");
    assert_eq!(told.arrives, Arrival::Sometimes, "{told}");
    assert_eq!(told.faults().len(), 1, "{told}");
    // The peer is there all the while.
    assert!(ask_tcp(&world.peer, "10.244.3.2:8080").is_ok());
}

#[test]
fn a_veth_leads_to_its_pod_and_a_pod_to_its_veth() {
    let world = World::new();
    run(&world.node, "bridge link set dev vethb isolated on");
    assert!(ask_tcp(&world.outside, "10.244.2.5:8080").is_ok());
    let list = |which: Option<&str>| {
        let mut kernel = Kernel::of(world.node.ns().clone(), world.records.path()).unwrap();
        pods(&mut kernel, which)
    };
    let names = |which| {
        let found = list(Some(which)).unwrap();
        found.into_iter().map(|pod| pod.pod).collect::<Vec<_>>()
    };
    for which in ["vetha", "default/a", "a", "10.244.2.5"] {
        assert_eq!(names(which), ["default/a"], "{which}");
    }
    let all = list(None).unwrap();
    assert_eq!(all.len(), 2);
    assert!(all[0].sent[0] > 0 && all[0].received[1] > 0, "{all:?}");
    assert_eq!(
        (all[1].state.as_str(), &all[1].settings[..]),
        ("up", &["isolated", "no hairpin"][..])
    );
    let table = PodTable(&all).to_string();
    assert_eq!(table.lines().count(), 3, "{table}");
    run(&world.node, "ip link set vetha down");
    assert_eq!(list(Some("a")).unwrap()[0].state, "down");
    let error = list(Some("vethc")).unwrap_err().to_string();
    assert!(error.contains("is it vetha or vethb"), "{error}");
}

/// What is broken, and what the doctor says: parts of what is wrong with its evidence, and of the remedy.
const ILLS: &[(&str, &str, &str)] = &[
    (
        "sysctl -q -w net.ipv4.ip_forward=0",
        "net.ipv4.ip_forward = 0",
        "net.ipv4.ip_forward=1",
    ),
    (
        "sysctl -q -w net/ipv4/conf/flannel.1/rp_filter=1",
        "rp_filter is strict",
        "rp_filter=2",
    ),
    (
        "ip link set cni0 down",
        "cni0 is down",
        "ip link set cni0 up",
    ),
    (
        "ip address flush dev cni0",
        "10.244.2.1/24 is missing",
        "ip address add 10.244.2.1/24 dev cni0",
    ),
    (
        "ip link set flannel.1 down",
        "flannel.1 is down",
        "ip link set flannel.1 up",
    ),
    (
        "ip neighbour del 10.244.3.0 dev flannel.1",
        "no neighbour 10.244.3.0",
        "flanneld",
    ),
    (
        "bridge fdb del 0e:00:00:00:03:00 dev flannel.1",
        "no forwarding entry for 0e:00:00:00:03:00",
        "flanneld",
    ),
    (
        "nft delete table ip twill-flannel",
        "table ip twill-flannel is not there",
        "flanneld",
    ),
    (
        "nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }",
        "chain ip filter FORWARD has policy drop",
        "nft add rule ip filter FORWARD ip saddr 10.244.0.0/16 accept",
    ),
    (
        "nft add chain ip nat KUBE-SERVICES",
        "1 chains of table ip nat",
        "kube-proxy --cleanup",
    ),
    (
        "ip link set vetha down",
        "pod default/a is cut off",
        "twill trace",
    ),
    ("ip link del vethb", "pod default/b is cut off", "made anew"),
];

#[test]
fn the_doctor_finds_nothing_in_a_sound_node_and_each_illness_alone() {
    use cli::doctor::{Findings, Host, examine};
    let mut wrong = Vec::new();
    for (broken, what, remedy) in [&("true", "", "")].into_iter().chain(ILLS) {
        let world = World::new();
        // What else a node has.
        run(&world.node, "nft add table ip twill-flannel");
        run(
            &world.node,
            "nft add chain ip twill-flannel postrouting { type nat hook postrouting priority 100 ; }",
        );
        run(
            &world.node,
            "sysctl -q -w net/ipv4/conf/flannel.1/rp_filter=2",
        );
        run(&world.node, "nft add table ip filter");
        run(&world.node, "nft add table ip nat");
        run(&world.node, broken);
        let mut kernel = Kernel::of(world.node.ns().clone(), world.records.path()).unwrap();
        let host = Host {
            conflists: vec!["10-flannel.conflist".to_owned()],
            ..Host::default()
        };
        let found = examine(&mut kernel, &networks(), &host).unwrap();
        let is_right = match &found[..] {
            [] => what.is_empty(),
            [one] => {
                !what.is_empty()
                    && format!("{} {}", one.what, one.evidence).contains(what)
                    && one.remedy.contains(remedy)
            }
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{broken}:\n{}", Findings(&found)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_doctor_knows_other_software_by_name() {
    use cli::doctor::{Host, examine};
    let world = World::new();
    let mut kernel = Kernel::of(world.node.ns().clone(), world.records.path()).unwrap();
    let host = Host {
        conflists: vec![
            "05-cilium.conflist".to_owned(),
            "10-flannel.conflist".to_owned(),
        ],
        processes: ["kube-proxy".to_owned(), "firewalld".to_owned()].into(),
        legacy_drops: vec![Family::V4],
    };
    let found = examine(&mut kernel, &networks(), &host).unwrap();
    for evidence in [
        "05-cilium.conflist comes before 10-flannel.conflist",
        "a process is called kube-proxy",
        "a process is called firewalld",
        "FORWARD of iptables-legacy has policy DROP",
    ] {
        assert!(
            found.iter().any(|f| f.evidence == evidence),
            "{evidence}: {found:#?}"
        );
    }
    // In iptables mode kube-proxy's chains are twill-proxy's own.
    run(&world.node, "nft delete table ip twill-proxy");
    run(&world.node, "nft add table ip nat");
    run(&world.node, "nft add chain ip nat KUBE-SERVICES");
    let mut kernel = Kernel::of(world.node.ns().clone(), world.records.path()).unwrap();
    let found = examine(&mut kernel, &networks(), &Host::default()).unwrap();
    let is_of_services = |word: &str| found.iter().any(|f| f.what.contains(word));
    assert!(
        !is_of_services("twill-proxy") && !is_of_services("kube-proxy"),
        "{found:#?}"
    );
    let none = examine(&mut kernel, &[], &Host::default()).unwrap();
    assert!(none[0].what.contains("flanneld has not told"), "{none:#?}");
}
