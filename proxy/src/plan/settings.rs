//! Owns what the user's configuration says about rules, and what follows from it for this node.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use hostnet::vocab::{Family, Subnet};

use super::{NodePortScope, NodeRules, PodTraffic};
use crate::index::Node;

/// The configuration as far as rules depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How pods' packets are told from others.
    pub detect_local: DetectLocal,
    /// Where node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// The node's primary address of its family, where the user gives one (kube-proxy's `bindAddress`).
    pub node_ip: Option<IpAddr>,
    /// Masquerade all connections to cluster IPs, also those of pods.
    pub masquerade_all: bool,
}

impl Settings {
    /// This node's primary address of a family.
    pub(super) fn node_address(&self, family: Family, node: Option<&Node>) -> Option<IpAddr> {
        (self.node_ip)
            .filter(|address| Family::of(*address) == family)
            .or_else(|| node.and_then(|node| node.primary(family)))
    }
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
    /// They come in by the interface of this name, or one whose name begins so where it ends in `*`.
    Interface(Box<str>),
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

    /// Where node ports of a family answer. One that no network is of has all addresses, and so has one that
    /// everything is in.
    pub fn scope(&self, family: Family) -> NodePortScope {
        let Self::In(networks) = self else {
            return NodePortScope::Listed { loopback: false };
        };
        let is_of_family = |network: &&Subnet| network.family() == family;
        let networks: Vec<_> = networks.iter().filter(is_of_family).collect();
        if networks.is_empty() || networks.contains(&&Subnet::any(family)) {
            return NodePortScope::Everywhere;
        }
        let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
        NodePortScope::Listed {
            loopback: networks.iter().any(|network| network.contains(localhost)),
        }
    }
}

/// Those networks that are not within another of them.
pub(super) fn outermost(networks: BTreeSet<Subnet>) -> BTreeSet<Subnet> {
    let is_outermost = |network: &&Subnet| {
        let holds = |other: &Subnet| other != *network && other.contains_subnet(**network);
        !networks.iter().any(holds)
    };
    networks.iter().filter(is_outermost).copied().collect()
}

/// The rules of one family that hold for all service ports. `interfaces`: all addresses on this node's
/// interfaces, of any family.
pub(super) fn node_rules(
    settings: &Settings,
    family: Family,
    node: Option<&Node>,
    interfaces: &BTreeSet<IpAddr>,
    service_networks: impl Iterator<Item = Subnet>,
) -> NodeRules {
    let of_family = service_networks.filter(|network| network.family() == family);
    NodeRules {
        service_networks: outermost(of_family.collect()),
        pods: pod_traffic(&settings.detect_local, family, node),
        node_ports: node_ports(settings, family, node, interfaces),
        node_port_scope: settings.node_port_addresses.scope(family),
    }
}

