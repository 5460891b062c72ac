//! Who else has a say in whether forwarded packets pass. An accept of ours in a table of ours does not override another
//! base chain that drops, so it has to be said where the dropping is done.
//!
//! Docker, and who hardens a host, sets the policy of `iptables-nft`'s FORWARD to DROP. There two rules are added at the
//! end: what others decide before them stands, only the policy is overridden. Everywhere else a person is told what to do.

use std::fmt;

use hostnet::{
    nft::{Comment, ForwardChain, Rule, Selector, TableId},
    vocab::{Family, Subnet},
};

use crate::{ByFamily, backend::Own};

/// The table and the chain of `iptables-nft` that forwarded packets pass.
pub const TABLE: &str = "filter";
/// See [`TABLE`].
pub const CHAIN: &str = "FORWARD";

/// firewalld's table, whose last rule for forwarded packets rejects.
const FIREWALLD: &str = "firewalld";

/// The comments of our rules, by which they are known.
#[must_use]
pub fn marks() -> [Comment; 2] {
    [
        "twill flanneld: from pods".into(),
        "twill flanneld: to pods".into(),
    ]
}

/// `iptables-nft`'s table of one family.
#[must_use]
pub fn table(family: Family) -> TableId {
    TableId::new(family, TABLE)
}

/// The rules that let pods' packets pass.
#[must_use]
pub fn rules(network: Subnet) -> Vec<Rule> {
    let family = network.family();
    let [from, to] = marks();
    vec![
        Rule::new()
            .within(Selector::Saddr(family), network)
            .counter()
            .accept()
            .comment(from),
        Rule::new()
            .within(Selector::Daddr(family), network)
            .counter()
            .accept()
            .comment(to),
    ]
}

/// What of the chains of forwarded packets matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The base chains.
    pub chains: Vec<ForwardChain>,
    /// Whether the FORWARD of `iptables-legacy` drops.
    pub legacy: ByFamily<bool>,
}

impl Seen {
    /// Whether `iptables-nft`'s FORWARD drops what nobody accepts.
    #[must_use]
    pub fn is_gated(&self, family: Family) -> bool {
        let mut chains = self.chains.iter();
        chains.any(|chain| is_iptables(chain, family) && chain.drops)
    }

    /// Whether there is such a chain at all.
    #[must_use]
    pub fn has_gate(&self, family: Family) -> bool {
        self.chains.iter().any(|chain| is_iptables(chain, family))
    }
}

fn is_iptables(chain: &ForwardChain, family: Family) -> bool {
    chain.family == Some(family) && *chain.table == *TABLE && *chain.chain == *CHAIN
}

/// Somebody who may drop pods' packets, where we change nothing. `Display` is for a person, with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// Who.
    pub who: Who,
    /// The pods' network whose packets are dropped.
    pub network: Subnet,
}

/// Who drops packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A chain of nftables whose policy is drop.
    Chain(ForwardChain),
    /// The FORWARD chain of `iptables-legacy`, whose policy is DROP.
    Legacy,
    /// firewalld.
    Firewalld,
}

/// Who is in the way of pods' packets.
#[must_use]
pub fn obstacles(seen: &Seen, own: &ByFamily<Own>) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for (family, own) in own.iter() {
        let mut add = |who| {
            found.push(Obstacle {
                who,
                network: own.network,
            });
        };
        for chain in seen.chains.iter().filter(|chain| chain.sees(family)) {
            if *chain.table == *FIREWALLD {
                add(Who::Firewalld);
            } else if chain.drops && !is_iptables(chain, family) {
                add(Who::Chain(chain.clone()));
            }
        }
        if seen.legacy.get(family) == Some(&true) {
            add(Who::Legacy);
        }
    }
    found.sort();
    found.dedup();
    found
}

impl Obstacle {
    /// Whether it is certain that packets are dropped.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.who != Who::Firewalld
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = self.network;
        let (ip, iptables) = match network.family() {
            Family::V4 => ("ip", "iptables-legacy"),
            Family::V6 => ("ip6", "ip6tables-legacy"),
        };
        match &self.who {
            Who::Chain(chain) => write!(
                f,
                "chain {chain} has policy drop, so packets from and to pods of {network} do not pass: `nft add rule \
                 {chain} {ip} saddr {network} accept` and `nft add rule {chain} {ip} daddr {network} accept`, and the \
                 same in the file that makes this chain"
            ),
            Who::Legacy => write!(
                f,
                "FORWARD of {iptables} has policy DROP, so packets from and to pods of {network} do not pass: \
                 `{iptables} -A FORWARD -s {network} -j ACCEPT` and `{iptables} -A FORWARD -d {network} -j ACCEPT`, or \
                 move to iptables-nft, where this is done by itself"
            ),
            Who::Firewalld => write!(
                f,
                "firewalld runs, and rejects forwarded packets of networks that it does not trust: `firewall-cmd \
                 --permanent --zone=trusted --add-source={network}` and `firewall-cmd --reload`, unless that is done"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::own_of;

    fn chain(family: Option<Family>, table: &str, chain: &str, drops: bool) -> ForwardChain {
        ForwardChain {
            family,
            table: table.into(),
            chain: chain.into(),
            drops,
        }
    }

    #[test]
    fn a_drop_is_met_where_it_can_be_and_told_with_the_remedy_where_not() {
        let seen = Seen {
            chains: vec![
                chain(None, "filter", "forward", true),
                chain(None, "firewalld", "filter_FORWARD", false),
                chain(Some(Family::V4), "filter", "FORWARD", true),
                chain(Some(Family::V6), "filter", "FORWARD", false),
                chain(Some(Family::V6), "mine", "forward", true),
            ],
            legacy: ByFamily {
                v4: Some(true),
                v6: Some(false),
            },
        };
        assert!(seen.is_gated(Family::V4) && !seen.is_gated(Family::V6));
        assert!(seen.has_gate(Family::V6));
        let told = |families: &[Family]| -> Vec<String> {
            let found = obstacles(&seen, &own_of(families));
            found.iter().map(ToString::to_string).collect()
        };
        let v4 = told(&[Family::V4]);
        assert_eq!(v4.len(), 3, "{v4:#?}");
        assert!(v4[0].contains("`nft add rule inet filter forward ip saddr 10.244.0.0/16 accept`"));
        assert!(v4[1].contains("`iptables-legacy -A FORWARD -s 10.244.0.0/16 -j ACCEPT`"));
        assert!(v4[2].contains("--zone=trusted --add-source=10.244.0.0/16"));
        let v6 = told(&[Family::V6]);
        assert!(
            v6.iter()
                .any(|text| text.contains("`nft add rule ip6 mine forward ip6 daddr fd00"))
        );
        assert_eq!(told(&[]), [""; 0]);
    }
}
