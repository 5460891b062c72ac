//! Owns the choice of the packet filter, and the choices of iptables mode.

use std::net::{IpAddr, Ipv4Addr};

use hostnet::vocab::{Family, Subnet};

use crate::iptables::{Naming, NodePorts, Options, Variant};
use crate::plan::NodePortAddresses;

/// Which packet filter carries the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// nf_tables, over netlink.
    Nftables,
    /// kube-proxy's chains, by the programs of iptables.
    Iptables {
        /// What rules depend on besides the plan.
        options: Options,
        /// Which of the kernel's two iptables it shall be; `None`: the one that the host uses.
        variant: Option<Variant>,
    },
}

impl Mode {
    /// kube-proxy's name of it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Iptables { .. } => "iptables",
        }
    }
}

/// What is given for iptables mode, file before flags. `None`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) legacy_names: Option<bool>,
    pub(super) masquerade_bit: Option<u8>,
    pub(super) localhost_node_ports: Option<bool>,
    pub(super) variant: Option<Variant>,
}

impl Given {
    /// The mode that follows, where node ports answer at these addresses (`None`: nobody said).
    pub(super) fn mode(self, node_ports: Option<&NodePortAddresses>) -> Mode {
        let usual = Options::default();
        Mode::Iptables {
            options: Options {
                naming: match self.legacy_names {
                    Some(true) => Naming::Legacy,
                    _ => Naming::Today,
                },
                masquerade_bit: self.masquerade_bit.unwrap_or(usual.masquerade_bit),
                localhost_node_ports: (self.localhost_node_ports)
                    .unwrap_or(usual.localhost_node_ports),
                node_ports: Family::ALL.map(|family| node_ports_of(family, node_ports)),
                drop_invalid: usual.drop_invalid,
            },
            variant: self.variant,
        }
    }
}

/// A family that no network is of has all addresses, and so has one that everything is in.
fn node_ports_of(family: Family, given: Option<&NodePortAddresses>) -> NodePorts {
    let networks: Vec<Subnet> = match given {
        None => Vec::new(),
        Some(NodePortAddresses::Primary) => return NodePorts::Listed { loopback: false },
        Some(NodePortAddresses::In(networks)) => (networks.iter().copied())
            .filter(|network| network.family() == family)
            .collect(),
    };
    if networks.is_empty() || networks.contains(&Subnet::any(family)) {
        return NodePorts::Everywhere;
    }
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    NodePorts::Listed {
        loopback: networks.iter().any(|network| network.contains(localhost)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_answer_where_kube_proxys_do() {
        let of = |networks: &[&str]| {
            let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
            let given = NodePortAddresses::In(networks);
            Family::ALL.map(|family| node_ports_of(family, Some(&given)))
        };
        let listed = |loopback| NodePorts::Listed { loopback };
        assert_eq!(of(&[]), [NodePorts::Everywhere; 2]);
        assert_eq!(of(&["10.0.0.0/8"]), [listed(false), NodePorts::Everywhere]);
        assert_eq!(
            of(&["127.0.0.0/8", "fd00::/8"]),
            [listed(true), listed(false)]
        );
        assert_eq!(
            of(&["10.0.0.0/8", "0.0.0.0/0", "::/0"]),
            [NodePorts::Everywhere; 2]
        );
        let primary = Some(&NodePortAddresses::Primary);
        assert_eq!(node_ports_of(Family::V4, primary), listed(false));
        assert_eq!(node_ports_of(Family::V6, None), NodePorts::Everywhere);
    }
}