fn pod_traffic(detect: &DetectLocal, family: Family, node: Option<&Node>) -> PodTraffic {
    let networks: &[Subnet] = match detect {
        DetectLocal::Interface(name) => return PodTraffic::Interface(name.clone()),
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
    settings: &Settings,
    family: Family,
    node: Option<&Node>,
    interfaces: &BTreeSet<IpAddr>,
) -> BTreeSet<IpAddr> {
    match &settings.node_port_addresses {
        NodePortAddresses::Primary => settings.node_address(family, node).into_iter().collect(),
        NodePortAddresses::In(networks) => {
            let mut networks = networks
                .iter()
                .filter(|network| network.family() == family)
                .peekable();
            let any = networks.peek().is_none();
            let networks: Vec<_> = networks.collect();
            (interfaces.iter().copied())
                .filter(|address| Family::of(*address) == family && answers(*address))
                .filter(|address| any || networks.iter().any(|network| network.contains(*address)))
                .collect()
        }
    }
}

/// Loopback is not for others; link-local IPv6 addresses mean nothing without their interface.
fn answers(address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !address.is_loopback() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node {
            primary_v4: Some("192.168.1.12".parse().unwrap()),
            primary_v6: Some("fd00:1::12".parse().unwrap()),
            pod_cidrs: ["10.244.3.0/24", "fd00:3::/64"]
                .map(|text| text.parse().unwrap())
                .into(),
            ..Node::default()
        }
    }

    fn at(settings: &Settings, family: Family) -> String {
        let interfaces = [
            "127.0.0.1",
            "192.168.1.12",
            "10.9.0.1",
            "::1",
            "fe80::1",
            "fd00:1::12",
        ]
        .map(|text| text.parse().unwrap())
        .into();
        node_rules(
            settings,
            family,
            Some(&node()),
            &interfaces,
            std::iter::empty(),
        )
        .to_string()
    }

    fn node_ports(networks: &[&str]) -> Settings {
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        Settings {
            node_port_addresses: NodePortAddresses::In(networks),
            ..Settings::default()
        }
    }

    #[test]
    fn node_ports_answer_at_the_primary_addresses() {
        let settings = Settings::default();
        assert_eq!(
            at(&settings, Family::V4),
            "pods unknown, node ports at 192.168.1.12"
        );
        assert_eq!(
            at(&settings, Family::V6),
            "pods unknown, node ports at fd00:1::12"
        );
        let settings = Settings {
            node_ip: Some("10.9.0.1".parse().unwrap()),
            ..settings
        };
        assert_eq!(
            at(&settings, Family::V4),
            "pods unknown, node ports at 10.9.0.1"
        );
        assert_eq!(
            at(&settings, Family::V6),
            "pods unknown, node ports at fd00:1::12"
        );
    }

    #[test]
    fn given_networks_choose_among_the_interfaces_never_loopback() {
        let settings = node_ports(&["10.0.0.0/8", "127.0.0.0/8"]);
        assert_eq!(
            at(&settings, Family::V4),
            "pods unknown, node ports at 10.9.0.1"
        );
        let all = node_ports(&["0.0.0.0/0"]);
        assert_eq!(
            at(&all, Family::V4),
            "pods unknown, node ports at 10.9.0.1, 192.168.1.12"
        );
    }

    #[test]
    fn a_family_that_no_network_is_of_has_all_addresses() {
        let settings = node_ports(&["10.0.0.0/8"]);
        assert_eq!(
            at(&settings, Family::V6),
            "pods unknown, node ports at fd00:1::12"
        );
    }

    #[test]
    fn the_scope_of_node_ports_is_kube_proxys() {
        let of = |networks: &[&str]| {
            let settings = node_ports(networks);
            Family::ALL.map(|family| settings.node_port_addresses.scope(family))
        };
        let everywhere = NodePortScope::Everywhere;
        let listed = |loopback| NodePortScope::Listed { loopback };
        assert_eq!(of(&[]), [everywhere; 2]);
        assert_eq!(of(&["10.0.0.0/8"]), [listed(false), everywhere]);
        assert_eq!(
            of(&["127.0.0.0/8", "fd00::/8"]),
            [listed(true), listed(false)]
        );
        assert_eq!(of(&["10.0.0.0/8", "0.0.0.0/0", "::/0"]), [everywhere; 2]);
        let primary = NodePortAddresses::Primary;
        assert_eq!(primary.scope(Family::V4), listed(false));
    }

    #[test]
    fn pods_are_known_by_the_networks_of_the_family() {
        let networks = ["10.244.0.0/16", "fd00::/48"].map(|text| text.parse().unwrap());
        let cluster = Settings {
            detect_local: DetectLocal::ClusterCidr(networks.into()),
            ..Settings::default()
        };
        assert_eq!(
            at(&cluster, Family::V4),
            "pods from 10.244.0.0/16, node ports at 192.168.1.12"
        );
        assert_eq!(
            at(&cluster, Family::V6),
            "pods from fd00::/48, node ports at fd00:1::12"
        );
        let node = Settings {
            detect_local: DetectLocal::NodeCidr,
            ..Settings::default()
        };
        assert_eq!(
            at(&node, Family::V4),
            "pods from 10.244.3.0/24, node ports at 192.168.1.12"
        );
        assert_eq!(
            at(&node, Family::V6),
            "pods from fd00:3::/64, node ports at fd00:1::12"
        );
    }
}
