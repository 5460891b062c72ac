//! The kernel's memory of UDP flows: read in one filtered dump, forgotten one by one.
//!
//! A UDP flow that was translated (or was not, since there was no rule yet) keeps its way for as long as
//! packets come, whatever the rules say since. Whoever changes DNAT rules therefore looks for the flows that
//! no longer match them, and has the kernel forget these: their next packet meets the rules anew.
//!
//! There is no way here to delete a flow of TCP or SCTP: these have an end of their own, and a client that is cut off
//! in the middle is worse off than one whose server went away. All flows can be counted ([`Traffic`]).
//!
//! ```no_run
//! use hostnet::conntrack::{Conntrack, Filter};
//! use hostnet::vocab::Family;
//!
//! let mut conntrack = Conntrack::open()?;
//! let mut stale = Vec::new();
//! conntrack.dump(&Filter::all(Family::V4).to_port(53), |flow| {
//!     if flow.reply.src.ip().is_loopback() {
//!         stale.push(flow);
//!     }
//! })?;
//! let deleted = conntrack.delete(&stale)?;
//! # Ok::<(), hostnet::conntrack::Error>(())
//! ```

mod flow;
mod traffic;

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::nfnetlink::wire::{self, Writer};
use crate::nfnetlink::{self, Ack, Socket};
use crate::vocab::Family;

use flow::attr;
pub use flow::{Tuple, UdpFlow};
pub use traffic::Traffic;

/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = wire::SUBSYS_CTNETLINK << 8 | 1;
const DELETE: u16 = wire::SUBSYS_CTNETLINK << 8 | 2;
/// How many flows are deleted in one system call: their answers fit the receive buffer many times over.
const DELETE_MAX: usize = 512;

/// What can go wrong between us and conntrack.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed; `operation` says in doing what.
    #[error("conntrack: {operation}")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel does not let us.
    #[error("conntrack: cannot {what}: {errno} ({}){}", .errno.desc(), remedy(*.errno))]
    Refused {
        /// What was asked for.
        what: String,
        /// Why not.
        errno: Errno,
    },
    /// Messages were lost: the socket's buffer was full.
    #[error("conntrack: netlink messages were lost (receive buffer full)")]
    Overrun,
    /// The kernel sent something that is no netlink.
    #[error("conntrack: malformed answer: {0}")]
    Malformed(&'static str),
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => "; CAP_NET_ADMIN is needed in this network namespace",
        Errno::EINVAL | Errno::EOPNOTSUPP => "; the kernel module nf_conntrack_netlink is needed",
        _ => "",
    }
}

impl Error {
    fn of(error: nfnetlink::Error, what: impl FnOnce() -> String) -> Error {
        match error {
            nfnetlink::Error::Socket { operation, source } => Error::Socket { operation, source },
            nfnetlink::Error::Refused(errno) => Error::Refused {
                what: what(),
                errno,
            },
            nfnetlink::Error::Overrun => Error::Overrun,
            nfnetlink::Error::Malformed(what) => Error::Malformed(what),
        }
    }
}

/// Which UDP flows to read: those of a family, and of these the ones whose first packet went to an address
/// or a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    family: Family,
    addr: Option<IpAddr>,
    port: Option<u16>,
}

impl Filter {
    /// All UDP flows of a family.
    pub fn all(family: Family) -> Filter {
        Filter {
            family,
            addr: None,
            port: None,
        }
    }

    /// Only those to an address. One of the other family matches nothing.
    #[must_use]
    pub fn to_addr(self, addr: IpAddr) -> Filter {
        Filter {
            addr: Some(addr),
            ..self
        }
    }

    /// Only those to a port.
    #[must_use]
    pub fn to_port(self, port: u16) -> Filter {
        Filter {
            port: Some(port),
            ..self
        }
    }

    /// Whether the flow is one of those.
    pub fn matches(&self, flow: &UdpFlow) -> bool {
        let to = flow.original.dst;
        Family::of(to.ip()) == self.family
            && self.addr.is_none_or(|addr| addr == to.ip())
            && self.port.is_none_or(|port| port == to.port())
    }

