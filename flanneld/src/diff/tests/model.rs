//! A model of the kernel as far as our operations go: what each changes beside what it says, and
//! what it refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hostnet::nft::{self, Chain, Hook, Rule, Table, TableId};
use hostnet::vocab::{Family, IfName, Mac, names};
use proptest::prelude::*;

use super::Op;
use crate::fixture::{mac, node_subnet};
use crate::forward;
use crate::state::{Device, DeviceKind, Remote, Route, RouteKey, State, Vxlan, is_former_device};

/// The kernel's state between operations.
pub(super) struct Model<'a> {
    pub(super) state: State,
    desired: &'a State,
}

impl<'a> Model<'a> {
    pub(super) fn new(state: State, desired: &'a State) -> Model<'a> {
        Model { state, desired }
    }

    /// The state, without switches that nobody asked for.
    pub(super) fn into_state(mut self) -> State {
        let desired = self.desired;
        self.state
            .sysctls
            .retain(|key, _| desired.sysctls.contains_key(key));
        self.state
    }

    fn device(&mut self, dev: &IfName, op: &Op) -> &mut Device {
        let device = self.state.devices.get_mut(dev);
        device.unwrap_or_else(|| panic!("{op}: no such device"))
    }

    /// Does what the kernel does.
    ///
    /// # Panics
    /// Where the kernel would refuse.
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::CreateLink {
                dev,
                kind,
                mac,
                mtu,
            } => {
                let device = Device {
                    kind: kind.clone(),
                    mac: *mac,
                    mtu: *mtu,
                    up: false,
                    addrs: BTreeSet::new(),
                    neighs: BTreeMap::new(),
                    fdb: BTreeSet::new(),
                };
                for (name, other) in &self.state.devices {
                    let both = (listens(name, other), listens(dev, &device));
                    assert_ne!(both.0, both.1, "{op}: {name} has that port");
                }
                let there = self.state.devices.insert(dev.clone(), device);
                assert_eq!(there, None, "{op}: it is there");
                let own = accept_ra(dev);
                self.state.sysctls.insert(own, "1".to_owned());
            }
            Op::DeleteLink { dev } => {
                let there = self.state.devices.remove(dev);
                assert!(there.is_some(), "{op}: it is not there");
                self.state.routes.retain(|_, route| route.dev != *dev);
                self.state.sysctls.remove(&accept_ra(dev));
            }
            Op::RenameLink { dev, to } => {
                let device = self.state.devices.remove(dev);
                let device = device.unwrap_or_else(|| panic!("{op}: no such device"));
                let there = self.state.devices.insert(to.clone(), device);
                assert_eq!(there, None, "{op}: it is there");
                let routes = self.state.routes.values_mut();
                routes
                    .filter(|route| route.dev == *dev)
                    .for_each(|route| route.dev = to.clone());
                if let Some(value) = self.state.sysctls.remove(&accept_ra(dev)) {
                    self.state.sysctls.insert(accept_ra(to), value);
                }
            }
            Op::Admit { table, rules } if rules.is_empty() => {
                self.state.admitted.remove(table);
            }
            Op::Admit { table, rules } => {
                self.state.admitted.insert(table.clone(), rules.clone());
            }
            Op::SetVxlan { dev, vxlan } => {
                let device = self.device(dev, op);
                let DeviceKind::Vxlan(have) = &device.kind else {
                    panic!("{op}: no VXLAN device");
                };
                let fixed = |vxlan: &Vxlan| (vxlan.vni, vxlan.port, vxlan.gbp);
                assert_eq!(fixed(have), fixed(vxlan), "{op}: the kernel refuses it");
                device.kind = DeviceKind::Vxlan(vxlan.clone());
            }
            Op::SetMac { dev, mac } => {
                let device = self.device(dev, op);
                device.mac = Some(*mac);
                device.neighs.clear();
            }
            Op::SetMtu { dev, mtu } => self.device(dev, op).mtu = *mtu,
            Op::SetUp { dev } => self.device(dev, op).up = true,
            Op::SetSysctl { key, value } => {
                let there = key == "ipv4/ip_forward" || self.state.sysctls.contains_key(key);
                assert!(there, "{op}: no such switch");
                self.state.sysctls.insert(key.clone(), value.clone());
            }
            Op::AddAddr { dev, addr } => {
                assert!(
                    self.device(dev, op).addrs.insert(*addr),
                    "{op}: it is there"
                );
            }
            Op::DeleteAddr { dev, addr } => {
                assert!(
                    self.device(dev, op).addrs.remove(addr),
                    "{op}: it is not there"
                );
            }
            Op::ChangeTable(changes) => {
                let id = &changes.table;
                match self.desired.tables.get(id) {
                    Some(want) => {
                        assert_eq!(*changes, nft::diff(self.state.tables.get(id), want.clone()));
                        self.state.tables.insert(id.clone(), want.clone());
                    }
                    None => {
                        assert_eq!(changes.ops, [nft::Op::DeleteTable]);
                        assert!(
                            self.state.tables.remove(id).is_some(),
                            "{op}: it is not there"
                        );
                    }
                }
            }
            Op::SetNeigh { dev, addr, mac } => {
                let want = &self.desired.devices[dev];
                let device = self.device(dev, op);
                assert!(device.up, "{op}: the device is down");
                assert!(device.fdb.is_superset(&want.fdb), "{op}: no forwarding yet");
                device.neighs.insert(*addr, *mac);
            }
            Op::DeleteNeigh { dev, addr } => {
                let there = self.device(dev, op).neighs.remove(addr);
                assert!(there.is_some(), "{op}: it is not there");
            }
            Op::SetFdb { dev, mac, dst } => {
                let fdb = &mut self.device(dev, op).fdb;
                fdb.retain(|(other, _)| other != mac);
                fdb.insert((*mac, *dst));
            }
            Op::DeleteFdb { dev, mac, dst } => {
                let there = self.device(dev, op).fdb.remove(&(*mac, *dst));
                assert!(there, "{op}: it is not there");
            }
            Op::SetRoute { key, route } => {
                self.check_route(op, key, route);
                self.state.routes.insert(*key, route.clone());
            }
            Op::DeleteRoute { key, route } => {
                let there = self.state.routes.remove(key);
                assert_eq!(there.as_ref(), Some(route), "{op}: it is another");
            }
        }
    }

    /// A route needs its device up; by ours a packet arrives only if the neighbours are there.
    fn check_route(&mut self, op: &Op, key: &RouteKey, route: &Route) {
        let old = self.state.routes.get(key);
        if old.is_some_and(|old| old.dev != route.dev) && key.dst.family() == Family::V6 {
            assert!(!route.onlink, "{op}: the gateway is by another device");
        }
        if *route.dev == *"eth0" {
            return;
        }
        let want = &self.desired.devices[&route.dev];
        let device = self.device(&route.dev, op);
        assert!(device.up, "{op}: the device is down");
        for (addr, mac) in &want.neighs {
            assert_eq!(device.neighs.get(addr), Some(mac), "{op}: no neighbour yet");
        }
    }
}

