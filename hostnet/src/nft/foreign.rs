//! Other people's tables: which of their chains stand in the way of forwarded packets, a few marked rules of ours in one
//! of them, and what a predecessor has left there.
//!
//! `iptables-nft` keeps its tables in nf_tables (`ip filter`, `ip nat` and so on), so they can be read and changed without
//! that program. Only rules that carry our mark as their comment, and chains that the caller names, are ever touched.

use std::fmt;

use super::diff::{Changes, Op};
use super::dump;
use super::expr::{Expr, Verdict};
use super::rule::Rule;
use super::table::TableId;
use super::types::Name;
use super::{Comment, Error, Nft};
use crate::vocab::Family;

/// A base chain that forwarded packets pass. `Display` is nft's way to name it: `ip filter FORWARD`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardChain {
    /// The family of its table; `None` for `inet`, which sees both.
    pub family: Option<Family>,
    /// Its table.
    pub table: Name,
    /// Its name.
    pub chain: Name,
    /// Whether what no rule decides on is dropped.
    pub drops: bool,
}

impl ForwardChain {
    /// Whether packets of a family pass it.
    pub fn sees(&self, family: Family) -> bool {
        self.family.is_none_or(|own| own == family)
    }
}

impl fmt::Display for ForwardChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family.map_or("inet", super::selector::family_word);
        write!(f, "{family} {} {}", self.table, self.chain)
    }
}

impl Nft {
    /// The base chains of type filter that forwarded packets pass, whosever they are.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn forward_chains(&mut self) -> Result<Vec<ForwardChain>, Error> {
        let mut chains = dump::read_forward_chains(&mut self.socket)?;
        chains.sort();
        Ok(chains)
    }

    /// The rules of a chain that carry one of these comments; none if there is no such chain.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn marked_rules(
        &mut self,
        table: &TableId,
        chain: &str,
        marks: &[Comment],
    ) -> Result<Vec<Rule>, Error> {
        let rules = dump::read_rules(&mut self.socket, table, Some(chain))?;
        Ok(rules
            .into_iter()
            .map(|found| found.rule)
            .filter(|rule| is_marked(rule, marks))
            .collect())
    }

    /// Makes these the only rules of a chain that carry one of the comments: others of the kind are deleted, and they
    /// are added at the end, in one transaction. The chain must be there.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub fn set_marked_rules(
        &mut self,
        table: &TableId,
        chain: &str,
        marks: &[Comment],
        rules: &[Rule],
    ) -> Result<(), Error> {
        let chain = Name::from(chain);
        let mut changes = Changes::new(table.clone());
        let found = dump::read_rules(&mut self.socket, table, Some(&chain))?;
        let stale = found.iter().filter(|found| is_marked(&found.rule, marks));
        changes
            .ops
            .extend(stale.map(|found| Op::DeleteRule(chain.clone(), found.handle)));
        let new = rules.iter().cloned();
        changes
            .ops
            .extend(new.map(|rule| Op::AddRule(chain.clone(), rule)));
        self.apply(&changes)
    }

    /// What removes the chains of a table whose names are a predecessor's, with all rules that lead to them. Empty if
    /// there are none. `Display` of it says what will be done.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn leftover_chains(
        &mut self,
        table: &TableId,
        is_leftover: impl Fn(&str) -> bool,
    ) -> Result<Changes, Error> {
        let mut changes = Changes::new(table.clone());
        let chains: Vec<Name> = dump::read_chains(&mut self.socket, table)?
            .into_iter()
            .filter(|chain| is_leftover(chain))
            .collect();
        if chains.is_empty() {
            return Ok(changes);
        }
        for found in dump::read_rules(&mut self.socket, table, None)? {
            let leads = |expr: &Expr| match expr {
                Expr::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) => chains.contains(to),
                _ => false,
            };
            if found.rule.exprs.iter().any(leads) && !chains.contains(&found.chain) {
                changes.ops.push(Op::DeleteRule(found.chain, found.handle));
            }
        }
        let flush = |chain: &Name| Op::SetRules(chain.clone(), Vec::new());
        changes.ops.extend(chains.iter().map(flush));
        changes
            .ops
            .extend(chains.iter().cloned().map(Op::DeleteChain));
        Ok(changes)
    }
}

