//! The socket: requests out, answers in, each answer to its request.

use std::io;

use netlink_packet_core::{
    DecodeError, ErrorContext, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, ParseableParametrized,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::{Error, ExtAck, Result};
use crate::netns::NetNs;

/// The most that the kernel puts into one datagram of a dump is 32 KiB; a single link may need
/// more when it has many virtual functions, which we do not ask for.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The most requests in one system call. Each may be answered by an error of about 1 KiB of the
/// socket's receive buffer, which holds 200 KiB by default.
const BATCH_REQUESTS: usize = 100;

/// The most bytes in one system call: well below the default send buffer of 200 KiB.
const BATCH_BYTES: usize = 64 * 1024;

/// How often a dump is tried while the tables change under it.
const DUMP_ATTEMPTS: u32 = 10;

/// A change to be made: an encoded message, and its name for errors and logs.
#[derive(Clone, Debug)]
pub struct Request {
    what: String,
    flags: u16,
    message: RouteNetlinkMessage,
    /// Namespaces that the message refers to by descriptor stay open until it was sent.
    _keep: Option<NetNs>,
}

impl Request {
    pub(super) fn new(what: String, flags: u16, message: RouteNetlinkMessage) -> Request {
        Request {
            what,
            flags,
            message,
            _keep: None,
        }
    }

    pub(super) fn keeping(mut self, ns: Option<NetNs>) -> Request {
        self._keep = ns;
        self
    }

    /// The operation and its object: `delete route 10.244.1.0/24`.
    pub fn what(&self) -> &str {
        &self.what
    }
}

/// A handle on one network namespace's links, addresses, routes and neighbours.
///
/// It belongs to the namespace in which it was opened, whatever thread uses it later.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One message of the kernel's.
pub(super) enum Answer {
    /// An object.
    Object(RouteNetlinkMessage),
    /// The request is done, or failed.
    End(std::result::Result<(), (io::Error, ExtAck)>),
}

impl Rtnl {
    /// Opens a handle on the calling thread's namespace.
    pub fn open() -> Result<Rtnl> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        socket.set_ext_ack(true).map_err(Error::Open)?;
        socket.set_cap_ack(true).map_err(Error::Open)?;
        // Without it the kernel passes over what it does not know, and a filter filters nothing.
        socket
            .set_netlink_get_strict_chk(true)
            .map_err(Error::Open)?;
        Ok(Rtnl {
            socket,
            sequence: 0,
            buffer: Vec::new(),
        })
    }

    /// Opens a handle on a namespace; the calling thread is back where it was afterwards.
    pub fn open_in(ns: &NetNs) -> Result<Rtnl> {
        ns.run_in(Rtnl::open)?
    }

    /// Makes one change.
    pub fn apply(&mut self, request: Request) -> Result<()> {
        self.apply_all(std::slice::from_ref(&request))
            .pop()
            .unwrap_or(Ok(()))
    }

    /// Makes many changes in order, a hundred in one system call. A failed one does not stop
    /// those behind it; the outcomes are in the requests' order.
    pub fn apply_all(&mut self, requests: &[Request]) -> Vec<Result<()>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let (bytes, count) = self.encode_batch(rest);
            let (batch, later) = rest.split_at(count);
            self.exchange(&bytes, batch, &mut outcomes);
            rest = later;
        }
        outcomes
    }

    /// Encodes as many requests as one system call shall carry, at least one. Only the last asks
    /// for an acknowledgement: errors come anyway, and before it.
    fn encode_batch(&self, requests: &[Request]) -> (Vec<u8>, usize) {
        let mut bytes = Vec::new();
        let mut last = 0;
        let mut count = 0;
        for request in requests.iter().take(BATCH_REQUESTS) {
            let sequence = self.sequence.wrapping_add(count as u32 + 1);
            let message = encode(
                request.message.clone(),
                NLM_F_REQUEST | request.flags,
                sequence,
            );
            if count > 0 && bytes.len() + message.len() > BATCH_BYTES {
                break;
            }
            last = bytes.len();
            bytes.extend_from_slice(&message);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            count += 1;
        }
        if let Some(header) = bytes.get_mut(last..) {
            let mut header = NetlinkBuffer::new(header);
            let flags = header.flags() | NLM_F_ACK;
            header.set_flags(flags);
        }
        (bytes, count)
    }

    fn exchange(&mut self, bytes: &[u8], batch: &[Request], outcomes: &mut Vec<Result<()>>) {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(batch.len() as u32);
        let base = outcomes.len();
        if let Err(error) = self.send(bytes) {
            outcomes.extend(
                batch
                    .iter()
                    .map(|request| Err(socket_error(&request.what, &error))),
            );
            return;
        }
        outcomes.extend(batch.iter().map(|_| Ok(())));
        let mut done = false;
        while !done {
            let received = self.receive(|sequence, answer| {
                let index = sequence.wrapping_sub(first) as usize;
                let Some(request) = batch.get(index) else {
                    return;
                };
                if let Ok(Answer::End(end)) = answer {
                    done |= index + 1 == batch.len();
                    if let Err((source, ack)) = end {
                        outcomes[base + index] = Err(Error::Kernel {
                            what: request.what.clone(),
                            message: ack.message.unwrap_or_default(),
                            source,
                        });
                    }
                }
            });
            if let Err(error) = received {
                // Which of the requests were refused is lost with the answers (ENOBUFS), so
                // none of those without an answer counts as made.
                for (request, outcome) in batch.iter().zip(&mut outcomes[base..]) {
                    if outcome.is_ok() {
                        *outcome = Err(socket_error(&request.what, &error));
                    }
                }
                return;
            }
        }
    }

    /// Asks for one object. `None` if the kernel says that there is none.
    pub(super) fn get(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut object = None;
        let mut end = None;
        // The answer is the object or an error; an acknowledgement on top would say nothing.
        let bytes = encode(message, NLM_F_REQUEST, self.sequence);
        self.send(&bytes).map_err(|e| socket_error(what, &e))?;
        let wanted = self.sequence;
        let mut unreadable = None;
        while end.is_none() {
            self.receive(|sequence, answer| {
                if sequence != wanted {
                    return;
                }
                match answer {
                    Ok(Answer::Object(message)) => {
                        object = Some(message);
                        end = Some(Ok(()));
                    }
                    Ok(Answer::End(outcome)) => end = Some(outcome),
                    Err(error) => {
                        unreadable = Some(error);
                        end = Some(Ok(()));
                    }
                }
            })
            .map_err(|e| socket_error(what, &e))?;
        }
        if let Some(source) = unreadable {
            return Err(Error::Decode {
                what: what.to_owned(),
                source,
            });
        }
        match end {
            Some(Err((source, ack))) => {
                let error = Error::Kernel {
                    what: what.to_owned(),
                    message: ack.message.unwrap_or_default(),
                    source,
                };
                if error.is_absent() {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
            _ => Ok(object),
        }
    }

    /// Lists objects. `pick` turns each message into what the caller wants of it. A dump during
    /// which the tables changed, or whose answers did not fit, is started again.
    pub(super) fn dump<T>(
        &mut self,
        what: &str,
        message: &RouteNetlinkMessage,
        mut pick: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.dump_once(what, message, &mut pick)? {
                return Ok(objects);
            }
        }
        Err(Error::Inconsistent {
            what: what.to_owned(),
            attempts: DUMP_ATTEMPTS,
        })
    }

    /// One attempt; `None` if it has to be repeated.
    fn dump_once<T>(
        &mut self,
        what: &str,
        message: &RouteNetlinkMessage,
        pick: &mut impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let wanted = self.sequence;
        let bytes = encode(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, wanted);
        self.send(&bytes).map_err(|e| socket_error(what, &e))?;
        let mut objects = Vec::new();
        let mut end = None;
        let mut unreadable = None;
        let mut interrupted = false;
        while end.is_none() {
            let received = self.receive_flagged(|sequence, flags, answer| {
                if sequence != wanted {
                    return;
                }
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match answer {
                    Ok(Answer::Object(message)) => objects.extend(pick(message)),
                    Ok(Answer::End(outcome)) => end = Some(outcome),
                    // The dump is read to its end, or the socket would stay busy with it.
                    Err(error) => unreadable = Some(error),
                }
            });
            match received {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(None),
                other => other.map_err(|e| socket_error(what, &e))?,
            }
        }
        match end {
            // EBUSY: an earlier dump of this socket was cut short and still ends.
            Some(Err((source, _))) if source.raw_os_error() == Some(libc::EBUSY) => Ok(None),
            Some(Err((source, ack))) => Err(Error::Kernel {
                what: what.to_owned(),
                message: ack.message.unwrap_or_default(),
                source,
            }),
            _ if interrupted => Ok(None),
            _ => match unreadable {
                Some(source) => Err(Error::Decode {
                    what: what.to_owned(),
                    source,
                }),
                None => Ok(Some(objects)),
            },
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = SocketAddr::new(0, 0);
        loop {
            match self.socket.send_to(bytes, &kernel, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }

    fn receive(
        &mut self,
        mut each: impl FnMut(u32, std::result::Result<Answer, DecodeError>),
    ) -> io::Result<()> {
        self.receive_flagged(|sequence, _, answer| each(sequence, answer))
    }

    /// Receives one datagram and gives each of its messages: sequence number, flags, contents.
    fn receive_flagged(
        &mut self,
        mut each: impl FnMut(u32, u16, std::result::Result<Answer, DecodeError>),
    ) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.reserve(RECEIVE_BUFFER);
        let length = loop {
            match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if length > self.buffer.len() {
            return Err(io::Error::other(format!(
                "an answer of {length} bytes was cut short"
            )));
        }
        let mut rest = &self.buffer[..];
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            let length = message.length() as usize;
            let (sequence, flags) = (message.sequence_number(), message.flags());
            if let Some(answer) = decode(&message).transpose() {
                each(sequence, flags, answer);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

fn socket_error(what: &str, error: &io::Error) -> Error {
    // One failure may concern many requests, and io::Error cannot be cloned.
    let source = match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    };
    Error::Socket {
        what: what.to_owned(),
        source,
    }
}

fn encode(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reads one message; `None` for those that say nothing.
pub(super) fn decode(
    message: &NetlinkBuffer<&[u8]>,
) -> std::result::Result<Option<Answer>, DecodeError> {
    let body = message.payload();
    let code = |body: &[u8]| body.first_chunk().copied().map_or(0, i32::from_ne_bytes);
    let end = |code: i32, ack: ExtAck| match code {
        0 => Answer::End(Ok(())),
        code => Answer::End(Err((
            io::Error::from_raw_os_error(code.wrapping_neg()),
            ack,
        ))),
    };
    Ok(match message.message_type() {
        NLMSG_ERROR => Some(end(code(body), ExtAck::of_error(body, message.flags()))),
        NLMSG_DONE => Some(end(
            code(body),
            ExtAck::of_attributes(body.get(4..).unwrap_or_default()),
        )),
        NLMSG_NOOP | NLMSG_OVERRUN => None,
        kind => Some(Answer::Object(
            RouteNetlinkMessage::parse_with_param(body, kind)
                .context(format!("message of type {kind}"))?,
        )),
    })
}
