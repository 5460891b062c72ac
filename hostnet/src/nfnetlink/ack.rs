//! The kernel's answers to requests.

use nix::errno::Errno;

use super::wire::{self, Attrs, Message};

/// `NLMSG_ERROR`: the kernel's answer to one message.
pub(crate) struct Ack<'a> {
    /// None: it was done.
    pub(crate) errno: Option<Errno>,
    /// The kernel's words, where it has any.
    pub(crate) message: Option<&'a str>,
    /// Where in the request the fault lies.
    pub(crate) offset: Option<usize>,
}

impl<'a> Ack<'a> {
    /// Reads it; None if the message is another.
    pub(crate) fn of(message: &Message<'a>) -> Option<Ack<'a>> {
        if message.kind != wire::NLMSG_ERROR || message.payload.len() < 4 + wire::NLMSG_HDRLEN {
            return None;
        }
        let code = wire::u32_at(message.payload, 0) as i32;
        let errno = (code != 0).then(|| Errno::from_raw(-code));
        // After the code stands the request, only its header if capped; then the attributes.
        let request = if message.flags & wire::F_CAPPED != 0 || errno.is_none() {
            wire::NLMSG_HDRLEN
        } else {
            (wire::u32_at(message.payload, 4) as usize).next_multiple_of(4)
        };
        let mut ack = Ack {
            errno,
            message: None,
            offset: None,
        };
        if message.flags & wire::F_ACK_TLVS != 0 {
            let attrs = Attrs(message.payload.get(4 + request..).unwrap_or_default());
            ack.message = attrs.str(wire::ERR_MSG);
            ack.offset = attrs
                .get(wire::ERR_OFFS)
                .filter(|bytes| bytes.len() == 4)
                .map(|bytes| wire::u32_at(bytes, 0) as usize);
        }
        Some(ack)
    }
}
