//! What leads from one table to another: operations, in nft's syntax for who reads them, and the pure
//! function that finds them.

use std::fmt;
use std::sync::Arc;

use super::set::{Element, Set, SetDecl};
use super::show::{RuleText, chain_body, element, set_body};
use super::table::{Chain, Table, TableId};
use super::types::{Key, Name};
use super::{Comment, Rule};

/// One operation on a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes the table. It must not be there.
    AddTable {
        /// Its comment.
        comment: Option<Comment>,
    },
    /// Removes the table and all that is in it.
    DeleteTable,
    /// Makes a set or map, empty.
    AddSet(Arc<SetDecl>),
    /// Gives a set or map room for as many elements as the declaration says ([`Nft::resizes_sets`]). It counts from
    /// the end of its transaction: such operations at the beginning are sent as one of their own.
    ///
    /// [`Nft::resizes_sets`]: super::Nft::resizes_sets
    ResizeSet(Arc<SetDecl>),
    /// Removes a set or map with its elements. No rule may use it.
    DeleteSet(Arc<SetDecl>),
    /// Makes a chain, without its rules.
    AddChain(Name, Arc<Chain>),
    /// Removes a chain. No rule or element may lead to it.
    DeleteChain(Name),
    /// Replaces all rules of a chain.
    SetRules(Name, Vec<Rule>),
    /// Adds a rule at the end of a chain.
    AddRule(Name, Rule),
    /// Deletes the rule of a chain that has this handle.
    DeleteRule(Name, u64),
    /// Puts an element into a set or map. Its key must not be there.
    AddElement(Arc<SetDecl>, Key, Element),
    /// Replaces the data and comment of an element.
    ReplaceElement(Arc<SetDecl>, Key, Element),
    /// Takes an element out.
    DeleteElement(Arc<SetDecl>, Key),
}

impl Op {
    /// The operation in the syntax of `nft`, on this table. Replacing is two or more commands.
    pub fn display<'a>(&'a self, table: &'a TableId) -> impl fmt::Display + 'a {
        OpText { op: self, table }
    }
}

/// The operations of one transaction on one table: all of them happen, or none.
///
/// `Display` gives the script that would do the same with `nft -f`, one command in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Which table.
    pub table: TableId,
    /// What to do, in order.
    pub ops: Vec<Op>,
}

impl Changes {
    /// Nothing yet.
    pub fn new(table: TableId) -> Changes {
        Changes {
            table,
            ops: Vec::new(),
        }
    }

    /// Removes a table that is there.
    pub fn remove(table: TableId) -> Changes {
        Changes {
            table,
            ops: vec![Op::DeleteTable],
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, op) in self.ops.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", op.display(&self.table))?;
        }
        Ok(())
    }
}

/// What makes the observed table the desired one: additions first, then removals.
///
/// Where a set, a chain's hook or a comment of either is declared differently, or there is something in
/// the table that is no part of the model, the table is replaced as a whole, in the same single transaction.
/// For how many elements a set has room is left as it is, unless packets fill it.
pub fn diff(observed: Option<&Table>, desired: Table) -> Changes {
    let mut changes = Changes::new(desired.id.clone());
    let ops = &mut changes.ops;
    match observed {
        Some(observed) if is_declared_alike(observed, &desired) => update(ops, observed, desired),
        Some(_) => {
            ops.push(Op::DeleteTable);
            create(ops, desired);
        }
        None => create(ops, desired),
    }
    changes
}

/// Whether the desired table can be reached from the observed one step by step.
fn is_declared_alike(observed: &Table, desired: &Table) -> bool {
    let sets_agree = desired.sets.iter().all(|(name, set)| {
        observed
            .sets
            .get(name)
            .is_none_or(|other| is_set_alike(&other.decl, &set.decl))
    });
    let chains_agree = desired.chains.iter().all(|(name, chain)| {
        observed
            .chains
            .get(name)
            .is_none_or(|other| other.base == chain.base && other.comment == chain.comment)
    });
    !observed.foreign && observed.comment == desired.comment && sets_agree && chains_agree
}

fn is_set_alike(observed: &SetDecl, desired: &SetDecl) -> bool {
    let size = match desired.dynamic {
        true => desired.size,
        false => observed.size,
    };
    *observed
        == SetDecl {
            size,
            ..desired.clone()
        }
}

fn create(ops: &mut Vec<Op>, mut desired: Table) {
    ops.push(Op::AddTable {
        comment: desired.comment.take(),
    });
    let empty = Table::new(desired.id.family, desired.id.name.clone());
    update(ops, &empty, desired);
}

