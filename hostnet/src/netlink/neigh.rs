//! Neighbours (which MAC an IP address on a link has) and forwarding entries (behind which port
//! or remote a MAC is).

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::{Request, Result, Rtnl};
use crate::vocab::Mac;

/// A neighbour: ARP for IPv4, neighbour discovery for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Neigh {
    /// The interface's index.
    pub link: u32,
    /// The neighbour's address.
    pub addr: IpAddr,
    /// Its MAC, if known.
    pub mac: Option<Mac>,
    /// How it is known.
    pub state: NeighState,
}

/// A forwarding entry of a VXLAN device (`dst` is the node to send to) or of a bridge (`link` is
/// the port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The index of the VXLAN device or the bridge's port.
    pub link: u32,
    /// The inner destination.
    pub mac: Mac,
    /// VXLAN: the node behind which it is.
    pub dst: Option<IpAddr>,
    /// VXLAN: the UDP port there, if it is not the device's own.
    pub port: Option<u16>,
    /// How it is known.
    pub state: NeighState,
    /// The entry is the device's own (`NTF_SELF`), not its master's.
    pub own: bool,
}

/// How an entry came to be known, and whether it ages (include/uapi/linux/neighbour.h, `NUD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NeighState {
    /// Set by somebody; it stays until deleted.
    Permanent,
    /// No resolution is needed or done.
    NoArp,
    /// Confirmed of late.
    Reachable,
    /// Once confirmed, may be used.
    Stale,
    /// Another state by its number.
    Other(u16),
}

impl NeighState {
    /// Whether an entry stays until somebody deletes it. (`bridge fdb … permanent` also sets the bit
    /// of [`NeighState::NoArp`], which changes nothing.)
    pub fn is_permanent(self) -> bool {
        const NUD_PERMANENT: u16 = 0x80;
        match self {
            NeighState::Permanent => true,
            NeighState::Other(number) => number & NUD_PERMANENT != 0,
            _ => false,
        }
    }

    fn number(self) -> NeighbourState {
        match self {
            NeighState::Permanent => NeighbourState::Permanent,
            NeighState::NoArp => NeighbourState::Noarp,
            NeighState::Reachable => NeighbourState::Reachable,
            NeighState::Stale => NeighbourState::Stale,
            NeighState::Other(number) => NeighbourState::from(number),
        }
    }

    fn from_number(state: NeighbourState) -> NeighState {
        match state {
            NeighbourState::Permanent => NeighState::Permanent,
            NeighbourState::Noarp => NeighState::NoArp,
            NeighbourState::Reachable => NeighState::Reachable,
            NeighbourState::Stale => NeighState::Stale,
            other => NeighState::Other(other.into()),
        }
    }
}

impl Neigh {
    /// A permanent neighbour.
    pub fn permanent(link: u32, addr: IpAddr, mac: Mac) -> Neigh {
        Neigh {
            link,
            addr,
            mac: Some(mac),
            state: NeighState::Permanent,
        }
    }

    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = self.addr.into();
        message.header.ifindex = self.link;
        message.header.state = self.state.number();
        message.attributes = vec![NeighbourAttribute::Destination(self.addr.into())];
        message.attributes.extend(
            self.mac
                .map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())),
        );
        message
    }

    pub(super) fn from_message(message: &NeighbourMessage) -> Option<Neigh> {
        let (addr, mac) = addresses(message);
        Some(Neigh {
            link: message.header.ifindex,
            addr: addr?,
            mac,
            state: NeighState::from_number(message.header.state),
        })
    }
}

impl FdbEntry {
    /// A permanent entry of a VXLAN device: what is for `mac` goes to the node `dst`.
    pub fn vxlan(link: u32, mac: Mac, dst: IpAddr) -> FdbEntry {
        FdbEntry {
            link,
            mac,
            dst: Some(dst),
            port: None,
            state: NeighState::Permanent,
            own: true,
        }
    }

