//! The bytes of netlink: messages, attributes, and the numbers of nf_tables.
//!
//! Numbers are those of `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and
//! `linux/netfilter/nf_tables.h`, under the names they have there without their `NFT`/`NFTA` prefix.
//! Integers inside nf_tables attributes are big endian; netlink's own headers are in host order.

use super::Error;
use crate::vocab::Family;

/// Length of `struct nlmsghdr`.
pub(super) const NLMSG_HDRLEN: usize = 16;
/// The largest length of one attribute, its header of 4 bytes included: the field has 16 bits.
pub(super) const ATTR_MAX: usize = u16::MAX as usize;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLMSG_OVERRUN: u16 = 4;
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`: the batch is refused (ERESTART) if the ruleset's generation is another.
pub(super) const BATCH_GENID: u16 = 1;
/// `NFNL_SUBSYS_NFTABLES`: the high byte of the message type.
pub(super) const SUBSYS_NFTABLES: u16 = 10;
/// `NFNLGRP_NFTABLES`: the multicast group of ruleset changes.
pub(super) const GROUP_NFTABLES: u32 = 7;

pub(super) const F_REQUEST: u16 = 0x1;
pub(super) const F_ACK: u16 = 0x4;
/// Set by the kernel on a message of a dump during which the ruleset changed.
pub(super) const F_DUMP_INTR: u16 = 0x10;
pub(super) const F_DUMP: u16 = 0x300;
pub(super) const F_EXCL: u16 = 0x200;
pub(super) const F_CREATE: u16 = 0x400;
pub(super) const F_APPEND: u16 = 0x800;
/// On an error message: extended-ack attributes follow.
pub(super) const F_ACK_TLVS: u16 = 0x200;
/// On an error message: the request is not repeated in it, only its header.
pub(super) const F_CAPPED: u16 = 0x100;
/// `NLMSGERR_ATTR_MSG` and `NLMSGERR_ATTR_OFFS`.
pub(super) const ERR_MSG: u16 = 1;
pub(super) const ERR_OFFS: u16 = 2;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `enum nf_tables_msg_types`.
pub(super) mod msg {
    pub(crate) const NEWTABLE: u8 = 0;
    pub(crate) const GETTABLE: u8 = 1;
    pub(crate) const DELTABLE: u8 = 2;
    pub(crate) const NEWCHAIN: u8 = 3;
    pub(crate) const GETCHAIN: u8 = 4;
    pub(crate) const DELCHAIN: u8 = 5;
    pub(crate) const NEWRULE: u8 = 6;
    pub(crate) const GETRULE: u8 = 7;
    pub(crate) const DELRULE: u8 = 8;
    pub(crate) const NEWSET: u8 = 9;
    pub(crate) const GETSET: u8 = 10;
    pub(crate) const DELSET: u8 = 11;
    pub(crate) const NEWSETELEM: u8 = 12;
    pub(crate) const GETSETELEM: u8 = 13;
    pub(crate) const DELSETELEM: u8 = 14;
    pub(crate) const NEWGEN: u8 = 15;
    pub(crate) const GETGEN: u8 = 16;
}

/// `enum nft_table_attributes`.
pub(super) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    pub(crate) const USERDATA: u16 = 6;
}

/// `enum nft_chain_attributes` and `enum nft_hook_attributes`.
pub(super) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const FLAGS: u16 = 10;
    pub(crate) const USERDATA: u16 = 12;
    /// `NFT_CHAIN_BASE`.
    pub(crate) const F_BASE: u32 = 1;
    pub(crate) const HOOK_NUM: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
}

/// `enum nft_rule_attributes`; `LIST_ELEM`, `EXPR_NAME` and `EXPR_DATA` inside its expressions.
pub(super) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const EXPRESSIONS: u16 = 4;
    pub(crate) const USERDATA: u16 = 7;
    pub(crate) const LIST_ELEM: u16 = 1;
    pub(crate) const EXPR_NAME: u16 = 1;
    pub(crate) const EXPR_DATA: u16 = 2;
}

/// `enum nft_set_attributes`, `enum nft_set_desc_attributes` and `enum nft_set_flags`.
pub(super) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LEN: u16 = 5;
    pub(crate) const DATA_TYPE: u16 = 6;
    pub(crate) const DATA_LEN: u16 = 7;
    pub(crate) const DESC: u16 = 9;
    pub(crate) const ID: u16 = 10;
    pub(crate) const TIMEOUT: u16 = 11;
    pub(crate) const USERDATA: u16 = 13;
    pub(crate) const DESC_SIZE: u16 = 1;
    pub(crate) const DESC_CONCAT: u16 = 2;
    pub(crate) const DESC_FIELD: u16 = 1;
    pub(crate) const DESC_FIELD_LEN: u16 = 1;

    pub(crate) const F_INTERVAL: u32 = 0x4;
    pub(crate) const F_MAP: u32 = 0x8;
    pub(crate) const F_TIMEOUT: u32 = 0x10;
    pub(crate) const F_EVAL: u32 = 0x20;
    pub(crate) const F_CONCAT: u32 = 0x80;

    /// `NFT_DATA_VERDICT`: the data type of a verdict map.
    pub(crate) const TYPE_VERDICT: u32 = 0xffff_ff00;
}

/// `enum nft_set_elem_list_attributes`, `enum nft_set_elem_attributes`.
pub(super) mod elem {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const SET: u16 = 2;
    pub(crate) const LIST: u16 = 3;
    pub(crate) const LIST_ELEM: u16 = 1;
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const USERDATA: u16 = 6;
    pub(crate) const KEY_END: u16 = 10;
    pub(crate) const F_INTERVAL_END: u32 = 0x1;
}

/// `enum nft_data_attributes`, `enum nft_verdict_attributes` and the verdict codes.
pub(super) mod data {
    pub(crate) const VALUE: u16 = 1;
    pub(crate) const VERDICT: u16 = 2;
    pub(crate) const CODE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;

    pub(crate) const DROP: i32 = 0;
    pub(crate) const ACCEPT: i32 = 1;
    pub(crate) const JUMP: i32 = -3;
    pub(crate) const GOTO: i32 = -4;
    pub(crate) const RETURN: i32 = -5;
}

/// `enum nft_gen_attributes`.
pub(super) mod generation {
    pub(crate) const ID: u16 = 1;
    pub(crate) const PROC_PID: u16 = 2;
    pub(crate) const PROC_NAME: u16 = 3;
}

/// Appends netlink messages to a buffer.
#[derive(Debug, Default)]
pub(super) struct Writer {
    buf: Vec<u8>,
    message_at: usize,
}

impl Writer {
    /// All messages written so far.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.buf
    }

    /// Writes one nf_tables message; `body` writes its attributes.
    pub(super) fn nft(
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
    pub(super) fn message(
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
    pub(super) fn add_flags_to_last(&mut self, flags: u16) {
        let at = self.message_at + 6;
        let flags = flags | u16_at(&self.buf, at);
        self.buf[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Where in the current message the next attribute will start, as error offsets count.
    pub(super) fn offset_in_message(&self) -> usize {
        self.buf.len() - self.message_at
    }

    /// One attribute with these bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.with(kind, |w| w.buf.extend_from_slice(value));
    }

    /// A string, ended by a NUL.
    pub(super) fn str(&mut self, kind: u16, value: &str) {
        self.with(kind, |w| {
            w.buf.extend_from_slice(value.as_bytes());
            w.buf.push(0);
        });
    }

    pub(super) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute that holds the attributes which `body` writes.
    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
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
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
    /// The port of the socket that caused it: for notifications, of whoever changed the ruleset.
    pub(super) port: u32,
    /// All after `struct nlmsghdr`.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The nf_tables message type (`msg::…`), if it is one of nf_tables.
    pub(super) fn nft_kind(&self) -> Option<u8> {
        let [kind, subsystem] = self.kind.to_le_bytes();
        (u16::from(subsystem) == SUBSYS_NFTABLES).then_some(kind)
    }

    /// `nfgen_family`.
    pub(super) fn nfproto(&self) -> u8 {
        self.payload.first().copied().unwrap_or(0)
    }

    /// The attributes after `struct nfgenmsg`.
    pub(super) fn attrs(&self) -> Attrs<'a> {
        Attrs(self.payload.get(4..).unwrap_or(&[]))
    }
}

/// Splits one datagram into its messages.
///
/// # Errors
/// [`Error::Malformed`] when a header claims more than there is.
pub(super) fn messages(mut bytes: &[u8]) -> Result<Vec<Message<'_>>, Error> {
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
pub(super) struct Attrs<'a>(pub(super) &'a [u8]);

impl<'a> Attrs<'a> {
    /// The value of the first attribute of this type.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| value)
    }

    pub(super) fn nest(self, kind: u16) -> Option<Attrs<'a>> {
        self.get(kind).map(Attrs)
    }

    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(super) fn be64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(super) fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    /// A string, without the NUL that ends it.
    pub(super) fn str(self, kind: u16) -> Option<&'a str> {
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
pub(super) struct AttrIter<'a>(&'a [u8]);

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
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6` of `linux/netfilter.h`.
pub(super) fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}
