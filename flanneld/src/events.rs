//! Whether a change in the kernel, by whomever, is news. Pure.
//!
//! Our own changes come back as events, and so do those that do not concern us (pods come and go). An event is news if
//! what it tells differs from what we believe to be there, or if our choice of the interface may depend on it.

use std::collections::{BTreeMap, BTreeSet};

use hostnet::{
    netlink::{
        self, Addr, Event, FdbEntry, Link, LinkKind, Neigh, Object, Switches,
        addr::Scope,
        route::{PROTOCOL_KERNEL, TABLE_MAIN},
    },
    vocab::{Family, IfName, names},
};

use crate::state::{Device, DeviceKind, Remote, RouteKey, State, is_our_device};

/// What is believed to be in the kernel.
#[derive(Clone, Debug, Default)]
pub struct Belief {
    /// What is ours.
    pub state: State,
    /// Our devices by index.
    pub devices: BTreeMap<u32, IfName>,
    /// The links by which we reach other nodes, as last seen.
    pub uplinks: Vec<Link>,
}

impl Belief {
    /// Whether the event tells that something is not as believed.
    #[must_use]
    pub fn is_news(&self, event: &Event) -> bool {
        match &event.object {
            Object::Link(link) => self.link(link, event.gone),
            Object::Addr(addr) => self.addr(addr, event.gone),
            Object::Route(route) => self.route(route, event.gone),
            Object::Neigh(neigh) => self.neigh(neigh, event.gone),
            Object::Fdb(entry) => self.fdb(entry, event.gone),
            Object::Switches(switches) => self.switches(switches),
            Object::Port(_) | Object::Shaping(_) => false,
        }
    }

    fn device(&self, index: u32) -> Option<&Device> {
        self.state.devices.get(self.devices.get(&index)?)
    }

    fn is_uplink(&self, index: u32) -> bool {
        self.uplinks.iter().any(|link| link.index == index)
    }

    fn link(&self, link: &Link, gone: bool) -> bool {
        if is_our_device(&link.name) {
            let known = self.device(link.index);
            return match known {
                Some(device) => {
                    gone || (link.up, link.mtu, link.mac) != (device.up, device.mtu, device.mac)
                        || self.leaves_otherwise(link, device)
                }
                // One that we made is known by index once it was observed, which comes before its events are read.
                None => !gone,
            };
        }
        let uplink = self
            .uplinks
            .iter()
            .find(|uplink| uplink.index == link.index || uplink.name == link.name);
        match uplink {
            Some(uplink) => {
                gone || (link.index, link.up, link.mtu) != (uplink.index, uplink.up, uplink.mtu)
            }
            // While no interface fits, any may be the one.
            None => self.uplinks.is_empty(),
        }
    }

    /// Whether a VXLAN device's outer packets do not go as believed.
    fn leaves_otherwise(&self, link: &Link, device: &Device) -> bool {
        let (LinkKind::Vxlan(seen), DeviceKind::Vxlan(believed)) = (&link.kind, &device.kind)
        else {
            return true;
        };
        let is_uplink = |index| {
            let mut uplinks = self.uplinks.iter();
            uplinks.any(|uplink| {
                uplink.index == index && Some(&uplink.name) == believed.parent.as_ref()
            })
        };
        (seen.local, seen.learning) != (believed.local, believed.learning)
            || !seen.device.is_some_and(is_uplink)
    }

    fn addr(&self, addr: &Addr, gone: bool) -> bool {
        match self.device(addr.link) {
            Some(device) => {
                addr.scope == Scope::GLOBAL && device.addrs.contains(&addr.cidr) == gone
            }
            None => self.uplinks.is_empty() || self.is_uplink(addr.link),
        }
    }

    fn route(&self, route: &netlink::Route, gone: bool) -> bool {
        if route.table != TABLE_MAIN {
            return false;
        }
        let believed = self.state.routes.get(&RouteKey {
            dst: route.dst,
            metric: route.metric,
        });
        let on_ours = route
            .link
            .is_some_and(|link| self.devices.contains_key(&link));
        let is_ours = if on_ours {
            route.protocol != PROTOCOL_KERNEL
        } else {
            route.protocol == names::ROUTE_PROTOCOL
        };
        let is_as_believed = believed.is_some_and(|believed| {
            let gateway_and_so_on = (
                route.gateway,
                route.onlink,
                route.protocol,
                route.src,
                route.mtu,
            );
            let same_device = match route.link.and_then(|link| self.devices.get(&link)) {
                Some(name) => *name == believed.dev,
                None => self
                    .uplinks
                    .iter()
                    .any(|link| Some(link.index) == route.link && link.name == believed.dev),
            };
            same_device
                && gateway_and_so_on
                    == (
                        believed.gateway,
                        believed.onlink,
                        believed.protocol,
                        believed.src,
                        believed.mtu,
                    )
        });
        if is_ours || is_as_believed {
            return is_as_believed == gone;
        }
        // Another's route in the place of ours, or one that our choice of the interface may depend on.
        let takes_our_place = believed.is_some() && !gone;
        takes_our_place
            || route.dst.prefix() == 0
            || route.link.is_some_and(|link| self.is_uplink(link))
    }

    fn switches(&self, switches: &Switches) -> bool {
        let differs = |key: String, value: i32| {
            let believed = self.state.sysctls.get(&key);
            believed.is_some_and(|believed| *believed != value.to_string())
        };
        let (family, forwarding) = match switches.family {
            Family::V4 => ("ipv4", "ipv4/ip_forward"),
            Family::V6 => ("ipv6", "ipv6/conf/all/forwarding"),
        };
        match switches.link {
            None => {
                let now = switches.forwarding.map(i32::from);
                now.is_some_and(|now| differs(forwarding.to_owned(), now))
            }
            Some(link) => {
                let changed = self.devices.get(&link).zip(switches.rp_filter);
                changed.is_some_and(|(name, now)| {
                    differs(format!("{family}/conf/{name}/rp_filter"), now)
                })
            }
        }
    }

    fn neigh(&self, neigh: &Neigh, gone: bool) -> bool {
        let Some(device) = self.device(neigh.link) else {
            return false;
        };
        match device.neighs.get(&neigh.addr) {
            Some(mac) => gone || !neigh.state.is_permanent() || neigh.mac != Some(*mac),
            None => !gone && neigh.state.is_permanent(),
        }
    }

    fn fdb(&self, entry: &FdbEntry, gone: bool) -> bool {
        let (Some(device), Some(addr)) = (self.device(entry.link), entry.dst) else {
            return false;
        };
        let port = entry.port;
        if device.fdb.contains(&(entry.mac, Remote { addr, port })) {
            return gone || !entry.state.is_permanent();
        }
        // What the device learns is its own business, unless it takes the place of an entry of ours.
        let has_ours = device.fdb.iter().any(|(mac, _)| *mac == entry.mac);
        !gone && (has_ours || entry.state.is_permanent())
    }
}

/// Our devices among links, by index.
#[must_use]
pub fn our_devices(links: &[Link]) -> BTreeMap<u32, IfName> {
    let ours = links.iter().filter(|link| is_our_device(&link.name));
    ours.map(|link| (link.index, link.name.clone())).collect()
}

/// The links of these names.
#[must_use]
pub fn named(links: &[Link], names: &BTreeSet<IfName>) -> Vec<Link> {
    links
        .iter()
        .filter(|link| names.contains(&link.name))
        .cloned()
        .collect()
}
