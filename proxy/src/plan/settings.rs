//! Owns what the user's configuration says about rules, and what follows from it for this node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hostnet::vocab::{Family, Subnet};

use super::{NodeRules, PodTraffic};
use crate::index::Node;

/// The configuration as far as rules depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How pods' packets are told from others.
    pub detect_local: DetectLocal,
    /// Where node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// Masquerade all connections to cluster IPs, also those of pods.
    pub masquerade_all: bool,
}

/// How pods' packets are told from others (kube-proxy's `detectLocalMode`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// Not at all.
    #[default]
    Nothing,
    /// The source lies in one of the cluster's pod networks.
    ClusterCidr(Vec<Subnet>),
    /// The source lies in one of this Node's pod networks (`spec.podCIDRs`).
    NodeCidr,
}

/// Where node ports answer (kube-proxy's `nodePortAddresses`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// At the Node's primary address of each family: nftables mode's default.
    #[default]
    Primary,
    /// At all addresses of this node in these networks. A family that none of them is of has all.
    In(Vec<Subnet>),
}

impl NodePortAddresses {
    /// Whether the addresses on the node's interfaces have a say.
    pub fn needs_interfaces(&self) -> bool {
        matches!(self, Self::In(_))
    }
}

/// The rules of one family that hold for all service ports. `interfaces`: all addresses on this node's
/// interfaces, of any family.
pub(super) fn node_rules(
    settings: &Settings,
    family: Family,
    node: Option<&Node>,
    interfaces: &BTreeSet<IpAddr>,
) -> NodeRules {
    NodeRules {
        pods: pod_traffic(&settings.detect_local, family, node),
        node_ports: node_ports(&settings.node_port_addresses, family, node, interfaces),
    }
}

fn pod_traffic(detect: &DetectLocal, family: Family, node: Option<&Node>) -> PodTraffic {
    let networks: &[Subnet] = match detect {
        DetectLocal::Nothing => &[],
        DetectLocal::ClusterCidr(networks) => networks,
        DetectLocal::NodeCidr => node.map_or(&[], |node| &node.pod_cidrs),
    };
    let of_family: BTreeSet<_> = networks
        .iter()
        .copied()
        .filter(|n| n.family() == family)
        .collect();
    if of_family.is_empty() {
        PodTraffic::Unknown
    } else {
        PodTraffic::From(of_family.into_iter().collect())
    }
}

fn node_ports(
    wanted: &NodePortAddresses,
    family: Family,
    node: Option<&Node>,
    interfaces: &BTreeSet<IpAddr>,
) -> BTreeSet<IpAddr> {
    match wanted {
        NodePortAddresses::Primary => node
            .and_then(|node| node.primary(family))
            .into_iter()
            .collect(),
        NodePortAddresses::In(networks) => {
            let mut networks = networks
                .iter()
                .filter(|network| network.family() == family)
                .peekable();
            let any = networks.peek().is_none();
            let networks: Vec<_> = networks.collect();
            (interfaces.iter().copied())
                .filter(|address| Family::of(*address) == family && !address.is_loopback())
                .filter(|address| any || networks.iter().any(|network| network.contains(*address)))
                .collect()
        }
    }
}
