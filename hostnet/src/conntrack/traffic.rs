//! What the kernel counts of a flow.

use crate::nfnetlink::wire::Attrs;

use super::flow::{Tuple, attr, decode_any};

/// A flow of any protocol that has ports, with what it has carried so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// `IPPROTO_*`.
    pub proto: u8,
    /// The first packet's addresses, before any translation.
    pub original: Tuple,
    /// Those of the answers, before they are translated back.
    pub reply: Tuple,
    /// Packets and bytes of either direction, the original's first. `None`: `net.netfilter.nf_conntrack_acct` was off
    /// when it began.
    pub counted: Option<[(u64, u64); 2]>,
}

impl Traffic {
    pub(super) fn decode(attrs: Attrs<'_>) -> Option<Traffic> {
        let (proto, original) = decode_any(attrs.nest(attr::TUPLE_ORIG)?)?;
        let (_, reply) = decode_any(attrs.nest(attr::TUPLE_REPLY)?)?;
        let count = |direction: u16| {
            let counters = attrs.nest(direction)?;
            Some((
                counters.be64(attr::COUNTERS_PACKETS)?,
                counters.be64(attr::COUNTERS_BYTES)?,
            ))
        };
        let counted = count(attr::COUNTERS_ORIG).zip(count(attr::COUNTERS_REPLY));
        Some(Traffic {
            proto,
            original,
            reply,
            counted: counted.map(|(original, reply)| [original, reply]),
        })
    }
}
