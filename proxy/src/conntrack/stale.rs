//! Which flows are stale, from what changed in the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hostnet::conntrack::{Filter, UdpFlow};
use hostnet::vocab::Family;

use crate::plan::{Delta, Endpoint, Protocol, Ruleset, ServicePort};

/// The frontends whose flows have to be looked at, and where these may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    v4: OfFamily,
    v6: OfFamily,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OfFamily {
    /// By address (`None`: this node's) and port.
    frontends: BTreeMap<(Option<IpAddr>, u16), Allowed>,
    /// This node's addresses at which node ports answer.
    node: BTreeSet<IpAddr>,
}

/// Where the flows of a frontend may go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Allowed {
    /// To these endpoints. What goes elsewhere, or nowhere since it began before there was a rule, is stale.
    To(Arc<[Endpoint]>),
    /// There is no such frontend any more: nowhere by a rule, and untranslated packets are none of ours.
    Untranslated,
}

impl Stale {
    /// Adds what a change of the plan says; what it says of a frontend goes before what was said earlier.
    /// `ruleset`: the plan after it.
    pub fn add(&mut self, delta: &Delta, ruleset: &Ruleset) {
        for family in Family::ALL {
            let (delta, rules) = (delta.family(family), ruleset.family(family));
            let of = self.family_mut(family);
            let udp = || (delta.ports.iter()).filter(|change| change.key.protocol == Protocol::Udp);
            for before in udp().filter_map(|change| change.before.as_ref()) {
                for frontend in &before.frontends {
                    let at = (frontend.at.address(), frontend.port);
                    of.frontends.insert(at, Allowed::Untranslated);
                }
            }
            for after in udp().filter_map(|change| change.after.as_ref()) {
                of.allow(after, |_| true);
            }
            if delta.node.is_some() {
                let udp = rules
                    .ports
                    .iter()
                    .filter(|(key, _)| key.protocol == Protocol::Udp);
                udp.for_each(|(_, port)| of.allow(port, |at| at.is_none()));
            }
            of.node.extend(&rules.node.node_ports);
        }
    }

    /// Adds what was found later: it goes before what is known.
    pub fn extend(&mut self, later: Stale) {
        for (of, later) in [(&mut self.v4, later.v4), (&mut self.v6, later.v6)] {
            of.frontends.extend(later.frontends);
            of.node.extend(later.node);
        }
    }

    /// Whether no flow has to be looked at.
    pub fn is_empty(&self) -> bool {
        self.v4.frontends.is_empty() && self.v6.frontends.is_empty()
    }

    /// Which flows of a family have to be looked at; `None`: none.
    pub fn filter(&self, family: Family) -> Option<Filter> {
        let mut ports = self.family(family).frontends.keys().map(|(_, port)| *port);
        let first = ports.next()?;
        let filter = Filter::all(family);
        // One port (DNS, mostly): the kernel sends no others.
        if ports.all(|port| port == first) {
            Some(filter.to_port(first))
        } else {
            Some(filter)
        }
    }

    /// Whether a flow is to be forgotten.
    pub fn contains(&self, flow: &UdpFlow) -> bool {
        let to = flow.original.dst;
        let of = self.family(flow.family());
        let at = |address| of.frontends.get(&(address, to.port()));
        let allowed = at(Some(to.ip())).or_else(|| at(None).filter(|_| of.node.contains(&to.ip())));
        match allowed {
            None => false,
            Some(Allowed::Untranslated) => flow.reply.src != to,
            Some(Allowed::To(endpoints)) => !endpoints
                .iter()
                .any(|e| (e.address, e.port) == (flow.reply.src.ip(), flow.reply.src.port())),
        }
    }

    fn family(&self, family: Family) -> &OfFamily {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn family_mut(&mut self, family: Family) -> &mut OfFamily {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl OfFamily {
    fn allow(&mut self, port: &ServicePort, which: impl Fn(Option<IpAddr>) -> bool) {
        for frontend in port.frontends.iter().filter(|f| which(f.at.address())) {
            let allowed = Allowed::To(port.serving.clone());
            self.frontends
                .insert((frontend.at.address(), frontend.port), allowed);
        }
    }
}
