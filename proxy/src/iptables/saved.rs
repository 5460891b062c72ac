//! Owns the reading of what `iptables-save` prints.

use std::collections::BTreeMap;

use super::script::Table;

/// The tables that have chains of ours, as they are in the kernel.
#[derive(Debug, Default)]
pub(super) struct Saved<'a> {
    /// Rules by table and chain, each as the line that was printed.
    tables: BTreeMap<Table, BTreeMap<&'a str, Vec<&'a str>>>,
}

impl<'a> Saved<'a> {
    /// From the text. Lines that mean nothing here are passed over.
    pub(super) fn parse(text: &'a str) -> Saved<'a> {
        let mut saved = Saved::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::by_name(name).map(|table| saved.tables.entry(table).or_default());
                continue;
            }
            let Some(chains) = &mut table else { continue };
            let first = |text: &'a str| text.split(' ').next().unwrap_or_default();
            if let Some(chain) = line.strip_prefix(':') {
                chains.entry(first(chain)).or_default();
            } else if let Some(rule) = line.strip_prefix("-A ") {
                chains.entry(first(rule)).or_default().push(line);
            }
        }
        saved
    }

    /// The rules of a chain; `None` if there is no such chain.
    pub(super) fn rules(&self, table: Table, chain: &str) -> Option<&[&'a str]> {
        Some(self.tables.get(&table)?.get(chain)?)
    }

    /// Whether a chain is there and holds exactly these lines.
    pub(super) fn holds(&self, table: Table, chain: &str, lines: &str) -> bool {
        self.rules(table, chain)
            .is_some_and(|rules| rules.iter().copied().eq(lines.lines()))
    }

    /// All chains of a table, sorted.
    pub(super) fn chains(&self, table: Table) -> impl Iterator<Item = &'a str> {
        (self.tables.get(&table).into_iter()).flat_map(|chains| chains.keys().copied())
    }
}

/// Where a saved rule leads to.
pub(super) fn target(line: &str) -> Option<&str> {
    let (_, rest) = line.rsplit_once(" -j ")?;
    rest.split(' ').next()
}