    /// A lasting entry of a bridge: `mac` is behind this port.
    pub fn port(link: u32, mac: Mac) -> FdbEntry {
        FdbEntry {
            link,
            mac,
            dst: None,
            port: None,
            // Permanent would mean the bridge's own.
            state: NeighState::NoArp,
            own: false,
        }
    }

    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.link;
        message.header.state = self.state.number();
        message.header.flags = if self.own {
            NeighbourFlags::Own
        } else {
            NeighbourFlags::Controller
        };
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec())];
        message.attributes.extend(
            self.dst
                .map(|dst| NeighbourAttribute::Destination(dst.into())),
        );
        message
            .attributes
            .extend(self.port.map(NeighbourAttribute::Port));
        message
    }

    pub(super) fn from_message(message: &NeighbourMessage) -> Option<FdbEntry> {
        let (dst, mac) = addresses(message);
        let port = |attribute: &NeighbourAttribute| match attribute {
            NeighbourAttribute::Port(port) => Some(*port),
            _ => None,
        };
        Some(FdbEntry {
            link: message.header.ifindex,
            mac: mac?,
            dst,
            port: message.attributes.iter().find_map(port),
            state: NeighState::from_number(message.header.state),
            own: message.header.flags.contains(NeighbourFlags::Own),
        })
    }
}

fn addresses(message: &NeighbourMessage) -> (Option<IpAddr>, Option<Mac>) {
    let (mut addr, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                addr = Some((*v4).into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                addr = Some((*v6).into());
            }
            // An FDB entry's destination has no family of its own to tell it by.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                addr = match bytes.len() {
                    4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
                    16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
                    _ => None,
                };
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    (addr, mac)
}

impl fmt::Display for Neigh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev #{}", self.addr, self.link)?;
        match self.mac {
            Some(mac) => write!(f, " lladdr {mac}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev #{}", self.mac, self.link)?;
        if let Some(dst) = self.dst {
            write!(f, " dst {dst}")?;
        }
        match self.port {
            Some(port) => write!(f, " port {port}"),
            None => Ok(()),
        }
    }
}

/// Adds a neighbour, or sets the MAC and state of the one with that address.
pub fn replace(neigh: &Neigh) -> Request {
    Request::new(
        format!("set neighbour {neigh}"),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewNeighbour(neigh.message()),
    )
}

/// Deletes a neighbour by its link and address.
pub fn delete(neigh: &Neigh) -> Request {
    let message = Neigh {
        mac: None,
        ..*neigh
    }
    .message();
    Request::new(
        format!("delete neighbour {neigh}"),
        0,
        RouteNetlinkMessage::DelNeighbour(message),
    )
}

/// Adds a forwarding entry, or gives that of the same MAC the new destination. (For the all-zero
/// MAC, which floods to several destinations, use [`fdb_append`].)
pub fn fdb_replace(entry: &FdbEntry) -> Request {
    Request::new(
        format!("set forwarding entry {entry}"),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewNeighbour(entry.message()),
    )
}

/// Adds a destination to a MAC.
pub fn fdb_append(entry: &FdbEntry) -> Request {
    Request::new(
        format!("append forwarding entry {entry}"),
        NLM_F_CREATE | NLM_F_APPEND,
        RouteNetlinkMessage::NewNeighbour(entry.message()),
    )
}

/// Deletes a forwarding entry: with a destination only that one of the MAC's.
pub fn fdb_delete(entry: &FdbEntry) -> Request {
    Request::new(
        format!("delete forwarding entry {entry}"),
        0,
        RouteNetlinkMessage::DelNeighbour(entry.message()),
    )
}

impl Rtnl {
    /// The neighbours on one interface, or with `None` on all.
    pub fn neighs(&mut self, link: Option<u32>) -> Result<Vec<Neigh>> {
        let mut message = NeighbourMessage::default();
        message
            .attributes
            .extend(link.map(NeighbourAttribute::IfIndex));
        self.dump(
            "list neighbours",
            &RouteNetlinkMessage::GetNeighbour(message),
            |message| match message {
                RouteNetlinkMessage::NewNeighbour(message)
                    if matches!(
                        message.header.family,
                        AddressFamily::Inet | AddressFamily::Inet6
                    ) =>
                {
                    Neigh::from_message(&message)
                }
                _ => None,
            },
        )
    }

    /// The forwarding entries of one device (a VXLAN device, or a bridge's port), or with `None`
    /// of all.
    pub fn fdb(&mut self, link: Option<u32>) -> Result<Vec<FdbEntry>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = link.unwrap_or(0);
        let message = RouteNetlinkMessage::GetNeighbour(message);
        self.dump(
            "list forwarding entries",
            &message,
            |message| match message {
                RouteNetlinkMessage::NewNeighbour(message) => FdbEntry::from_message(&message),
                _ => None,
            },
        )
    }
}
