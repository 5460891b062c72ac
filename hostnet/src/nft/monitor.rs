//! Notice of changes to the ruleset, whoever makes them.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};

use super::Error;
use super::table::TableId;
use super::wire::{self, Message, generation, msg};
use crate::nfnetlink::Socket;
use crate::vocab::Family;

/// A subscription to the ruleset changes of one network namespace.
///
/// The kernel pays for every change that is told, so leave (drop it) during a load of many elements, and
/// observe after joining again. It can be polled: [`AsFd`].
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    /// Tables named by the messages of a transaction whose end is yet to come.
    tables: BTreeSet<TableId>,
    ready: VecDeque<Change>,
}

/// One transaction that someone made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The tables of the families `ip` and `ip6` in which something changed.
    pub tables: BTreeSet<TableId>,
    /// The generation that it led to.
    pub generation: u32,
    /// The netlink port of who made it: [`Nft::port`](super::Nft::port) if it was us.
    pub port: u32,
    /// The process that made it.
    pub pid: Option<u32>,
    /// That process's name, at most 15 bytes of it.
    pub process: Option<String>,
}

impl Monitor {
    /// Subscribes to the changes of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Monitor, Error> {
        let socket = Socket::open()?;
        socket.join(wire::GROUP_NFTABLES)?;
        Ok(Monitor {
            socket,
            tables: BTreeSet::new(),
            ready: VecDeque::new(),
        })
    }

    /// The next change. Without `wait`, None if there is none now.
    ///
    /// # Errors
    /// [`Error::Overrun`] when changes were missed: observe anew. [`Error::Socket`], [`Error::Malformed`].
    pub fn next(&mut self, wait: bool) -> Result<Option<Change>, Error> {
        while self.ready.is_empty() {
            let Some(datagram) = self.socket.receive(wait)? else {
                return Ok(None);
            };
            for message in wire::messages(datagram)? {
                if message.nft_kind() == Some(msg::NEWGEN) {
                    let tables = std::mem::take(&mut self.tables);
                    self.ready.extend(end_of_transaction(&message, tables));
                } else {
                    self.tables.extend(table_of(&message));
                }
            }
        }
        Ok(self.ready.pop_front())
    }
}

fn end_of_transaction(message: &Message<'_>, tables: BTreeSet<TableId>) -> Option<Change> {
    let attrs = message.attrs();
    Some(Change {
        tables,
        generation: attrs.be32(generation::ID)?,
        port: message.port,
        pid: attrs.be32(generation::PROC_PID),
        process: attrs.str(generation::PROC_NAME).map(str::to_owned),
    })
}

/// Every other message of nf_tables names its table in its first attribute.
fn table_of(message: &Message<'_>) -> Option<TableId> {
    let family = Family::ALL
        .into_iter()
        .find(|f| wire::nfproto(*f) == message.nfproto())?;
    message.nft_kind()?;
    Some(TableId::new(
        family,
        message.attrs().str(wire::table::NAME)?,
    ))
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
