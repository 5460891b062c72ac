//! What nf_tables, conntrack and nfacct share: the netlink family of netfilter.

mod ack;
mod socket;
pub(crate) mod wire;

use std::io;

use nix::errno::Errno;

pub(crate) use ack::Ack;
pub(crate) use socket::Socket;
use wire::{Message, Writer};

/// What can go wrong on such a socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The socket failed; `operation` says in doing what.
    #[error("{operation}")]
    Socket {
        operation: &'static str,
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{}", .0.desc())]
    Refused(Errno),
    /// Messages were lost: the socket's buffer was full.
    #[error("netlink messages were lost (receive buffer full)")]
    Overrun,
    /// The kernel sent something that is no netlink.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
}

/// Sends one request, of type `kind` (subsystem and message), and hands each answer on until the last.
pub(crate) fn request(
    socket: &mut Socket,
    kind: u16,
    flags: u16,
    nfproto: u8,
    ask: impl FnOnce(&mut Writer),
    mut each: impl FnMut(&Message<'_>),
) -> Result<(), Error> {
    let seq = socket.next_seq();
    let mut writer = Writer::default();
    writer.message(kind, flags, seq, nfproto, 0, ask);
    socket.send(&writer.into_bytes())?;
    let mut bytes = 0;
    let result = collect(socket, seq, |message| {
        bytes += message.payload.len() as u64;
        each(message);
    });
    socket.answered += bytes;
    result
}

/// Hands each answer to a request on until the last.
fn collect(socket: &mut Socket, seq: u32, mut each: impl FnMut(&Message<'_>)) -> Result<(), Error> {
    loop {
        let Some(datagram) = socket.receive(true)? else {
            continue;
        };
        for message in wire::messages(datagram)? {
            if message.seq != seq {
                continue;
            }
            match message.kind {
                wire::NLMSG_OVERRUN => return Err(Error::Overrun),
                wire::NLMSG_DONE => {
                    let code = match message.payload {
                        [_, _, _, _, ..] => wire::u32_at(message.payload, 0) as i32,
                        _ => 0,
                    };
                    return if code < 0 {
                        Err(Error::Refused(Errno::from_raw(-code)))
                    } else {
                        Ok(())
                    };
                }
                wire::NLMSG_ERROR => {
                    let ack = Ack::of(&message).ok_or(Error::Malformed("a short error"))?;
                    return ack.errno.map_or(Ok(()), |errno| Err(Error::Refused(errno)));
                }
                _ => each(&message),
            }
        }
    }
}
