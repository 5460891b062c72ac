//! From what is there to what shall be: all chains compared with the kernel's, or what changed in the plan. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::fixed::Context;
use super::leftovers::is_proxys;
use super::names::{Chain, KUBELET_CANARY, SERVICES, is_of_port, is_shared};
use super::port::Port;
use super::rule::Rule;
use super::saved::{Saved, target};
use super::script::{Place, Script, Table, lines};
use crate::plan::{FamilyRuleset, PortKey};

/// Makes the kernel hold these rules, and nothing of ours besides. Empty if it does.
pub(super) fn full(context: &Context<'_>, rules: &FamilyRuleset, saved: &Saved<'_>) -> Script {
    let mut script = Script::default();
    let mut write = |table, chain: Chain, lines: &str| {
        if !saved.holds(table, &chain, lines) {
            script.write(table, chain, lines);
        }
    };
    let fixed = context.fixed();
    let mut shared: BTreeMap<Place, String> =
        fixed.keys().map(|place| (*place, String::new())).collect();
    let mut own = BTreeSet::new();
    for (key, port) in &rules.ports {
        let port = Port::new(context, key, port);
        extend(&mut shared, port.shared());
        for (chain, rules) in port.own() {
            write(Table::Nat, chain.clone(), &lines(&chain, &rules));
            own.insert(chain);
        }
    }
    extend(&mut shared, fixed);
    for ((table, chain), lines) in shared {
        write(table, chain.into(), &lines);
    }
    jumps(context, saved, &mut script);
    let is_gone = |chain: &&str| is_of_port(chain) && !own.contains(*chain);
    for chain in saved.chains(Table::Nat).filter(is_gone) {
        script.delete(Table::Nat, chain.to_owned());
    }
    script
}

/// From one plan to the next, where the kernel holds the first: `changed` are the ports that differ.
pub(super) fn partial<'a>(
    before: (&Context<'_>, &FamilyRuleset),
    after: (&Context<'_>, &FamilyRuleset),
    changed: impl IntoIterator<Item = &'a PortKey>,
) -> Script {
    let mut script = Script::default();
    let all: BTreeSet<&PortKey> = if before.0 == after.0 {
        changed.into_iter().collect()
    } else {
        before.1.ports.keys().chain(after.1.ports.keys()).collect()
    };
    let (old_fixed, fixed) = (before.0.fixed(), after.0.fixed());
    let mut stale: BTreeSet<Place> = (fixed.iter())
        .filter(|(place, rules)| old_fixed.get(*place) != Some(*rules))
        .map(|(place, _)| *place)
        .collect();
    for key in all {
        let (old_shared, old_own) = compile(before, key);
        let (shared, own) = compile(after, key);
        let places = old_shared.keys().chain(shared.keys());
        stale.extend(places.filter(|place| old_shared.get(*place) != shared.get(*place)));
        for (chain, rules) in &own {
            if old_own.get(chain) != Some(rules) {
                script.write(Table::Nat, chain.clone(), &lines(chain, rules));
            }
        }
        for chain in old_own.keys().filter(|chain| !own.contains_key(*chain)) {
            script.delete(Table::Nat, chain.clone());
        }
    }
    if stale.is_empty() {
        return script;
    }
    let mut shared: BTreeMap<Place, String> = stale
        .into_iter()
        .map(|place| (place, String::new()))
        .collect();
    for (key, port) in &after.1.ports {
        extend(&mut shared, Port::new(after.0, key, port).shared());
    }
    extend(&mut shared, fixed);
    for ((table, chain), lines) in shared {
        script.write(table, chain, &lines);
    }
    script
}

/// Takes away all that is ours, and what a kube-proxy has left.
pub(super) fn cleanup(saved: &Saved<'_>) -> Script {
    let mut script = Script::default();
    // Where there is a kubelet, that chain is the kubelet's too.
    let has_kubelet = (saved.rules(Table::Mangle, KUBELET_CANARY)).is_some();
    let is_ours = |chain: &str| is_proxys(chain, has_kubelet);
    for table in Table::ALL {
        let (ours, others): (Vec<_>, Vec<_>) =
            saved.chains(table).partition(|chain| is_ours(chain));
        for chain in others {
            for rule in saved.rules(table, chain).unwrap_or_default() {
                if target(rule).is_some_and(is_ours) {
                    script.remove(table, rule);
                }
            }
        }
        for chain in ours {
            script.delete(table, chain.to_owned());
        }
    }
    script
}

/// Whether there is anything that [`cleanup`] would take away.
pub(super) fn is_bare(saved: &Saved<'_>) -> bool {
    saved.rules(Table::Nat, SERVICES).is_none()
}

/// A service port's part of the shared chains, and its own.
type Compiled = (BTreeMap<Place, Vec<Rule>>, BTreeMap<Chain, Vec<Rule>>);

fn compile((context, rules): (&Context<'_>, &FamilyRuleset), key: &PortKey) -> Compiled {
    match rules.ports.get(key) {
        Some(port) => {
            let port = Port::new(context, key, port);
            (port.shared(), port.own())
        }
        None => Compiled::default(),
    }
}

/// Adds rules to those of the chains that are there.
fn extend(texts: &mut BTreeMap<Place, String>, rules: BTreeMap<Place, Vec<Rule>>) {
    for (place, rules) in rules {
        if let Some(text) = texts.get_mut(&place) {
            text.push_str(&lines(place.1, &rules));
        }
    }
}

/// Every way into our chains is there once; what else leads into them goes.
fn jumps(context: &Context<'_>, saved: &Saved<'_>, script: &mut Script) {
    let wanted = context.jumps();
    let bases: BTreeSet<Place> = wanted.iter().map(|(place, _)| *place).collect();
    for place in bases {
        let (table, base) = place;
        let mut there: Vec<&str> = saved.rules(table, base).unwrap_or_default().to_vec();
        let mut missing = Vec::new();
        for (_, rule) in wanted.iter().filter(|(of, _)| *of == place) {
            let line = format!("-A {base}{rule}");
            match there.iter().position(|found| *found == line) {
                Some(found) => {
                    there.remove(found);
                }
                None => missing.push(rule),
            }
        }
        let is_ours = |line: &&str| target(line).is_some_and(is_shared);
        for extra in there.into_iter().filter(is_ours) {
            script.remove(table, extra);
        }
        // Each is put at the head: the last one first.
        for rule in missing.into_iter().rev() {
            script.insert(place, rule);
        }
    }
}
