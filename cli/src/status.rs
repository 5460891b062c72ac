//! One screen for the whole cluster: what each node's daemons say of themselves, beside what the objects say of the node.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use hostnet::vocab::{AnnotationKeys, annotations::DEFAULT_PREFIX};
use k8s_openapi::api::core::v1::Node;
use serde::Serialize;

use crate::crowd::at_once;
use crate::objects::Cluster;
use crate::onward::{AT_ONCE, Place, Reach};
use crate::table::Table;

/// A daemon's ports on its node's loopback, and the name of its metrics.
#[derive(Clone, Copy)]
pub(crate) struct Daemon {
    pub(crate) name: &'static str,
    prefix: &'static str,
    pub(crate) metrics: u16,
    pub(crate) health: u16,
    pub(crate) ready: &'static str,
}

/// Where flanneld says whether it is ready.
pub(crate) const FLANNELD_HEALTH: u16 = 8081;

impl Daemon {
    /// The version that answers at its port, if one does.
    pub(crate) fn version(
        self,
        get: impl FnOnce(u16, &str) -> Result<String, String>,
    ) -> Option<String> {
        Numbers::parse(&get(self.metrics, "/metrics").ok()?).version
    }
}

pub(crate) const FLANNELD: Daemon = Daemon {
    name: "flanneld",
    prefix: "flanneld",
    metrics: crate::onward::PORT,
    health: FLANNELD_HEALTH,
    ready: "/readyz",
};

const PROXY: Daemon = Daemon {
    name: "twill-proxy",
    prefix: "twill_proxy",
    metrics: 10249,
    health: 10256,
    ready: "/healthz",
};

/// Both.
pub(crate) const DAEMONS: [Daemon; 2] = [FLANNELD, PROXY];

/// A node, as its objects and daemons tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name, or its address where objects are not seen.
    pub node: String,
    /// Its pods' subnets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// How packets of pods go to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// What its flanneld says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flanneld: Option<DaemonStatus>,
    /// What its twill-proxy says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<DaemonStatus>,
    /// What is wrong, or not seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What a daemon says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonStatus {
    /// Whether it has done its work.
    pub ready: bool,
    /// Its version.
    pub version: String,
    /// Peers or service ports that are programmed.
    pub programmed: u64,
    /// Nodes that are left out; Services in conflict.
    pub left_out: u64,
    /// Changes by others that it undid.
    pub repairs: u64,
    /// Passes that failed.
    pub failures: u64,
}

impl NodeStatus {
    /// Whether all is well there, and seen.
    pub fn is_well(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The nodes of the cluster; where objects are not seen, this one.
pub fn status(cluster: &mut Cluster, here: IpAddr, reach: &(dyn Reach + Sync)) -> Vec<NodeStatus> {
    let mut all = at_once(known(cluster, here), AT_ONCE, |_, (place, mut status)| {
        ask(reach, &place, &mut status);
        status
    });
    all.sort_by(|a, b| a.node.cmp(&b.node));
    all
}

/// The nodes, and what objects tell of them.
fn known(cluster: &mut Cluster, here: IpAddr) -> Vec<(Place, NodeStatus)> {
    let nodes = cluster.list::<Node>(None, None);
    match nodes {
        Some(nodes) => nodes.iter().map(of_object).collect(),
        None => {
            let place = Place::nameless(here);
            let node = place.to_string();
            vec![(
                place,
                NodeStatus {
                    node,
                    ..NodeStatus::default()
                },
            )]
        }
    }
}

/// The nodes of the cluster; where objects are not seen, this one.
pub(crate) fn places(cluster: &mut Cluster, here: IpAddr) -> Vec<Place> {
    let known = known(cluster, here).into_iter();
    known.map(|(place, _)| place).collect()
}

fn of_object(node: &Node) -> (Place, NodeStatus) {
    let annotation = |key: &str| node.metadata.annotations.as_ref()?.get(key).cloned();
    let keys = AnnotationKeys::new(DEFAULT_PREFIX).ok();
    let status = NodeStatus {
        node: node.metadata.name.clone().unwrap_or_default(),
        subnets: node
            .spec
            .clone()
            .unwrap_or_default()
            .pod_cidrs
            .unwrap_or_default(),
        backend: keys.and_then(|keys| annotation(&keys.backend_type)),
        ..NodeStatus::default()
    };
    (Place::of(node), status)
}

fn ask(reach: &(dyn Reach + Sync), place: &Place, status: &mut NodeStatus) {
    for (daemon, slot) in [(FLANNELD, &mut status.flanneld), (PROXY, &mut status.proxy)] {
        match reach.get(place, daemon.metrics, "/metrics") {
            Err(why) => status
                .problems
                .push(format!("{}: no answer: {why}", daemon.name)),
            Ok(text) => {
                let mut said = of_metrics(daemon, &text);
                let ready = reach.get(place, daemon.health, daemon.ready);
                said.ready = ready.is_ok();
                if let Err(why) = ready {
                    status
                        .problems
                        .push(format!("{} is not ready: {why}", daemon.name));
                }
                if said.left_out > 0 {
                    status.problems.push(format!(
                        "{} leaves {} out: `kubectl describe node {}` and its log say why",
                        daemon.name, said.left_out, status.node
                    ));
                }
                *slot = Some(said);
            }
        }
    }
}

fn of_metrics(daemon: Daemon, text: &str) -> DaemonStatus {
    let numbers = Numbers::parse(text);
    let sum = |name: &str| numbers.sum(&format!("{}_{name}", daemon.prefix));
    let (programmed, left_out, failures) = match daemon.name {
        "flanneld" => (
            sum("peers"),
            sum("skipped_peers"),
            sum("sync_failures_total"),
        ),
        _ => (
            sum("service_ports"),
            sum("conflicting_frontends"),
            numbers.sum("kubeproxy_sync_proxy_rules_nftables_sync_failures_total"),
        ),
    };
    DaemonStatus {
        ready: false,
        version: numbers.version.clone().unwrap_or_default(),
        programmed,
        left_out,
        repairs: sum("repairs_total"),
        failures,
    }
}

/// Metrics in OpenMetrics text: each name's values summed over its labels.
#[derive(Debug, Default, PartialEq)]
struct Numbers {
    sums: BTreeMap<String, f64>,
    version: Option<String>,
}

impl Numbers {
    fn parse(text: &str) -> Numbers {
        let mut numbers = Numbers::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            if name.ends_with("_build_info") {
                let version = labels.split('"').nth(1);
                numbers.version = version.map(str::to_owned);
            }
            if let Ok(value) = value.parse::<f64>() {
                *numbers.sums.entry(name.to_owned()).or_default() += value;
            }
        }
        numbers
    }

    fn sum(&self, name: &str) -> u64 {
        self.sums.get(name).map_or(0, |sum| *sum as u64)
    }
}

/// The nodes as a table for people, with what is wrong below.
#[derive(Debug)]
pub struct StatusTable<'a>(pub &'a [NodeStatus]);

