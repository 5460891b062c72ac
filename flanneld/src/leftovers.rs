//! What flannel itself has left on a node that moves to Twill: its rules do what ours do, and would do it twice.
//!
//! Its nft tables, and its chains in `iptables-nft`'s tables, are taken away once ours stand. Those in `iptables-legacy`'s
//! are named, with the commands that remove them. Its devices and routes are ours from the first pass on.

use hostnet::{
    nft::{self, Changes, Nft, TableId},
    vocab::Family,
    xtables,
};

/// flannel's chains.
fn is_flannels(chain: &str) -> bool {
    matches!(chain, "FLANNEL-POSTRTG" | "FLANNEL-FWD")
}

/// What removes flannel's rules from nf_tables.
///
/// # Errors
/// The kernel cannot be read.
pub fn rules(nft: &mut Nft) -> Result<Vec<Changes>, nft::Error> {
    let there = nft.tables()?;
    let mut all = Vec::new();
    for (family, name) in [(Family::V4, "flannel-ipv4"), (Family::V6, "flannel-ipv6")] {
        let own = TableId::new(family, name);
        if there.contains(&own) {
            all.push(Changes::remove(own));
        }
        for name in ["nat", "filter"] {
            let table = TableId::new(family, name);
            if there.contains(&table) {
                all.push(nft.leftover_chains(&table, is_flannels)?);
            }
        }
    }
    all.retain(|changes| !changes.is_empty());
    Ok(all)
}

/// For each of flannel's chains in `iptables-legacy` a line for a person, with the remedy. What cannot be read is passed
/// over: it is a hint.
#[must_use]
pub fn legacy_rules() -> Vec<String> {
    let mut lines = Vec::new();
    for (family, program) in [
        (Family::V4, "iptables-legacy"),
        (Family::V6, "ip6tables-legacy"),
    ] {
        for (table, parent) in [("nat", "POSTROUTING"), ("filter", "FORWARD")] {
            let chains = xtables::chains(family, table).unwrap_or_default();
            for chain in chains.iter().filter(|chain| is_flannels(chain)) {
                lines.push(format!(
                    "flannel's chain {chain} is left in {program}, which is not changed from here: `{program} -t {table} -D \
                     {parent} -j {chain}`, `{program} -t {table} -F {chain}` and `{program} -t {table} -X {chain}` (the \
                     first may need the comment that `{program} -t {table} -S {parent}` shows)"
                ));
            }
        }
    }
    lines
}
