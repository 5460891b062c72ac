//! Nodes on one underlay, each with the pass that the daemon runs, a bridge and a pod; no API server.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module of several test files, each of which uses a part"
)]

use std::{fs::File, io::Write, sync::Arc, time::Duration};

use agent::{
    sync::Pass,
    watch::{Delta, Key},
};
use clap::Parser;
use flanneld::{
    ByFamily,
    config::{Config, Flags},
    host::Host,
    index::Index,
    node::NodeObject,
    place::announcement,
    reconcile::{Error, Reconciler, Report},
};
use hostnet::{
    netlink::Monitor,
    sysctl,
    testkit::{EchoServer, Ns, connect, join_bridge},
    vocab::Family,
};
use serde_json::json;

/// The switch that all nodes are plugged into.
pub struct Underlay(Ns);

impl Underlay {
    pub fn new() -> Self {
        let ns = Ns::new("underlay");
        ns.bridge("br0");
        Self(ns)
    }
}

/// A node: `eth0` on the underlay with 192.0.2.N, pods 10.244.N.0/24 (fd00:0:0:N::/64), one pod at .2 behind `cni0`.
pub struct TestNode {
    pub number: u8,
    pub ns: Ns,
    pub pod: Ns,
    pub reconciler: Reconciler,
    pub config: Arc<Config>,
    pub index: Index,
    pub object: NodeObject,
    pub held: ByFamily<hostnet::vocab::Subnet>,
    pub events: Monitor,
    server: EchoServer,
}

pub const V4: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
pub const DUAL: &str =
    r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#;

pub fn config(number: u8, conf: &str, args: &[&str]) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net-conf.json");
    File::create(&path)
        .unwrap()
        .write_all(conf.as_bytes())
        .unwrap();
    let name = format!("--node-name=n{number}");
    let path = format!("--net-config-path={}", path.display());
    let args = ["flanneld", &name, &path]
        .into_iter()
        .chain(args.iter().copied());
    Config::load(&Flags::try_parse_from(args).unwrap())
        .unwrap()
        .0
}

impl TestNode {
    pub fn new(underlay: &Underlay, number: u8, conf: &str, args: &[&str]) -> Self {
        let ns = Ns::new(&format!("n{number}"));
        let pod = Ns::new(&format!("pod{number}"));
        // No seconds of duplicate address detection, during which IPv6 answers nobody.
        for ns in [&ns, &pod] {
            ns.set_sysctl("ipv6/conf/default/accept_dad", "0");
        }
        join_bridge(&underlay.0, "br0", &format!("port{number}"), &ns, "eth0");
        ns.addr("eth0", &format!("192.0.2.{number}/24"));
        ns.addr("eth0", &format!("2001:db8::{number}/64"));
        ns.route("default", "192.0.2.254");
        ns.route("default6", "2001:db8::fffe");
        ns.bridge("cni0");
        ns.addr("cni0", &format!("10.244.{number}.1/24"));
        ns.addr("cni0", &format!("fd00:0:0:{number}::1/64"));
        join_bridge(&ns, "cni0", "veth0", &pod, "eth0");
        pod.addr("eth0", &format!("10.244.{number}.2/24"));
        pod.addr("eth0", &format!("fd00:0:0:{number}::2/64"));
        pod.route("default", &format!("10.244.{number}.1"));
        pod.route("default6", &format!("fd00:0:0:{number}::1"));
        let server = EchoServer::start(&pod, &format!("pod{number}"), "[::]:8080");
        let config = Arc::new(config(number, conf, args));
        let cidrs: Vec<String> = config
            .net
            .networks
            .iter()
            .map(|(family, _)| match family {
                Family::V4 => format!("10.244.{number}.0/24"),
                Family::V6 => format!("fd00:0:0:{number}::/64"),
            })
            .collect();
        let object = json!({ "metadata": { "name": format!("n{number}"), "uid": format!("uid{number}") }, "spec": { "podCIDRs": cidrs } });
        let object: NodeObject = serde_json::from_value(object).unwrap();
        let host = ns.run(|| Host::open(sysctl::ROOT.into())).unwrap();
        let mut index = Index::new(&format!("n{number}"), config.annotations.clone());
        index.node(Delta::Synced);
        index.lease(Delta::Synced);
        let events = ns.run(Monitor::open).unwrap();
        Self {
            number,
            held: object.subnets(),
            reconciler: Reconciler::new(host).with_grace(Duration::ZERO),
            index,
            ns,
            pod,
            config,
            object,
            events,
            server,
        }
    }

    /// Runs a pass where the daemon would run it.
    pub fn try_pass(&mut self, pass: Pass) -> Result<Report, Error> {
        let Self {
            ns,
            reconciler,
            config,
            object,
            held,
            index,
            ..
        } = self;
        let report = ns.run(|| reconciler.pass(pass, config, object, held, index))?;
        // What other nodes would see.
        let said = announcement(config, reconciler.own()).annotations(&config.annotations);
        object.metadata.annotations = Some(
            said.into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .collect(),
        );
        Ok(report)
    }

    pub fn pass(&mut self, pass: Pass) -> Report {
        self.try_pass(pass)
            .unwrap_or_else(|error| panic!("n{}: {error}", self.number))
    }

    /// Whether the kernel has told of something that is not as it should be since the last call.
    pub fn is_disturbed(&mut self) -> bool {
        let events: Vec<_> = std::iter::from_fn(|| self.events.next(false).unwrap()).collect();
        events.iter().any(|event| self.reconciler.is_news(event))
    }

    pub fn pod_v4(&self) -> String {
        format!("10.244.{}.2:8080", self.number)
    }

    pub fn pod_v6(&self) -> String {
        format!("[fd00:0:0:{}::2]:8080", self.number)
    }
}

/// Lets every node see every other's Node object.
pub fn introduce(nodes: &mut [TestNode]) {
    let objects: Vec<NodeObject> = nodes.iter().map(|node| node.object.clone()).collect();
    for node in nodes {
        for object in &objects {
            node.index.node(Delta::Upsert(object.clone()));
        }
    }
}

/// A Node object is deleted.
pub fn remove(nodes: &mut [TestNode], name: &str) {
    for node in nodes {
        node.index.node(Delta::Remove(Key {
            namespace: "".into(),
            name: name.into(),
        }));
    }
}

/// Nodes 1 to `count` that know and reach each other.
pub fn cluster(count: u8, conf: &str, args: &[&str]) -> (Underlay, Vec<TestNode>) {
    let underlay = Underlay::new();
    let mut nodes: Vec<TestNode> = (1..=count)
        .map(|n| TestNode::new(&underlay, n, conf, args))
        .collect();
    for node in &mut nodes {
        node.pass(Pass::Full);
    }
    introduce(&mut nodes);
    for node in &mut nodes {
        node.pass(Pass::Dirty);
        node.is_disturbed();
    }
    (underlay, nodes)
}

/// A host on the underlay that is no node.
pub fn outsider(underlay: &Underlay) -> Ns {
    let ns = Ns::new("outside");
    connect(&underlay.0, "outside", &ns, "eth0");
    let master = underlay.0.link("br0").index;
    let change = hostnet::netlink::link::Change {
        master: Some(master),
        ..Default::default()
    };
    underlay.0.change("outside", change);
    ns.addr("eth0", "192.0.2.200/24");
    ns
}
