//! What is there whatever the services are: the shared chains, how packets come into them, and the rules that no
//! service port owns. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hostnet::vocab::{Family, Subnet};

use super::counters::INVALID_PACKETS;
use super::names::{
    CANARY, EXTERNAL_SERVICES, FIREWALL, FORWARD, MARK_MASQ, NODE_PORTS, Naming, POSTROUTING,
    PROXY_FIREWALL, SERVICES,
};
use super::options::Options;
use super::rule::{Rule, Target};
use super::script::{Place, Table};
use crate::plan::{FamilyRuleset, NodePortScope, NodeRules};

/// With more endpoints than these, rules for each of them go without comments, as kube-proxy's do.
const LARGE: usize = 1000;

/// What all rules of a family depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Context<'a> {
    pub(super) family: Family,
    pub(super) options: &'a Options,
    /// As far as rules depend on it.
    pub(super) node: NodeRules,
    pub(super) is_large: bool,
}

impl<'a> Context<'a> {
    pub(super) fn new(family: Family, options: &'a Options, rules: &FamilyRuleset) -> Self {
        let endpoints: usize = rules.ports.values().map(|port| port.cluster.len()).sum();
        let node = NodeRules {
            node_ports: match rules.node.node_port_scope {
                NodePortScope::Everywhere => BTreeSet::new(),
                NodePortScope::Listed { .. } => rules.node.node_ports.clone(),
            },
            service_networks: BTreeSet::new(),
            ..rules.node.clone()
        };
        Context {
            family,
            options,
            node,
            is_large: endpoints > LARGE,
        }
    }

    /// The shared chains, with the rules that stand in them behind those of service ports.
    pub(super) fn fixed(&self) -> BTreeMap<Place, Vec<Rule>> {
        let mark = self.options.mark();
        let mut fixed = BTreeMap::from([
            ((Table::Mangle, CANARY), vec![]),
            ((Table::Filter, CANARY), vec![]),
            ((Table::Filter, SERVICES), vec![]),
            ((Table::Filter, EXTERNAL_SERVICES), vec![]),
            ((Table::Filter, NODE_PORTS), vec![]),
            ((Table::Filter, PROXY_FIREWALL), vec![]),
            ((Table::Filter, FORWARD), self.forward()),
            ((Table::Nat, CANARY), vec![]),
            ((Table::Nat, SERVICES), self.to_node_ports()),
            ((Table::Nat, NODE_PORTS), vec![]),
            (
                (Table::Nat, POSTROUTING),
                vec![
                    Rule::new().not_mark(mark).target(Target::Return),
                    // A tunnel's packet keeps the mark, and would be masqueraded once more.
                    Rule::new().target(Target::FlipMark(mark)),
                    Rule::new()
                        .comment("kubernetes service traffic requiring SNAT")
                        .target(Target::Masquerade),
                ],
            ),
            (
                (Table::Nat, MARK_MASQ),
                vec![Rule::new().target(Target::SetMark(mark))],
            ),
        ]);
        // The kubelet's too, which is why it is there even where there is nothing to block.
        let localnet = self.localnet().into_iter().collect();
        fixed.insert((Table::Filter, FIREWALL), localnet);
        fixed
    }

    /// How packets come into them: base chain and rule, in the order in which they shall stand.
    pub(super) fn jumps(&self) -> Vec<(Place, Rule)> {
        let new = || Rule::new().state("NEW");
        let firewall = || {
            new()
                .comment("kubernetes load balancer firewall")
                .jump(PROXY_FIREWALL)
        };
        let portals = || new().comment("kubernetes service portals").jump(SERVICES);
        let external = || {
            new()
                .comment("kubernetes externally-visible service portals")
                .jump(EXTERNAL_SERVICES)
        };
        let nat = || {
            Rule::new()
                .comment("kubernetes service portals")
                .jump(SERVICES)
        };
        let health = Rule::new()
            .comment("kubernetes health check service ports")
            .jump(NODE_PORTS);
        let forward = Rule::new()
            .comment("kubernetes forwarding rules")
            .jump(FORWARD);
        let postrouting = Rule::new()
            .comment("kubernetes postrouting rules")
            .jump(POSTROUTING);
        let localnet = || Rule::new().jump(FIREWALL);
        let (input, output) = ((Table::Filter, "INPUT"), (Table::Filter, "OUTPUT"));
        let forwarded = (Table::Filter, "FORWARD");
        let mut jumps = vec![
            (forwarded, firewall()),
            (forwarded, forward),
            (forwarded, portals()),
            (forwarded, external()),
        ];
        jumps.extend([
            (input, localnet()),
            (input, firewall()),
            (input, health),
            (input, external()),
        ]);
        if self.options.naming == Naming::Legacy {
            jumps.push((input, portals()));
        }
        jumps.extend([
            (output, localnet()),
            (output, firewall()),
            (output, portals()),
            ((Table::Nat, "PREROUTING"), nat()),
            ((Table::Nat, "OUTPUT"), nat()),
            ((Table::Nat, "POSTROUTING"), postrouting),
        ]);
        jumps
    }

    fn forward(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.options.drop_invalid {
            let invalid = Rule::new().state("INVALID");
            let invalid = match self.options.counts() {
                true => invalid.counted(INVALID_PACKETS),
                false => invalid,
            };
            rules.push(invalid.target(Target::Drop));
        }
        rules.push(
            Rule::new()
                .comment("kubernetes forwarding rules")
                .mark(self.options.mark())
                .target(Target::Accept),
        );
        rules.push(
            Rule::new()
                .comment("kubernetes forwarding conntrack rule")
                .state("RELATED,ESTABLISHED")
                .target(Target::Accept),
        );
        rules
    }

    /// `route_localnet` lets neighbours send to 127.0.0.0/8; nothing but answers shall come in so.
    fn localnet(&self) -> Option<Rule> {
        let rule = || {
            Rule::new()
                .comment("block incoming localnet connections")
                .not_source(Subnet::loopback(Family::V4))
                .destination(Subnet::loopback(Family::V4))
                .not_state("RELATED,ESTABLISHED,DNAT")
                .target(Target::Drop)
        };
        self.serves_loopback().then(rule)
    }

    fn serves_loopback(&self) -> bool {
        let scope = self.node.node_port_scope;
        self.options.serves_loopback(self.family, scope)
    }

    fn to_node_ports(&self) -> Vec<Rule> {
        let rule = || {
            Rule::new()
                .comment(
                    "kubernetes service nodeports; NOTE: this must be the last rule in this chain",
                )
                .jump(NODE_PORTS)
        };
        let loopback = self.serves_loopback();
        match self.node.node_port_scope {
            NodePortScope::Everywhere => {
                let rule = match loopback {
                    true => rule(),
                    false => rule().not_destination(Subnet::loopback(self.family)),
                };
                vec![rule.destination_is_local()]
            }
            NodePortScope::Listed { .. } => {
                let localhost = loopback.then_some(Subnet::host(Ipv4Addr::LOCALHOST.into()));
                let listed = self.node.node_ports.iter().copied().map(Subnet::host);
                localhost
                    .into_iter()
                    .chain(listed)
                    .map(|address| rule().destination(address))
                    .collect()
            }
        }
    }
}