/// The order follows who refers to whom. New chains have their rules before anything leads to them, so that
/// a long list of operations can be sent in parts; those that packets enter from outside come after the elements,
/// since at the end of each part the kernel looks at all that can be reached from them.
fn update(ops: &mut Vec<Op>, observed: &Table, desired: Table) {
    let is_old = |name: &Name| !desired.chains.contains_key(name);
    let old_chains: Vec<_> = (observed.chains.iter())
        .filter(|(name, _)| is_old(name))
        .collect();
    let old_sets: Vec<_> = (observed.sets.iter())
        .filter(|(name, _)| !desired.sets.contains_key(*name))
        .map(|(_, set)| Op::DeleteSet(set.decl.clone()))
        .collect();
    let is_kept = |name: &Name| observed.chains.contains_key(name);
    let (kept_chains, new_chains): (Vec<_>, Vec<_>) = desired
        .chains
        .into_iter()
        .partition(|(name, _)| is_kept(name));
    let (entrances, new_chains) = new_chains
        .into_iter()
        .partition(|(_, chain)| chain.base.is_some());

    let new_sets = (desired.sets.iter()).filter(|(name, _)| !observed.sets.contains_key(*name));
    ops.extend(new_sets.map(|(_, set)| Op::AddSet(set.decl.clone())));
    add_chains(ops, new_chains);
    // Elements that nothing leads to any more, where they are not in the way of others.
    let mut gone = Vec::new();
    for (name, set) in desired.sets {
        let observed = observed.sets.get(&name);
        match observed {
            // A new range may overlap an old one, which the kernel would refuse.
            Some(observed) if set.decl.interval => drop_elements(ops, observed, &set),
            Some(observed) => drop_elements(&mut gone, observed, &set),
            None => {}
        }
        put_elements(ops, observed, set);
    }
    add_chains(ops, entrances);
    for (name, chain) in kept_chains {
        let observed = &observed.chains[&name].rules;
        set_rules(ops, name, observed, chain.rules);
    }
    ops.append(&mut gone);
    for (name, chain) in &old_chains {
        set_rules(ops, (*name).clone(), &chain.rules, Vec::new());
    }
    ops.extend(old_sets);
    let delete = |(name, _): (&Name, &Chain)| Op::DeleteChain(name.clone());
    ops.extend(old_chains.into_iter().map(delete));
}

/// Chains may lead to each other, so all are there before the first has rules.
fn add_chains(ops: &mut Vec<Op>, chains: Vec<(Name, Chain)>) {
    let mut rules = Vec::new();
    for (name, mut chain) in chains {
        set_rules(
            &mut rules,
            name.clone(),
            &[],
            std::mem::take(&mut chain.rules),
        );
        ops.push(Op::AddChain(name, Arc::new(chain)));
    }
    ops.append(&mut rules);
}

fn set_rules(ops: &mut Vec<Op>, chain: Name, observed: &[Rule], desired: Vec<Rule>) {
    if observed != desired {
        ops.push(Op::SetRules(chain, desired));
    }
}

fn put_elements(ops: &mut Vec<Op>, observed: Option<&Set>, desired: Set) {
    if desired.decl.dynamic {
        return;
    }
    for (key, element) in desired.elements {
        let decl = desired.decl.clone();
        match observed.and_then(|set| set.elements.get(&key)) {
            None => ops.push(Op::AddElement(decl, key, element)),
            Some(other) if *other != element => ops.push(Op::ReplaceElement(decl, key, element)),
            Some(_) => {}
        }
    }
}

fn drop_elements(ops: &mut Vec<Op>, observed: &Set, desired: &Set) {
    if desired.decl.dynamic {
        return;
    }
    let gone = observed
        .elements
        .keys()
        .filter(|key| !desired.elements.contains_key(*key));
    ops.extend(gone.map(|key| Op::DeleteElement(desired.decl.clone(), key.clone())));
}

struct OpText<'a> {
    op: &'a Op,
    table: &'a TableId,
}

impl fmt::Display for OpText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table;
        let element_is = |f: &mut fmt::Formatter<'_>, decl: &SetDecl, key: &Key, e: &Element| {
            write!(f, "element {table} {} {{ ", decl.name)?;
            element(f, decl, key, e)?;
            f.write_str(" }")
        };
        match self.op {
            Op::AddTable {
                comment: Some(comment),
            } => write!(f, "add table {table} {{ {comment}; }}"),
            Op::AddTable { comment: None } => write!(f, "add table {table}"),
            Op::DeleteTable => write!(f, "delete table {table}"),
            // To add one that is there changes its size.
            Op::AddSet(decl) | Op::ResizeSet(decl) => {
                write!(f, "add {} {table} {} {{", decl.word(), decl.name)?;
                set_body(f, decl)?;
                f.write_str(" }")
            }
            Op::DeleteSet(decl) => write!(f, "delete {} {table} {}", decl.word(), decl.name),
            Op::AddChain(name, chain) => {
                write!(f, "add chain {table} {name}")?;
                if chain.base.is_none() && chain.comment.is_none() {
                    return Ok(());
                }
                f.write_str(" {")?;
                chain_body(f, chain)?;
                f.write_str(" }")
            }
            Op::DeleteChain(name) => write!(f, "delete chain {table} {name}"),
            Op::SetRules(name, rules) => {
                write!(f, "flush chain {table} {name}")?;
                for rule in rules {
                    let rule = RuleText {
                        rule,
                        family: table.family,
                    };
                    write!(f, "\nadd rule {table} {name} {rule}")?;
                }
                Ok(())
            }
            Op::AddRule(name, rule) => {
                let rule = RuleText {
                    rule,
                    family: table.family,
                };
                write!(f, "add rule {table} {name} {rule}")
            }
            Op::DeleteRule(name, handle) => {
                write!(f, "delete rule {table} {name} handle {handle}")
            }
            Op::AddElement(decl, key, element) => {
                f.write_str("add ")?;
                element_is(f, decl, key, element)
            }
            Op::ReplaceElement(decl, key, element) => {
                f.write_str("delete ")?;
                element_is(f, decl, key, &Element::new())?;
                f.write_str("\nadd ")?;
                element_is(f, decl, key, element)
            }
            Op::DeleteElement(decl, key) => {
                f.write_str("delete ")?;
                element_is(f, decl, key, &Element::new())
            }
        }
    }
}
