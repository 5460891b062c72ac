//! What a namespace holds, as lines of text to compare.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::Ns;
use crate::netlink::neigh::NeighState;
use crate::netlink::route::{Filter, RouteKind};
use crate::netlink::{Link, Rtnl};
use crate::vocab::Mac;

/// The lasting state of a namespace: links, addresses, routes, permanent neighbours and forwarding
/// entries. What comes and goes by itself (carriers, learned entries, IPv6 link-local addresses,
/// the kernel's own local and multicast routes) is left out, and links are called by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Takes a namespace's.
    pub fn of(ns: &Ns) -> Snapshot {
        Snapshot::take(&mut ns.rtnl())
    }

    /// Takes one through a netlink handle; only reads.
    pub fn take(rtnl: &mut Rtnl) -> Snapshot {
        read(rtnl).unwrap_or_else(|error| panic!("snapshot: {error}"))
    }

    /// What `after` has more (`+`) and less (`-`); empty if nothing changed.
    pub fn changes(&self, after: &Snapshot) -> Vec<String> {
        let gone = self.0.difference(&after.0).map(|line| format!("- {line}"));
        let new = after.0.difference(&self.0).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }

    /// Whether a line holds this text.
    pub fn mentions(&self, text: &str) -> bool {
        self.0.iter().any(|line| line.contains(text))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

fn read(rtnl: &mut Rtnl) -> crate::netlink::Result<Snapshot> {
    let links = rtnl.links()?;
    let name = |index: u32| match links.iter().find(|link| link.index == index) {
        Some(link) => link.name.to_string(),
        None => format!("#{index}"),
    };
    let mut lines = BTreeSet::new();
    for link in &links {
        lines.insert(link_line(link, &name));
    }
    for addr in rtnl
        .addrs(None)?
        .iter()
        .filter(|a| !link_local(a.cidr.addr()))
    {
        lines.insert(format!(
            "addr {} {}{}{}",
            name(addr.link),
            addr.cidr,
            if addr.nodad { " nodad" } else { "" },
            if addr.noprefixroute {
                " noprefixroute"
            } else {
                ""
            },
        ));
    }
    for route in rtnl.routes(Filter::default())? {
        // The kernel's own, which follow from addresses and from links being up.
        let own = matches!(route.kind, RouteKind::Local | RouteKind::Broadcast)
            || route.dst.base().is_multicast()
            || link_local(route.dst.base())
            || route.kind == RouteKind::Other(4);
        if !own {
            let text = route.to_string();
            let text = match route.link {
                Some(index) => text.replace(&format!("#{index}"), &name(index)),
                None => text,
            };
            lines.insert(format!(
                "route {text} proto {} scope {} metric {}",
                route.protocol, route.scope.0, route.metric
            ));
        }
    }
    for neigh in rtnl
        .neighs(None)?
        .iter()
        .filter(|n| n.state == NeighState::Permanent)
    {
        let mac = neigh.mac.unwrap_or(Mac::ZERO);
        lines.insert(format!("neigh {} {} {mac}", name(neigh.link), neigh.addr));
    }
    for entry in rtnl
        .fdb(None)?
        .iter()
        .filter(|e| e.state == NeighState::Permanent && !is_group(e.mac))
    {
        let dst = entry
            .dst
            .map(|dst| format!(" dst {dst}"))
            .unwrap_or_default();
        lines.insert(format!("fdb {} {}{dst}", name(entry.link), entry.mac));
    }
    Ok(Snapshot(lines))
}

fn link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Multicast groups that a device listens to.
fn is_group(mac: Mac) -> bool {
    mac.0[0] & 1 == 1
}

fn link_line(link: &Link, name: &dyn Fn(u32) -> String) -> String {
    let mut line = format!(
        "link {} {:?} mac {} mtu {} {}",
        link.name,
        link.kind,
        link.mac.unwrap_or(Mac::ZERO),
        link.mtu,
        if link.up { "up" } else { "down" },
    );
    if let Some(master) = link.master {
        line += &format!(" master {}", name(master));
    }
    if let Some(port) = link.port {
        line += &format!(" {port:?}");
    }
    line
}
