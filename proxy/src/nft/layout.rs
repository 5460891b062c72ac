//! The fixed part of the table: which maps and chains there are, and how a packet goes through them.
//!
//! ```text
//!  prerouting ──(from a pod)──► inside     vips-inside, nodeports-inside: where these differ from the rest
//!      │                          │
//!      ▼                          ▼
//!  services: vips, nodeports ──verdict──► lb-N   pick a slot below N, DNAT to what `endpoints` has there
//!      ▲       │ none              ├────► aff-svc-… a service's own: its clients stay (see `affinity`)
//!      │       ▼                   ├────► guard  verdict by address, port and source, else drop
//!      │    cluster-ips ─────────► ├────► refuse TCP reset or ICMP port unreachable
//!  output ──► inside ──►           └────► drop
//!
//!  postrouting: hairpin; masq-vips, masq-nodeports (by the connection's first destination) ──► masq-…
//! ```
//!
//! Nothing here depends on a service: services are elements of the maps, and a chain `lb-N` is shared by all
//! that have N endpoints.

use std::sync::Arc;

use hostnet::nft::Selector::{
    CtOriginalDaddr, CtOriginalDport, CtStatus, Daddr, Dport, FibSaddrType, Iif, IifName, L4Proto,
    Random, Saddr,
};
use hostnet::nft::{
    CT_DNAT, Chain, FIB_LOCAL, FieldType, Hook, Key, KeyType, Name, NatFlags, Proto, Rule, Set,
    SetDecl, Table, TableId,
};
use hostnet::vocab::{Family, names};

use crate::plan::{Masquerade, NodeRules, PodTraffic, View};

/// Before twill-cni's host ports would be at −105, after it is the usual −100 (`dstnat`).
const PRIORITY_DNAT: i32 = -100;
/// Before the masquerade of twill-cni (98) and flanneld (100): for a connection to a service, ours decides.
const PRIORITY_MASQUERADE: i32 = 95;

/// The protocols that a service can have.
const PROTOCOLS: [Proto; 3] = [Proto::TCP, Proto::UDP, Proto::SCTP];

pub(super) const REFUSE: &str = "refuse";
/// Where a frontend leads that only some sources may use, and the same for packets from inside.
pub(super) const GUARD: &str = "guard";
pub(super) const GUARD_INSIDE: &str = "guard-inside";
const INSIDE: &str = "inside";
const SERVICES: &str = "services";

/// The maps and sets of a table, in the order in which a load fills them: what leads somewhere comes after
/// where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Map {
    /// Endpoint by address, protocol, port and slot.
    Endpoints(View),
    /// Endpoint by protocol, node port and slot.
    NodePortEndpoints(View),
    /// Addresses of this node's endpoints, twice: as source and as destination.
    Hairpin,
    /// Whom to masquerade, by address, protocol and port.
    MasqVips,
    /// Whom to masquerade, by protocol and node port.
    MasqNodePorts,
    /// Verdict by address, protocol, port and source, for packets from pods and this node, where only some
    /// sources may come in.
    SourcesInside,
    /// The same for all other packets.
    Sources,
    /// Cluster IPs: at their other ports packets are refused.
    ClusterIps,
    /// Networks that cluster IPs are taken from: at the rest of their addresses packets are dropped.
    ServiceNetworks,
    /// This node's addresses at which node ports answer.
    NodePortIps,
    /// Verdict by address, protocol and port, for packets from pods and this node, where it differs.
    VipsInside,
    /// Verdict by protocol and node port, for the same.
    NodePortsInside,
    /// Verdict by address, protocol and port.
    Vips,
    /// Verdict by protocol and node port.
    NodePorts,
}

impl Map {
    pub(super) const ALL: [Map; 16] = [
        Map::Endpoints(View::Cluster),
        Map::Endpoints(View::Local),
        Map::NodePortEndpoints(View::Cluster),
        Map::NodePortEndpoints(View::Local),
        Map::Hairpin,
        Map::MasqVips,
        Map::MasqNodePorts,
        Map::SourcesInside,
        Map::Sources,
        Map::ClusterIps,
        Map::ServiceNetworks,
        Map::NodePortIps,
        Map::VipsInside,
        Map::NodePortsInside,
        Map::Vips,
        Map::NodePorts,
    ];

