//! What a service port is in the table: elements of the maps, the chains that they lead to, and the
//! addresses that may meet themselves. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hostnet::nft::{
    self, Chain, Comment, Element, Key, Name, Proto, Rule, Set, SetDecl, Table, goto,
};
use hostnet::vocab::Family;

use super::affinity::{Affinity, OwnChain};
use super::layout::{Balancer, GUARD, GUARD_INSIDE, Layout, Map, REFUSE, masquerade_chain};
use super::slots::{Slots, assign};
use crate::plan::{At, FamilyRuleset, Frontend, PortKey, ServicePort, Verdict, View};

/// The slots of a service port's two views.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortSlots {
    pub(super) cluster: Slots,
    pub(super) local: Slots,
}

impl PortSlots {
    /// Slots for a port whose endpoints were in these before.
    pub(super) fn assign(previous: &PortSlots, port: &ServicePort) -> PortSlots {
        PortSlots {
            cluster: assign(&previous.cluster, &port.cluster),
            local: assign(&previous.local, &port.local),
        }
    }

    fn of(&self, view: View) -> &Slots {
        match view {
            View::Cluster => &self.cluster,
            View::Local => &self.local,
        }
    }
}

/// What one or more service ports need in the table. No two ports have an element or a chain of their own in
/// common; balancers and addresses they share, so these are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Not sorted, as long as there may come more.
    pub(super) elements: Vec<((Map, Key), Element)>,
    pub(super) balancers: BTreeMap<Balancer, usize>,
    /// Chains and sets of ports whose clients stay with their endpoints.
    pub(super) chains: BTreeMap<OwnChain, Vec<Rule>>,
    pub(super) sets: BTreeMap<Name, Arc<SetDecl>>,
    /// Elements without data that several ports have: `hairpin`, `cluster-ips`.
    pub(super) shared: BTreeMap<(Map, IpAddr), usize>,
}

impl Needs {
    /// Adds those of one port, but for the elements of slots that are the same in `beside`: of a port that has
    /// the same frontends and other endpoints, it is these that make most of the work.
    pub(super) fn add(
        &mut self,
        family: Family,
        key: &PortKey,
        port: &ServicePort,
        slots: &PortSlots,
        beside: Option<&PortSlots>,
    ) {
        let affinity = port.affinity.map(|timeout| Affinity {
            family,
            key,
            timeout,
        });
        let of = OfPort {
            proto: Proto(key.protocol.number()),
            comment: Comment::new(key.name.as_str()),
            affinity,
            slots,
            beside,
        };
        for frontend in &port.frontends {
            self.add_frontend(frontend, &of);
        }
        let mut shared: BTreeSet<_> = (slots.cluster.iter().chain(slots.local.iter()))
            .filter(|endpoint| endpoint.local)
            .map(|endpoint| (Map::Hairpin, endpoint.address))
            .collect();
        shared.extend(port.frontends.iter().filter_map(|frontend| {
            let At::ClusterIp(address) = frontend.at else {
                return None;
            };
            Some((Map::ClusterIps, address))
        }));
        for at in shared {
            *self.shared.entry(at).or_default() += 1;
        }
        if let Some(affinity) = affinity {
            for endpoint in port.cluster.iter().chain(port.local.iter()) {
                let (set, chain, rules) = affinity.endpoint(endpoint);
                self.sets.insert(set.name.clone(), set);
                self.chains.insert(chain, rules);
            }
        }
    }

