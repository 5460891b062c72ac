//! The bytes of netlink: messages and attributes, of nf_tables and of conntrack alike.
//!
//! Numbers are those of `linux/netlink.h` and `linux/netfilter/nfnetlink.h`. Integers inside netfilter's
//! attributes are big endian; netlink's own headers are in host order.

use super::Error;
use crate::vocab::Family;

/// Length of `struct nlmsghdr`.
pub(crate) const NLMSG_HDRLEN: usize = 16;
/// The largest length of one attribute, its header of 4 bytes included: the field has 16 bits.
pub(crate) const ATTR_MAX: usize = u16::MAX as usize;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLMSG_OVERRUN: u16 = 4;
pub(crate) const BATCH_BEGIN: u16 = 0x10;
pub(crate) const BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`: the batch is refused (ERESTART) if the ruleset's generation is another.
pub(crate) const BATCH_GENID: u16 = 1;
/// `NFNL_SUBSYS_CTNETLINK` and `NFNL_SUBSYS_NFTABLES`: the high byte of the message type.
pub(crate) const SUBSYS_CTNETLINK: u16 = 1;
pub(crate) const SUBSYS_NFTABLES: u16 = 10;

pub(crate) const F_REQUEST: u16 = 0x1;
pub(crate) const F_ACK: u16 = 0x4;
/// Set by the kernel on a message of a dump during which the ruleset changed.
pub(crate) const F_DUMP_INTR: u16 = 0x10;
pub(crate) const F_DUMP: u16 = 0x300;
pub(crate) const F_EXCL: u16 = 0x200;
pub(crate) const F_CREATE: u16 = 0x400;
pub(crate) const F_APPEND: u16 = 0x800;
/// On an error message: extended-ack attributes follow.
pub(crate) const F_ACK_TLVS: u16 = 0x200;
/// On an error message: the request is not repeated in it, only its header.
pub(crate) const F_CAPPED: u16 = 0x100;
/// `NLMSGERR_ATTR_MSG` and `NLMSGERR_ATTR_OFFS`.
pub(crate) const ERR_MSG: u16 = 1;
pub(crate) const ERR_OFFS: u16 = 2;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Appends netlink messages to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    buf: Vec<u8>,
    message_at: usize,
}

impl Writer {
    /// All messages written so far.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.buf
    }

    /// How many bytes have been written.
    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    /// Writes one nf_tables message; `body` writes its attributes.
    pub(crate) fn nft(
        &mut self,
        kind: u8,
        flags: u16,
        seq: u32,
        nfproto: u8,
        body: impl FnOnce(&mut Writer),
    ) {
        let kind = SUBSYS_NFTABLES << 8 | u16::from(kind);
        self.message(kind, flags, seq, nfproto, 0, body);
    }

    /// Writes one netfilter message: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        nfproto: u8,
        resource: u16,
        body: impl FnOnce(&mut Writer),
    ) {
        self.message_at = self.buf.len();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf
            .extend_from_slice(&(flags | F_REQUEST).to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&[nfproto, 0]);
        self.buf.extend_from_slice(&resource.to_be_bytes());
        body(self);
        let len = u32::try_from(self.buf.len() - self.message_at).unwrap_or(u32::MAX);
        self.buf[self.message_at..self.message_at + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Sets flags of the message written last.
    pub(crate) fn add_flags_to_last(&mut self, flags: u16) {
        let at = self.message_at + 6;
        let flags = flags | u16_at(&self.buf, at);
        self.buf[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Where in the current message the next attribute will start, as error offsets count.
    pub(crate) fn offset_in_message(&self) -> usize {
        self.buf.len() - self.message_at
    }

    /// One attribute with these bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.with(kind, |w| w.buf.extend_from_slice(value));
    }

    /// A string, ended by a NUL.
    pub(crate) fn str(&mut self, kind: u16, value: &str) {
        self.with(kind, |w| {
            w.buf.extend_from_slice(value.as_bytes());
            w.buf.push(0);
        });
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute that holds the attributes which `body` writes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
        self.with(kind | NLA_F_NESTED, body);
    }

    fn with(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
        let at = self.buf.len();
        self.buf.extend_from_slice(&[0; 2]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        let len = self.buf.len() - at;
        // Lists are closed before they grow past 16 bits, and nothing else comes near it.
        debug_assert!(len <= ATTR_MAX, "attribute {kind} of {len} bytes");
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        self.buf[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        while !(self.buf.len() - at).is_multiple_of(4) {
            self.buf.push(0);
        }
    }
}

/// One received netlink message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// The port of the socket that caused it: for notifications, of whoever changed the ruleset.
    pub(crate) port: u32,
    /// All after `struct nlmsghdr`.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The nf_tables message type (`msg::…`), if it is one of nf_tables.
    pub(crate) fn nft_kind(&self) -> Option<u8> {
        let [kind, subsystem] = self.kind.to_le_bytes();
        (u16::from(subsystem) == SUBSYS_NFTABLES).then_some(kind)
    }

    /// `nfgen_family`.
    pub(crate) fn nfproto(&self) -> u8 {
        self.payload.first().copied().unwrap_or(0)
    }

    /// The attributes after `struct nfgenmsg`.
    pub(crate) fn attrs(&self) -> Attrs<'a> {
        Attrs(self.payload.get(4..).unwrap_or(&[]))
    }
}

/// Splits one datagram into its messages.
///
/// # Errors
/// [`Error::Malformed`] when a header claims more than there is.
pub(crate) fn messages(mut bytes: &[u8]) -> Result<Vec<Message<'_>>, Error> {
    let mut out = Vec::new();
    while bytes.len() >= NLMSG_HDRLEN {
        let len = u32_at(bytes, 0) as usize;
        let Some(payload) = bytes.get(NLMSG_HDRLEN..len) else {
            return Err(Error::Malformed(
                "a message is shorter than its header says",
            ));
        };
        out.push(Message {
            kind: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            seq: u32_at(bytes, 8),
            port: u32_at(bytes, 12),
            payload,
        });
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(out)
}

/// The attributes of a message or nest, in order; ends at the first that is malformed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Attrs<'a> {
    /// The value of the first attribute of this type.
    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| value)
    }

    pub(crate) fn nest(self, kind: u16) -> Option<Attrs<'a>> {
        self.get(kind).map(Attrs)
    }

    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(crate) fn be16(self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(crate) fn be64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(crate) fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    /// A string, without the NUL that ends it.
    pub(crate) fn str(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).ok()
    }
}

impl<'a> IntoIterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);
    type IntoIter = AttrIter<'a>;
    fn into_iter(self) -> AttrIter<'a> {
        AttrIter(self.0)
    }
}

/// See [`Attrs`].
pub(crate) struct AttrIter<'a>(&'a [u8]);

impl<'a> Iterator for AttrIter<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.len() < 4 {
            return None;
        }
        let len = usize::from(u16_at(self.0, 0));
        let kind = u16_at(self.0, 2) & NLA_TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// Reads a `u32` in host order. The caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// `NFPROTO_INET`: the family of tables that see IPv4 and IPv6.
pub(crate) const NFPROTO_INET: u8 = 1;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6` of `linux/netfilter.h`.
pub(crate) fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}
