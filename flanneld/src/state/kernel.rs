//! From the kernel's lists to what is ours of them. Here it is decided what flanneld owns, and so
//! what it may change and delete.

use std::collections::{BTreeMap, BTreeSet};

use hostnet::netlink::addr::Scope;
use hostnet::netlink::route::{PROTOCOL_KERNEL, RouteKind, TABLE_MAIN};
use hostnet::netlink::{self, Addr, FdbEntry, Link, LinkKind, Neigh};
use hostnet::nft::{Rule, Table, TableId};
use hostnet::vocab::{Family, IfName, names};

use crate::forward;

use super::{Device, DeviceKind, Remote, Route, RouteKey, State, Vxlan};

/// What was read from the kernel. Lists may hold more than what is ours.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// All links: others are named by routes.
    pub links: Vec<Link>,
    /// Addresses, those of our devices at least.
    pub addrs: Vec<Addr>,
    /// Routes, those of our devices and our protocol at least. Of several to one destination with
    /// one metric the first is the one in force, and the only one that is looked at.
    pub routes: Vec<netlink::Route>,
    /// Neighbours, those of our devices at least.
    pub neighs: Vec<Neigh>,
    /// Forwarding entries, those of our devices at least.
    pub fdb: Vec<FdbEntry>,
    /// Switches by their path below `/proc/sys/net`, those that are desired at least.
    pub sysctls: BTreeMap<String, String>,
    /// nft tables of our names.
    pub tables: Vec<Table>,
    /// Who else has a say in whether forwarded packets pass.
    pub forward: forward::Seen,
    /// Rules with our mark in the FORWARD chain of `iptables-nft`'s tables.
    pub admitted: BTreeMap<TableId, Vec<Rule>>,
}

/// Whether a device of this name is ours: `flannel.N` or `flannel-v6.N`, as flannel's are, or one of these that has a
/// successor on another port.
pub fn is_our_device(name: &str) -> bool {
    let is_flannels = ["flannel.", "flannel-v6."].iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|vni| !vni.is_empty() && vni.bytes().all(|b| b.is_ascii_digit()))
    });
    is_flannels || is_former_device(name)
}

/// Whether a device of this name has a successor on another port.
pub fn is_former_device(name: &str) -> bool {
    let mut names = Family::ALL.into_iter().map(names::former_vxlan_device);
    names.any(|former| former == name)
}

impl Kernel {
    /// What is ours.
    ///
    /// Of a device of our name: global addresses (a link-local one is the kernel's own), permanent
    /// neighbours and forwarding entries (others are learned), and unicast routes of the main table
    /// but those that the kernel made for an address.
    pub fn ours(&self) -> State {
        let names: BTreeMap<u32, &IfName> = self
            .links
            .iter()
            .map(|link| (link.index, &link.name))
            .collect();
        let mut devices: BTreeMap<u32, Device> = self
            .links
            .iter()
            .filter(|link| is_our_device(&link.name))
            .map(|link| (link.index, device(link, &names)))
            .collect();
        let routes = self.routes(&names, &devices);
        for addr in &self.addrs {
            if let Some(device) = devices.get_mut(&addr.link)
                && addr.scope == Scope::GLOBAL
            {
                device.addrs.insert(addr.cidr);
            }
        }
        for neigh in &self.neighs {
            if let Some(device) = devices.get_mut(&neigh.link)
                && neigh.state.is_permanent()
                && let Some(mac) = neigh.mac
            {
                device.neighs.insert(neigh.addr, mac);
            }
        }
        for entry in &self.fdb {
            if let Some(device) = devices.get_mut(&entry.link)
                && entry.state.is_permanent()
                && let Some(addr) = entry.dst
            {
                let port = entry.port;
                device.fdb.insert((entry.mac, Remote { addr, port }));
            }
        }
        State {
            devices: devices
                .into_iter()
                .filter_map(|(index, device)| Some(((*names.get(&index)?).clone(), device)))
                .collect(),
            routes,
            sysctls: self.sysctls.clone(),
            tables: self
                .tables
                .iter()
                .map(|table| (table.id.clone(), table.clone()))
                .collect(),
            admitted: self
                .admitted
                .iter()
                .filter(|(_, rules)| !rules.is_empty())
                .map(|(table, rules)| (table.clone(), rules.clone()))
                .collect(),
        }
    }

    fn routes(
        &self,
        names: &BTreeMap<u32, &IfName>,
        devices: &BTreeMap<u32, Device>,
    ) -> BTreeMap<RouteKey, Route> {
        let mut routes = BTreeMap::new();
        for route in &self.routes {
            let Some((link, dev)) = route.link.and_then(|link| Some((link, *names.get(&link)?)))
            else {
                continue;
            };
            let ours = match devices.contains_key(&link) {
                true => route.protocol != PROTOCOL_KERNEL,
                false => route.protocol == names::ROUTE_PROTOCOL,
            };
            if !ours || route.table != TABLE_MAIN || route.kind != RouteKind::Unicast {
                continue;
            }
            let key = RouteKey {
                dst: route.dst,
                metric: route.metric,
            };
            routes.entry(key).or_insert_with(|| Route {
                gateway: route.gateway,
                dev: dev.clone(),
                onlink: route.onlink,
                protocol: route.protocol,
                src: route.src,
                mtu: route.mtu,
            });
        }
        routes
    }
}

fn device(link: &Link, names: &BTreeMap<u32, &IfName>) -> Device {
    let kind = match &link.kind {
        LinkKind::Vxlan(vxlan) => DeviceKind::Vxlan(Vxlan {
            vni: vxlan.vni,
            port: vxlan.port,
            local: vxlan.local,
            parent: vxlan
                .device
                .and_then(|index| Some((*names.get(&index)?).clone())),
            learning: vxlan.learning,
            gbp: vxlan.gbp,
        }),
        other => DeviceKind::Other(other.name().to_owned()),
    };
    Device {
        kind,
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
        addrs: BTreeSet::new(),
        neighs: BTreeMap::new(),
        fdb: BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests;
