//! From what is there to what shall be: all chains compared with the kernel's, or what changed in the plan. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::fixed::Context;
use super::leftovers::is_proxys;
use super::names::{Chain, KUBELET_CANARY, SERVICES, is_of_port, is_shared};
use super::port::Port;
use super::rule::Rule;
use super::saved::{Saved, target};
use super::script::{Place, Script, Table, lines};
use crate::plan::{Change, FamilyRuleset, PortKey, ServicePort};

/// What is to be done, and how many rules of ours a table has then.
pub(super) struct Planned {
    pub(super) script: Script,
    pub(super) rules: Rules,
}

/// How many rules of ours there are in each table.
pub(super) type Rules = BTreeMap<Table, i64>;

/// Makes the kernel hold these rules, and nothing of ours besides. Empty if it does.
pub(super) fn full(context: &Context<'_>, rules: &FamilyRuleset, saved: &Saved<'_>) -> Planned {
    let mut script = Script::default();
    let mut counts = Rules::new();
    let mut write = |table, chain: Chain, lines: &str| {
        add(&mut counts, table, lines.lines().count() as i64);
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
    Planned {
        script,
        rules: counts,
    }
}

/// From one plan to the next, where the kernel holds the first, which has `counts` rules: `changes` lead to `rules`.
pub(super) fn partial(
    before: &Context<'_>,
    after: &Context<'_>,
    rules: &FamilyRuleset,
    changes: &[Change],
    mut counts: Rules,
) -> Planned {
    let mut script = Script::default();
    let mut count = |compiled: &Compiled, sign: i64| {
        let (shared, own) = compiled;
        for ((table, _), rules) in shared {
            add(&mut counts, *table, sign * rules.len() as i64);
        }
        let own: usize = own.values().map(Vec::len).sum();
        add(&mut counts, Table::Nat, sign * own as i64);
    };
    let (old_fixed, fixed) = (before.fixed(), after.fixed());
    let mut stale: BTreeSet<Place> = (fixed.iter())
        .filter(|(place, rules)| old_fixed.get(*place) != Some(*rules))
        .map(|(place, _)| *place)
        .collect();
    let mut compare = |key: &PortKey, old: Option<&ServicePort>, new: Option<&ServicePort>| {
        let (old, new) = (compile(before, key, old), compile(after, key, new));
        count(&old, -1);
        count(&new, 1);
        let ((old_shared, old_own), (shared, own)) = (old, new);
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
    };
    for change in changes {
        let (old, new) = (change.before.as_deref(), change.after.as_deref());
        compare(&change.key, old, new);
    }
    if before != after {
        let changed: BTreeSet<&PortKey> = changes.iter().map(|change| &change.key).collect();
        for (key, port) in rules.ports.iter().filter(|(key, _)| !changed.contains(key)) {
            compare(key, Some(port), Some(port));
        }
    }
    for (fixed, sign) in [(&old_fixed, -1), (&fixed, 1)] {
        for ((table, _), rules) in fixed {
            add(&mut counts, *table, sign * rules.len() as i64);
        }
    }
    let mut shared: BTreeMap<Place, String> = stale
        .into_iter()
        .map(|place| (place, String::new()))
        .collect();
    if !shared.is_empty() {
        for (key, port) in &rules.ports {
            extend(&mut shared, Port::new(after, key, port).shared());
        }
    }
    extend(&mut shared, fixed);
    for ((table, chain), lines) in shared {
        script.write(table, chain, &lines);
    }
    Planned {
        script,
        rules: counts,
    }
}

fn add(counts: &mut Rules, table: Table, rules: i64) {
    *counts.entry(table).or_default() += rules;
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

fn compile(context: &Context<'_>, key: &PortKey, port: Option<&ServicePort>) -> Compiled {
    port.map_or_else(Compiled::default, |port| {
        let port = Port::new(context, key, port);
        (port.shared(), port.own())
    })
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
