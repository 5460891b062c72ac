//! nf_tables over netlink: tables as plain data that is described, compared, applied and read back.
//!
//! A program describes a [`Table`] (a pure function of its inputs), [`Nft::observe`]s the kernel's,
//! [`diff`]s the two, and [`Nft::apply`]s the [`Changes`] in one transaction. [`Nft::converge`] is
//! these in a loop. All that is written can be listed by `nft list table`, with types, names and comments,
//! and the listing loads again with `nft -f`.
//!
//! ```text
//!  Table ── sets:   name → Set   { decl: SetDecl (key type, data type, flags), elements: Key → Element }
//!        └─ chains: name → Chain { base: hook and priority, rules: Rule = expressions }
//!
//!  diff(observed, desired) = Changes ── Display: an `nft -f` script
//!                                    └─ apply:   one netlink batch
//! ```
//!
//! Nothing here runs the `nft` program or links its libraries. Linux 5.13 or later.

mod batch;
mod comment;
mod diff;
mod dump;
mod error;
mod expr;
mod foreign;
#[cfg(test)]
mod golden;
mod lookup;
#[cfg(any(test, feature = "testkit"))]
pub mod model;
mod monitor;
mod rule;
mod selector;
mod set;
mod show;
mod table;
mod types;
mod udata;
mod wire;

pub use comment::Comment;
pub use diff::{Changes, Op, diff};
pub use dump::Observed;
#[cfg(any(test, feature = "testkit"))]
pub use dump::decode_all;
pub use error::{Error, Refusal};
pub use expr::{
    CmpOp, CtKey, Direction, DynsetOp, Expr, FibAddr, Header, MetaKey, NatFlags, Reg, RejectWith,
    Verdict, Xt, goto, jump,
};
pub use foreign::ForwardChain;
pub use lookup::{AnyTable, BaseChain, Contents, SetContents};
pub use monitor::{Change, Monitor};
pub use rule::Rule;
pub use selector::{CT_DNAT, CT_ESTABLISHED, CT_NEW, CT_RELATED, FIB_LOCAL, Selector};
pub use set::{Data, DataType, Element, Set, SetDecl};
pub use table::{Base, Chain, ChainKind, Hook, Policy, Table, TableId};
pub use types::{BitNames, Datum, FieldType, Key, KeyType, Name, Proto};

use crate::kernel;
use crate::nfnetlink::Socket;

/// How often reading a table, or converging on one, is tried when others change the ruleset meanwhile.
const ATTEMPTS: u32 = 10;

/// A connection to the nf_tables of one network namespace: that in which the thread was when it was opened.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    transactions: u32,
}

impl Nft {
    /// Connects to the nf_tables of the calling thread's network namespace. For another one:
    /// `netns.run_in(Nft::open)`.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel gives no netlink socket.
    pub fn open() -> Result<Nft, Error> {
        Ok(Nft {
            socket: Socket::open()?,
            transactions: 0,
        })
    }

    /// The netlink port of this connection, by which a [`Monitor`] tells our changes from others'.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// How many transactions this connection has made: each moves the generation by one.
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Whether the kernel can give sets room for more elements than they were made with: since Linux 6.5.
    pub fn resizes_sets(&self) -> bool {
        kernel::version(&kernel::release()).is_some_and(|version| version >= (6, 5))
    }

    /// How many bytes the kernel has answered questions with so far: what they cost, whatever the clock says.
    pub fn answered(&self) -> u64 {
        self.socket.answered
    }

    /// Reads a table, consistently: no change fell into the reading.
    ///
    /// # Errors
    /// [`Error::Unsteady`] when the ruleset never stood still; [`Error::Read`], [`Error::Socket`].
    pub fn observe(&mut self, table: &TableId) -> Result<Observed, Error> {
        for _ in 0..ATTEMPTS {
            match dump::read(&mut self.socket, table) {
                Ok(Some(observed)) => return Ok(observed),
                Ok(None) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::Unsteady {
            table: table.clone(),
            attempts: ATTEMPTS,
        })
    }

    /// The generation of the namespace's ruleset, which every change of any table moves.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn generation(&mut self) -> Result<u32, Error> {
        dump::read_generation(&mut self.socket)
    }

    /// The tables of the families `ip` and `ip6`.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn tables(&mut self) -> Result<Vec<TableId>, Error> {
        dump::read_tables(&mut self.socket)
    }

    /// Makes the changes in one transaction: all of them, or none ([`Op::ResizeSet`] before the others, which harms
    /// nobody). No changes: nothing is sent.
    ///
    /// # Errors
    /// [`Error::Refused`], which names the operation at fault; [`Error::Overrun`] when it is not known whether
    /// it was done; [`Error::Socket`].
    pub fn apply(&mut self, changes: &Changes) -> Result<(), Error> {
        self.send(changes, None)
    }

    /// As [`Nft::apply`], but only if the ruleset is still the one that was observed.
    ///
    /// # Errors
    /// As [`Nft::apply`], and [`Error::Stale`].
    pub fn apply_at(&mut self, generation: u32, changes: &Changes) -> Result<(), Error> {
        self.send(changes, Some(generation))
    }

    /// Makes the kernel's table this one: observes, compares and applies, again if the ruleset changed
    /// meanwhile. Returns what was done; empty if the table was right already.
    ///
    /// # Errors
    /// The last attempt's error.
    pub fn converge(&mut self, desired: &Table) -> Result<Changes, Error> {
        let mut attempt = 1;
        loop {
            let observed = self.observe(&desired.id)?;
            let changes = diff(observed.table.as_ref(), desired.clone());
            match self.apply_at(observed.generation, &changes) {
                Ok(()) => return Ok(changes),
                Err(e) if e.is_surprise() && attempt < ATTEMPTS => attempt += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// Removes a table, if it is there. Returns whether it was.
    ///
    /// # Errors
    /// As [`Nft::apply`].
    pub fn remove(&mut self, table: &TableId) -> Result<bool, Error> {
        if !self.tables()?.contains(table) {
            return Ok(false);
        }
        self.apply(&Changes::remove(table.clone()))?;
        Ok(true)
    }

    fn send(&mut self, changes: &Changes, generation: Option<u32>) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let is_resize = |op: &&Op| matches!(op, Op::ResizeSet(_));
        let resizes = changes.ops.iter().take_while(is_resize).count();
        let (mut generation, all) = (generation, changes.ops.len());
        for ops in [0..resizes, resizes..all] {
            if !ops.is_empty() {
                batch::send(&mut self.socket, changes, ops, generation.take())?;
                self.transactions = self.transactions.wrapping_add(1);
            }
        }
        Ok(())
    }
}
