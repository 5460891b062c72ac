//! What a service port is in the table: elements of the maps, the chains that they lead to, and the
//! addresses that may meet themselves. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hostnet::nft::{self, Comment, Element, Key, Proto, Table, goto};

use super::layout::{Balancer, Layout, Map, REFUSE, masquerade_chain};
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

/// What one or more service ports need in the table. No two ports have an element in common; chains and
/// addresses they share, so these are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) elements: BTreeMap<(Map, Key), Element>,
    pub(super) balancers: BTreeMap<Balancer, usize>,
    pub(super) local_addresses: BTreeMap<IpAddr, usize>,
}

impl Needs {
    /// Adds those of one port.
    pub(super) fn add(&mut self, key: &PortKey, port: &ServicePort, slots: &PortSlots) {
        let comment = Comment::new(key.name.as_str());
        let proto = Proto(key.protocol.number());
        for frontend in &port.frontends {
            self.add_frontend(frontend, proto, &comment, slots);
        }
        let addresses: BTreeSet<_> = slots
            .cluster
            .iter()
            .chain(slots.local.iter())
            .filter(|endpoint| endpoint.local)
            .map(|endpoint| endpoint.address)
            .collect();
        for address in addresses {
            *self.local_addresses.entry(address).or_default() += 1;
        }
    }

    fn add_frontend(
        &mut self,
        frontend: &Frontend,
        proto: Proto,
        comment: &Comment,
        slots: &PortSlots,
    ) {
        let Frontend {
            at,
            port,
            inside,
            outside,
            masquerade,
        } = *frontend;
        let (entrance, entrance_inside, masq) = match at {
            At::ClusterIp(_) => (Map::Vips, Map::VipsInside, Map::MasqVips),
            At::NodePort => (Map::NodePorts, Map::NodePortsInside, Map::MasqNodePorts),
        };
        let key = || match at.address() {
            Some(address) => Key::from((address, proto, port)),
            None => Key::from((proto, port)),
        };
        let mut put = |map, key, element: Element| {
            self.elements
                .insert((map, key), element.comment(comment.clone()));
        };

        let mut views = BTreeSet::new();
        let mut verdict = |verdict| match verdict {
            Verdict::Balance(view) if !slots.of(view).is_empty() => {
                let endpoints = slots.of(view).len() as u32;
                let balancer = Balancer {
                    node_port: at == At::NodePort,
                    view,
                    endpoints,
                };
                *self.balancers.entry(balancer).or_default() += 1;
                views.insert(balancer);
                goto(balancer.name())
            }
            Verdict::Balance(_) | Verdict::Reject => goto(REFUSE),
            Verdict::Drop => nft::Verdict::Drop,
        };
        put(entrance, key(), verdict(outside).into());
        if inside != outside {
            put(entrance_inside, key(), verdict(inside).into());
        }
        if !views.is_empty() {
            put(masq, key(), goto(masquerade_chain(masquerade)).into());
        }
        for balancer in views {
            for (slot, endpoint) in (0_u32..).zip(slots.of(balancer.view).iter()) {
                let key = match at.address() {
                    Some(address) => Key::from((address, proto, port, slot)),
                    None => Key::from((proto, port, slot)),
                };
                put(
                    balancer.map(),
                    key,
                    Element::value((endpoint.address, endpoint.port)),
                );
            }
        }
    }
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
            needs.add(key, port, slots);
        }
    }
    let mut table = layout.table(&rules.node);
    for balancer in needs.balancers.keys() {
        table = table.chain(balancer.name(), balancer.chain(layout.family()));
    }
    for ((map, key), element) in std::mem::take(&mut needs.elements) {
        if let Some(set) = table.sets.get_mut(map.name()) {
            set.elements.insert(key, element);
        }
    }
    if let Some(hairpin) = table.sets.get_mut(Map::Hairpin.name()) {
        needs
            .local_addresses
            .keys()
            .for_each(|address| hairpin.insert(hairpin_key(*address), ()));
    }
    (table, needs)
}

/// An address that meets itself.
pub(super) fn hairpin_key(address: IpAddr) -> Key {
    Key::from((address, address))
}
