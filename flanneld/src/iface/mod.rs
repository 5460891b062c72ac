//! Choosing the interface by which this node reaches the others, from what the kernel holds.

mod error;

use std::cmp::Reverse;
use std::net::IpAddr;

use hostnet::netlink::route::{RouteKind, TABLE_MAIN};
use hostnet::netlink::{Addr, Link, Route, addr::Scope};
use hostnet::vocab::{Cidr, Family, IfName, Subnet, names};

pub use self::error::{Candidate, IfaceError, Unfit};
use crate::ByFamily;
use crate::config::IfaceChoice;
use crate::state::is_our_device;

/// The interface for one family's underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Our address on it: the source of what we send to other nodes.
    pub addr: Cidr,
    /// The address by which other nodes reach us; another than ours behind NAT.
    pub public: IpAddr,
    /// The main table's routes that packets to other nodes may take, ours left out: of those that
    /// hold an address, the first counts.
    pub routes: Vec<UplinkRoute>,
}

/// One of the routes around an [`Uplink`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkRoute {
    /// Where to.
    pub dst: Subnet,
    /// It leaves by the uplink and has no gateway: its destinations are on the link.
    pub direct: bool,
}

impl Uplink {
    /// Whether packets to the address go out by this interface and need no router.
    pub fn is_direct(&self, addr: IpAddr) -> bool {
        self.routes
            .iter()
            .find(|route| route.dst.contains(addr))
            .is_some_and(|route| route.direct)
    }
}

/// What the kernel holds: all links, their addresses and the main table's routes.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Links.
    pub links: &'a [Link],
    /// Addresses.
    pub addrs: &'a [Addr],
    /// Routes; those of other tables are passed over.
    pub routes: &'a [Route],
}

/// What is asked for, in the order in which it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Wishes<'a> {
    /// Flags: names, addresses and patterns; then the address to reach.
    pub flags: &'a IfaceChoice,
    /// The annotations `node-public-ip` and `node-public-ipv6`: the interface that has the address
    /// (unless flags name one), and the address to publish (unless a flag gives one).
    pub node_public: ByFamily<IpAddr>,
    /// The annotations `public-ip-overwrite` and `public-ipv6-overwrite`: the address to publish,
    /// whatever else is said.
    pub overwrite: ByFamily<IpAddr>,
    /// The pods' networks: an underlay address inside one would lead into the tunnel.
    pub networks: ByFamily<Subnet>,
    /// The least MTU that can work, of [`least_mtu`](crate::backend::least_mtu).
    pub least_mtu: u32,
}

/// Chooses the interface of one family: the first that is asked for and can work, else the one
/// with the address of the annotation, else the one by which `--iface-can-reach` is reached, else
/// that of the default route.
///
/// # Errors
/// Nothing that was looked at can work; the error tells why of each, and what there is.
pub fn choose(
    family: Family,
    seen: Seen<'_>,
    wishes: &Wishes<'_>,
) -> Result<Uplink, Box<IfaceError>> {
    let search = Search {
        family,
        seen,
        wishes,
    };
    let mut unfit = Vec::new();
    for (asked, found) in search.wanted() {
        let checked = match found {
            Found::None(why) => Err(why),
            Found::Link(link, addr) => search.check(link, addr),
        };
        match checked {
            Ok(uplink) => return Ok(uplink),
            Err(why) => unfit.push((asked, why)),
        }
    }
    Err(Box::new(IfaceError {
        family,
        unfit,
        candidates: search.candidates(),
    }))
}

struct Search<'a> {
    family: Family,
    seen: Seen<'a>,
    wishes: &'a Wishes<'a>,
}

/// What a wish leads to: a link, and the address on it if the wish says which.
enum Found<'a> {
    Link(&'a Link, Option<IpAddr>),
    None(Unfit),
}

impl<'a> Search<'a> {
    /// Where the wishes lead, each with its own words.
    fn wanted(&self) -> Vec<(String, Found<'a>)> {
        let flags = self.wishes.flags;
        let names = flags
            .names
            .iter()
            .map(|name| (format!("--iface={name}"), self.named(name)));
        let patterns = flags.patterns.iter().map(|pattern| {
            let asked = format!("--iface-regex={pattern}");
            let addr_matches = |addr: &Addr| pattern.is_match(&addr.cidr.addr().to_string());
            let matches = |(link, addr): &(&Link, &Addr)| {
                // An address of the other family names the link, not the address on it.
                let mut others = self
                    .seen
                    .addrs
                    .iter()
                    .filter(|other| other.link == link.index)
                    .filter(|other| other.cidr.family() != self.family);
                pattern.is_match(&link.name) || addr_matches(addr) || others.any(addr_matches)
            };
            let found = self.usable().find(matches);
            (asked, self.found(found, Unfit::NoMatch))
        });
        let wanted: Vec<_> = names.chain(patterns).collect();
        if !wanted.is_empty() {
            return wanted;
        }
        if let Some(addr) = self.wishes.node_public.get(self.family)
            && let Some(link) = self.link_with(*addr)
        {
            let asked = format!("the annotation's address {addr}");
            return vec![(asked, Found::Link(link, Some(*addr)))];
        }
        match flags.can_reach.filter(|to| Family::of(*to) == self.family) {
            Some(to) => vec![(format!("--iface-can-reach={to}"), self.by_route(to))],
            None => vec![("the default route".to_owned(), self.by_default_route())],
        }
    }

    /// Links with their global addresses of the family, but for our own devices and the pods'
    /// bridge.
    fn usable(&self) -> impl Iterator<Item = (&'a Link, &'a Addr)> {
        let (family, seen) = (self.family, self.seen);
        seen.addrs
            .iter()
            .filter(move |addr| addr.cidr.family() == family && addr.scope == Scope::GLOBAL)
            .filter_map(move |addr| Some((link(seen, addr.link)?, addr)))
            .filter(|(link, addr)| !is_pods_device(link) && !addr.cidr.addr().is_loopback())
    }

