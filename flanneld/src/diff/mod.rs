//! From what is to what shall be: the operations in order.
//!
//! Adds come before removes, so that packets have a way at each moment: links, switches, addresses,
//! tables, then for the peers forwarding entries, the neighbours that lead to them, and last the
//! routes that lead to these; then the removes, the other way round. The one exception is a device whose settings the kernel
//! does not change (identifier, group policy): it goes before its successor of the same name comes, and all that lay on it
//! is put back. One whose port changes goes on under another name.

mod op;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use hostnet::nft::{self, Changes};
use hostnet::vocab::{Family, IfName, Mac};

pub use self::op::Op;
use crate::state::{Device, DeviceKind, Remote, State, Vxlan, is_former_device};

/// What leads from `observed` to `desired`. Equal states give nothing. A switch that is only
/// observed stays as it is.
pub fn diff(observed: &State, desired: &State) -> Vec<Op> {
    let mut plan = Plan::default();
    let observed = &*plan.renamed(observed, desired);
    // Devices that are missing, or of another kind: what lay on them goes, their own switches too.
    let made: BTreeSet<&IfName> = desired
        .devices
        .iter()
        .filter(|(name, want)| {
            let have = observed.devices.get(name);
            have.is_none_or(|have| have.kind != want.kind && !can_become(&have.kind, &want.kind))
        })
        .map(|(name, _)| name)
        .collect();
    for (name, want) in &desired.devices {
        let have = observed.devices.get(name);
        if made.contains(name) {
            if have.is_some() {
                plan.links.push(Op::DeleteLink { dev: name.clone() });
            }
            plan.links.push(Op::CreateLink {
                dev: name.clone(),
                kind: want.kind.clone(),
                mac: want.mac,
                mtu: want.mtu,
            });
        }
        plan.device(name, have.filter(|_| !made.contains(name)), want);
    }
    for name in observed.devices.keys() {
        if !desired.devices.contains_key(name) {
            plan.remove_links.push(Op::DeleteLink { dev: name.clone() });
        }
    }
    for (key, want) in &desired.routes {
        let have = observed
            .routes
            .get(key)
            .filter(|have| !made.contains(&have.dev));
        if have != Some(want) {
            // IPv6 refuses an onlink gateway that another device leads to
            // (`ip6_route_check_nh_onlink`), as the old route to the same subnet does.
            let in_the_way = have.filter(|have| {
                key.dst.family() == Family::V6 && want.onlink && have.dev != want.dev
            });
            plan.routes.extend(in_the_way.map(|have| Op::DeleteRoute {
                key: *key,
                route: have.clone(),
            }));
            plan.routes.push(Op::SetRoute {
                key: *key,
                route: want.clone(),
            });
        }
    }
    for (key, have) in &observed.routes {
        let goes_with_device = made.contains(&have.dev)
            || observed.devices.contains_key(&have.dev) && !desired.devices.contains_key(&have.dev);
        if !desired.routes.contains_key(key) && !goes_with_device {
            plan.remove_routes.push(Op::DeleteRoute {
                key: *key,
                route: have.clone(),
            });
        }
    }
    for (key, value) in &desired.sysctls {
        let is_lost = key
            .split('/')
            .any(|part| made.iter().any(|name| ***name == *part));
        if is_lost || observed.sysctls.get(key) != Some(value) {
            plan.sysctls.push(Op::SetSysctl {
                key: key.clone(),
                value: value.clone(),
            });
        }
    }
    for (id, want) in &desired.tables {
        let changes = nft::diff(observed.tables.get(id), want.clone());
        if !changes.is_empty() {
            plan.tables.push(Op::ChangeTable(changes));
        }
    }
    for (table, rules) in &desired.admitted {
        if observed.admitted.get(table) != Some(rules) {
            plan.tables.push(Op::Admit {
                table: table.clone(),
                rules: rules.clone(),
            });
        }
    }
    for table in observed.admitted.keys() {
        if !desired.admitted.contains_key(table) {
            plan.remove_tables.push(Op::Admit {
                table: table.clone(),
                rules: Vec::new(),
            });
        }
    }
    for id in observed.tables.keys() {
        if !desired.tables.contains_key(id) {
            plan.remove_tables
                .push(Op::ChangeTable(Changes::remove(id.clone())));
        }
    }
    plan.into_ops()
}

/// The operations by their place in the order.
#[derive(Default)]
struct Plan {
    links: Vec<Op>,
    sysctls: Vec<Op>,
    ups: Vec<Op>,
    addrs: Vec<Op>,
    tables: Vec<Op>,
    fdb: Vec<Op>,
    neighs: Vec<Op>,
    routes: Vec<Op>,
    remove_routes: Vec<Op>,
    remove_neighs: Vec<Op>,
    remove_fdb: Vec<Op>,
    remove_addrs: Vec<Op>,
    remove_links: Vec<Op>,
    remove_tables: Vec<Op>,
}