    /// Whether packets begin here, or end their way here at once when they are not let in. From all others an
    /// element may only go when no packet can be on its way to it any more.
    pub(super) fn is_entrance(self) -> bool {
        !matches!(
            self,
            Map::Endpoints(_)
                | Map::NodePortEndpoints(_)
                | Map::Hairpin
                | Map::MasqVips
                | Map::MasqNodePorts
        )
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Map::Endpoints(View::Cluster) => "endpoints",
            Map::Endpoints(View::Local) => "endpoints-local",
            Map::NodePortEndpoints(View::Cluster) => "nodeport-endpoints",
            Map::NodePortEndpoints(View::Local) => "nodeport-endpoints-local",
            Map::Hairpin => "hairpin",
            Map::MasqVips => "masq-vips",
            Map::MasqNodePorts => "masq-nodeports",
            Map::SourcesInside => "sources-inside",
            Map::Sources => "sources",
            Map::ClusterIps => "cluster-ips",
            Map::ServiceNetworks => "service-networks",
            Map::NodePortIps => "nodeport-ips",
            Map::VipsInside => "vips-inside",
            Map::NodePortsInside => "nodeports-inside",
            Map::Vips => "vips",
            Map::NodePorts => "nodeports",
        }
    }

    pub(super) fn by_name(name: &str) -> Option<Map> {
        Map::ALL.into_iter().find(|map| map.name() == name)
    }

    fn declare(self, family: Family) -> SetDecl {
        let addr = FieldType::addr(family);
        let (proto, port) = (FieldType::InetProto, FieldType::InetService);
        let vip = KeyType::of([addr, proto, port]);
        let node_port = KeyType::of([proto, port]);
        // `nft` knows the type of a random number by where it comes from only. Whatever the chain's N is,
        // here it is 1.
        let slot = Random(1);
        let endpoint = KeyType::typeof_([Daddr(family), Dport]);
        let name = self.name();
        match self {
            Map::Endpoints(_) => {
                let key = KeyType::typeof_([Daddr(family), L4Proto, Dport, slot]);
                SetDecl::map(name, key, endpoint)
            }
            Map::NodePortEndpoints(_) => {
                SetDecl::map(name, KeyType::typeof_([L4Proto, Dport, slot]), endpoint)
            }
            Map::Hairpin => SetDecl::set(name, KeyType::of([addr, addr])),
            Map::ClusterIps | Map::NodePortIps => SetDecl::set(name, KeyType::of([addr])),
            Map::ServiceNetworks => SetDecl::set(name, KeyType::of([addr])).interval(),
            Map::Sources | Map::SourcesInside => {
                SetDecl::vmap(name, KeyType::of([addr, proto, port, addr])).interval()
            }
            Map::MasqVips | Map::VipsInside | Map::Vips => SetDecl::vmap(name, vip),
            Map::MasqNodePorts | Map::NodePortsInside | Map::NodePorts => {
                SetDecl::vmap(name, node_port)
            }
        }
    }
}

/// A chain that spreads connections over N endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Balancer {
    /// Whether the slots are those of node ports.
    pub(super) node_port: bool,
    pub(super) view: View,
    /// How many slots there are.
    pub(super) endpoints: u32,
}

