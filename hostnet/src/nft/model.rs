//! The kernel in memory: what a transaction makes of a table, refused where the kernel would refuse it. For
//! tests of what computes transactions.

use super::diff::{Changes, Op};
use super::expr::{Expr, Verdict};
use super::rule::Rule;
use super::set::{Data, Element, Set};
use super::table::Table;

/// What a table is after the changes.
///
/// # Errors
/// The operation that the kernel would refuse, and why: what is added is there, what is removed is not, or
/// something leads to where nothing is.
pub fn replay(table: Option<Table>, changes: &Changes) -> Result<Option<Table>, String> {
    let mut table = table;
    for op in &changes.ops {
        step(&mut table, changes, op)
            .map_err(|why| format!("{}: {why}", op.display(&changes.table)))?;
    }
    Ok(table)
}

fn step(slot: &mut Option<Table>, changes: &Changes, op: &Op) -> Result<(), &'static str> {
    match (op, &mut *slot) {
        (Op::AddTable { .. }, Some(_)) => return Err("the table is there"),
        (Op::AddTable { comment }, None) => {
            let mut table = Table::new(changes.table.family, changes.table.name.clone());
            table.comment.clone_from(comment);
            *slot = Some(table);
        }
        (_, None) => return Err("the table is not there"),
        (Op::DeleteTable, Some(_)) => *slot = None,
        (op, Some(table)) => step_in(table, op)?,
    }
    Ok(())
}

fn step_in(table: &mut Table, op: &Op) -> Result<(), &'static str> {
    match op {
        Op::AddTable { .. } | Op::DeleteTable => {}
        Op::AddSet(decl) => {
            absent(
                table.sets.insert(decl.name.clone(), Set::new(decl.clone())),
                "the set is there",
            )?;
        }
        Op::ResizeSet(decl) => {
            let set = present(table.sets.get_mut(&decl.name), "the set is not there")?;
            set.decl = decl.clone();
        }
        Op::DeleteSet(decl) => {
            let uses = |expr: &Expr| set_of(expr).is_some_and(|set| **set == *decl.name);
            unused(
                rules(table).flat_map(|rule| &rule.exprs).any(uses),
                "a rule uses the set",
            )?;
            present(table.sets.remove(&decl.name), "the set is not there")?;
        }
        Op::AddChain(name, chain) => {
            absent(
                table.chains.insert(name.clone(), (**chain).clone()),
                "the chain is there",
            )?;
        }
        Op::DeleteChain(name) => {
            present(table.chains.remove(name), "the chain is not there")?;
            let leads = |verdict: &Verdict| target(verdict).is_some_and(|chain| **chain == **name);
            unused(verdicts(table).any(leads), "something leads to the chain")?;
        }
        Op::SetRules(name, rules) => {
            for expr in rules.iter().flat_map(|rule| &rule.exprs) {
                if let Expr::Verdict(verdict) = expr {
                    leads_somewhere(table, verdict)?;
                }
                let set = set_of(expr).is_none_or(|set| table.sets.contains_key(set));
                unused(!set, "a rule uses a set that is not there")?;
            }
            present(table.chains.get_mut(name), "the chain is not there")?
                .rules
                .clone_from(rules);
        }
        Op::AddRule(name, rule) => present(table.chains.get_mut(name), "the chain is not there")?
            .rules
            .push(rule.clone()),
        // Rules have no handles here: they are of tables that nobody describes.
        Op::DeleteRule(..) => return Err("there is no such rule"),
        Op::AddElement(decl, key, element) => {
            element_leads_somewhere(table, element)?;
            let set = present(table.sets.get_mut(&decl.name), "the set is not there")?;
            absent(
                set.elements.insert(key.clone(), element.clone()),
                "the element is there",
            )?;
            let is_full = |size| set.elements.len() > size as usize;
            if set.decl.size.is_some_and(is_full) {
                return Err("the set is full");
            }
        }
        Op::ReplaceElement(decl, key, element) => {
            element_leads_somewhere(table, element)?;
            let set = present(table.sets.get_mut(&decl.name), "the set is not there")?;
            present(
                set.elements.insert(key.clone(), element.clone()),
                "the element is not there",
            )?;
        }
        Op::DeleteElement(decl, key) => {
            let set = present(table.sets.get_mut(&decl.name), "the set is not there")?;
            present(set.elements.remove(key), "the element is not there")?;
        }
    }
    Ok(())
}

fn rules(table: &Table) -> impl Iterator<Item = &Rule> {
    table.chains.values().flat_map(|chain| &chain.rules)
}

/// All verdicts of a table, of its rules and of its maps.
fn verdicts(table: &Table) -> impl Iterator<Item = &Verdict> {
    let of_rules = rules(table)
        .flat_map(|rule| &rule.exprs)
        .filter_map(|expr| match expr {
            Expr::Verdict(verdict) => Some(verdict),
            _ => None,
        });
    let elements = table.sets.values().flat_map(|set| set.elements.values());
    of_rules.chain(elements.filter_map(|element| match &element.data {
        Some(Data::Verdict(verdict)) => Some(verdict),
        _ => None,
    }))
}

fn target(verdict: &Verdict) -> Option<&super::Name> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        _ => None,
    }
}

fn set_of(expr: &Expr) -> Option<&super::Name> {
    match expr {
        Expr::InSet { set, .. }
        | Expr::Map { set, .. }
        | Expr::VerdictMap { set, .. }
        | Expr::Dynset { set, .. } => Some(set),
        _ => None,
    }
}

fn leads_somewhere(table: &Table, verdict: &Verdict) -> Result<(), &'static str> {
    match target(verdict) {
        Some(chain) if !table.chains.contains_key(chain) => {
            Err("leads to a chain that is not there")
        }
        _ => Ok(()),
    }
}

fn element_leads_somewhere(table: &Table, element: &Element) -> Result<(), &'static str> {
    match &element.data {
        Some(Data::Verdict(verdict)) => leads_somewhere(table, verdict),
        _ => Ok(()),
    }
}

fn present<T>(thing: Option<T>, why: &'static str) -> Result<T, &'static str> {
    thing.ok_or(why)
}

fn absent<T>(thing: Option<T>, why: &'static str) -> Result<(), &'static str> {
    thing.map_or(Ok(()), |_| Err(why))
}

fn unused(is_used: bool, why: &'static str) -> Result<(), &'static str> {
    if is_used { Err(why) } else { Ok(()) }
}