fn is_marked(rule: &Rule, marks: &[Comment]) -> bool {
    rule.comment
        .as_ref()
        .is_some_and(|comment| marks.contains(comment))
}

/// A rule where it stands.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) chain: Name,
    pub(super) handle: u64,
    pub(super) rule: Rule,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::Selector;
    use crate::testkit::{Ns, require_tool};

    fn listed(ns: &Ns) -> String {
        ns.sh("nft", &["-s", "list", "ruleset"])
    }

    /// As `iptables-nft` leaves it, and what a firewall and a predecessor have.
    const RULESET: &str = r#"
        table ip filter {
            chain FLANNEL-FWD { ip saddr 10.244.0.0/16 accept; }
            chain FLANNEL-OTHER { goto FLANNEL-FWD; }
            chain FORWARD { type filter hook forward priority filter; policy drop;
                ip saddr 192.0.2.1 accept; counter jump FLANNEL-FWD; }
            chain INPUT { type filter hook input priority filter; policy drop; }
        }
        table inet firewall {
            chain forward { type filter hook forward priority 10; policy accept; }
        }
    "#;

    fn ns() -> Ns {
        require_tool("nft", "nftables");
        let ns = Ns::new("foreign");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ruleset");
        crate::atomic_file::replace(&path, RULESET.as_bytes(), 0o600).unwrap();
        ns.sh("nft", &["-f", path.to_str().unwrap()]);
        ns
    }

    #[test]
    fn chains_that_drop_what_is_forwarded_are_found() {
        let ns = ns();
        let mut nft = ns.run(Nft::open).unwrap();
        let chains = nft.forward_chains().unwrap();
        let words: Vec<(String, bool)> = chains
            .iter()
            .map(|chain| (chain.to_string(), chain.drops))
            .collect();
        assert_eq!(
            words,
            [
                ("inet firewall forward".to_owned(), false),
                ("ip filter FORWARD".to_owned(), true)
            ]
        );
        assert!(chains[0].sees(Family::V6) && !chains[1].sees(Family::V6));
    }

    #[test]
    fn marked_rules_come_change_and_go_and_others_stay() {
        let ns = ns();
        let mut nft = ns.run(Nft::open).unwrap();
        let before = listed(&ns);
        let table = TableId::new(Family::V4, "filter");
        let mark = Comment::new("ours");
        let rule = |net: &str| {
            Rule::new()
                .within(Selector::Saddr(Family::V4), net.parse().unwrap())
                .accept()
                .comment(mark.clone())
        };
        let marks = std::slice::from_ref(&mark);
        for rules in [
            vec![rule("10.1.0.0/16")],
            vec![rule("10.2.0.0/16"), rule("10.3.0.0/16")],
        ] {
            nft.set_marked_rules(&table, "FORWARD", marks, &rules)
                .unwrap();
            assert_eq!(nft.marked_rules(&table, "FORWARD", marks).unwrap(), rules);
        }
        assert!(listed(&ns).contains("ip saddr 10.3.0.0/16 accept comment \"ours\"\n\t}"));
        nft.set_marked_rules(&table, "FORWARD", marks, &[]).unwrap();
        assert_eq!(listed(&ns), before);
        let absent = TableId::new(Family::V6, "filter");
        assert_eq!(nft.marked_rules(&absent, "FORWARD", marks).unwrap(), []);
    }

    #[test]
    fn a_predecessors_chains_go_with_what_leads_to_them() {
        let ns = ns();
        let mut nft = ns.run(Nft::open).unwrap();
        let table = TableId::new(Family::V4, "filter");
        let is_flannels = |name: &str| name.starts_with("FLANNEL-");
        let changes = nft.leftover_chains(&table, is_flannels).unwrap();
        nft.apply(&changes).unwrap();
        let after = listed(&ns);
        assert!(!after.contains("FLANNEL"), "{after}");
        assert!(after.contains("ip saddr 192.0.2.1 accept") && after.contains("chain INPUT"));
        assert!(nft.leftover_chains(&table, is_flannels).unwrap().is_empty());
        let absent = TableId::new(Family::V6, "nat");
        assert!(
            nft.leftover_chains(&absent, is_flannels)
                .unwrap()
                .is_empty()
        );
    }
}