impl Balancer {
    const PREFIXES: [(&'static str, bool, View); 4] = [
        ("lb-", false, View::Cluster),
        ("lbl-", false, View::Local),
        ("np-", true, View::Cluster),
        ("npl-", true, View::Local),
    ];

    /// The map with its slots.
    pub(super) fn map(self) -> Map {
        if self.node_port {
            Map::NodePortEndpoints(self.view)
        } else {
            Map::Endpoints(self.view)
        }
    }

    /// `lb-3`, `lbl-3` for the endpoints of this node, `np-3` and `npl-3` for node ports.
    pub(super) fn name(self) -> Name {
        let prefix = Balancer::PREFIXES
            .into_iter()
            .find(|(_, node_port, view)| (*node_port, *view) == (self.node_port, self.view))
            .map_or("", |(prefix, ..)| prefix);
        format!("{prefix}{}", self.endpoints).into()
    }

    /// The chain of that name, if it is one.
    pub(super) fn by_name(name: &str) -> Option<Balancer> {
        Balancer::PREFIXES
            .into_iter()
            .find_map(|(prefix, node_port, view)| {
                let endpoints = name.strip_prefix(prefix)?.parse().ok()?;
                Some(Balancer {
                    node_port,
                    view,
                    endpoints,
                })
            })
    }

    /// A slot that is not there is refused: the packet never goes on to the service's address.
    pub(super) fn chain(self, family: Family) -> Chain {
        let slot = Random(self.endpoints);
        let key = match self.node_port {
            false => vec![Daddr(family), L4Proto, Dport, slot],
            true => vec![L4Proto, Dport, slot],
        };
        Chain::regular()
            .rule(Rule::new().dnat_to_map(family, key, self.map().name()))
            .rule(Rule::new().goto(REFUSE))
    }
}

/// The chain that decides whether a connection is masqueraded.
pub(super) fn masquerade_chain(masquerade: Masquerade) -> &'static str {
    match masquerade {
        Masquerade::Always => "masq-always",
        Masquerade::NotPods => "masq-not-pods",
        Masquerade::ThisNode => "masq-this-node",
    }
}

/// What all tables of a family share: their name, and the declarations of their maps.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) table: TableId,
    decls: Vec<(Map, Arc<SetDecl>)>,
}

impl Layout {
    pub(super) fn new(family: Family) -> Layout {
        Layout {
            table: TableId::new(family, names::TABLE_PROXY),
            decls: Map::ALL
                .into_iter()
                .map(|map| (map, Arc::new(map.declare(family))))
                .collect(),
        }
    }

    pub(super) fn family(&self) -> Family {
        self.table.family
    }

    pub(super) fn decl(&self, map: Map) -> Arc<SetDecl> {
        let declared = self.decls.iter().find(|(m, _)| *m == map);
        declared.map_or_else(
            || Arc::new(map.declare(self.family())),
            |(_, decl)| decl.clone(),
        )
    }

    /// The table without any service.
    pub(super) fn table(&self, node: &NodeRules) -> Table {
        let family = self.family();
        let mut table = Table::new(family, self.table.name.clone())
            .comment("twill-proxy: Services as NAT; a Service is elements of the maps")
            .chain("prerouting", prerouting(family, &node.pods))
            .chain(
                "output",
                Chain::nat(Hook::Output, PRIORITY_DNAT)
                    .rule(Rule::new().jump(INSIDE))
                    .rule(Rule::new().goto(SERVICES)),
            )
            .chain(
                INSIDE,
                lookup(family, Map::VipsInside, Map::NodePortsInside),
            )
            .chain(
                SERVICES,
                lookup(family, Map::Vips, Map::NodePorts)
                    .rule(
                        Rule::new()
                            .in_set([Daddr(family)], Map::ClusterIps.name())
                            .goto(REFUSE)
                            .comment("ports that no Service has"),
                    )
                    .rule(
                        Rule::new()
                            .in_set([Daddr(family)], Map::ServiceNetworks.name())
                            .drop()
                            .comment("addresses that no Service has"),
                    ),
            )
            .chain(GUARD, guard(family, Map::Sources))
            .chain(GUARD_INSIDE, guard(family, Map::SourcesInside))
            .chain(
                REFUSE,
                Chain::regular()
                    .rule(Rule::new().eq(L4Proto, Proto::TCP).reject_tcp_reset())
                    .rule(Rule::new().reject(family)),
            )
            .chain("postrouting", postrouting(family));
        for masquerade in [
            Masquerade::Always,
            Masquerade::NotPods,
            Masquerade::ThisNode,
        ] {
            let chain = masquerading(family, masquerade, &node.pods);
            table = table.chain(masquerade_chain(masquerade), chain);
        }
        for (map, decl) in &self.decls {
            let mut set = Set::new(decl.clone());
            if *map == Map::NodePortIps {
                node.node_ports
                    .iter()
                    .for_each(|address| set.insert(*address, ()));
            }
            if *map == Map::ServiceNetworks {
                for network in &node.service_networks {
                    set.insert(Key::range(network.base(), network.last()), ());
                }
            }
            table = table.set(set);
        }
        table
    }
}

