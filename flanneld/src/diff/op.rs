//! One change of the kernel's state, and its text: the command by which a person would make it.

use std::fmt;
use std::net::IpAddr;

use hostnet::netlink::route::PROTOCOL_BOOT;
use hostnet::nft::{self, Changes, Rule, TableId};
use hostnet::vocab::{Cidr, Family, IfName, Mac};

use crate::forward;
use crate::state::{DeviceKind, Remote, Route, RouteKey, Vxlan};

/// One change. "Set" adds what is not there and replaces what has the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes a device, down.
    CreateLink {
        /// Its name.
        dev: IfName,
        /// What it is.
        kind: DeviceKind,
        /// Its MAC.
        mac: Option<Mac>,
        /// Its MTU in bytes.
        mtu: u32,
    },
    /// Takes a device away, with all that lies on it.
    DeleteLink {
        /// Its name.
        dev: IfName,
    },
    /// Gives a device that has a successor another name; what lies on it stays.
    RenameLink {
        /// Its name.
        dev: IfName,
        /// The name from now on.
        to: IfName,
    },
    /// Gives a device another MAC; it loses its neighbours.
    SetMac {
        /// Its name.
        dev: IfName,
        /// The MAC.
        mac: Mac,
    },
    /// Gives a device another MTU.
    SetMtu {
        /// Its name.
        dev: IfName,
        /// The MTU in bytes.
        mtu: u32,
    },
    /// Sets a device up.
    SetUp {
        /// Its name.
        dev: IfName,
    },
    /// Sets a switch of the kernel.
    SetSysctl {
        /// Its path below `/proc/sys/net`.
        key: String,
        /// Its value.
        value: String,
    },
    /// Adds an address.
    AddAddr {
        /// The device.
        dev: IfName,
        /// The address.
        addr: Cidr,
    },
    /// Deletes an address.
    DeleteAddr {
        /// The device.
        dev: IfName,
        /// The address.
        addr: Cidr,
    },
    /// Changes what can be changed of a VXLAN device that is there.
    SetVxlan {
        /// The device.
        dev: IfName,
        /// Its settings from now on.
        vxlan: Vxlan,
    },
    /// Changes an nft table in one transaction.
    ChangeTable(Changes),
    /// Makes these our only rules in a chain of `iptables-nft`'s.
    Admit {
        /// Its table.
        table: TableId,
        /// The rules; none takes ours away.
        rules: Vec<Rule>,
    },
    /// Sets the permanent neighbour of an address.
    SetNeigh {
        /// The device.
        dev: IfName,
        /// The address.
        addr: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
    /// Deletes the neighbour of an address.
    DeleteNeigh {
        /// The device.
        dev: IfName,
        /// The address.
        addr: IpAddr,
    },
    /// Sets the permanent forwarding entry of a MAC.
    SetFdb {
        /// The VXLAN device.
        dev: IfName,
        /// The MAC.
        mac: Mac,
        /// The node behind which it is.
        dst: Remote,
    },
    /// Deletes one forwarding entry of a MAC.
    DeleteFdb {
        /// The VXLAN device.
        dev: IfName,
        /// The MAC.
        mac: Mac,
        /// The node behind which it was.
        dst: Remote,
    },
    /// Sets the route of a destination and metric.
    SetRoute {
        /// Destination and metric.
        key: RouteKey,
        /// The rest.
        route: Route,
    },
    /// Deletes exactly this route.
    DeleteRoute {
        /// Destination and metric.
        key: RouteKey,
        /// The rest.
        route: Route,
    },
}

impl Op {
    /// The words of [`Op::object`].
    pub const OBJECTS: [&str; 8] = [
        "address",
        "fdb",
        "forward-rules",
        "link",
        "neighbour",
        "route",
        "sysctl",
        "table",
    ];

    /// A short fixed word for what it changes, for metrics.
    pub fn object(&self) -> &'static str {
        match self {
            Op::CreateLink { .. }
            | Op::DeleteLink { .. }
            | Op::RenameLink { .. }
            | Op::SetVxlan { .. }
            | Op::SetMac { .. }
            | Op::SetMtu { .. }
            | Op::SetUp { .. } => "link",
            Op::SetSysctl { .. } => "sysctl",
            Op::AddAddr { .. } | Op::DeleteAddr { .. } => "address",
            Op::ChangeTable(_) => "table",
            Op::Admit { .. } => "forward-rules",
            Op::SetNeigh { .. } | Op::DeleteNeigh { .. } => "neighbour",
            Op::SetFdb { .. } | Op::DeleteFdb { .. } => "fdb",
            Op::SetRoute { .. } | Op::DeleteRoute { .. } => "route",
        }
    }
}

