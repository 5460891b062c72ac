//! The model: a table with its chains and sets as plain data, which binaries describe and compare.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::comment::Comment;
use super::rule::Rule;
use super::selector::family_word;
use super::set::Set;
use super::types::Name;
use crate::vocab::Family;

/// Which table. `Display` is nft's way to name it: `ip twill-proxy`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// The family of the packets that it sees.
    pub family: Family,
    /// Its name, unique in the family.
    pub name: Name,
}

impl TableId {
    /// Names a table.
    pub fn new(family: Family, name: impl Into<Name>) -> TableId {
        TableId {
            family,
            name: name.into(),
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", family_word(self.family), self.name)
    }
}

/// A table: all that it holds, by name.
///
/// ```
/// use hostnet::nft::{Chain, Hook, NatFlags, Rule, Selector, Table};
/// use hostnet::vocab::Family;
///
/// let pods = "10.244.0.0/16".parse().unwrap();
/// let table = Table::new(Family::V4, "twill-flannel").chain(
///     "postrouting",
///     Chain::nat(Hook::Postrouting, 100).rule(
///         Rule::new()
///             .within(Selector::Saddr(Family::V4), pods)
///             .outside(Selector::Daddr(Family::V4), pods)
///             .masquerade(NatFlags::FULLY_RANDOM),
///     ),
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which.
    pub id: TableId,
    /// What a person reads beside it.
    pub comment: Option<Comment>,
    /// Sets and maps.
    pub sets: BTreeMap<Name, Set>,
    /// Chains.
    pub chains: BTreeMap<Name, Chain>,
    /// Whether it holds what this model cannot express (an object, a foreign kind of set or chain):
    /// never equal to a desired table, and replaced as a whole.
    pub foreign: bool,
}

impl Table {
    /// An empty one.
    pub fn new(family: Family, name: impl Into<Name>) -> Table {
        Table {
            id: TableId::new(family, name),
            comment: None,
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            foreign: false,
        }
    }

    /// Adds a set or map.
    pub fn set(mut self, set: impl Into<Set>) -> Table {
        let set = set.into();
        self.sets.insert(set.decl.name.clone(), set);
        self
    }

    /// Adds a chain.
    pub fn chain(mut self, name: impl Into<Name>, chain: Chain) -> Table {
        self.chains.insert(name.into(), chain);
        self
    }

    /// Gives it a comment.
    pub fn comment(self, comment: impl Into<Comment>) -> Table {
        Table {
            comment: Some(comment.into()),
            ..self
        }
    }
}

/// A chain and its rules, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets enter it; None: only from other chains.
    pub base: Option<Base>,
    /// What a person reads beside it.
    pub comment: Option<Comment>,
    /// The rules.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that packets only reach from others.
    pub fn regular() -> Chain {
        Chain::default()
    }

    /// `type nat hook HOOK priority PRIORITY; policy accept;`
    pub fn nat(hook: Hook, priority: i32) -> Chain {
        Chain::base(ChainKind::Nat, hook, priority)
    }

    /// `type filter hook HOOK priority PRIORITY; policy accept;`
    pub fn filter(hook: Hook, priority: i32) -> Chain {
        Chain::base(ChainKind::Filter, hook, priority)
    }

    fn base(kind: ChainKind, hook: Hook, priority: i32) -> Chain {
        let base = Base {
            kind,
            hook,
            priority,
            policy: Policy::Accept,
        };
        Chain {
            base: Some(base),
            ..Chain::default()
        }
    }

    /// Adds a rule at the end.
    pub fn rule(mut self, rule: Rule) -> Chain {
        self.rules.push(rule);
        self
    }

    /// Adds rules at the end.
    pub fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Chain {
        self.rules.extend(rules);
        self
    }

    /// Gives it a comment.
    pub fn comment(self, comment: impl Into<Comment>) -> Chain {
        Chain {
            comment: Some(comment.into()),
            ..self
        }
    }
}

/// Where and when packets enter a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// `type`.
    pub kind: ChainKind,
    /// `hook`.
    pub hook: Hook,
    /// `priority`: lower is earlier.
    pub priority: i32,
    /// What becomes of a packet that no rule has decided on.
    pub policy: Policy,
}

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection, and may translate it.
    Nat,
}

impl ChainKind {
    /// nft's and the kernel's word for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        }
    }
}

/// A netfilter hook, numbered as `enum nf_inet_hooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// Packets that come in, before routing.
    Prerouting = 0,
    /// Packets to this host.
    Input = 1,
    /// Packets that pass through.
    Forward = 2,
    /// Packets from this host.
    Output = 3,
    /// Packets that go out, after routing.
    Postrouting = 4,
}

impl Hook {
    const ALL: [Hook; 5] = [
        Hook::Prerouting,
        Hook::Input,
        Hook::Forward,
        Hook::Output,
        Hook::Postrouting,
    ];

    pub(super) fn from_number(number: u32) -> Option<Hook> {
        Hook::ALL.into_iter().find(|hook| *hook as u32 == number)
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// The policy of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// The packet goes on.
    Accept,
    /// The packet is dropped.
    Drop,
}

impl Policy {
    pub(super) fn word(self) -> &'static str {
        match self {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        }
    }
}
