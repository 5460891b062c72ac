//! Owns the current plan, and brings it up to date: only what was touched is planned again.
//!
//! Two Services may claim one address and port. One whose cluster IP it is has it before others, then the older
//! one, then the one whose name sorts first; when it goes, the next one gets it. So the plan is a function of the objects alone, whatever the
//! order in which they came.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::net::IpAddr;
use std::sync::Arc;

use hostnet::vocab::Family;

use super::checks::{Checks, HealthCheck, health_check};
use super::claims::{Claim, Claims, Place};
use super::service::{self, Context, Wanted};
use super::settings::node_rules;
use super::{At, Change, Delta, Frontend, PortKey, Ruleset, ServicePort, Settings};
use crate::index::{Dirty, Index, ObjectName};

/// The plan of this node, kept up to date.
#[derive(Debug)]
pub struct Planner {
    settings: Settings,
    context: Context,
    interfaces: BTreeSet<IpAddr>,
    wanted: HashMap<ObjectName, Vec<Wanted>>,
    claims: Claims,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    health_checks_changed: bool,
    conflicts: BTreeSet<Conflict>,
    new_conflicts: Vec<Conflict>,
    ruleset: Ruleset,
}

/// A frontend that a Service does not get, since another has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The family of the addresses.
    pub family: Family,
    /// Who does not get it.
    pub loser: PortKey,
    /// The frontend.
    pub frontend: Frontend,
    /// Who has it.
    pub owner: PortKey,
}

impl Planner {
    /// An empty plan under these settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            context: Context::default(),
            interfaces: BTreeSet::new(),
            wanted: HashMap::new(),
            claims: Claims::default(),
            health_checks: BTreeMap::new(),
            health_checks_changed: false,
            conflicts: BTreeSet::new(),
            new_conflicts: Vec::new(),
            ruleset: Ruleset::default(),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sets other settings: the next update goes by them.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// The plan as of the last update.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// What load balancers are told of Services, by port (`spec.healthCheckNodePort`), and where they ask;
    /// `None` if nothing of it has changed since the last call.
    pub fn take_checks(&mut self) -> Option<Checks> {
        std::mem::take(&mut self.health_checks_changed).then(|| Checks {
            addresses: &self.ruleset.v4.node.node_ports | &self.ruleset.v6.node.node_ports,
            services: (self.health_checks.values())
                .map(|check| (check.port, check.clone()))
                .collect(),
        })
    }

    /// All frontends that are left out, since another Service has the address and port.
    pub fn conflicts(&self) -> &BTreeSet<Conflict> {
        &self.conflicts
    }

    /// Those that came since the last call.
    pub fn take_new_conflicts(&mut self) -> Vec<Conflict> {
        std::mem::take(&mut self.new_conflicts)
    }

    /// Sets the addresses on this node's interfaces: the next update goes by them.
    pub fn set_interfaces(&mut self, addresses: BTreeSet<IpAddr>) {
        self.interfaces = addresses;
    }

    /// Brings the plan up to date with what is `dirty` in the index, and says what changed in it.
    pub fn update(&mut self, index: &Index, dirty: &Dirty) -> Delta {
        let mut delta = Delta::default();
        for family in Family::ALL {
            let rules = node_rules(
                &self.settings,
                family,
                index.node(),
                &self.interfaces,
                index.service_networks(),
            );
            if self.ruleset.family(family).node != rules {
                self.ruleset.family_mut(family).node = rules.clone();
                self.health_checks_changed = true;
                delta.family_mut(family).node = Some(rules);
            }
        }
        let context = Context {
            node: index.this_node().to_owned(),
            zone: index.node().and_then(|node| node.zone.clone()),
            node_ips: (Family::ALL.into_iter())
                .filter_map(|family| self.settings.node_address(family, index.node()))
                .collect(),
            masquerade_all: self.settings.masquerade_all,
        };
        let all_of_them = self.context != context;
        self.context = context;

        let mut affected = Vec::new();
        for name in &dirty.services {
            self.want(index, name, &mut affected);
        }
        if all_of_them {
            for name in index.names() {
                self.want(index, name, &mut affected);
            }
        }
        affected.sort();
        affected.dedup();
        for (family, key) in affected {
            if let Some(change) = self.settle(family, key) {
                delta.family_mut(family).ports.push(change);
            }
        }
        delta
    }

