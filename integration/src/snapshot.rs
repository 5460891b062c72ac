//! What a network namespace holds, as text to compare: before and after a restart, a lab.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use hostnet::netns::NetNs;
use serde_json::Value;

use crate::inspect;

/// What can be compared of a namespace: by section, each a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<&'static str, String>);

/// Listings as iproute2 and nft print them. `-a`: handles tell a rule that was deleted and made
/// again; `-s`: without counters.
const LISTINGS: &[(&str, &str)] = &[
    ("addresses", "ip address show"),
    ("routes", "ip route show table all"),
    ("IPv6 routes", "ip -6 route show table all"),
    ("rules", "ip rule show"),
    ("nftables", "nft -s -a list ruleset"),
];

/// Listings of which only the entries count that someone put there: the kernel learns others.
const PERMANENT: &[(&str, &str)] = &[
    ("neighbours", "ip neigh show"),
    ("IPv6 neighbours", "ip -6 neigh show"),
    ("forwarding", "bridge fdb show"),
];

/// Sysctls that count or cannot be read.
const UNSTABLE: &[&str] = &["nf_conntrack_count", "stable_secret", "flush"];

impl Snapshot {
    /// Of a namespace now.
    pub fn of(netns: &NetNs) -> Result<Snapshot> {
        let mut sections = BTreeMap::new();
        sections.insert("links", links(netns)?);
        sections.insert("sysctls", sysctls(netns)?);
        for (section, line) in LISTINGS {
            sections.insert(*section, inspect::run_in(netns, line)?);
        }
        for (section, line) in PERMANENT {
            let listing = inspect::run_in(netns, line)?;
            let kept: Vec<_> = listing
                .lines()
                .filter(|line| line.to_lowercase().contains("permanent"))
                .collect();
            sections.insert(*section, kept.join("\n"));
        }
        Ok(Snapshot(sections))
    }

    /// With one section more.
    pub fn with(mut self, section: &'static str, text: String) -> Snapshot {
        self.0.insert(section, text);
        self
    }

    /// The lines that are in one of the two only.
    pub fn changes_to(&self, later: &Snapshot) -> Changes {
        let mut changes = Vec::new();
        for (section, before) in &self.0 {
            let after = later.0.get(section).map_or("", String::as_str);
            for (mark, one, other) in [('-', before.as_str(), after), ('+', after, before)] {
                let others: Vec<_> = other.lines().collect();
                let only = one.lines().filter(|line| !others.contains(line));
                changes.extend(only.map(|line| format!("{section} {mark} {line}")));
            }
        }
        Changes(changes)
    }
}

/// What differs between two snapshots; prints as lines with their section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes(Vec<String>);

impl Changes {
    /// Whether the two were the same.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// All devices with all attributes but the bridges' running timers: one a line, so that a
/// difference is one line too.
fn links(netns: &NetNs) -> Result<String> {
    let mut lines = Vec::new();
    for link in inspect::json_in(netns, "ip -j -d link show")? {
        let name = link["ifname"].as_str().context("a device without a name")?;
        attributes(name, &link, &mut lines);
    }
    Ok(lines.join("\n"))
}

fn attributes(path: &str, value: &Value, lines: &mut Vec<String>) {
    match value.as_object() {
        Some(fields) => {
            let stable = fields.iter().filter(|(key, _)| !key.ends_with("_timer"));
            stable.for_each(|(key, value)| attributes(&format!("{path} {key}"), value, lines));
        }
        None => lines.push(format!("{path} = {value}")),
    }
}

/// The namespace's part of `/proc/sys/net`.
fn sysctls(netns: &NetNs) -> Result<String> {
    let mut lines = Vec::new();
    netns.run_in(|| read_tree(Path::new("/proc/sys/net"), &mut lines))??;
    lines.sort();
    Ok(lines.join("\n"))
}

fn read_tree(dir: &Path, lines: &mut Vec<String>) -> Result<()> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if path.is_dir() {
            read_tree(&path, lines)?;
        } else if !name.is_some_and(|name| UNSTABLE.contains(&name))
            && let Ok(value) = std::fs::read_to_string(&path)
        {
            lines.push(format!("{} = {}", path.display(), value.trim()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_and_nothing_else() {
        let netns = NetNs::new_anonymous().unwrap();
        let before = Snapshot::of(&netns).unwrap();
        let again = before.changes_to(&Snapshot::of(&netns).unwrap());
        assert!(again.is_empty(), "{again}");
        inspect::run_in(&netns, "ip link set lo up").unwrap();
        inspect::run_in(&netns, "nft add table ip foreign").unwrap();
        let changes = before.changes_to(&Snapshot::of(&netns).unwrap());
        let text = changes.to_string();
        assert!(text.contains("nftables + table ip foreign {"), "{text}");
        assert!(text.contains("links + lo operstate"), "{text}");
        assert!(
            text.contains("addresses + ") && text.contains("127.0.0.1/8"),
            "{text}"
        );
    }
}