impl Plan {
    /// A device that shall be a former one keeps all that lies on it, while its successor gets its name. Returns what is
    /// observed then.
    fn renamed<'a>(&mut self, observed: &'a State, desired: &State) -> Cow<'a, State> {
        let mut observed = Cow::Borrowed(observed);
        let listens = |device: &Device| match &device.kind {
            DeviceKind::Vxlan(vxlan) => Some((vxlan.vni, vxlan.port)),
            DeviceKind::Other(_) => None,
        };
        for (name, have) in observed.clone().devices.iter() {
            // No two devices have one identifier and port.
            let in_the_way = |(_, want): (&IfName, &Device)| listens(want) == listens(have);
            if is_former_device(name)
                && !desired.devices.contains_key(name)
                && desired.devices.iter().any(in_the_way)
            {
                self.delete_first(observed.to_mut(), name);
            }
        }
        let is = |have: &Device, want: &Device| {
            have.kind == want.kind || can_become(&have.kind, &want.kind)
        };
        for (to, want) in &desired.devices {
            let is_there = || observed.devices.get(to).is_some_and(|have| is(have, want));
            if !is_former_device(to) || is_there() {
                continue;
            }
            let is_replaced = |name: &IfName, have: &Device| {
                let successor = desired.devices.get(name);
                successor.is_none_or(|successor| !is(have, successor))
            };
            let mut devices = observed.devices.iter();
            let found = devices.find(|(name, have)| is(have, want) && is_replaced(name, have));
            let Some((dev, _)) = found else { continue };
            let dev = dev.clone();
            let state = observed.to_mut();
            if state.devices.contains_key(to) {
                self.delete_first(state, to);
            }
            if let Some(device) = state.devices.remove(&dev) {
                state.devices.insert(to.clone(), device);
            }
            let routes = state.routes.values_mut();
            routes
                .filter(|route| route.dev == dev)
                .for_each(|route| route.dev = to.clone());
            let to = to.clone();
            self.links.push(Op::RenameLink { dev, to });
        }
        observed
    }

    fn delete_first(&mut self, observed: &mut State, dev: &IfName) {
        self.links.push(Op::DeleteLink { dev: dev.clone() });
        observed.devices.remove(dev);
        observed.routes.retain(|_, route| route.dev != *dev);
    }

    /// What a device needs; `have` is `None` for one that is made anew.
    fn device(&mut self, name: &IfName, have: Option<&Device>, want: &Device) {
        let dev = || name.clone();
        let mut keeps_neighs = have.is_some();
        if let Some(have) = have {
            if let DeviceKind::Vxlan(vxlan) = &want.kind
                && have.kind != want.kind
            {
                self.links.push(Op::SetVxlan {
                    dev: dev(),
                    vxlan: vxlan.clone(),
                });
            }
            if let Some(mac) = want.mac.filter(|_| have.mac != want.mac) {
                self.links.push(Op::SetMac { dev: dev(), mac });
                // The kernel forgets all neighbours of a device whose MAC changes, permanent ones
                // too (`neigh_changeaddr`).
                keeps_neighs = false;
            }
            if have.mtu != want.mtu {
                self.links.push(Op::SetMtu {
                    dev: dev(),
                    mtu: want.mtu,
                });
            }
        }
        if have.map(|have| have.up) != Some(want.up) && want.up {
            self.ups.push(Op::SetUp { dev: dev() });
        }
        let (no_addrs, no_neighs, no_fdb) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        let addrs = have.map_or(&no_addrs, |have| &have.addrs);
        let neighs = have
            .filter(|_| keeps_neighs)
            .map_or(&no_neighs, |have| &have.neighs);
        let fdb = have.map_or(&no_fdb, |have| &have.fdb);
        for addr in want.addrs.difference(addrs).copied() {
            self.addrs.push(Op::AddAddr { dev: dev(), addr });
        }
        for addr in addrs.difference(&want.addrs).copied() {
            self.remove_addrs.push(Op::DeleteAddr { dev: dev(), addr });
        }
        for (&addr, &mac) in &want.neighs {
            if neighs.get(&addr) != Some(&mac) {
                self.neighs.push(Op::SetNeigh {
                    dev: dev(),
                    addr,
                    mac,
                });
            }
        }
        for &addr in neighs.keys() {
            if !want.neighs.contains_key(&addr) {
                self.remove_neighs
                    .push(Op::DeleteNeigh { dev: dev(), addr });
            }
        }
        for &(mac, dst) in want.fdb.difference(fdb) {
            self.fdb.push(Op::SetFdb {
                dev: dev(),
                mac,
                dst,
            });
        }
        for &(mac, dst) in fdb.difference(&want.fdb) {
            // Setting the entry of a MAC replaces the one that it has.
            if !has_mac(&want.fdb, mac) {
                self.remove_fdb.push(Op::DeleteFdb {
                    dev: dev(),
                    mac,
                    dst,
                });
            }
        }
    }

    fn into_ops(self) -> Vec<Op> {
        [
            self.links,
            self.sysctls,
            self.ups,
            self.addrs,
            self.tables,
            self.fdb,
            self.neighs,
            self.routes,
            self.remove_routes,
            self.remove_neighs,
            self.remove_fdb,
            self.remove_addrs,
            self.remove_links,
            self.remove_tables,
        ]
        .concat()
    }
}

/// Whether the kernel changes a device from one kind to the other (`vxlan_changelink`): what lies on it stays then.
fn can_become(have: &DeviceKind, want: &DeviceKind) -> bool {
    let (DeviceKind::Vxlan(have), DeviceKind::Vxlan(want)) = (have, want) else {
        return false;
    };
    let family = |vxlan: &Vxlan| vxlan.local.map(Family::of);
    (have.vni, have.port, have.gbp) == (want.vni, want.port, want.gbp)
        && have.local.is_some()
        && family(have) == family(want)
        && have.parent.is_some()
        && want.parent.is_some()
}

fn has_mac(fdb: &BTreeSet<(Mac, Remote)>, mac: Mac) -> bool {
    let least = Remote::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    fdb.range((mac, least)..)
        .next()
        .is_some_and(|(next, _)| *next == mac)
}

#[cfg(test)]
mod tests;
