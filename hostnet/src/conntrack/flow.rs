//! One UDP flow, to and from its bytes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::nfnetlink::wire::{Attrs, Writer};
use crate::vocab::Family;

/// `IPPROTO_UDP`.
pub(super) const UDP: u8 = 17;

/// `enum ctattr_type`, `ctattr_tuple`, `ctattr_ip`, `ctattr_l4proto` and `ctattr_filter` of
/// `linux/netfilter/nfnetlink_conntrack.h`, without their `CTA` prefix.
pub(super) mod attr {
    pub(crate) const TUPLE_ORIG: u16 = 1;
    pub(crate) const TUPLE_REPLY: u16 = 2;
    pub(crate) const COUNTERS_ORIG: u16 = 9;
    pub(crate) const COUNTERS_REPLY: u16 = 10;
    pub(crate) const ID: u16 = 12;
    pub(crate) const ZONE: u16 = 18;
    pub(crate) const FILTER: u16 = 25;

    pub(crate) const TUPLE_IP: u16 = 1;
    pub(crate) const TUPLE_PROTO: u16 = 2;

    pub(crate) const IP_V4_SRC: u16 = 1;
    pub(crate) const IP_V4_DST: u16 = 2;
    pub(crate) const IP_V6_SRC: u16 = 3;
    pub(crate) const IP_V6_DST: u16 = 4;

    pub(crate) const PROTO_NUM: u16 = 1;
    pub(crate) const PROTO_SRC_PORT: u16 = 2;
    pub(crate) const PROTO_DST_PORT: u16 = 3;

    pub(crate) const COUNTERS_PACKETS: u16 = 1;
    pub(crate) const COUNTERS_BYTES: u16 = 2;

    pub(crate) const FILTER_ORIG_FLAGS: u16 = 1;
    pub(crate) const FILTER_REPLY_FLAGS: u16 = 2;
    /// The kernel's `CTA_FILTER_F_*`: which fields of the tuple count.
    pub(crate) const FILTER_IP_DST: u32 = 1 << 1;
    pub(crate) const FILTER_PROTO_NUM: u32 = 1 << 3;
    pub(crate) const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
}

/// Where the packets of one direction come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.src, self.dst)
    }
}

/// A UDP flow that the kernel remembers.
///
/// `Display` gives both directions: `10.244.1.2:4000 → 10.96.0.10:53, answered by 10.244.3.81:53 → 10.244.1.2:4000`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UdpFlow {
    /// The first packet's, before any translation.
    pub original: Tuple,
    /// That of the answers, before they are translated back: `reply.src` is who really answers.
    pub reply: Tuple,
    /// The conntrack zone.
    pub zone: u16,
    /// The kernel's number for it, which tells it from a later flow of the same addresses.
    pub id: u32,
}

impl UdpFlow {
    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.original.dst.ip())
    }

    /// Reads `CTA_*` of one dumped entry. None if it is no UDP.
    pub(super) fn decode(attrs: Attrs<'_>) -> Option<UdpFlow> {
        Some(UdpFlow {
            original: decode_tuple(attrs.nest(attr::TUPLE_ORIG)?)?,
            reply: decode_tuple(attrs.nest(attr::TUPLE_REPLY)?)?,
            zone: attrs.be16(attr::ZONE).unwrap_or(0),
            id: attrs.be32(attr::ID)?,
        })
    }

    /// Writes what names this flow and no other.
    pub(super) fn encode(&self, w: &mut Writer) {
        w.nest(attr::TUPLE_ORIG, |w| encode_tuple(w, &self.original));
        if self.zone != 0 {
            w.bytes(attr::ZONE, &self.zone.to_be_bytes());
        }
        w.be32(attr::ID, self.id);
    }
}

impl fmt::Display for UdpFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, answered by {}", self.original, self.reply)
    }
}

fn decode_tuple(attrs: Attrs<'_>) -> Option<Tuple> {
    let (proto, tuple) = decode_any(attrs)?;
    (proto == UDP).then_some(tuple)
}

