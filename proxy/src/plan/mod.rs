//! The plan: what this node's kernel shall do for every service port, in plain comparable data.
//!
//! Nothing here knows a packet filter. Each backend compiles the same [`Ruleset`], and after that
//! only the [`Delta`]s between one ruleset and the next, so its work grows with what changed.
//!
//! ```text
//!  Ruleset ── v4, v6: FamilyRuleset
//!               ├─ node:  NodeRules          whose packets are local, where node ports answer
//!               └─ ports: PortKey → ServicePort
//!                            ├─ frontends    address + port, and what happens to a packet there
//!                            └─ cluster, local: the endpoints, one list per view
//! ```
//!
//! What a backend derives from it by itself:
//! * *hairpin*: an endpoint with [`Endpoint::local`] set may meet a packet of its own; after DNAT its
//!   source and destination are one address, and it must be masqueraded
//!   (the addresses of all local endpoints of all ports, each as often as it is used);
//! * *cluster IPs*: [`At::ClusterIp`] of all ports, for the rest of such an address (its other ports).

mod checks;
mod claims;
mod delta;
mod endpoints;
mod name;
mod planner;
mod service;
mod settings;
mod show;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use hostnet::vocab::{Family, Subnet};
use serde::{Deserialize, Serialize};

pub use checks::{Checks, HealthCheck};
pub use delta::{Change, Delta, FamilyDelta};
pub use name::PortName;
pub use planner::{Conflict, Planner};
pub use settings::{DetectLocal, NodePortAddresses, Settings};

/// The whole plan of one node, both address families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// IPv4: every address in it is an IPv4 address.
    pub v4: FamilyRuleset,
    /// IPv6: every address in it is an IPv6 address.
    pub v6: FamilyRuleset,
}

impl Ruleset {
    /// The plan of one family.
    pub fn family(&self, family: Family) -> &FamilyRuleset {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The plan of one family, to change it.
    pub fn family_mut(&mut self, family: Family) -> &mut FamilyRuleset {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// The plan of one address family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyRuleset {
    /// What holds for all service ports.
    pub node: NodeRules,
    /// All service ports that have a frontend in this family. No two of them share a frontend:
    /// where Services claim the same address and port, the planner has already chosen one.
    pub ports: BTreeMap<PortKey, Arc<ServicePort>>,
}

/// What holds for all service ports of a family on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRules {
    /// How packets from this cluster's pods are told from others.
    pub pods: PodTraffic,
    /// The addresses of this node at which node ports answer, none of them loopback. Empty: nowhere.
    pub node_ports: BTreeSet<IpAddr>,
    /// The same, for a packet filter that knows this node's addresses by itself.
    pub node_port_scope: NodePortScope,
    /// The networks that cluster IPs are taken from: packets to addresses in them that no Service has are dropped.
    /// No network within another.
    pub service_networks: BTreeSet<Subnet>,
}

/// Where node ports of a family answer, in as few words as the user gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodePortScope {
    /// At every address of this node.
    #[default]
    Everywhere,
    /// At [`NodeRules::node_ports`].
    Listed {
        /// And at 127.0.0.1, where the packet filter can serve that.
        loopback: bool,
    },
}

/// How a packet from a pod is told from a packet from elsewhere (kube-proxy's `detectLocalMode`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodTraffic {
    /// No way to tell: [`Masquerade::NotPods`] masquerades nothing, and pods count as outside.
    #[default]
    Unknown,
    /// Source address in one of these networks: sorted, never empty.
    From(Vec<Subnet>),
    /// Came in by the interface of this name, or one whose name begins so where it ends in `*`.
    Interface(Box<str>),
}

/// Which service port: unique within a family, and stable while the Service keeps that port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// Namespace, Service and port name.
    pub name: PortName,
    /// The port's protocol: names alone are unique in a Service, but a Service may change one.
    pub protocol: Protocol,
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.protocol)
    }
}

