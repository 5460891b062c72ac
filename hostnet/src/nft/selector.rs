//! Selectors: what a rule can ask of a packet, its connection or the kernel; the words on the left
//! of a comparison in `nft`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::expr::{CtKey, Direction, Expr, FibAddr, Header, MetaKey, Reg};
use super::types::{BitNames, FieldType};
use crate::vocab::Family;

/// `ct state established` (`NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`).
pub const CT_ESTABLISHED: u32 = 2;
/// `ct state related`.
pub const CT_RELATED: u32 = 4;
/// `ct state new`.
pub const CT_NEW: u32 = 8;
/// `ct status dnat` (`IPS_DST_NAT` of `linux/netfilter/nf_conntrack_common.h`).
pub const CT_DNAT: u32 = 32;
/// `fib … type local` (`RTN_LOCAL` of `linux/rtnetlink.h`).
pub const FIB_LOCAL: u32 = 2;

/// What a rule can ask. `Display` is nft's word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Selector {
    /// `ip saddr`, `ip6 saddr`.
    Saddr(Family),
    /// `ip daddr`, `ip6 daddr`.
    Daddr(Family),
    /// `th sport`: the source port of any transport protocol that has ports.
    Sport,
    /// `th dport`.
    Dport,
    /// `meta l4proto`.
    L4Proto,
    /// `meta mark`.
    Mark,
    /// `iif`: the number of the interface by which it came in, 0 where there is none.
    Iif,
    /// `iifname`.
    IifName,
    /// `oifname`.
    OifName,
    /// `ct state`: bits.
    CtState,
    /// `ct status`: bits.
    CtStatus,
    /// `ct original ip saddr`: the source of the connection's first packet, before NAT.
    CtOriginalSaddr(Family),
    /// `ct original ip daddr`.
    CtOriginalDaddr(Family),
    /// `ct original proto-dst`: nft only takes it after `meta l4proto`.
    CtOriginalDport,
    /// `fib saddr type`: what the source address is to this host.
    FibSaddrType,
    /// `fib daddr type`.
    FibDaddrType,
    /// `numgen random mod N`: a number below N, a new one for each packet.
    Random(u32),
}

impl Selector {
    /// The type of what it gives.
    pub fn field_type(self) -> FieldType {
        match self {
            Selector::Saddr(family)
            | Selector::Daddr(family)
            | Selector::CtOriginalSaddr(family)
            | Selector::CtOriginalDaddr(family) => FieldType::addr(family),
            Selector::Sport | Selector::Dport | Selector::CtOriginalDport => FieldType::InetService,
            Selector::L4Proto => FieldType::InetProto,
            Selector::Mark => FieldType::Mark,
            Selector::IifName | Selector::OifName => FieldType::IfName,
            Selector::CtState => FieldType::Bits(BitNames::CtState),
            Selector::CtStatus => FieldType::Bits(BitNames::CtStatus),
            Selector::FibSaddrType | Selector::FibDaddrType => FieldType::Bits(BitNames::FibType),
            Selector::Iif | Selector::Random(_) => FieldType::Integer,
        }
    }