    fn found(&self, found: Option<(&'a Link, &'a Addr)>, otherwise: Unfit) -> Found<'a> {
        match found {
            Some((link, addr)) => Found::Link(link, Some(addr.cidr.addr())),
            None => Found::None(otherwise),
        }
    }

    fn named(&self, name: &str) -> Found<'a> {
        if let Ok(addr) = name.parse::<IpAddr>() {
            return match self.link_with(addr) {
                // An address of the other family names the link, not the address on it.
                Some(link) => Found::Link(
                    link,
                    Some(addr).filter(|addr| Family::of(*addr) == self.family),
                ),
                None => Found::None(Unfit::NobodyHas),
            };
        }
        let link = self.seen.links.iter().find(|link| *link.name == *name);
        match link {
            Some(link) => Found::Link(link, None),
            None => Found::None(Unfit::Absent),
        }
    }

    fn link_with(&self, wanted: IpAddr) -> Option<&'a Link> {
        let addr = self.seen.addrs.iter().find(|a| a.cidr.addr() == wanted)?;
        link(self.seen, addr.link)
    }

    /// The main table's routes of the family, in the order in which the kernel asks them.
    fn routes(&self) -> Vec<&'a Route> {
        let mut routes: Vec<&Route> = self
            .seen
            .routes
            .iter()
            .filter(|route| {
                route.table == TABLE_MAIN
                    && route.kind == RouteKind::Unicast
                    && route.dst.family() == self.family
                    && route.protocol != names::ROUTE_PROTOCOL
            })
            .filter(|route| {
                let link = route.link.and_then(|index| link(self.seen, index));
                !link.is_some_and(is_pods_device)
            })
            .collect();
        routes.sort_by_key(|route| (Reverse(route.dst.prefix()), route.metric));
        routes
    }

    fn by_route(&self, to: IpAddr) -> Found<'a> {
        let routes = self.routes();
        let route = routes.iter().find(|route| route.dst.contains(to));
        self.of_route(route.copied(), Unfit::NoRoute)
    }

    fn by_default_route(&self) -> Found<'a> {
        let routes = self.routes();
        let default = routes.iter().find(|route| route.dst.prefix() == 0);
        self.of_route(default.copied(), Unfit::NoDefaultRoute)
    }

    fn of_route(&self, route: Option<&Route>, otherwise: Unfit) -> Found<'a> {
        let by = route.and_then(|route| Some((link(self.seen, route.link?)?, route.src)));
        match by {
            Some((link, src)) => Found::Link(link, src),
            None => Found::None(otherwise),
        }
    }

    /// Whether the link can be the uplink, with the address asked for or its first.
    fn check(&self, link: &Link, wanted: Option<IpAddr>) -> Result<Uplink, Unfit> {
        if is_pods_device(link) {
            return Err(Unfit::PodsDevice(link.name.clone()));
        }
        let mut of_link = self
            .seen
            .addrs
            .iter()
            .filter(|addr| addr.link == link.index && addr.cidr.family() == self.family);
        let addr = match wanted {
            Some(wanted) => of_link.find(|addr| addr.cidr.addr() == wanted),
            None => of_link.find(|addr| addr.scope == Scope::GLOBAL),
        };
        let Some(addr) = addr else {
            // `lo` has addresses, but none that is global.
            return Err(match &*link.name {
                "lo" => Unfit::Loopback,
                _ => Unfit::NoAddress(link.name.clone()),
            });
        };
        let cidr = addr.cidr;
        if cidr.addr().is_loopback() || *link.name == *"lo" {
            return Err(Unfit::Loopback);
        }
        if let Some(network) = self.wishes.networks.get(self.family)
            && network.contains(cidr.addr())
        {
            return Err(Unfit::InNetwork {
                addr: cidr.addr(),
                network: *network,
            });
        }
        if !link.up {
            return Err(Unfit::Down(link.name.clone()));
        }
        if link.mtu < self.wishes.least_mtu {
            return Err(Unfit::Mtu {
                mtu: link.mtu,
                least: self.wishes.least_mtu,
            });
        }
        Ok(Uplink {
            name: link.name.clone(),
            mtu: link.mtu,
            addr: cidr,
            public: self.public(cidr.addr()),
            routes: self.routes_around(link.index),
        })
    }

    fn public(&self, addr: IpAddr) -> IpAddr {
        let wishes = self.wishes;
        let overwrite = wishes.overwrite.get(self.family).copied();
        overwrite
            .or_else(|| wishes.flags.public_ip(self.family))
            .or_else(|| wishes.node_public.get(self.family).copied())
            .unwrap_or(addr)
    }

    fn routes_around(&self, uplink: u32) -> Vec<UplinkRoute> {
        self.routes()
            .into_iter()
            .map(|route| UplinkRoute {
                dst: route.dst,
                direct: route.gateway.is_none() && route.link == Some(uplink),
            })
            .collect()
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.usable()
            .map(|(link, addr)| Candidate {
                name: link.name.clone(),
                addr: addr.cidr,
            })
            .collect()
    }
}

fn link(seen: Seen<'_>, index: u32) -> Option<&Link> {
    seen.links.iter().find(|link| link.index == index)
}

/// Whether the device belongs to the pods' network, of ours or of the CNI plugin's making.
fn is_pods_device(link: &Link) -> bool {
    is_our_device(&link.name) || *link.name == *names::BRIDGE
}

#[cfg(test)]
mod tests;
