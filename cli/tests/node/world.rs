//! A node with two pods, a peer behind a tunnel and a client outside, of either family, with Services in either form.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use cli::dump::{Recorded, State};
use cli::kernel::Kernel;
use cli::objects::Cluster;
use cli::report::Trace;
use cli::trace::{PodNetwork, Question, trace};
use hostnet::nft::Proto;
use hostnet::testkit::{EchoServer, Ns, connect, join_bridge, require_tool};
use hostnet::vocab::Family;
use proxy::backend::Backend;
use proxy::iptables::{IptablesBackend, Options, Variant};
use proxy::nft::NftBackend;
use proxy::plan::{
    At, Endpoint, FamilyRuleset, Frontend, Masquerade, NodeRules, PodTraffic, PortKey, PortName,
    Protocol, Ruleset, ServicePort, Verdict, View,
};

use crate::six::six;

/// The form of the Services' rules.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Nft,
    Iptables,
    /// By `iptables-legacy`.
    Legacy,
}

pub(crate) struct World {
    pub(crate) family: Family,
    pub(crate) node: Ns,
    /// Pods `a` (10.244.2.5, serves 8080) and `b` (10.244.2.6).
    pub(crate) a: Ns,
    pub(crate) b: Ns,
    pub(crate) outside: Ns,
    /// The other node, which is its pod 10.244.3.2 too.
    pub(crate) peer: Ns,
    pub(crate) records: tempfile::TempDir,
    _servers: Vec<EchoServer>,
}

const PEER_MAC: &str = "0e:00:00:00:03:00";
const NODE_MAC: &str = "0e:00:00:00:02:00";

/// What a test says in IPv4, as a family has it.
pub(crate) fn say(family: Family, text: &str) -> String {
    match family {
        Family::V4 => text.to_owned(),
        Family::V6 => six(text),
    }
}

impl World {
    pub(crate) fn new() -> World {
        World::of(Family::V4, Mode::Nft)
    }

    pub(crate) fn of(family: Family, mode: Mode) -> World {
        require_tool("ip", "iproute2");
        require_tool("nft", "nftables");
        let say = |text: &str| say(family, text);
        let [node, a, b, outside, peer] = ["node", "a", "b", "outside", "peer"].map(Ns::new);
        for ns in [&node, &a, &b, &outside, &peer] {
            // Addresses serve at once.
            ns.set_sysctl("ipv6/conf/all/accept_dad", "0");
            ns.set_sysctl("ipv6/conf/default/accept_dad", "0");
        }
        let default = match family {
            Family::V4 => "default",
            Family::V6 => "default6",
        };
        connect(&node, "eth0", &peer, "eth0");
        connect(&node, "eth1", &outside, "eth0");
        node.addr("eth0", &say("172.30.0.12/24"));
        peer.addr("eth0", &say("172.30.0.13/24"));
        node.addr("eth1", &say("198.51.100.254/24"));
        outside.addr("eth0", &say("198.51.100.1/24"));
        outside.route(default, &say("198.51.100.254"));
        node.route(default, &say("198.51.100.1"));
        node.forward();
        node.bridge("cni0");
        for (pod, port, address) in [(&a, "vetha", "10.244.2.5"), (&b, "vethb", "10.244.2.6")] {
            join_bridge(&node, "cni0", port, pod, "eth0");
            pod.addr("eth0", &say(&format!("{address}/24")));
        }
        run(&node, "bridge link set dev vetha hairpin on");
        node.addr("cni0", &say("10.244.2.1/24"));
        for pod in [&a, &b] {
            pod.route(default, &say("10.244.2.1"));
        }
        tunnel(family, &node, NODE_MAC, "172.30.0.12", "10.244.2.0");
        tunnel(family, &peer, PEER_MAC, "172.30.0.13", "10.244.3.0");
        leads(family, &node, "10.244.3.0", PEER_MAC, "172.30.0.13");
        leads(family, &peer, "10.244.2.0", NODE_MAC, "172.30.0.12");
        peer.addr("lo", &say("10.244.3.2/32"));
        let records = tempfile::tempdir().unwrap();
        for (name, pod, veth, address) in [
            ("a", &a, "vetha", "10.244.2.5"),
            ("b", &b, "vethb", "10.244.2.6"),
        ] {
            let record = serde_json::json!({
                "containerId": name, "ifName": "eth0", "network": "cbr0", "pod": format!("default/{name}"),
                "netns": pod.path(), "bridge": "cni0", "veth": veth, "mac": pod.link("eth0").mac,
                "mtu": 1450, "hairpin": true, "isolated": false,
                "addresses": [{"address": say(&format!("{address}/24")), "gateway": say("10.244.2.1")}],
            });
            let path = records.path().join(format!("{name}-eth0.json"));
            #[expect(clippy::disallowed_methods, reason = "read after it is written")]
            fs::write(path, record.to_string()).unwrap();
        }
        match mode {
            Mode::Nft => {
                let mut backend = node.run(NftBackend::open).unwrap();
                backend.replace(&services(family)).unwrap();
            }
            Mode::Iptables | Mode::Legacy => node.run(|| {
                require_tool("iptables-nft-restore", "iptables");
                let variant = match mode {
                    Mode::Legacy => Variant::Legacy,
                    _ => Variant::Nft,
                };
                let mut backend = IptablesBackend::new(Options::default(), variant);
                backend.replace(&services(family)).unwrap();
            }),
        }
        let servers = vec![
            EchoServer::start(&a, "a", &say("10.244.2.5:8080")),
            EchoServer::start(&peer, "far", &say("10.244.3.2:8080")),
        ];
        World {
            family,
            node,
            a,
            b,
            outside,
            peer,
            records,
            _servers: servers,
        }
    }

