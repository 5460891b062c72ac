//! From changes of the plan to operations on the table. Pure.
//!
//! A packet may read one map before a transaction and the next one after it. So whatever a packet can be led
//! to stays for a tick ([`State::tick`]): only entrances (frontends) go at once. Shrinking from
//! three endpoints to two moves the last endpoint into the freed slot and leads to `lb-2`; the third slot and, if
//! no service needs it any more, `lb-3` go later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hostnet::nft::{Chain, Changes, Element, Key, Name, Op, SetDecl, Table, diff};
use hostnet::vocab::Family;

use super::affinity::{self, OwnChain};
use super::desired::{Needs, PortSlots, shared_key, table};
use super::layout::{Balancer, Layout, Map};
use super::observe;
use super::room::Rooms;
use crate::plan::{FamilyDelta, FamilyRuleset, NodeRules, PortKey};

/// What the kernel's table of one family holds, as far as the next changes depend on it.
#[derive(Clone, Debug)]
pub(super) struct State {
    layout: Layout,
    node: NodeRules,
    slots: BTreeMap<PortKey, PortSlots>,
    /// How many verdicts lead to each chain.
    balancers: BTreeMap<Balancer, usize>,
    /// How many service ports need each of the elements that they share.
    shared: BTreeMap<(Map, IpAddr), usize>,
    leftovers: Leftovers,
    rooms: Rooms,
}

/// What nothing leads to any more, but packets may still be on their way to. Each is there for a whole tick.
#[derive(Clone, Debug, Default)]
struct Leftovers {
    elements: BTreeMap<(Map, Key), (Element, Age)>,
    balancers: BTreeMap<Balancer, Age>,
    chains: BTreeMap<OwnChain, Age>,
    sets: BTreeMap<Name, (Arc<SetDecl>, Age)>,
}

/// Since when something is left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// Since the last tick.
    Fresh,
    /// Since before the last tick: it goes with the next.
    Due,
}

impl State {
    /// What makes the observed table that of the ruleset, and the state after it. Maps that it makes have room for
    /// `least` elements and more, or grow by themselves.
    pub(super) fn replace(
        family: Family,
        observed: Option<&Table>,
        rules: &FamilyRuleset,
        least: Option<u32>,
    ) -> (Changes, State) {
        let layout = Layout::new(family);
        let slots = observe::slots(observed, rules);
        let (desired, needs) = table(&layout, rules, &slots);
        let mut changes = diff(observed, desired);
        let leftovers = Leftovers::take_out_of(&mut changes, observed);
        let mut rooms = Rooms::new(least, observed);
        rooms.make(&mut changes);
        let Needs {
            balancers, shared, ..
        } = needs;
        let node = rules.node.clone();
        (
            changes,
            State {
                layout,
                node,
                slots,
                balancers,
                shared,
                leftovers,
                rooms,
            },
        )
    }

    /// All that differs between the observed table and that of the ruleset.
    pub(super) fn difference(
        family: Family,
        observed: Option<&Table>,
        rules: &FamilyRuleset,
    ) -> Changes {
        let slots = observe::slots(observed, rules);
        diff(observed, table(&Layout::new(family), rules, &slots).0)
    }

