//! What a service port is in rules: its part of the chains that all share, and chains of its own. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hostnet::vocab::{Family, Subnet};

use super::counters::LOCALHOST_PACKETS;
use super::fixed::Context;
use super::names::{
    Chain, Chains, EXTERNAL_SERVICES, MARK_MASQ, NODE_PORTS, Naming, PROXY_FIREWALL, SERVICES,
};
use super::rule::{Rule, Target};
use super::script::{Place, Table};
use crate::plan::{
    At, Endpoint, Frontend, Masquerade, PodTraffic, PortKey, Protocol, ServicePort, Verdict, View,
};

/// A service port, and all that its rules depend on.
pub(super) struct Port<'a> {
    context: &'a Context<'a>,
    port: &'a ServicePort,
    protocol: Protocol,
    name: Cow<'a, str>,
    chains: Chains,
}

/// How packets come in that are from outside the cluster, or could be.
#[derive(Clone, Copy)]
struct External<'a> {
    frontend: &'a Frontend,
    /// Policy Local: who is inside goes to all endpoints, the rest to those of this node.
    is_local: bool,
}

impl<'a> Port<'a> {
    pub(super) fn new(context: &'a Context<'a>, key: &'a PortKey, port: &'a ServicePort) -> Self {
        Port {
            context,
            port,
            protocol: key.protocol,
            name: context.options.naming.port_name(key),
            chains: Chains::of(context.options.naming, key),
        }
    }

    /// Its rules in the chains that all service ports share.
    pub(super) fn shared(&self) -> BTreeMap<Place, Vec<Rule>> {
        let mut shared: BTreeMap<Place, Vec<Rule>> = BTreeMap::new();
        let mut put = |place: Place, rule: Rule| shared.entry(place).or_default().push(rule);
        // In the order in which kube-proxy writes them.
        for frontend in self.frontends(|at| matches!(at, At::ClusterIp(_))) {
            let (table, refuse) = match frontend.inside {
                Verdict::Balance(view) => {
                    if let Some(rule) = self.inline_masquerade(frontend) {
                        put((Table::Nat, SERVICES), rule);
                    }
                    let rule = self.to(frontend, "cluster IP").jump(self.balancer(view));
                    (Table::Nat, rule)
                }
                Verdict::Reject => (Table::Filter, self.refusal(frontend, "has no endpoints")),
                Verdict::Drop => (
                    Table::Filter,
                    self.refusal(frontend, "has no local endpoints"),
                ),
            };
            put((table, SERVICES), refuse);
        }
        for (is_wanted, what) in EXTERNAL {
            for frontend in self.frontends(is_wanted) {
                let external = External::of(frontend);
                let place = match frontend.at {
                    At::NodePort => NODE_PORTS,
                    _ => SERVICES,
                };
                if frontend.inside != Verdict::Reject {
                    if let Some(rule) = self.counted(external) {
                        put((Table::Nat, place), rule);
                    }
                    for rule in self.entrance(external, what) {
                        put((Table::Nat, place), rule);
                    }
                    if frontend.sources.is_some() {
                        put((Table::Filter, PROXY_FIREWALL), self.not_accepted(frontend));
                    }
                }
                match frontend.outside {
                    Verdict::Reject => put(
                        (Table::Filter, EXTERNAL_SERVICES),
                        self.refusal(frontend, "has no endpoints"),
                    ),
                    Verdict::Drop => put(
                        (Table::Filter, EXTERNAL_SERVICES),
                        self.refusal(frontend, "has no local endpoints"),
                    ),
                    Verdict::Balance(_) => {}
                }
            }
        }
        if let Some(port) = self.port.health_check {
            let rule = Rule::new()
                .comment(format!("{} health check node port", self.name))
                .port(Protocol::Tcp, port)
                .target(Target::Accept);
            put((Table::Filter, NODE_PORTS), rule);
        }
        shared
    }

    /// The chains of its own, all in `nat`.
    pub(super) fn own(&self) -> BTreeMap<Chain, Vec<Rule>> {
        let mut own = BTreeMap::new();
        for view in [View::Cluster, View::Local] {
            let endpoints = sorted(self.port.endpoints(view));
            if endpoints.is_empty() {
                continue;
            }
            let mut rules = Vec::new();
            if self.context.options.naming == Naming::Today {
                rules.extend(self.masquerades(view));
            }
            rules.extend(self.balance(&endpoints));
            own.insert(self.balancer(view), rules);
            for endpoint in endpoints {
                own.insert(self.chains.endpoint(&endpoint), self.endpoint(&endpoint));
            }
        }
        let externals = || {
            self.frontends(|at| !matches!(at, At::ClusterIp(_)))
                .filter(|frontend| frontend.inside != Verdict::Reject)
                .map(External::of)
        };
        if let Some(external) = externals().find(|external| !self.is_inline(*external)) {
            own.insert(self.chains.external(), self.external(external));
        }
        let sources: Vec<_> = externals()
            .filter_map(|external| external.frontend.sources.as_deref())
            .collect();
        if !sources.is_empty() {
            own.insert(self.chains.firewall(), self.firewall(&sources));
        }
        own
    }