    /// Plans a Service anew. Adds to `affected` which service ports may have changed by it: its own, and
    /// those that claim the same places.
    fn want(&mut self, index: &Index, name: &ObjectName, affected: &mut Vec<(Family, PortKey)>) {
        let entry = index.entry(name);
        let check = entry.and_then(|entry| health_check(name, entry));
        if self.health_checks.get(name) != check.as_ref() {
            self.health_checks_changed = true;
            match check {
                Some(check) => self.health_checks.insert(name.clone(), check),
                None => self.health_checks.remove(name),
            };
        }
        let new = entry.map_or_else(Vec::new, |entry| service::plan(name, entry, &self.context));
        let old = self.wanted.remove(name).unwrap_or_default();
        for gone in old.iter().filter(|wanted| !new.contains(wanted)) {
            for (place, claim) in claims(gone) {
                affected.extend(self.claimants(place));
                self.claims.remove(place, claim);
            }
            affected.push((gone.family, gone.key.clone()));
        }
        for came in new.iter().filter(|wanted| !old.contains(wanted)) {
            for (place, claim) in claims(came) {
                affected.extend(self.claimants(place));
                self.claims.insert(place, claim);
            }
            affected.push((came.family, came.key.clone()));
        }
        if !new.is_empty() {
            self.wanted.insert(name.clone(), new);
        }
    }

    fn claimants(&self, place: Place) -> impl Iterator<Item = (Family, PortKey)> {
        let claimants = self.claims.claimants(place);
        claimants.map(move |key| (place.0, key.clone()))
    }

    /// Gives a service port the places to which it has the best claim.
    fn settle(&mut self, family: Family, key: PortKey) -> Option<Change> {
        let wanted = (self.wanted.get(key.name.service())).and_then(|all| {
            all.iter()
                .find(|wanted| (wanted.family, &wanted.key) == (family, &key))
        });
        let (after, refused) = wanted.map_or_else(Default::default, |wanted| self.granted(wanted));
        let is_known = |conflict: &Conflict| (conflict.family, &conflict.loser) == (family, &key);
        if !refused.is_empty() || self.conflicts.iter().any(is_known) {
            let known: BTreeSet<_> = self.conflicts.extract_if(.., |c| is_known(c)).collect();
            let new = refused.iter().filter(|conflict| !known.contains(conflict));
            self.new_conflicts.extend(new.cloned());
            self.conflicts.extend(refused);
        }
        let ports = &mut self.ruleset.family_mut(family).ports;
        let before = match (ports.entry(key.clone()), &after) {
            (btree_map::Entry::Vacant(_), None) => return None,
            (btree_map::Entry::Vacant(new), Some(port)) => {
                new.insert(port.clone());
                None
            }
            (btree_map::Entry::Occupied(old), Some(port)) if old.get() == port => return None,
            (btree_map::Entry::Occupied(mut old), Some(port)) => Some(old.insert(port.clone())),
            (btree_map::Entry::Occupied(old), None) => Some(old.remove()),
        };
        Some(Change { key, before, after })
    }

    /// The service port less the frontends that another has, and these; `None` where none is left.
    fn granted(&self, wanted: &Wanted) -> (Option<Arc<ServicePort>>, Vec<Conflict>) {
        let refused: Vec<_> = (wanted.port.frontends.iter())
            .filter_map(|frontend| {
                let owner = self.claims.owner(&place(wanted, frontend));
                Some(Conflict {
                    family: wanted.family,
                    loser: wanted.key.clone(),
                    frontend: frontend.clone(),
                    owner: owner.filter(|key| **key != wanted.key)?.clone(),
                })
            })
            .collect();
        if refused.is_empty() {
            return (Some(wanted.port.clone()), refused);
        }
        let left: Vec<_> = (wanted.port.frontends.iter())
            .filter(|frontend| {
                !refused
                    .iter()
                    .any(|conflict| conflict.frontend == **frontend)
            })
            .cloned()
            .collect();
        let port = (!left.is_empty()).then(|| {
            ServicePort {
                frontends: left,
                ..(*wanted.port).clone()
            }
            .into()
        });
        (port, refused)
    }
}

fn place(wanted: &Wanted, frontend: &Frontend) -> Place {
    (
        wanted.family,
        frontend.at.address(),
        wanted.key.protocol,
        frontend.port,
    )
}

fn claims(wanted: &Wanted) -> impl Iterator<Item = (Place, Claim)> {
    wanted.port.frontends.iter().map(|frontend| {
        let claim = Claim {
            is_foreign: !matches!(frontend.at, At::ClusterIp(_)),
            created: wanted.created,
            key: wanted.key.clone(),
        };
        (place(wanted, frontend), claim)
    })
}