    /// What makes these changes, after which the state is that after them.
    pub(super) fn update(&mut self, delta: &FamilyDelta) -> Changes {
        let (mut before, mut after) = (Needs::default(), Needs::default());
        for change in &delta.ports {
            let (family, key) = (self.layout.family(), &change.key);
            let old = self.slots.remove(key);
            let previous = old.clone().unwrap_or_default();
            let new = (change.after.as_ref()).map(|port| PortSlots::assign(&previous, port));
            let alike = change.is_of_endpoints();
            if let (Some(port), Some(slots)) = (&change.before, &old) {
                let beside = new.as_ref().filter(|_| alike);
                before.add(family, key, port, slots, beside);
            }
            if let (Some(port), Some(slots)) = (&change.after, new) {
                let beside = old.as_ref().filter(|_| alike);
                after.add(family, key, port, &slots, beside);
                self.slots.insert(key.clone(), slots);
            }
        }
        let mut changes = Changes::new(self.layout.table.clone());
        let new_balancers = count(&mut self.balancers, &before.balancers, &after.balancers);
        let shared = count(&mut self.shared, &before.shared, &after.shared);
        self.add_own(&mut changes, &before, &mut after);
        self.add_balancers(&mut changes, &new_balancers.came);
        let left = new_balancers
            .went
            .into_iter()
            .map(|balancer| (balancer, Age::Fresh));
        self.leftovers.balancers.extend(left);
        let element = |(map, address)| ((map, shared_key(map, address)), Element::new());
        before.elements.extend(shared.went.into_iter().map(element));
        after.elements.extend(shared.came.into_iter().map(element));
        let sorted = |needs: Needs| needs.elements.into_iter().collect();
        self.change_elements(&mut changes, sorted(before), sorted(after));
        if let Some(node) = &delta.node {
            let (old, new) = (self.layout.table(&self.node), self.layout.table(node));
            changes.ops.extend(diff(Some(&old), new).ops);
            self.node = node.clone();
        }
        self.rooms.make(&mut changes);
        changes
    }

    /// What removes the leftovers of the tick before.
    pub(super) fn tick(&mut self) -> Changes {
        let mut changes = Changes::new(self.layout.table.clone());
        let layout = &self.layout;
        let ops = &mut changes.ops;
        self.leftovers.elements.retain(|(map, key), (_, age)| {
            is_kept(age, || {
                ops.push(Op::DeleteElement(layout.decl(*map), key.clone()))
            })
        });
        self.leftovers
            .balancers
            .retain(|balancer, age| is_kept(age, || ops.push(Op::DeleteChain(balancer.name()))));
        // Those that lead to others first.
        let mut chains = Vec::new();
        self.leftovers.chains.retain(|chain, age| {
            is_kept(age, || chains.push(Op::DeleteChain(chain.name().clone())))
        });
        ops.extend(chains.into_iter().rev());
        self.leftovers
            .sets
            .retain(|_, (decl, age)| is_kept(age, || ops.push(Op::DeleteSet(decl.clone()))));
        self.rooms.make(&mut changes);
        changes
    }

    /// Whether there are leftovers.
    pub(super) fn is_unfinished(&self) -> bool {
        let Leftovers {
            elements,
            balancers,
            chains,
            sets,
        } = &self.leftovers;
        !(elements.is_empty() && balancers.is_empty() && chains.is_empty() && sets.is_empty())
    }

    /// Chains and sets that ports have of their own. Those that lead to others get their rules last, and what
    /// is needed no more stays for now.
    fn add_own(&mut self, changes: &mut Changes, before: &Needs, after: &mut Needs) {
        let ops = &mut changes.ops;
        for (name, decl) in &after.sets {
            let is_there = before.sets.contains_key(name);
            if self.leftovers.sets.remove(name).is_none() && !is_there {
                ops.push(Op::AddSet(decl.clone()));
            }
        }
        for chain in after.chains.keys() {
            let is_there = before.chains.contains_key(chain);
            if !is_there && !self.leftovers.chains.contains_key(chain) {
                let bare = Arc::new(Chain::regular());
                ops.push(Op::AddChain(chain.name().clone(), bare));
            }
        }
        for (chain, rules) in &after.chains {
            self.leftovers.chains.remove(chain);
            if before.chains.get(chain) != Some(rules) {
                ops.push(Op::SetRules(chain.name().clone(), rules.clone()));
            }
        }
        let gone = |chain: &&OwnChain| !after.chains.contains_key(*chain);
        for chain in before.chains.keys().filter(gone) {
            self.leftovers.chains.insert(chain.clone(), Age::Fresh);
        }
        for (name, decl) in &before.sets {
            if !after.sets.contains_key(name) {
                let left = (decl.clone(), Age::Fresh);
                self.leftovers.sets.insert(name.clone(), left);
            }
        }
    }

    fn add_balancers(&mut self, changes: &mut Changes, balancers: &[Balancer]) {
        for balancer in balancers {
            let name = balancer.name();
            let chain = balancer.chain(self.layout.family());
            if self.leftovers.balancers.remove(balancer).is_none() {
                let bare = Chain {
                    rules: Vec::new(),
                    ..chain.clone()
                };
                changes.ops.push(Op::AddChain(name.clone(), Arc::new(bare)));
            }
            changes.ops.push(Op::SetRules(name, chain.rules));
        }
    }

