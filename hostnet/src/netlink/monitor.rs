//! Notice of what changes, whoever changes it: events as the same plain data that lists give.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::socket::{Answer, decode};
use super::{Addr, Error, FdbEntry, Link, Neigh, Result, Route, link};
use crate::vocab::Family;

/// Room for what comes while the owner is busy, in bytes. The kernel may allow less.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The longest datagram that an event comes in.
const DATAGRAM: usize = 64 * 1024;

/// `RTNLGRP_*` of include/uapi/linux/rtnetlink.h: links, neighbours (forwarding entries too), and addresses, routes and
/// switches of both families; and traffic control.
const GROUPS: [u32; 9] = [1, 3, 4, 5, 7, 9, 11, 24, 25];

/// `RTM_DELQDISC` and `RTM_DELTFILTER`, of which only the link is of interest: `tcm_ifindex` of `struct tcmsg`.
const DELQDISC: u16 = 37;
const DELTFILTER: u16 = 45;
const TC_LINK: usize = 4;

/// `RTM_NEWNETCONF`, of which the library has no form.
const NEWNETCONF: u16 = 80;
/// Length of `struct netconfmsg` with its padding.
const NETCONF_HEADER: usize = 4;
/// `NETCONFA_IFINDEX`, `NETCONFA_FORWARDING` and `NETCONFA_RP_FILTER` of include/uapi/linux/netconf.h.
const NETCONF_LINK: u16 = 1;
const NETCONF_FORWARDING: u16 = 2;
const NETCONF_RP_FILTER: u16 = 3;
/// `NETCONFA_IFINDEX_ALL` and `_DEFAULT` are negative.
const NETCONF_ALL: i32 = -1;

/// A subscription to the changes of one network namespace's links, addresses, routes, neighbours
/// and forwarding entries. It can be polled: [`AsFd`].
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The object as it is now, or was when it went.
    pub object: Object,
    /// It is gone; else it is new or has changed.
    pub gone: bool,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A link.
    Link(Link),
    /// An address.
    Addr(Addr),
    /// A route of any table.
    Route(Route),
    /// A neighbour.
    Neigh(Neigh),
    /// A forwarding entry.
    Fdb(FdbEntry),
    /// Switches below `/proc/sys/net/ipv4/conf` or `ipv6/conf`.
    Switches(Switches),
    /// The manners of the bridge port with this index: they are to be read anew.
    Port(u32),
    /// A queueing discipline or filter of the link with this index; told only when it goes.
    Shaping(u32),
}

/// The switches of one link that were changed; `None` for those that were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// The family.
    pub family: Family,
    /// The link's index; `None` for `all`.
    pub link: Option<u32>,
    /// `forwarding`; that of `all` in IPv4 is `ip_forward`.
    pub forwarding: Option<bool>,
    /// `rp_filter`.
    pub rp_filter: Option<i32>,
}

impl Monitor {
    /// Subscribes to the changes in the calling thread's namespace, from now on.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Monitor> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        // Less room only means that events are lost, and told as lost, sooner.
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER);
        for group in GROUPS {
            socket.add_membership(group).map_err(Error::Open)?;
        }
        Ok(Monitor {
            socket,
            buffer: Vec::new(),
            ready: VecDeque::new(),
        })
    }

    /// The next change. Without `wait`, `None` if there is none now.
    ///
    /// # Errors
    /// [`Error::Socket`]; where [`Error::is_overrun`], events were lost: look at everything.
    pub fn next(&mut self, wait: bool) -> Result<Option<Event>> {
        while self.ready.is_empty() {
            if !self.receive(wait)? {
                return Ok(None);
            }
        }
        Ok(self.ready.pop_front())
    }

    /// Receives one datagram; `false` if there is none.
    fn receive(&mut self, wait: bool) -> Result<bool> {
        let failed = |source| Error::Socket {
            what: "receive changes".to_owned(),
            source,
        };
        let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
        self.buffer.clear();
        self.buffer.reserve(DATAGRAM);
        loop {
            match self.socket.recv(&mut self.buffer, flags) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(failed(error)),
            }
        }
        let mut rest = &self.buffer[..];
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)
                .map_err(|error| failed(io::Error::other(error)))?;
            if message.message_type() == NEWNETCONF {
                let switches = switches(message.payload()).map(Object::Switches);
                self.ready.extend(switches.map(|object| Event {
                    object,
                    gone: false,
                }));
            }
            if let DELQDISC | DELTFILTER = message.message_type() {
                let link = message
                    .payload()
                    .get(TC_LINK..)
                    .and_then(<[u8]>::first_chunk);
                self.ready.extend(link.map(|link| Event {
                    object: Object::Shaping(u32::from_ne_bytes(*link)),
                    gone: true,
                }));
            }
            // What cannot be read is an object of a kind that we have no name for.
            if let Ok(Some(Answer::Object(object))) = decode(&message) {
                self.ready.extend(event(&object));
            }
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(true)
    }
}

/// Reads `RTM_NEWNETCONF`; `None` for the defaults of links to come.
fn switches(payload: &[u8]) -> Option<Switches> {
    let family = match i32::from(*payload.first()?) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let attributes = payload.get(NETCONF_HEADER..)?;
    let number = |kind: u16| {
        let mut found = NlasIterator::new(attributes).filter_map(Result::ok);
        let found = found.find(|nla| nla.kind() == kind)?;
        found
            .value()
            .first_chunk()
            .map(|bytes| i32::from_ne_bytes(*bytes))
    };
    let link = match number(NETCONF_LINK)? {
        NETCONF_ALL => None,
        index => Some(u32::try_from(index).ok()?),
    };
    Some(Switches {
        family,
        link,
        forwarding: number(NETCONF_FORWARDING).map(|on| on != 0),
        rp_filter: number(NETCONF_RP_FILTER),
    })
}

fn event(message: &RouteNetlinkMessage) -> Option<Event> {
    use RouteNetlinkMessage as M;
    let (object, gone) = match message {
        // A bridge's port tells of itself in the bridge's family too, with fewer attributes.
        M::NewLink(m) | M::DelLink(m) if m.header.interface_family == AddressFamily::Unspec => (
            Object::Link(link::from_message(m)?),
            matches!(message, M::DelLink(_)),
        ),
        M::NewLink(m) if m.header.interface_family == AddressFamily::Bridge => {
            (Object::Port(m.header.index), false)
        }
        M::NewAddress(m) | M::DelAddress(m) => (
            Object::Addr(Addr::from_message(m)?),
            matches!(message, M::DelAddress(_)),
        ),
        M::NewRoute(m) | M::DelRoute(m) => (
            Object::Route(Route::from_message(m)?),
            matches!(message, M::DelRoute(_)),
        ),
        M::NewNeighbour(m) | M::DelNeighbour(m) => (
            match m.header.family {
                AddressFamily::Bridge => Object::Fdb(FdbEntry::from_message(m)?),
                _ => Object::Neigh(Neigh::from_message(m)?),
            },
            matches!(message, M::DelNeighbour(_)),
        ),
        _ => return None,
    };
    Some(Event { object, gone })
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