    /// The expression that loads it into a register.
    pub(super) fn load(self, dreg: Reg) -> Expr {
        let payload = |header, offset, len| Expr::Payload {
            header,
            offset,
            len,
            dreg,
        };
        let meta = |key| Expr::Meta { key, dreg };
        let ct = |key, direction| Expr::Ct {
            key,
            direction,
            dreg,
        };
        let original = Some(Direction::ORIGINAL);
        match self {
            // Offsets of RFC 791 and RFC 8200 headers, and of ports in RFC 9293, 768 and 9260.
            Selector::Saddr(Family::V4) => payload(Header::NETWORK, 12, 4),
            Selector::Daddr(Family::V4) => payload(Header::NETWORK, 16, 4),
            Selector::Saddr(Family::V6) => payload(Header::NETWORK, 8, 16),
            Selector::Daddr(Family::V6) => payload(Header::NETWORK, 24, 16),
            Selector::Sport => payload(Header::TRANSPORT, 0, 2),
            Selector::Dport => payload(Header::TRANSPORT, 2, 2),
            Selector::L4Proto => meta(MetaKey::L4PROTO),
            Selector::Mark => meta(MetaKey::MARK),
            Selector::Iif => meta(MetaKey::IIF),
            Selector::IifName => meta(MetaKey::IIFNAME),
            Selector::OifName => meta(MetaKey::OIFNAME),
            Selector::CtState => ct(CtKey::STATE, None),
            Selector::CtStatus => ct(CtKey::STATUS, None),
            Selector::CtOriginalSaddr(Family::V4) => ct(CtKey::SRC_IP, original),
            Selector::CtOriginalDaddr(Family::V4) => ct(CtKey::DST_IP, original),
            Selector::CtOriginalSaddr(Family::V6) => ct(CtKey::SRC_IP6, original),
            Selector::CtOriginalDaddr(Family::V6) => ct(CtKey::DST_IP6, original),
            Selector::CtOriginalDport => ct(CtKey::PROTO_DST, original),
            Selector::FibSaddrType => Expr::FibType {
                addr: FibAddr::SADDR,
                dreg,
            },
            Selector::FibDaddrType => Expr::FibType {
                addr: FibAddr::DADDR,
                dreg,
            },
            Selector::Random(modulus) => Expr::Random { modulus, dreg },
        }
    }

    /// The selector that an expression loads, in a table of this family. Of an address, a leading
    /// part will do: that is how a comparison with a prefix of whole bytes is made.
    pub(super) fn of(expr: &Expr, family: Family) -> Option<Selector> {
        if let Expr::Random { modulus, .. } = expr {
            return Some(Selector::Random(*modulus));
        }
        let dreg = expr.dreg()?;
        Selector::all(family)
            .into_iter()
            .find(|selector| match (selector.load(dreg), expr) {
                (
                    Expr::Payload {
                        header,
                        offset,
                        len,
                        ..
                    },
                    Expr::Payload {
                        header: h,
                        offset: o,
                        len: l,
                        ..
                    },
                ) => {
                    let is_addr = matches!(selector, Selector::Saddr(_) | Selector::Daddr(_));
                    header == *h && offset == *o && (len == *l || is_addr && *l < len)
                }
                (load, expr) => load == *expr,
            })
    }

    /// All selectors of a family but [`Selector::Random`].
    pub(super) fn all(family: Family) -> [Selector; 16] {
        [
            Selector::Saddr(family),
            Selector::Daddr(family),
            Selector::Sport,
            Selector::Dport,
            Selector::L4Proto,
            Selector::Mark,
            Selector::Iif,
            Selector::IifName,
            Selector::OifName,
            Selector::CtState,
            Selector::CtStatus,
            Selector::CtOriginalSaddr(family),
            Selector::CtOriginalDaddr(family),
            Selector::CtOriginalDport,
            Selector::FibSaddrType,
            Selector::FibDaddrType,
        ]
    }
}

/// nft's word for a family: of tables, and of headers.
pub(super) fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Saddr(family) => write!(f, "{} saddr", family_word(*family)),
            Selector::Daddr(family) => write!(f, "{} daddr", family_word(*family)),
            Selector::Sport => f.write_str("th sport"),
            Selector::Dport => f.write_str("th dport"),
            Selector::L4Proto => f.write_str("meta l4proto"),
            Selector::Mark => f.write_str("meta mark"),
            Selector::Iif => f.write_str("iif"),
            Selector::IifName => f.write_str("iifname"),
            Selector::OifName => f.write_str("oifname"),
            Selector::CtState => f.write_str("ct state"),
            Selector::CtStatus => f.write_str("ct status"),
            Selector::CtOriginalSaddr(family) => {
                write!(f, "ct original {} saddr", family_word(*family))
            }
            Selector::CtOriginalDaddr(family) => {
                write!(f, "ct original {} daddr", family_word(*family))
            }
            Selector::CtOriginalDport => f.write_str("ct original proto-dst"),
            Selector::FibSaddrType => f.write_str("fib saddr type"),
            Selector::FibDaddrType => f.write_str("fib daddr type"),
            Selector::Random(modulus) => write!(f, "numgen random mod {modulus}"),
        }
    }
}
