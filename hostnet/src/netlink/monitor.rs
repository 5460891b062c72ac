//! Notice of what changes, whoever changes it: events as the same plain data that lists give.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NetlinkBuffer;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::socket::{Answer, decode};
use super::{Addr, Error, FdbEntry, Link, Neigh, Result, Route, link};

/// Room for what comes while the owner is busy, in bytes. The kernel may allow less.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The longest datagram that an event comes in.
const DATAGRAM: usize = 64 * 1024;

/// `RTNLGRP_*` of include/uapi/linux/rtnetlink.h: links, neighbours (forwarding entries too), and addresses and
/// routes of both families.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

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

fn event(message: &RouteNetlinkMessage) -> Option<Event> {
    use RouteNetlinkMessage as M;
    let (object, gone) = match message {
        // A bridge's port tells of itself in the bridge's family too, with fewer attributes.
        M::NewLink(m) | M::DelLink(m) if m.header.interface_family == AddressFamily::Unspec => (
            Object::Link(link::from_message(m)?),
            matches!(message, M::DelLink(_)),
        ),
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