    /// Additions come in the order of the maps, entrances last. Then entrances go.
    fn change_elements(
        &mut self,
        changes: &mut Changes,
        mut before: BTreeMap<(Map, Key), Element>,
        after: BTreeMap<(Map, Key), Element>,
    ) {
        for (at, element) in after {
            let old = before.remove(&at).or_else(|| {
                self.leftovers
                    .elements
                    .remove(&at)
                    .map(|(element, _)| element)
            });
            let (map, key) = at;
            let decl = || self.layout.decl(map);
            match old {
                None => changes.ops.push(Op::AddElement(decl(), key, element)),
                Some(old) if old != element => {
                    changes.ops.push(Op::ReplaceElement(decl(), key, element));
                }
                Some(_) => {}
            }
        }
        // Backwards, so that what guards an address goes after the way to it.
        for ((map, key), element) in before.into_iter().rev() {
            if map.is_entrance() {
                changes
                    .ops
                    .push(Op::DeleteElement(self.layout.decl(map), key));
            } else {
                self.leftovers
                    .elements
                    .insert((map, key), (element, Age::Fresh));
            }
        }
    }
}

impl Leftovers {
    /// Keeps for later what a full comparison would remove at once.
    fn take_out_of(changes: &mut Changes, observed: Option<&Table>) -> Leftovers {
        let mut leftovers = Leftovers::default();
        changes.ops.retain(|op| match op {
            Op::DeleteElement(decl, key) => {
                let Some(map) = Map::by_name(&decl.name).filter(|map| !map.is_entrance()) else {
                    return true;
                };
                let set = observed.and_then(|table| table.sets.get(&decl.name));
                let element = set.and_then(|set| set.elements.get(key)).cloned();
                leftovers.elements.insert(
                    (map, key.clone()),
                    (element.unwrap_or_default(), Age::Fresh),
                );
                false
            }
            Op::DeleteChain(name) => match Balancer::by_name(name) {
                Some(balancer) => {
                    leftovers.balancers.insert(balancer, Age::Fresh);
                    false
                }
                None => match OwnChain::by_name(name) {
                    Some(chain) => {
                        leftovers.chains.insert(chain, Age::Fresh);
                        false
                    }
                    None => true,
                },
            },
            // Comes before the chain's removal.
            Op::SetRules(name, rules) => {
                let is_left = Balancer::by_name(name).is_some() || affinity::is_chain(name);
                !rules.is_empty() || !is_left
            }
            Op::DeleteSet(decl) if affinity::is_set(&decl.name) => {
                let left = (decl.clone(), Age::Fresh);
                leftovers.sets.insert(decl.name.clone(), left);
                false
            }
            _ => true,
        });
        leftovers
    }
}

/// What is due goes, what is not becomes so.
fn is_kept(age: &mut Age, remove: impl FnOnce()) -> bool {
    match age {
        Age::Fresh => *age = Age::Due,
        Age::Due => {
            remove();
            return false;
        }
    }
    true
}

/// What changed in a set of things that are counted.
struct Counted<T> {
    came: Vec<T>,
    went: Vec<T>,
}

fn count<T: Ord + Copy>(
    counts: &mut BTreeMap<T, usize>,
    before: &BTreeMap<T, usize>,
    after: &BTreeMap<T, usize>,
) -> Counted<T> {
    let mut counted = Counted {
        came: Vec::new(),
        went: Vec::new(),
    };
    let things: BTreeSet<T> = before.keys().chain(after.keys()).copied().collect();
    for thing in things {
        let of = |needs: &BTreeMap<T, usize>| needs.get(&thing).copied().unwrap_or(0);
        let old = of(counts);
        let new = (old + of(after)).saturating_sub(of(before));
        match (old, new) {
            (_, 0) => drop(counts.remove(&thing)),
            _ => drop(counts.insert(thing, new)),
        }
        match (old, new) {
            (0, 1..) => counted.came.push(thing),
            (1.., 0) => counted.went.push(thing),
            _ => {}
        }
    }
    counted
}
