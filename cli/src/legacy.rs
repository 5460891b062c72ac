//! The old tables of `iptables-legacy`, as chains and rules beside those of nf_tables: packets meet both.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hostnet::nft::{AnyTable, Base, BaseChain, ChainKind, Hook, Name, Rule, TableId};
use hostnet::vocab::Family;
use hostnet::xtables;

/// What stands behind the name of an old table: `ip filter` may be there twice.
const MARK: &str = " (iptables-legacy)";

/// Those that may decide of a packet.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// An old table, as a trace names it.
pub fn table(family: Family, name: &str) -> AnyTable {
    TableId::new(family, format!("{name}{MARK}")).into()
}

/// The name of an old table, if it is one.
pub fn name(table: &AnyTable) -> Option<&str> {
    table.name.strip_suffix(MARK)
}

/// The command that shows a chain.
pub fn show(table: &AnyTable, chain: &str) -> String {
    let program = match table.family {
        Some(Family::V6) => "ip6tables-legacy",
        _ => "iptables-legacy",
    };
    match name(table) {
        Some(name) => format!("`{program} -t {name} -nvL {chain} --line-numbers`"),
        None => format!("`nft -a list chain {table} {chain}`"),
    }
}

/// When packets meet a table at a hook: `enum nf_ip_hook_priorities`.
fn priority(table: &str, hook: Hook) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Input | Hook::Postrouting) => 100,
        ("nat", _) => -100,
        ("security", _) => 50,
        _ => 0,
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Legacy {
    pub(crate) base_chains: Vec<BaseChain>,
    pub(crate) tables: BTreeMap<AnyTable, BTreeMap<Name, Arc<[Rule]>>>,
}

impl Legacy {
    /// Of the calling thread's network namespace. None is loaded by asking.
    pub(crate) fn read() -> io::Result<Legacy> {
        let mut all = Legacy::default();
        for family in Family::ALL {
            for name in TABLES {
                let Some(chains) = xtables::rules(family, name)? else {
                    continue;
                };
                let of = table(family, name);
                for (hook, chain, policy) in chains.entered {
                    let base = Base {
                        kind: match name {
                            "nat" => ChainKind::Nat,
                            _ => ChainKind::Filter,
                        },
                        hook,
                        priority: priority(name, hook),
                        policy,
                    };
                    let table = of.clone();
                    let name = chain;
                    all.base_chains.push(BaseChain { table, name, base });
                }
                let rules = chains.rules.into_iter();
                let rules = rules.map(|(name, rules)| (name, rules.into()));
                all.tables.insert(of, rules.collect());
            }
        }
        Ok(all)
    }
}