impl fmt::Display for StatusTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            "NODE", "SUBNETS", "BACKEND", "FLANNELD", "PEERS", "PROXY", "PORTS", "REPAIRS",
            "FAILURES",
        ]);
        for node in self.0 {
            let or_dash = |text: String| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text
                }
            };
            let state = |daemon: &Option<DaemonStatus>| match daemon {
                None => "?".to_owned(),
                Some(said) if said.ready => said.version.clone(),
                Some(said) => format!("{}, not ready", said.version),
            };
            let count = |daemon: &Option<DaemonStatus>| {
                daemon
                    .as_ref()
                    .map_or("?".to_owned(), |said| said.programmed.to_string())
            };
            let both = [&node.flanneld, &node.proxy];
            let sum = |of: fn(&DaemonStatus) -> u64| -> String {
                let known = both.into_iter().flatten().map(of);
                known.sum::<u64>().to_string()
            };
            table.row([
                node.node.clone(),
                or_dash(node.subnets.join(",")),
                or_dash(node.backend.clone().unwrap_or_default()),
                state(&node.flanneld),
                count(&node.flanneld),
                state(&node.proxy),
                count(&node.proxy),
                sum(|said| said.repairs),
                sum(|said| said.failures),
            ]);
        }
        write!(f, "{table}")?;
        for node in self.0 {
            for problem in &node.problems {
                writeln!(f, "✗ {}: {problem}", node.node)?;
            }
        }
        let well = self.0.iter().filter(|node| node.is_well()).count();
        writeln!(f, "{well} of {} nodes are well", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
# HELP flanneld_build The version that runs.
flanneld_build_info{version=\"0.1.0\"} 1
flanneld_peers{family=\"ipv4\"} 2
flanneld_peers{family=\"ipv6\"} 1
flanneld_repairs_total{object=\"route\"} 4
flanneld_repairs_total{object=\"link\"} 1
# EOF
";

    /// Answers as the nodes that are there; no health port of `sick`.
    struct Nodes;

    impl Reach for Nodes {
        fn get(&self, node: &Place, port: u16, _target: &str) -> Result<String, String> {
            match (node.name.as_deref(), port) {
                (Some("gone"), _) => Err("timed out".to_owned()),
                (Some("sick"), 8081) => Err("503: the kernel does not hold all".to_owned()),
                (_, 8082) => Ok(METRICS.to_owned()),
                _ => Ok(String::new()),
            }
        }
    }

    #[test]
    fn each_node_has_a_line_and_what_is_wrong_is_said_below() {
        let node = |name: &str| {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": {
                    "flannel.alpha.coreos.com/backend-type": "vxlan"}},
                "spec": {"podCIDRs": ["10.244.1.0/24"]},
            }))
            .unwrap()
        };
        let given = crate::objects::Given(["well", "sick", "gone"].map(node).into());
        let all = status(&mut Cluster::of(given), "10.0.0.1".parse().unwrap(), &Nodes);
        let text = StatusTable(&all).to_string();
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "NODE SUBNETS BACKEND FLANNELD PEERS PROXY PORTS REPAIRS FAILURES",
                "gone 10.244.1.0/24 vxlan ? ? ? ? 0 0",
                "sick 10.244.1.0/24 vxlan 0.1.0, not ready 3 0 5 0",
                "well 10.244.1.0/24 vxlan 0.1.0 3 0 5 0",
                "✗ gone: flanneld: no answer: timed out",
                "✗ gone: twill-proxy: no answer: timed out",
                "✗ sick: flanneld is not ready: 503: the kernel does not hold all",
                "1 of 3 nodes are well",
            ]
        );
    }
}