    fn add_frontend(&mut self, frontend: &Frontend, of: &OfPort<'_>) {
        let at = frontend.at;
        let (entrance, entrance_inside, masq) = match at {
            At::NodePort => (Map::NodePorts, Map::NodePortsInside, Map::MasqNodePorts),
            _ => (Map::Vips, Map::VipsInside, Map::MasqVips),
        };
        let key = || match at.address() {
            Some(address) => Key::from((address, of.proto, frontend.port)),
            None => Key::from((of.proto, frontend.port)),
        };
        let mut views = BTreeSet::new();
        let mut balances = false;
        let mut ways = vec![(entrance, Map::Sources, GUARD, frontend.outside)];
        if frontend.inside != frontend.outside {
            ways.push((
                entrance_inside,
                Map::SourcesInside,
                GUARD_INSIDE,
                frontend.inside,
            ));
        }
        for (entrance, sources, guard, verdict) in ways {
            let verdict = match verdict {
                Verdict::Balance(view) if !of.slots.of(view).is_empty() => {
                    balances = true;
                    match of.affinity {
                        Some(affinity) => self.choice(affinity, view, of.slots.of(view)),
                        None => goto(self.balancer(at, view, of, &mut views).name()),
                    }
                }
                Verdict::Balance(_) | Verdict::Reject => goto(REFUSE),
                Verdict::Drop => nft::Verdict::Drop,
            };
            let Some(networks) = &frontend.sources else {
                self.put(entrance, key(), verdict, of);
                continue;
            };
            self.put(entrance, key(), goto(guard), of);
            for network in networks.iter() {
                if let Some(address) = at.address() {
                    let of_source = |source| (address, of.proto, frontend.port, source);
                    let range = Key::range(of_source(network.base()), of_source(network.last()));
                    self.put(sources, range, verdict.clone(), of);
                }
            }
        }
        if balances {
            let verdict = goto(masquerade_chain(frontend.masquerade));
            self.put(masq, key(), verdict, of);
        }
        for balancer in views {
            let beside = of.beside.map_or(&[][..], |beside| beside.of(balancer.view));
            for (slot, endpoint) in (0_u32..).zip(of.slots.of(balancer.view).iter()) {
                if beside.get(slot as usize) == Some(endpoint) {
                    continue;
                }
                let key = match at.address() {
                    Some(address) => Key::from((address, of.proto, frontend.port, slot)),
                    None => Key::from((of.proto, frontend.port, slot)),
                };
                let endpoint = Element::value((endpoint.address, endpoint.port));
                self.put(balancer.map(), key, endpoint, of);
            }
        }
    }

    fn put(&mut self, map: Map, key: Key, element: impl Into<Element>, of: &OfPort<'_>) {
        let element = element.into().comment(of.comment.clone());
        self.elements.push(((map, key), element));
    }

    fn balancer(
        &mut self,
        at: At,
        view: View,
        of: &OfPort<'_>,
        views: &mut BTreeSet<Balancer>,
    ) -> Balancer {
        let balancer = Balancer {
            node_port: at == At::NodePort,
            view,
            endpoints: of.slots.of(view).len() as u32,
        };
        *self.balancers.entry(balancer).or_default() += 1;
        views.insert(balancer);
        balancer
    }

    fn choice(&mut self, affinity: Affinity<'_>, view: View, slots: &Slots) -> nft::Verdict {
        let name = affinity.choice_name(view);
        // In the order of the plan, not of slots: a restart finds the rules as they are.
        let mut endpoints = slots.to_vec();
        endpoints.sort_unstable_by_key(|endpoint| (endpoint.address, endpoint.port));
        self.chains
            .insert(OwnChain::Choice(name.clone()), affinity.choice(&endpoints));
        goto(name)
    }
}

/// What all frontends of a port have in common.
struct OfPort<'a> {
    proto: Proto,
    comment: Comment,
    affinity: Option<Affinity<'a>>,
    slots: &'a PortSlots,
    beside: Option<&'a PortSlots>,
}

/// The whole table of a family, with these slots.
pub(super) fn table(
    layout: &Layout,
    rules: &FamilyRuleset,
    slots: &BTreeMap<PortKey, PortSlots>,
) -> (Table, Needs) {
    let mut needs = Needs::default();
    for (key, port) in &rules.ports {
        if let Some(slots) = slots.get(key) {
            needs.add(layout.family(), key, port, slots, None);
        }
    }
    let mut table = layout.table(&rules.node);
    for balancer in needs.balancers.keys() {
        table = table.chain(balancer.name(), balancer.chain(layout.family()));
    }
    let mut elements: BTreeMap<Map, Vec<(Key, Element)>> = BTreeMap::new();
    for ((map, key), element) in std::mem::take(&mut needs.elements) {
        elements.entry(map).or_default().push((key, element));
    }
    for (map, elements) in elements {
        if let Some(set) = table.sets.get_mut(map.name()) {
            set.elements.append(&mut elements.into_iter().collect());
        }
    }
    for (map, address) in needs.shared.keys() {
        if let Some(set) = table.sets.get_mut(map.name()) {
            set.insert(shared_key(*map, *address), ());
        }
    }
    for (chain, rules) in &needs.chains {
        table = table.chain(
            chain.name().clone(),
            Chain::regular().rules(rules.iter().cloned()),
        );
    }
    for decl in needs.sets.values() {
        table = table.set(Set::new(decl.clone()));
    }
    (table, needs)
}

/// The key of an element that several ports share; in `hairpin` it is an address that meets itself.
pub(super) fn shared_key(map: Map, address: IpAddr) -> Key {
    match map {
        Map::Hairpin => Key::from((address, address)),
        _ => Key::from(address),
    }
}
