//! Owns the document that `iptables-restore --noflush` takes: tables, chains that are written anew, single rules of
//! other people's chains, and chains that go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use super::names::Chain;
use super::rule::Rule;

/// A table that has chains of ours, in the order of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Table {
    Mangle,
    Filter,
    Nat,
}

impl Table {
    pub(super) const ALL: [Table; 3] = [Table::Mangle, Table::Filter, Table::Nat];

    pub(super) fn name(self) -> &'static str {
        match self {
            Table::Mangle => "mangle",
            Table::Filter => "filter",
            Table::Nat => "nat",
        }
    }

    pub(super) fn by_name(name: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// A chain that is not one of a service port.
pub(super) type Place = (Table, &'static str);

/// Changes to the tables of a family: one transaction for each table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Script {
    parts: BTreeMap<Table, Part>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    /// Chains that are emptied, and made where they are not there.
    chains: BTreeSet<Chain>,
    rules: String,
    /// Chains that go, emptied already.
    gone: Vec<Chain>,
    /// Lines for other people's chains.
    single: usize,
    /// How many rules are written.
    written: i64,
}

impl Script {
    /// Writes a chain anew: `rules` are lines as [`lines`] makes them.
    pub(super) fn write(&mut self, table: Table, chain: impl Into<Chain>, rules: &str) {
        let part = self.parts.entry(table).or_default();
        part.chains.insert(chain.into());
        part.rules.push_str(rules);
        part.written += rules.lines().count() as i64;
    }

    /// Empties a chain and deletes it.
    pub(super) fn delete(&mut self, table: Table, chain: impl Into<Chain>) {
        let part = self.parts.entry(table).or_default();
        let chain = chain.into();
        part.chains.insert(chain.clone());
        part.gone.push(chain);
    }

    /// Puts a rule at the head of somebody else's chain.
    pub(super) fn insert(&mut self, (table, chain): Place, rule: &Rule) {
        self.single(table, format_args!("-I {chain}{rule}"));
    }

    /// Takes a rule of somebody else's chain away, which is saved as this line, `-A …`.
    pub(super) fn remove(&mut self, table: Table, saved: &str) {
        let rule = saved.strip_prefix("-A").unwrap_or(saved);
        self.single(table, format_args!("-D{rule}"));
    }

    fn single(&mut self, table: Table, line: fmt::Arguments<'_>) {
        let part = self.parts.entry(table).or_default();
        part.single += 1;
        // A `String` takes whatever is written.
        let _ = writeln!(part.rules, "{line}");
    }

    /// How many chains are written or go, and rules of others' chains.
    pub(super) fn ops(&self) -> usize {
        (self.parts.values())
            .map(|part| part.chains.len() + part.single)
            .sum()
    }

    /// How many rules of our chains in a table are written.
    pub(super) fn written(&self, table: Table) -> i64 {
        self.parts.get(&table).map_or(0, |part| part.written)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

/// The document.
impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (table, part) in &self.parts {
            writeln!(f, "*{}", table.name())?;
            for chain in &part.chains {
                writeln!(f, ":{chain} - [0:0]")?;
            }
            f.write_str(&part.rules)?;
            for chain in &part.gone {
                writeln!(f, "-X {chain}")?;
            }
            writeln!(f, "COMMIT")?;
        }
        Ok(())
    }
}

/// Rules of a chain as lines, `-A …`.
pub(super) fn lines<'a>(chain: &str, rules: impl IntoIterator<Item = &'a Rule>) -> String {
    let mut text = String::new();
    for rule in rules {
        let _ = writeln!(text, "-A {chain}{rule}");
    }
    text
}
