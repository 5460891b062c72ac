//! Owns what the rules of iptables mode depend on besides the plan.

use hostnet::vocab::Family;

use super::names::Naming;
use crate::plan::NodePortScope;

/// kube-proxy's default: bit 14 of the packet mark says that a packet is to be masqueraded.
const MASQUERADE_BIT: u8 = 14;

/// The choices of iptables mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// After which kube-proxy chains are named.
    pub naming: Naming,
    /// The bit of the packet mark that says: masquerade. 0 to 31.
    pub masquerade_bit: u8,
    /// Node ports also answer at 127.0.0.1 (kube-proxy's `iptables.localhostNodePorts`), where the plan's
    /// [`NodePortScope`] covers it. Of IPv4 only.
    pub localhost_node_ports: bool,
    /// Packets that connection tracking finds invalid are not forwarded to services: without
    /// `nf_conntrack_tcp_be_liberal` the kernel would answer late packets with a reset.
    pub drop_invalid: bool,
    /// The kernel has the counters of nfacct by which kube-proxy's rules count packets: ours do so too.
    pub counters: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            naming: Naming::default(),
            masquerade_bit: MASQUERADE_BIT,
            localhost_node_ports: true,
            drop_invalid: true,
            counters: false,
        }
    }
}

impl Options {
    /// Whether node ports answer at a loopback address. The kernel routes to 127.0.0.0/8 what
    /// `route_localnet` lets it; of IPv6 it never does.
    pub fn serves_loopback(&self, family: Family, scope: NodePortScope) -> bool {
        family == Family::V4
            && self.localhost_node_ports
            && matches!(
                scope,
                NodePortScope::Everywhere | NodePortScope::Listed { loopback: true }
            )
    }

    /// Whether rules count packets: those of old did not.
    pub(super) fn counts(&self) -> bool {
        self.counters && self.naming == Naming::Today
    }

    /// The mark that says: masquerade.
    pub(super) fn mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }
}