/// Transport protocols that a Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IP protocol number (IANA; `IPPROTO_*` of `linux/in.h`), as rules match it.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Lower case, as in rules, comments and kube-proxy's hashes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One port of one Service in one family: its frontends and the endpoints behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Where packets meet it: sorted, each [`At`] and port once.
    pub frontends: Vec<Frontend>,
    /// [`View::Cluster`]: all endpoints to use. Sorted by address and port, each once.
    pub cluster: Arc<[Endpoint]>,
    /// [`View::Local`]: those of this node. Sorted, each once; empty where no frontend has this view.
    /// Not always a subset of `cluster`: each view falls back to terminating endpoints by itself (KEP-1669).
    pub local: Arc<[Endpoint]>,
    /// `sessionAffinity: ClientIP`: for how many seconds a client stays with its endpoint. The choice
    /// is one per client and service port, over all frontends.
    pub affinity: Option<NonZeroU32>,
    /// Of UDP, all endpoints of the cluster that still serve, also those that new flows do not go to: flows
    /// to others are cut off. Sorted, each once; empty for other protocols, whose connections have an end of
    /// their own.
    pub serving: Arc<[Endpoint]>,
    /// Where load balancers ask whether endpoints are on this node (`spec.healthCheckNodePort`): not to be cut off
    /// where other traffic to the node is.
    pub health_check: Option<u16>,
}

impl ServicePort {
    /// The endpoints of a view.
    pub fn endpoints(&self, view: View) -> &Arc<[Endpoint]> {
        match view {
            View::Cluster => &self.cluster,
            View::Local => &self.local,
        }
    }
}

/// One address and port at which a service port is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// The address, or this node's own addresses.
    pub at: At,
    /// The destination port there, 1 to 65,535.
    pub port: u16,
    /// For packets from pods ([`NodeRules::pods`]) and from this node itself.
    pub inside: Verdict,
    /// For all other packets. Differs from `inside` under `externalTrafficPolicy: Local` only.
    pub outside: Verdict,
    /// Whose connections through this frontend are masqueraded (besides hairpin).
    pub masquerade: Masquerade,
    /// Who may come in here, pods and this node included; packets of others are dropped. Sorted, no network
    /// within another, never empty. `None`: everyone.
    pub sources: Option<Arc<[Subnet]>>,
}

/// Where a frontend answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum At {
    /// A cluster IP of the Service.
    ClusterIp(IpAddr),
    /// An address of a load balancer that leaves the destination as it is (`status.loadBalancer`).
    LoadBalancer(IpAddr),
    /// One of `spec.externalIPs`.
    ExternalIp(IpAddr),
    /// This node's addresses, those in [`NodeRules::node_ports`].
    NodePort,
}

impl At {
    /// The destination address; `None`: any of the node's, see [`NodeRules::node_ports`].
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::ClusterIp(address) | Self::LoadBalancer(address) | Self::ExternalIp(address) => {
                Some(address)
            }
            Self::NodePort => None,
        }
    }
}

/// What happens to the first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// DNAT to one of that view's endpoints, of which there is at least one, each as likely as another.
    Balance(View),
    /// No endpoint anywhere: an answer (TCP reset, ICMP port unreachable), so that clients do not wait.
    Reject,
    /// Endpoints elsewhere, none on this node, and the policy is Local: silence, so that an outer load
    /// balancer goes elsewhere.
    Drop,
}

/// Which list of endpoints a frontend uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum View {
    /// Endpoints of the whole cluster (traffic policy Cluster).
    Cluster,
    /// Endpoints of this node (traffic policy Local).
    Local,
}

/// Whose connections get this node's address as their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Masquerade {
    /// All: an answer must come back through this node.
    Always,
    /// Those that do not come from pods ([`NodeRules::pods`]); with [`PodTraffic::Unknown`] none.
    NotPods,
    /// Those of this node itself (`fib saddr type local`): external traffic under policy Local.
    ThisNode,
}

/// One place that a connection can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address, of the ruleset's family.
    pub address: IpAddr,
    /// Its port, 1 to 65,535.
    pub port: u16,
    /// It runs on this node.
    pub local: bool,
}

impl Endpoint {
    /// Address and port.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}