    fn frontends(&self, is_wanted: impl Fn(At) -> bool) -> impl Iterator<Item = &'a Frontend> {
        (self.port.frontends.iter()).filter(move |frontend| is_wanted(frontend.at))
    }

    fn balancer(&self, view: View) -> Chain {
        match view {
            View::Cluster => self.chains.cluster(),
            View::Local => self.chains.local(),
        }
    }

    /// A rule that meets what goes to a frontend.
    fn to(&self, frontend: &Frontend, what: &str) -> Rule {
        let comment = match what {
            "" => self.name.to_string(),
            _ => format!("{} {what}", self.name),
        };
        self.at(frontend, comment)
    }

    fn at(&self, frontend: &Frontend, comment: String) -> Rule {
        let rule = Rule::new().comment(comment);
        match frontend.at.address() {
            Some(address) => rule.destination(Subnet::host(address)),
            None => rule,
        }
        .port(self.protocol, frontend.port)
    }

    /// In `filter`: nobody is there.
    fn refusal(&self, frontend: &Frontend, why: &str) -> Rule {
        let target = match why {
            "has no endpoints" => Target::Reject(self.context.family),
            _ => Target::Drop,
        };
        let comment = format!("{} {why}", self.name);
        if frontend.at == At::NodePort {
            return Rule::new()
                .comment(comment)
                .destination_is_local()
                .port(self.protocol, frontend.port)
                .target(target);
        }
        self.at(frontend, comment).target(target)
    }

    fn not_accepted(&self, frontend: &Frontend) -> Rule {
        let firewall = self.chains.firewall();
        self.to(frontend, &format!("traffic not accepted by {firewall}"))
            .target(Target::Drop)
    }

    /// The rules by which external traffic comes in.
    fn entrance(&self, external: External<'_>, what: &str) -> Vec<Rule> {
        let to = || self.to(external.frontend, what);
        if external.frontend.sources.is_some() {
            return vec![to().jump(self.chains.firewall())];
        }
        if self.is_inline(external) {
            return vec![to().jump(MARK_MASQ), to().jump(self.chains.cluster())];
        }
        vec![to().jump(self.chains.external())]
    }

    /// The twin of a node port's entrance that counts what comes to a loopback address.
    fn counted(&self, external: External<'_>) -> Option<Rule> {
        let (frontend, options) = (external.frontend, self.context.options);
        let is_wanted = frontend.at == At::NodePort
            && self.context.family == Family::V4
            && options.localhost_node_ports
            && options.counts();
        is_wanted.then(|| {
            self.to(frontend, "")
                .destination(Subnet::loopback(Family::V4))
                .counted(LOCALHOST_PACKETS)
                .jump(self.chains.external())
        })
    }

    /// Whether an external frontend needs no chain of its own: of old, only where policy or sources asked for it.
    fn is_inline(&self, external: External<'_>) -> bool {
        self.context.options.naming == Naming::Legacy
            && !external.is_local
            && external.frontend.sources.is_none()
    }

    /// The masquerade of connections to a cluster IP, where it stands beside it.
    fn inline_masquerade(&self, frontend: &Frontend) -> Option<Rule> {
        let is_inline = self.context.options.naming == Naming::Legacy;
        is_inline.then(|| self.masquerade(frontend)).flatten()
    }

    /// The same, in the chain that balances.
    fn masquerades(&self, view: View) -> impl Iterator<Item = Rule> {
        self.frontends(|at| matches!(at, At::ClusterIp(_)))
            .filter(move |frontend| frontend.inside == Verdict::Balance(view))
            .filter_map(|frontend| self.masquerade(frontend))
    }

    fn masquerade(&self, frontend: &Frontend) -> Option<Rule> {
        let to = self.to(frontend, "cluster IP");
        let rule = match (frontend.masquerade, &self.context.node.pods) {
            (Masquerade::Always, _) => to,
            (_, PodTraffic::Unknown) => return None,
            // A family has one network, as the API has it.
            (_, PodTraffic::From(networks)) => to.not_source(*networks.first()?),
            (_, PodTraffic::Interface(name)) => to.not_input(name),
        };
        Some(rule.jump(MARK_MASQ))
    }

    fn external(&self, external: External<'_>) -> Vec<Rule> {
        let about = |what: &str| {
            Rule::new().comment(format!("{what} for {} external destinations", self.name))
        };
        let mut rules = Vec::new();
        if external.is_local {
            let pods = || about("pod traffic");
            rules.extend(match &self.context.node.pods {
                PodTraffic::Unknown => None,
                PodTraffic::From(networks) => networks.first().map(|net| pods().source(*net)),
                PodTraffic::Interface(name) => Some(pods().input(name)),
            });
            for rule in &mut rules {
                *rule = std::mem::take(rule).jump(self.chains.cluster());
            }
            rules.push(
                about("masquerade LOCAL traffic")
                    .source_is_local()
                    .jump(MARK_MASQ),
            );
            rules.push(
                about("route LOCAL traffic")
                    .source_is_local()
                    .jump(self.chains.cluster()),
            );
        } else {
            rules.push(about("masquerade traffic").jump(MARK_MASQ));
        }
        if let Verdict::Balance(view) = external.frontend.outside {
            rules.push(Rule::new().jump(self.balancer(view)));
        }
        rules
    }

    /// Networks first, then the addresses themselves, as kube-proxy has them.
    fn firewall(&self, sources: &[&[Subnet]]) -> Vec<Rule> {
        let addresses: BTreeSet<IpAddr> = (self.port.frontends.iter())
            .filter_map(|frontend| frontend.at.address())
            .collect();
        let is_own =
            |net: &Subnet| *net == Subnet::host(net.base()) && addresses.contains(&net.base());
        let all: BTreeSet<Subnet> = sources.iter().copied().flatten().copied().collect();
        let (own, networks): (Vec<_>, Vec<_>) = all.into_iter().partition(is_own);
        let mut rules: Vec<_> = (networks.into_iter().chain(own))
            .map(|network| {
                Rule::new()
                    .source(network)
                    .comment(format!("{} loadbalancer IP", self.name))
                    .jump(self.chains.external())
            })
            .collect();
        rules.push(Rule::new().comment(format!(
            "other traffic to {} will be dropped by {PROXY_FIREWALL}",
            self.name
        )));
        rules
    }

    fn balance(&self, endpoints: &[Endpoint]) -> Vec<Rule> {
        let to = |endpoint: &Endpoint| {
            self.commented(|| format!("{} -> {}", self.name, endpoint.socket()))
        };
        let mut rules = Vec::new();
        if let Some(seconds) = self.port.affinity {
            rules.extend(endpoints.iter().map(|endpoint| {
                let chain = self.chains.endpoint(endpoint);
                to(endpoint)
                    .remembered(self.context.family, chain.clone(), seconds)
                    .jump(chain)
            }));
        }
        let left = (1..=endpoints.len() as u32).rev();
        rules.extend(endpoints.iter().zip(left).map(|(endpoint, left)| {
            let rule = match left {
                1 => to(endpoint),
                _ => to(endpoint).one_in(left),
            };
            rule.jump(self.chains.endpoint(endpoint))
        }));
        rules
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Vec<Rule> {
        let rule = || self.commented(|| self.name.to_string());
        let hairpin = rule()
            .source(Subnet::host(endpoint.address))
            .jump(MARK_MASQ);
        let mut there = rule();
        if self.port.affinity.is_some() {
            there = there.remember(self.context.family, self.chains.endpoint(endpoint));
        }
        let there = there
            .protocol(self.protocol)
            .target(Target::Dnat(endpoint.socket()));
        vec![hairpin, there]
    }

    /// With a comment, unless there are too many endpoints for that.
    fn commented(&self, comment: impl FnOnce() -> String) -> Rule {
        if self.context.is_large {
            Rule::new()
        } else {
            Rule::new().comment(comment())
        }
    }
}

/// Kinds of external frontends in kube-proxy's order, and what its comments call them.
type Kind = (fn(At) -> bool, &'static str);
const EXTERNAL: [Kind; 3] = [
    (|at| matches!(at, At::ExternalIp(_)), "external IP"),
    (|at| matches!(at, At::LoadBalancer(_)), "loadbalancer IP"),
    (|at| matches!(at, At::NodePort), ""),
];

impl<'a> External<'a> {
    fn of(frontend: &'a Frontend) -> Self {
        External {
            frontend,
            is_local: frontend.masquerade == Masquerade::ThisNode,
        }
    }
}

/// In the order of their texts, which is kube-proxy's.
fn sorted(endpoints: &[Endpoint]) -> Vec<Endpoint> {
    let mut sorted = endpoints.to_vec();
    sorted.sort_by_cached_key(|endpoint| endpoint.socket().to_string());
    sorted
}