    /// What a test says in IPv4, as this world has it.
    pub(crate) fn say(&self, text: &str) -> String {
        say(self.family, text)
    }

    pub(crate) fn kernel(&self) -> Kernel {
        Kernel::of(self.node.ns().clone(), self.records.path()).unwrap()
    }

    pub(crate) fn trace(&self, from: &str, to: &str) -> Trace {
        let live = self.trace_with(&mut Cluster::default(), from, to).unwrap();
        // Of what was written down the same is told.
        let state = serde_json::to_string(&State::take(&mut self.kernel()).unwrap()).unwrap();
        let mut recorded = Recorded::of(serde_json::from_str(&state).unwrap());
        let told = self.trace_in(&mut recorded, &mut Cluster::default(), from, to);
        assert_eq!(told.unwrap().to_string(), live.to_string());
        live
    }

    /// With the objects of a cluster.
    pub(crate) fn trace_with(
        &self,
        cluster: &mut Cluster,
        from: &str,
        to: &str,
    ) -> anyhow::Result<Trace> {
        self.trace_in(&mut self.kernel(), cluster, from, to)
    }

    fn trace_in(
        &self,
        view: &mut dyn cli::view::View,
        cluster: &mut Cluster,
        from: &str,
        to: &str,
    ) -> anyhow::Result<Trace> {
        let question = Question {
            from: self.say(from).parse().unwrap(),
            to: self.say(to).parse().unwrap(),
            proto: Proto::TCP,
            family: self.family,
            sees_pods: true,
        };
        let networks = networks(self.family);
        trace(view, cluster, &networks, &question)
    }

    pub(crate) fn sender(&self, from: &str) -> &Ns {
        match from {
            "outside" => &self.outside,
            "node" => &self.node,
            "pod/default/a" => &self.a,
            _ => &self.b,
        }
    }
}

pub(crate) fn networks(family: Family) -> [PodNetwork; 1] {
    [PodNetwork {
        network: say(family, "10.244.0.0/16").parse().unwrap(),
        own: say(family, "10.244.2.0/24").parse().unwrap(),
    }]
}

pub(crate) fn run(ns: &Ns, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    ns.sh(words[0], &words[1..]);
}

fn tunnel(family: Family, ns: &Ns, mac: &str, local: &str, address: &str) {
    for line in [
        format!(
            "ip link add flannel.1 address {mac} type vxlan id 1 dstport 8472 local {local} dev eth0 nolearning"
        ),
        "ip link set flannel.1 up".to_owned(),
        format!("ip address add {address}/32 dev flannel.1"),
    ] {
        run(ns, &say(family, &line));
    }
}

fn leads(family: Family, ns: &Ns, base: &str, mac: &str, node: &str) {
    for line in [
        format!("ip neighbour add {base} lladdr {mac} dev flannel.1 nud permanent"),
        format!("bridge fdb add {mac} dst {node} dev flannel.1"),
        format!("ip route add {base}/24 via {base} dev flannel.1 onlink"),
    ] {
        run(ns, &say(family, &line));
    }
}

fn services(family: Family) -> Ruleset {
    let ip = |text: &str| -> IpAddr { say(family, text).parse().unwrap() };
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
        let at = At::ClusterIp(ip(&format!("10.96.0.{n}")));
        frontend(at, 80, verdict, verdict, Masquerade::NotPods)
    };
    let node_port =
        |port, outside| frontend(At::NodePort, port, balance, outside, Masquerade::Always);
    let guarded = Frontend {
        sources: Some(vec![say(family, "192.0.2.0/24").parse().unwrap()].into()),
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
    let rules = FamilyRuleset {
        node: NodeRules {
            pods: PodTraffic::From(vec![say(family, "10.244.0.0/16").parse().unwrap()]),
            node_ports: [ip("172.30.0.12")].into(),
            service_networks: [say(family, "10.96.0.0/12").parse().unwrap()].into(),
            ..NodeRules::default()
        },
        ports,
    };
    let mut ruleset = Ruleset::default();
    *ruleset.family_mut(family) = rules;
    ruleset
}