fn guard(family: Family, sources: Map) -> Chain {
    let key = [Daddr(family), L4Proto, Dport, Saddr(family)];
    Chain::regular()
        .rule(Rule::new().vmap(key, sources.name()))
        .rule(Rule::new().drop())
}

fn prerouting(family: Family, pods: &PodTraffic) -> Chain {
    let from_pods: Vec<_> = match pods {
        PodTraffic::Unknown => Vec::new(),
        PodTraffic::From(networks) => (networks.iter())
            .map(|net| Rule::new().within(Saddr(family), *net).jump(INSIDE))
            .collect(),
        PodTraffic::Interface(name) => vec![Rule::new().eq(IifName, &**name).jump(INSIDE)],
    };
    Chain::nat(Hook::Prerouting, PRIORITY_DNAT)
        .rules(from_pods)
        .rule(Rule::new().goto(SERVICES))
}

fn lookup(family: Family, vips: Map, node_ports: Map) -> Chain {
    Chain::regular()
        .rule(Rule::new().vmap([Daddr(family), L4Proto, Dport], vips.name()))
        .rule(
            Rule::new()
                .in_set([Daddr(family)], Map::NodePortIps.name())
                .vmap([L4Proto, Dport], node_ports.name()),
        )
}

/// Decided by the connection's original destination, so that no bit of the packet mark is needed. One rule
/// for each protocol, because `nft` reads `ct original proto-dst` only where it knows the protocol.
fn postrouting(family: Family) -> Chain {
    let original = CtOriginalDaddr(family);
    let of = |proto| Rule::new().eq(L4Proto, proto).has(CtStatus, CT_DNAT);
    let vips = PROTOCOLS
        .map(|proto| of(proto).vmap([original, L4Proto, CtOriginalDport], Map::MasqVips.name()));
    let node_ports = PROTOCOLS.map(|proto| {
        of(proto)
            .in_set([original], Map::NodePortIps.name())
            .vmap([L4Proto, CtOriginalDport], Map::MasqNodePorts.name())
    });
    Chain::nat(Hook::Postrouting, PRIORITY_MASQUERADE)
        .rule(
            Rule::new()
                .has(CtStatus, CT_DNAT)
                .in_set([Saddr(family), Daddr(family)], Map::Hairpin.name())
                .masquerade(NatFlags::FULLY_RANDOM)
                .comment("an endpoint that meets itself"),
        )
        .rules(vips)
        .rules(node_ports)
}

fn masquerading(family: Family, masquerade: Masquerade, pods: &PodTraffic) -> Chain {
    let all = Rule::new().masquerade(NatFlags::FULLY_RANDOM);
    match (masquerade, pods) {
        // Nobody is known to be from outside.
        (Masquerade::NotPods, PodTraffic::Unknown) => Chain::regular(),
        (Masquerade::Always, _) => Chain::regular().rule(all),
        (Masquerade::NotPods, PodTraffic::From(networks)) => Chain::regular()
            .rules(
                networks
                    .iter()
                    .map(|net| Rule::new().within(Saddr(family), *net).return_()),
            )
            .rule(all),
        // On its way out to the bridge by which it came, a packet has no interface any more: it is a pod's.
        // The same is true of this node's own, so these are told by their source.
        (Masquerade::NotPods, PodTraffic::Interface(name)) => Chain::regular()
            .rule(
                Rule::new()
                    .eq(FibSaddrType, FIB_LOCAL)
                    .masquerade(NatFlags::FULLY_RANDOM),
            )
            .rule(Rule::new().eq(Iif, 0_u32).return_())
            .rule(Rule::new().eq(IifName, &**name).return_())
            .rule(all),
        (Masquerade::ThisNode, _) => Chain::regular().rule(
            Rule::new()
                .eq(FibSaddrType, FIB_LOCAL)
                .masquerade(NatFlags::FULLY_RANDOM),
        ),
    }
}