impl fmt::Display for Op {
    /// The command with `ip`, `bridge`, `sysctl` or `nft`; a table's may have several lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::CreateLink {
                dev,
                kind,
                mac,
                mtu,
            } => {
                write!(f, "ip link add {dev}")?;
                if let Some(mac) = mac {
                    write!(f, " address {mac}")?;
                }
                write!(f, " mtu {mtu} type {kind}")
            }
            Op::DeleteLink { dev } => write!(f, "ip link del {dev}"),
            Op::RenameLink { dev, to } => write!(f, "ip link set {dev} name {to}"),
            Op::SetVxlan { dev, vxlan } => {
                let learning = learning(vxlan);
                write!(f, "ip link set {dev} type vxlan {}{learning}", Ways(vxlan))
            }
            Op::SetMac { dev, mac } => write!(f, "ip link set {dev} address {mac}"),
            Op::SetMtu { dev, mtu } => write!(f, "ip link set {dev} mtu {mtu}"),
            Op::SetUp { dev } => write!(f, "ip link set {dev} up"),
            Op::SetSysctl { key, value } => write!(f, "sysctl -w net/{key}={value}"),
            Op::AddAddr { dev, addr } => {
                write!(f, "ip addr add {addr} dev {dev}")?;
                match addr.family() {
                    Family::V4 => Ok(()),
                    // As `hostnet` adds it: the address is unique by allocation.
                    Family::V6 => f.write_str(" nodad"),
                }
            }
            Op::DeleteAddr { dev, addr } => write!(f, "ip addr del {addr} dev {dev}"),
            Op::ChangeTable(changes) => f.write_str(changes.to_string().trim_end()),
            Op::Admit { table, rules } if rules.is_empty() => {
                write!(f, "# our rules go from chain {table} {}", forward::CHAIN)
            }
            Op::Admit { table, rules } => {
                let add = |rule: &Rule| nft::Op::AddRule(forward::CHAIN.into(), rule.clone());
                let changes = Changes {
                    table: table.clone(),
                    ops: rules.iter().map(add).collect(),
                };
                write!(f, "{changes}")
            }
            Op::SetNeigh { dev, addr, mac } => {
                write!(
                    f,
                    "ip neigh replace {addr} lladdr {mac} dev {dev} nud permanent"
                )
            }
            Op::DeleteNeigh { dev, addr } => write!(f, "ip neigh del {addr} dev {dev}"),
            Op::SetFdb { dev, mac, dst } => {
                let to = To(dst);
                write!(f, "bridge fdb replace {mac} dev {dev} {to} self permanent")
            }
            Op::DeleteFdb { dev, mac, dst } => {
                write!(f, "bridge fdb del {mac} dev {dev} {} self", To(dst))
            }
            Op::SetRoute { key, route } => write!(f, "ip route replace {}", Full(key, route)),
            Op::DeleteRoute { key, route } => write!(f, "ip route del {}", Full(key, route)),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vxlan = match self {
            DeviceKind::Vxlan(vxlan) => vxlan,
            DeviceKind::Other(kind) => return f.write_str(kind),
        };
        write!(f, "vxlan {} dstport {}", Ways(vxlan), vxlan.port)?;
        f.write_str(learning(vxlan))?;
        f.write_str(if vxlan.gbp { " gbp" } else { "" })
    }
}

fn learning(vxlan: &Vxlan) -> &'static str {
    if vxlan.learning {
        " learning"
    } else {
        " nolearning"
    }
}

/// Which VXLAN device, and how its outer packets leave, in the words of `ip link`.
struct Ways<'a>(&'a Vxlan);

impl fmt::Display for Ways<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vxlan = self.0;
        write!(f, "id {}", vxlan.vni)?;
        if let Some(parent) = &vxlan.parent {
            write!(f, " dev {parent}")?;
        }
        if let Some(local) = vxlan.local {
            write!(f, " local {local}")?;
        }
        Ok(())
    }
}

/// The remote of a forwarding entry in the words of `bridge fdb`.
struct To<'a>(&'a Remote);

impl fmt::Display for To<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dst {}", self.0.addr)?;
        match self.0.port {
            Some(port) => write!(f, " port {port}"),
            None => Ok(()),
        }
    }
}

/// A route in the words of `ip route`.
struct Full<'a>(&'a RouteKey, &'a Route);

impl fmt::Display for Full<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Full(RouteKey { dst, metric }, route) = self;
        write!(f, "{dst}")?;
        if let Some(gateway) = route.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev {}", route.dev)?;
        match route.protocol {
            PROTOCOL_BOOT => f.write_str(" proto boot")?,
            number => write!(f, " proto {number}")?,
        }
        if *metric != 0 {
            write!(f, " metric {metric}")?;
        }
        if route.onlink {
            f.write_str(" onlink")?;
        }
        if let Some(src) = route.src {
            write!(f, " src {src}")?;
        }
        match route.mtu {
            Some(mtu) => write!(f, " mtu {mtu}"),
            None => Ok(()),
        }
    }
}
