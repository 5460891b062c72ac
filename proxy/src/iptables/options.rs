//! Owns what the rules of iptables mode depend on besides the plan.

use hostnet::vocab::Family;

use super::names::Naming;

/// kube-proxy's default: bit 14 of the packet mark says that a packet is to be masqueraded.
const MASQUERADE_BIT: u8 = 14;

/// The choices of iptables mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// After which kube-proxy chains are named.
    pub naming: Naming,
    /// The bit of the packet mark that says: masquerade. 0 to 31.
    pub masquerade_bit: u8,
    /// Node ports also answer at 127.0.0.1 (kube-proxy's `iptables.localhostNodePorts`), where [`Options::node_ports`]
    /// cover it. Of IPv4 only.
    pub localhost_node_ports: bool,
    /// Where node ports answer: IPv4, IPv6.
    pub node_ports: [NodePorts; 2],
    /// Packets that connection tracking finds invalid are not forwarded to services: without
    /// `nf_conntrack_tcp_be_liberal` the kernel would answer late packets with a reset.
    pub drop_invalid: bool,
}

/// Where node ports of a family answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodePorts {
    /// At every address of this node.
    #[default]
    Everywhere,
    /// At the plan's addresses ([`NodeRules::node_ports`](crate::plan::NodeRules::node_ports)).
    Listed {
        /// And at 127.0.0.1, if [`Options::localhost_node_ports`].
        loopback: bool,
    },
}

impl Default for Options {
    fn default() -> Options {
        Options {
            naming: Naming::default(),
            masquerade_bit: MASQUERADE_BIT,
            localhost_node_ports: true,
            node_ports: [NodePorts::Everywhere; 2],
            drop_invalid: true,
        }
    }
}

impl Options {
    /// Where node ports of this family answer.
    pub(super) fn node_ports(&self, family: Family) -> NodePorts {
        self.node_ports[super::index(family)]
    }

    /// Whether node ports answer at a loopback address. The kernel routes to 127.0.0.0/8 what
    /// `route_localnet` lets it; of IPv6 it never does.
    pub fn serves_loopback(&self, family: Family) -> bool {
        family == Family::V4
            && self.localhost_node_ports
            && matches!(
                self.node_ports(family),
                NodePorts::Everywhere | NodePorts::Listed { loopback: true }
            )
    }

    /// The mark that says: masquerade.
    pub(super) fn mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }
}