    /// Writes `CTA_TUPLE_ORIG` and `CTA_FILTER`, by which the kernel (5.8 and later) tells which to dump.
    fn encode(&self, w: &mut Writer) {
        let mut flags = attr::FILTER_PROTO_NUM;
        w.nest(attr::TUPLE_ORIG, |w| {
            // Of IPv6 addresses kernels (seen up to 6.18) give those that differ: these are told apart here.
            if let Some(addr @ IpAddr::V4(_)) = self.addr {
                flags |= attr::FILTER_IP_DST;
                w.nest(attr::TUPLE_IP, |w| flow::encode_dst(w, addr));
            }
            w.nest(attr::TUPLE_PROTO, |w| {
                w.u8(attr::PROTO_NUM, flow::UDP);
                if let Some(port) = self.port {
                    flags |= attr::FILTER_PROTO_DST_PORT;
                    w.bytes(attr::PROTO_DST_PORT, &port.to_be_bytes());
                }
            });
        });
        w.nest(attr::FILTER, |w| {
            // In host order, unlike all else here.
            w.bytes(attr::FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
            w.bytes(attr::FILTER_REPLY_FLAGS, &0_u32.to_ne_bytes());
        });
    }
}

/// A connection to the conntrack table of one network namespace: that in which the thread was when it was
/// opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Connects to the table of the calling thread's network namespace. For another one:
    /// `netns.run_in(Conntrack::open)`.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel gives no netlink socket.
    pub fn open() -> Result<Conntrack, Error> {
        let socket = Socket::open().map_err(|e| Error::of(e, String::new))?;
        Ok(Conntrack { socket })
    }

    /// Hands on each UDP flow that the filter takes, in one dump. The kernel sends only these; the table is
    /// never held in memory. Flows that come or go meanwhile may or may not be seen.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Socket`], [`Error::Malformed`].
    pub fn dump(&mut self, filter: &Filter, mut each: impl FnMut(UdpFlow)) -> Result<(), Error> {
        if filter
            .addr
            .is_some_and(|addr| Family::of(addr) != filter.family)
        {
            return Ok(());
        }
        nfnetlink::request(
            &mut self.socket,
            GET,
            wire::F_DUMP,
            wire::nfproto(filter.family),
            |w| filter.encode(w),
            |message| {
                if let Some(flow) = UdpFlow::decode(message.attrs())
                    && filter.matches(&flow)
                {
                    each(flow);
                }
            },
        )
        .map_err(|e| Error::of(e, || "read the UDP flows".to_owned()))
    }

    /// Hands on each flow of a family, of whatever protocol that has ports, with what it has carried.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Socket`], [`Error::Malformed`].
    pub fn traffic(&mut self, family: Family, mut each: impl FnMut(Traffic)) -> Result<(), Error> {
        nfnetlink::request(
            &mut self.socket,
            GET,
            wire::F_DUMP,
            wire::nfproto(family),
            |_| {},
            |message| {
                if let Some(traffic) = Traffic::decode(message.attrs()) {
                    each(traffic);
                }
            },
        )
        .map_err(|e| Error::of(e, || "read the flows".to_owned()))
    }

    /// Has the kernel forget these flows; those that are gone, or that are another flow of the same addresses
    /// by now, are left alone. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first flow that the kernel would not forget; all have been tried.
    pub fn delete(&mut self, flows: &[UdpFlow]) -> Result<usize, Error> {
        let mut deleted = 0;
        let mut refused = Ok(());
        for flows in flows.chunks(DELETE_MAX) {
            let first_seq = self.socket.next_seq();
            self.socket.skip_seqs(flows.len() as u32 - 1);
            let mut writer = Writer::default();
            for (seq, flow) in (first_seq..).zip(flows) {
                let nfproto = wire::nfproto(flow.family());
                writer.message(DELETE, wire::F_ACK, seq, nfproto, 0, |w| flow.encode(w));
            }
            let sending = || "delete UDP flows".to_owned();
            self.socket
                .send(&writer.into_bytes())
                .map_err(|e| Error::of(e, sending))?;
            // The kernel has worked when `send` returns: all its answers wait in the socket.
            while let Some(datagram) = self
                .socket
                .receive(false)
                .map_err(|e| Error::of(e, sending))?
            {
                for message in wire::messages(datagram).map_err(|e| Error::of(e, sending))? {
                    let index = message.seq.wrapping_sub(first_seq) as usize;
                    let (Some(ack), Some(flow)) = (Ack::of(&message), flows.get(index)) else {
                        continue;
                    };
                    match ack.errno {
                        None => deleted += 1,
                        Some(Errno::ENOENT) => {}
                        Some(errno) => {
                            let what = format!("delete the UDP flow {flow}");
                            refused = refused.and(Err(Error::Refused { what, errno }));
                        }
                    }
                }
            }
        }
        refused.map(|()| deleted)
    }
}
