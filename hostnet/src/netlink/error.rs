//! Why a netlink operation failed.

use std::io;

use netlink_packet_core::DecodeError;

use crate::kernel;
use crate::netns::NetNsError;

/// A netlink operation that failed. `what` names the operation and its object: `add address
/// 10.244.3.1/24 to #4`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket could be opened.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The namespace in which to open it could not be entered.
    #[error("cannot open a netlink socket")]
    Namespace(#[from] NetNsError),
    /// The kernel refused.
    #[error("cannot {what}{}", hint(.what, .message))]
    Kernel {
        /// The operation and its object.
        what: String,
        /// The kernel's extended-ack text, empty if it gave none.
        message: String,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// The request could not be sent, or its answer not be received.
    #[error("cannot {what}: the netlink socket failed")]
    Socket {
        /// The operation and its object.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel's answer could not be read.
    #[error("cannot {what}: the kernel's answer cannot be read")]
    Decode {
        /// The operation and its object.
        what: String,
        /// Why.
        source: DecodeError,
    },
    /// The kernel's tables changed during each attempt to read them.
    #[error("cannot {what}: the kernel's tables changed during {attempts} attempts in a row")]
    Inconsistent {
        /// The operation and its object.
        what: String,
        /// How often it was tried.
        attempts: u32,
    },
}

/// The kernel's words, and what to do where they alone say it.
fn hint(what: &str, message: &str) -> String {
    let kind = what
        .strip_prefix("create ")
        .and_then(|it| it.split(' ').next());
    match (message, kind) {
        ("", _) => String::new(),
        ("Unknown device type", Some(kind)) => {
            let config = format!("CONFIG_{}", kind.to_ascii_uppercase());
            let lacks = kernel::lacks(&format!("devices of the type {kind}"), kind, &config);
            format!(" ({message}; {lacks})")
        }
        _ => format!(" ({message})"),
    }
}

impl Error {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the kernel refused with one of these numbers.
    pub fn is_errno(&self, numbers: &[i32]) -> bool {
        self.errno().is_some_and(|errno| numbers.contains(&errno))
    }

    /// Whether something of that name or address was there already.
    pub fn is_exists(&self) -> bool {
        self.is_errno(&[libc::EEXIST])
    }

    /// Whether the object cannot be changed in the state that it is in.
    pub fn is_busy(&self) -> bool {
        self.is_errno(&[libc::EBUSY])
    }

    /// Whether messages were lost because nobody read them in time (`ENOBUFS`).
    pub fn is_overrun(&self) -> bool {
        matches!(self, Error::Socket { source, .. } if source.raw_os_error() == Some(libc::ENOBUFS))
    }

    /// Whether the object to change or delete was not there: the kernel says this in many ways
    /// (no device, no such address, no such route, no such neighbour).
    pub fn is_absent(&self) -> bool {
        self.is_errno(&[
            libc::ENODEV,
            libc::ENOENT,
            libc::ESRCH,
            libc::EADDRNOTAVAIL,
            libc::ENXIO,
        ])
    }
}

/// Makes the deletion of what is already gone a success.
pub trait AbsentOk {
    /// Passes on every error but those that [`Error::is_absent`].
    fn absent_ok(self) -> Result<(), Error>;
}

impl AbsentOk for Result<(), Error> {
    fn absent_ok(self) -> Result<(), Error> {
        match self {
            Err(error) if error.is_absent() => Ok(()),
            other => other,
        }
    }
}