/// What no two devices have in common: family, identifier and port (`vxlan_config_validate`).
fn listens(name: &IfName, device: &Device) -> Option<(bool, u32, u16)> {
    match &device.kind {
        DeviceKind::Vxlan(vxlan) => Some((name.contains("v6"), vxlan.vni, vxlan.port)),
        DeviceKind::Other(_) => None,
    }
}

/// A switch that comes and goes with a device.
fn accept_ra(dev: &str) -> String {
    format!("ipv6/conf/{dev}/accept_ra")
}

/// States that the kernel can hold: as desired ones, but devices may be down, which costs their
/// routes and neighbours, and flood to several nodes.
pub(super) fn observed_states() -> impl Strategy<Value = State> {
    let down = prop::collection::vec(prop::bool::weighted(0.2), 4);
    let flood = prop::collection::btree_set(ip(), 0..3);
    (desired_states(), down, flood).prop_map(|(mut state, down, flood)| {
        for (device, down) in state.devices.values_mut().zip(down) {
            device
                .fdb
                .extend(flood.iter().map(|dst| (Mac::ZERO, (*dst).into())));
            if down {
                device.up = false;
                device.neighs.clear();
            }
        }
        let devices = &state.devices;
        let is_up = |dev: &IfName| devices.get(dev).is_none_or(|device| device.up);
        state.routes.retain(|_, route| is_up(&route.dev));
        state
    })
}

