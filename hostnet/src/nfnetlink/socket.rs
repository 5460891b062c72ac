//! The NETLINK_NETFILTER socket: whole datagrams out and in, with extended acknowledgements.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as Netlink, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use super::Error;

/// Room for the answers to one transaction, and for dumps that wait to be read.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The kernel fills dump messages of at most 32 KiB, and acknowledgements are small.
const DATAGRAM: usize = 1 << 17;

/// A netlink socket in the network namespace in which it was opened, wherever the thread goes later.
#[derive(Debug)]
pub(crate) struct Socket {
    netlink: Netlink,
    port: u32,
    seq: u32,
    send_buffer: usize,
    received: Vec<u8>,
    /// How many bytes its requests were answered with.
    pub(crate) answered: u64,
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Socket, Error> {
        let failed = |operation| move |source| Error::Socket { operation, source };
        let mut netlink =
            Netlink::new(NETLINK_NETFILTER).map_err(failed("open a netlink socket"))?;
        let port = netlink
            .bind_auto()
            .map_err(failed("bind a netlink socket"))?
            .port_number();
        netlink
            .connect(&SocketAddr::new(0, 0))
            .map_err(failed("connect a netlink socket"))?;
        netlink
            .set_ext_ack(true)
            .map_err(failed("ask for extended acknowledgements"))?;
        netlink
            .set_cap_ack(true)
            .map_err(failed("ask for short acknowledgements"))?;
        let socket = Socket {
            netlink,
            port,
            seq: 0,
            send_buffer: 0,
            received: Vec::with_capacity(DATAGRAM),
            answered: 0,
        };
        socket.force_buffer(sockopt::RcvBufForce, sockopt::RcvBuf, RECEIVE_BUFFER)?;
        Ok(socket)
    }

    /// This socket's netlink port: the sender of the changes that it makes.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// The next sequence number.
    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// Passes over as many numbers, which a batch has used.
    pub(crate) fn skip_seqs(&mut self, count: u32) {
        self.seq = self.seq.wrapping_add(count);
    }

    /// Joins a multicast group.
    pub(crate) fn join(&self, group: u32) -> Result<(), Error> {
        let operation = "join a multicast group";
        self.netlink
            .add_membership(group)
            .map_err(|source| Error::Socket { operation, source })
    }

    /// Sends these messages in one system call, in a buffer that is made large enough.
    pub(crate) fn send(&mut self, messages: &[u8]) -> Result<(), Error> {
        // The kernel takes a datagram only if it fits the send buffer, less some bytes.
        let needed = messages.len() + 4096;
        if needed > self.send_buffer {
            self.force_buffer(sockopt::SndBufForce, sockopt::SndBuf, needed)?;
            self.send_buffer = needed;
        }
        loop {
            match self.netlink.send(messages, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Socket {
                        operation: "send",
                        source,
                    });
                }
            }
        }
    }

    /// The next datagram; None if there is none and `wait` is not set.
    pub(crate) fn receive(&mut self, wait: bool) -> Result<Option<&[u8]>, Error> {
        let flags = libc::MSG_TRUNC | if wait { 0 } else { libc::MSG_DONTWAIT };
        loop {
            self.received.clear();
            match self.netlink.recv(&mut self.received, flags) {
                Ok(len) if len > self.received.len() => {
                    return Err(Error::Malformed("a datagram is longer than any should be"));
                }
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Err(Error::Overrun),
                Err(source) => {
                    return Err(Error::Socket {
                        operation: "receive",
                        source,
                    });
                }
            }
        }
        Ok(Some(&self.received))
    }

    /// Sets a buffer beyond the system's limit, or as far as the limit goes without the privilege.
    fn force_buffer<F, P>(&self, force: F, polite: P, bytes: usize) -> Result<(), Error>
    where
        F: nix::sys::socket::SetSockOpt<Val = usize>,
        P: nix::sys::socket::SetSockOpt<Val = usize>,
    {
        setsockopt(&self.netlink, force, &bytes)
            .or_else(|_| setsockopt(&self.netlink, polite, &bytes))
            .map_err(|e| Error::Socket {
                operation: "set the size of a buffer",
                source: e.into(),
            })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}
