//! What flanneld owns of the kernel's state, as plain data: the shape of what is desired and of
//! what is observed.
//!
//! Devices go by name, since one that is to be made has no index yet. Maps have the keys by which
//! the kernel itself tells objects apart, so two entries of a map never collide there.

mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hostnet::nft::{Rule, Table, TableId};
use hostnet::vocab::{Cidr, IfName, Mac, Subnet};

pub use self::kernel::{Kernel, is_former_device, is_our_device};

/// Everything that is ours: devices named `flannel.N` and `flannel-v6.N` (or as a former one) with all that hangs on them, routes, switches of the kernel and the nft tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Our devices by name.
    pub devices: BTreeMap<IfName, Device>,
    /// Routes of the main table: those by our devices, and those with our protocol number
    /// ([`ROUTE_PROTOCOL`](hostnet::vocab::names::ROUTE_PROTOCOL)) by others.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Switches by their path below `/proc/sys/net`, such as `ipv4/ip_forward`. Observed are those
    /// that are desired; one that does not exist is absent.
    pub sysctls: BTreeMap<String, String>,
    /// Our nft tables.
    pub tables: BTreeMap<TableId, Table>,
    /// Our rules in the FORWARD chain of `iptables-nft`'s tables, where there are any.
    pub admitted: BTreeMap<TableId, Vec<Rule>>,
}

impl State {
    /// Whether nothing but what peers have is another: devices, switches and tables are the same.
    pub fn is_but_for_peers(&self, other: &State) -> bool {
        let is_same = |one: &Device, other: &Device| {
            let own = |device: &Device| (device.mac, device.mtu, device.up);
            (&one.kind, own(one), &one.addrs) == (&other.kind, own(other), &other.addrs)
        };
        self.devices.len() == other.devices.len()
            && self.devices.iter().all(|(name, device)| {
                let twin = other.devices.get(name);
                twin.is_some_and(|twin| is_same(device, twin))
            })
            && self.sysctls == other.sysctls
            && self.tables == other.tables
            && self.admitted == other.admitted
    }

    /// Keeps what peers have in `there` as it is: what this state says of them may be older.
    pub fn keep_peers(&mut self, there: &State) {
        let vxlan = |device: &Device| match &device.kind {
            DeviceKind::Vxlan(vxlan) => Some((vxlan.vni, vxlan.port)),
            DeviceKind::Other(_) => None,
        };
        for (name, device) in &mut self.devices {
            let have = there.devices.get(name);
            let Some(have) = have.filter(|have| vxlan(have) == vxlan(device)) else {
                continue;
            };
            device.neighs.extend(have.neighs.clone());
            let macs: BTreeSet<Mac> = have.fdb.iter().map(|(mac, _)| *mac).collect();
            device.fdb.retain(|(mac, _)| !macs.contains(mac));
            device.fdb.extend(have.fdb.clone());
            let routes = there.routes.iter().filter(|(_, route)| route.dev == *name);
            self.routes
                .extend(routes.map(|(key, route)| (*key, route.clone())));
        }
        let direct = there
            .routes
            .iter()
            .filter(|(_, route)| !is_our_device(&route.dev));
        self.routes
            .extend(direct.map(|(key, route)| (*key, route.clone())));
    }

    /// Takes away what some peers have, and adds what others shall have; both states are as of these peers alone.
    pub fn exchange(&mut self, gone: &State, come: State) {
        for key in gone.routes.keys() {
            self.routes.remove(key);
        }
        for (name, gone) in &gone.devices {
            if let Some(device) = self.devices.get_mut(name) {
                for addr in gone.neighs.keys() {
                    device.neighs.remove(addr);
                }
                for entry in &gone.fdb {
                    device.fdb.remove(entry);
                }
            }
        }
        self.routes.extend(come.routes);
        for (name, come) in come.devices {
            if let Some(device) = self.devices.get_mut(&name) {
                device.neighs.extend(come.neighs);
                device.fdb.extend(come.fdb);
            }
        }
    }
}

/// A VXLAN device and what lies on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is; a change of it means a new device.
    pub kind: DeviceKind,
    /// Its MAC, which peers know as the VTEP's; `None` only where another kind of device has our
    /// name.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Its global addresses.
    pub addrs: BTreeSet<Cidr>,
    /// Permanent neighbours: the VTEP of each peer.
    pub neighs: BTreeMap<IpAddr, Mac>,
    /// Permanent forwarding entries: the node of each VTEP.
    pub fdb: BTreeSet<(Mac, Remote)>,
}

/// Where packets for a VTEP are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote {
    /// The node's address.
    pub addr: IpAddr,
    /// Its UDP port, if it is not the device's own.
    pub port: Option<u16>,
}

impl From<IpAddr> for Remote {
    fn from(addr: IpAddr) -> Remote {
        Remote { addr, port: None }
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// Something else of our name, by the kernel's name for its kind: never desired.
    Other(String),
}

/// The settings of a VXLAN device (RFC 7348).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: u32,
    /// The UDP port that it listens on and sends to.
    pub port: u16,
    /// The outer source address.
    pub local: Option<IpAddr>,
    /// The device that outer packets leave by; `None` if it is gone.
    pub parent: Option<IfName>,
    /// Learns remotes from the packets that come in.
    pub learning: bool,
    /// Carries the group policy extension.
    pub gbp: bool,
}

/// By what the kernel tells routes of a table apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Where to.
    pub dst: Subnet,
    /// Of several routes to one destination the least metric wins.
    pub metric: u32,
}

/// The rest of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The device it leaves by.
    pub dev: IfName,
    /// The next hop is taken as reachable whatever its address.
    pub onlink: bool,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// The source address of packets that this host sends by it.
    pub src: Option<IpAddr>,
    /// Its own MTU in bytes.
    pub mtu: Option<u32>,
}