/// States that can be desired, small enough to share much with others.
pub(super) fn desired_states() -> impl Strategy<Value = State> {
    let names = ["flannel.1", "flannel.2", "flannel-v6.1", "flannel-old"];
    let devices = names.map(|name| prop::option::of(device(name)));
    let routes = prop::collection::btree_map(key(), route(), 0..8);
    let value = || prop::sample::select(vec!["0", "1"]);
    let sysctls = [value(), value()];
    let tables = Family::ALL.map(|family| prop::option::of(table(family)));
    let admitted = Family::ALL.map(|family| prop::option::of(admitted(family)));
    (devices, routes, sysctls, tables, admitted).prop_map(
        move |(devices, routes, sysctls, tables, admitted)| {
            let mut devices: BTreeMap<IfName, Device> = names
                .iter()
                .zip(devices)
                .filter_map(|(name, device)| Some((name.parse().unwrap(), device?)))
                .collect();
            let ports: Vec<_> = devices.iter().map(|(name, it)| listens(name, it)).collect();
            let is_twice = |port| ports.iter().filter(|other| **other == port).count() > 1;
            devices
                .retain(|name, device| !is_former_device(name) || !is_twice(listens(name, device)));
            let routes = routes
                .into_iter()
                .filter(|(_, route)| *route.dev == *"eth0" || devices.contains_key(&route.dev))
                .collect();
            let [forward, own] = sysctls;
            let mut sysctls = BTreeMap::from([("ipv4/ip_forward".to_owned(), forward.to_owned())]);
            for dev in devices.keys() {
                sysctls.insert(accept_ra(dev), own.to_owned());
            }
            State {
                devices,
                routes,
                sysctls,
                tables: tables
                    .into_iter()
                    .flatten()
                    .map(|table| (table.id.clone(), table))
                    .collect(),
                admitted: admitted.into_iter().flatten().collect(),
            }
        },
    )
}

/// Our rules in another's chain, for one of two networks.
fn admitted(family: Family) -> impl Strategy<Value = (TableId, Vec<Rule>)> {
    let networks = match family {
        Family::V4 => ["10.244.0.0/16", "10.99.0.0/16"],
        Family::V6 => ["fd00::/48", "fd01::/48"],
    };
    let network = prop::sample::select(networks.to_vec());
    network.prop_map(move |network| {
        (
            forward::table(family),
            forward::rules(network.parse().unwrap()),
        )
    })
}

fn ip() -> impl Strategy<Value = IpAddr> {
    (1u8..5).prop_map(|n| IpAddr::from([192, 0, 2, n]))
}

fn some_mac() -> impl Strategy<Value = Mac> {
    (1u8..5).prop_map(mac)
}

fn device(name: &str) -> impl Strategy<Value = Device> + use<> {
    let family = match name {
        "flannel-v6.1" => Family::V6,
        _ => Family::V4,
    };
    let vni = if name.ends_with('2') { 2 } else { 1 };
    let addrs = prop::collection::btree_set(1u8..4, 0..3);
    let neighs = prop::collection::btree_map(ip(), some_mac(), 0..5);
    // A unicast MAC has one destination (net/ipv4/vxlan, `vxlan_fdb_update`).
    let port = prop::option::of(4789u16..4791);
    let remote = (ip(), port).prop_map(|(addr, port)| Remote { addr, port });
    let fdb = prop::collection::btree_map(some_mac(), remote, 0..5);
    let kind = (0u16..2, 1u8..3, any::<bool>());
    (kind, some_mac(), 0u32..3, addrs, neighs, fdb).prop_map(
        move |((port, local, learning), mac, mtu, addrs, neighs, fdb)| Device {
            kind: DeviceKind::Vxlan(Vxlan {
                vni,
                port: 8472 + port,
                local: Some(IpAddr::from([192, 0, 2, local])),
                parent: Some("eth0".parse().unwrap()),
                learning,
                gbp: false,
            }),
            mac: Some(mac),
            mtu: 1400 + mtu,
            up: true,
            addrs: addrs
                .into_iter()
                .map(|n| hostnet::vocab::Cidr::host(node_subnet(family, n).base()))
                .collect(),
            neighs,
            fdb: fdb.into_iter().collect(),
        },
    )
}

fn key() -> impl Strategy<Value = RouteKey> {
    (1u8..6, 0u32..3).prop_map(|(n, choice)| match choice {
        2 => RouteKey {
            dst: node_subnet(Family::V6, n),
            metric: 1024,
        },
        metric => RouteKey {
            dst: node_subnet(Family::V4, n),
            metric,
        },
    })
}

fn route() -> impl Strategy<Value = Route> {
    let dev = prop::sample::select(vec!["flannel.1", "flannel.2", "flannel-v6.1", "eth0"]);
    (dev, ip(), any::<bool>()).prop_map(|(dev, gateway, onlink)| Route {
        gateway: Some(gateway),
        dev: dev.parse().unwrap(),
        onlink,
        protocol: names::ROUTE_PROTOCOL,
        src: None,
        mtu: None,
    })
}

fn table(family: Family) -> impl Strategy<Value = Table> {
    (0i32..3).prop_map(move |priority| {
        let chain = Chain::nat(Hook::Postrouting, priority).rule(Rule::new().accept());
        Table::new(family, names::TABLE_FLANNEL).chain("postrouting", chain)
    })
}