/// A tuple of any protocol that has ports, with the protocol.
pub(super) fn decode_any(attrs: Attrs<'_>) -> Option<(u8, Tuple)> {
    let ip = attrs.nest(attr::TUPLE_IP)?;
    let proto = attrs.nest(attr::TUPLE_PROTO)?;
    let addr = |v4: u16, v6: u16| -> Option<IpAddr> {
        match (ip.get(v4), ip.get(v6)) {
            (Some(bytes), _) => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
            (None, Some(bytes)) => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
            (None, None) => None,
        }
    };
    let tuple = Tuple {
        src: SocketAddr::new(
            addr(attr::IP_V4_SRC, attr::IP_V6_SRC)?,
            proto.be16(attr::PROTO_SRC_PORT)?,
        ),
        dst: SocketAddr::new(
            addr(attr::IP_V4_DST, attr::IP_V6_DST)?,
            proto.be16(attr::PROTO_DST_PORT)?,
        ),
    };
    Some((proto.u8(attr::PROTO_NUM)?, tuple))
}

/// Writes the inside of `CTA_TUPLE_ORIG`.
pub(super) fn encode_tuple(w: &mut Writer, tuple: &Tuple) {
    w.nest(attr::TUPLE_IP, |w| {
        encode_addr(w, attr::IP_V4_SRC, attr::IP_V6_SRC, tuple.src.ip());
        encode_dst(w, tuple.dst.ip());
    });
    w.nest(attr::TUPLE_PROTO, |w| {
        w.u8(attr::PROTO_NUM, UDP);
        w.bytes(attr::PROTO_SRC_PORT, &tuple.src.port().to_be_bytes());
        w.bytes(attr::PROTO_DST_PORT, &tuple.dst.port().to_be_bytes());
    });
}

/// Writes `CTA_IP_V4_DST` or `CTA_IP_V6_DST`.
pub(super) fn encode_dst(w: &mut Writer, addr: IpAddr) {
    encode_addr(w, attr::IP_V4_DST, attr::IP_V6_DST, addr);
}

fn encode_addr(w: &mut Writer, v4: u16, v6: u16, addr: IpAddr) {
    match addr {
        IpAddr::V4(a) => w.bytes(v4, &a.octets()),
        IpAddr::V6(a) => w.bytes(v6, &a.octets()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(tuples: &[(u16, &Tuple)], id: u32, zone: u16) -> Vec<u8> {
        let mut w = Writer::default();
        w.message(0, 0, 0, 0, 0, |w| {
            for (kind, tuple) in tuples {
                w.nest(*kind, |w| encode_tuple(w, tuple));
            }
            w.be32(attr::ID, id);
            w.bytes(attr::ZONE, &zone.to_be_bytes());
        });
        w.into_bytes().split_off(20)
    }

    prop_compose! {
        fn tuple()(src: [u8; 16], dst: [u8; 16], v6: bool, ports: (u16, u16)) -> Tuple {
            let addr = |bytes: [u8; 16]| -> IpAddr {
                if v6 { bytes.into() } else { [bytes[0], bytes[1], bytes[2], bytes[3]].into() }
            };
            Tuple {
                src: SocketAddr::new(addr(src), ports.0),
                dst: SocketAddr::new(addr(dst), ports.1),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(original in tuple(), reply in tuple(), id: u32, zone: u16) {
            let bytes = bytes_of(&[(attr::TUPLE_ORIG, &original), (attr::TUPLE_REPLY, &reply)], id, zone);
            let flow = UdpFlow { original, reply, zone, id };
            prop_assert_eq!(UdpFlow::decode(Attrs(&bytes)), Some(flow));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, original in tuple(), at: prop::sample::Index, to: u8) {
            let _ = UdpFlow::decode(Attrs(&bytes));
            // Nearly right ones go deeper.
            bytes = bytes_of(&[(attr::TUPLE_ORIG, &original), (attr::TUPLE_REPLY, &original)], 1, 0);
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = UdpFlow::decode(Attrs(&bytes));
            let _ = UdpFlow::decode(Attrs(&bytes[..at]));
        }
    }

    #[test]
    fn another_protocol_is_no_flow() {
        let a: Tuple = Tuple {
            src: "192.0.2.1:1".parse().unwrap(),
            dst: "192.0.2.2:2".parse().unwrap(),
        };
        let mut bytes = bytes_of(&[(attr::TUPLE_ORIG, &a), (attr::TUPLE_REPLY, &a)], 1, 0);
        let tcp = bytes.iter().position(|b| *b == UDP).unwrap();
        bytes[tcp] = 6;
        assert_eq!(UdpFlow::decode(Attrs(&bytes)), None);
    }
}
