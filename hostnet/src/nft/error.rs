//! What can go wrong between us and nf_tables.

use std::fmt;
use std::io;

use nix::errno::Errno;

use super::table::TableId;
use crate::{kernel, nfnetlink};

/// An error of [`Nft`](super::Nft) or [`Monitor`](super::Monitor).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing in the kernel answers for nf_tables.
    #[error("{}", kernel::lacks("nf_tables", "nf_tables", "CONFIG_NF_TABLES"))]
    Absent,
    /// The socket failed; `operation` says in doing what.
    #[error("nf_tables: {operation}")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a transaction. Nothing of it was done.
    #[error("nf_tables: table {table}: nothing changed, the kernel refused {}", Refusals(.refusals))]
    Refused {
        /// The table it was about.
        table: TableId,
        /// What it refused, in the order of the transaction; the first is the cause. Never empty.
        refusals: Vec<Refusal>,
    },
    /// The ruleset is no longer the one that the transaction was computed from. Nothing was done.
    #[error("nf_tables: table {table}: nothing changed, the ruleset changed since it was read")]
    Stale {
        /// The table it was about.
        table: TableId,
    },
    /// The kernel refused a request to read.
    #[error("nf_tables: cannot read {what}: {}", errno_text(*.errno))]
    Read {
        /// What was asked for.
        what: String,
        /// Why not.
        errno: Errno,
    },
    /// The ruleset changed again and again while it was read.
    #[error(
        "nf_tables: table {table} changed {attempts} times while it was read; something rewrites the ruleset all the time"
    )]
    Unsteady {
        /// The table it was about.
        table: TableId,
        /// How often it was tried.
        attempts: u32,
    },
    /// Messages were lost: the socket's buffer was full.
    #[error("nf_tables: netlink messages were lost (receive buffer full)")]
    Overrun,
    /// The kernel sent something that is no netlink.
    #[error("nf_tables: malformed answer: {0}")]
    Malformed(&'static str),
}

impl From<nfnetlink::Error> for Error {
    fn from(error: nfnetlink::Error) -> Error {
        match error {
            nfnetlink::Error::Socket { source, .. }
                if source.raw_os_error() == Some(libc::EPROTONOSUPPORT) =>
            {
                Error::Absent
            }
            nfnetlink::Error::Socket { operation, source } => Error::Socket { operation, source },
            nfnetlink::Error::Refused(errno) => Error::Read {
                what: "the ruleset".to_owned(),
                errno,
            },
            nfnetlink::Error::Overrun => Error::Overrun,
            nfnetlink::Error::Malformed(what) => Error::Malformed(what),
        }
    }
}

impl Error {
    /// Whether reading the table again and computing anew can help: the kernel's state was not the one
    /// that was assumed.
    pub fn is_surprise(&self) -> bool {
        match self {
            Error::Stale { .. } | Error::Overrun => true,
            Error::Refused { refusals, .. } => refusals.first().is_some_and(|r| {
                matches!(
                    r.errno,
                    Errno::EEXIST | Errno::ENOENT | Errno::EBUSY | Errno::EAGAIN
                )
            }),
            _ => false,
        }
    }
}

/// One operation that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The operation, in nft's syntax; of several elements, the one at fault.
    pub operation: String,
    /// The kernel's reason.
    pub errno: Errno,
    /// The kernel's words, where it has any (extended acknowledgement).
    pub message: Option<String>,
    /// What the kernel lacks, where that is certain, and what brings it.
    pub lacks: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.operation, errno_text(self.errno))?;
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        match &self.lacks {
            Some(lacks) => write!(f, "; {lacks}"),
            None => Ok(()),
        }
    }
}

struct Refusals<'a>(&'a [Refusal]);

impl fmt::Display for Refusals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("it"),
            [only] => write!(f, "{only}"),
            [first, rest @ ..] => write!(f, "{first} (and {} more)", rest.len()),
        }
    }
}

/// `EEXIST (File exists)`, and what to do where that can be known.
fn errno_text(errno: Errno) -> String {
    let remedy = match errno {
        Errno::EPERM => "; CAP_NET_ADMIN is needed in this network namespace",
        Errno::EOPNOTSUPP => {
            "; the kernel lacks this feature (Linux 5.13 or later with nf_tables and nft_* modules is needed)"
        }
        _ => "",
    };
    format!("{errno:?} ({}){remedy}", errno.desc())
}
