//! Matches and targets of xtables in the rules of iptables-nft: those that kube-proxy, flannel and firewalls use.
//!
//! Their structs lie in the machine's byte order; offsets are those of `linux/netfilter/xt_….h` on 64 bits.

use std::net::IpAddr;

use hostnet::nft::{Expr, Rule, Xt};
use hostnet::vocab::Family;

use super::End;
use super::expr::ExprEnd;
use super::packet::{Packet, SOURCE_PORT};
use super::run::{Place, Run};
use crate::view::Result;

/// What a match says.
enum Answer {
    Yes,
    No,
    /// Yes with this chance.
    Random(f64),
    Unknown,
}

impl From<bool> for Answer {
    fn from(holds: bool) -> Answer {
        if holds { Answer::Yes } else { Answer::No }
    }
}

impl Run<'_> {
    pub(super) fn xt(&mut self, place: &Place<'_>, rule: &Rule, expr: &Expr) -> Result<ExprEnd> {
        let Some(xt) = expr.xt() else {
            return Ok(ExprEnd::Unknown);
        };
        if xt.is_target {
            return Ok(self.target(place, rule, xt).unwrap_or(ExprEnd::Unknown));
        }
        let answer = match xt.name {
            "addrtype" => self.address_types(xt)?,
            _ => matches(&self.packet, xt).unwrap_or(Answer::Unknown),
        };
        Ok(match answer {
            Answer::Yes => ExprEnd::Next,
            Answer::No => ExprEnd::NoMatch,
            Answer::Unknown => ExprEnd::Unknown,
            Answer::Random(chance) if chance >= 1.0 => ExprEnd::Next,
            Answer::Random(chance) => match self.choices.choose(|| vec![chance, 1.0 - chance]) {
                0 => ExprEnd::Next,
                _ => ExprEnd::NoMatch,
            },
        })
    }

    /// `struct xt_addrtype_info_v1`: a bit for each `RTN_*`.
    fn address_types(&mut self, xt: Xt<'_>) -> Result<Answer> {
        let Some((source, destination, flags)) = word16(xt.info, 0)
            .zip(word16(xt.info, 2))
            .zip(word32(xt.info, 4))
            .map(|((source, destination), flags)| (source, destination, flags))
        else {
            return Ok(Answer::Unknown);
        };
        const INVERT_SOURCE: u32 = 1;
        const INVERT_DESTINATION: u32 = 2;
        // With a limit to an interface it is another question.
        if xt.revision != 1 || flags & !(INVERT_SOURCE | INVERT_DESTINATION) != 0 {
            return Ok(Answer::Unknown);
        }
        let (from, to) = (self.packet.source, self.packet.destination);
        let mut holds = true;
        for (address, wanted, invert) in [
            (from, source, INVERT_SOURCE),
            (to, destination, INVERT_DESTINATION),
        ] {
            if wanted != 0 {
                let is = 1 << self.view.address_type(address)?;
                holds &= (u32::from(wanted) & is != 0) != (flags & invert != 0);
            }
        }
        Ok(holds.into())
    }

    fn target(&mut self, place: &Place<'_>, rule: &Rule, xt: Xt<'_>) -> Option<ExprEnd> {
        Some(match xt.name {
            "MARK" if xt.revision == 2 => {
                let (mark, mask) = (word32(xt.info, 0)?, word32(xt.info, 4)?);
                self.packet.mark = (self.packet.mark & !mask) ^ mark;
                ExprEnd::Next
            }
            "DNAT" => {
                let (address, port) = range(xt, self.packet.family())?;
                ExprEnd::End(End::Dnat(address, port))
            }
            "REDIRECT" => ExprEnd::End(End::Redirect(range(xt, self.packet.family())?.1)),
            "MASQUERADE" | "SNAT" => {
                let step = self.step_of_rule(place, rule);
                self.steps.push(step);
                ExprEnd::End(End::Masquerade)
            }
            "REJECT" => {
                let step = self.step_of_rule(place, rule);
                self.steps.push(step);
                ExprEnd::End(End::Reject)
            }
            "LOG" | "NFLOG" | "TRACE" | "TCPMSS" | "CHECKSUM" | "CT" | "CONNMARK" => ExprEnd::Next,
            _ => return None,
        })
    }
}

/// Matches that the packet alone answers. `None`: the bytes are not as they should be.
fn matches(packet: &Packet, xt: Xt<'_>) -> Option<Answer> {
    let info = xt.info;
    let between =
        |at: usize, port: u16| Some((word16(info, at)?..=word16(info, at + 2)?).contains(&port));
    let ports = |inverts: u8, source, destination| -> Option<bool> {
        let source = between(source, SOURCE_PORT)? != (inverts & 1 != 0);
        Some(source && between(destination, packet.port)? != (inverts & 2 != 0))
    };
    Some(match xt.name {
        "comment" => Answer::Yes,
        // `struct xt_tcp`: ports, an option, which flags are looked at and how they are, what is inverted.
        "tcp" => {
            const SYN: u8 = 2;
            let (option, mask, flags, inverts) =
                (*info.get(8)?, *info.get(9)?, *info.get(10)?, *info.get(11)?);
            let has_flags = (SYN & mask == flags) != (inverts & 4 != 0);
            match option {
                0 => (ports(inverts, 0, 4)? && has_flags).into(),
                _ => Answer::Unknown,
            }
        }
        "udp" => ports(*info.get(8)?, 0, 4)?.into(),
        // `struct xt_mark_mtinfo1`.
        "mark" if xt.revision == 1 => {
            let (mark, mask) = (word32(info, 0)?, word32(info, 4)?);
            ((packet.mark & mask == mark) != (*info.get(8)? != 0)).into()
        }
        "statistic" => match (word16(info, 0)?, word16(info, 2)?) {
            // `XT_STATISTIC_MODE_RANDOM`, not inverted: of 2³¹.
            (0, 0) => Answer::Random(f64::from(word32(info, 4)?) / f64::from(1_u32 << 31)),
            _ => Answer::Unknown,
        },
        "recent" => match *info.get(8)? {
            // `XT_RECENT_SET`.
            2 => Answer::Yes,
            // A client that was not here before.
            _ => (*info.get(9)? != 0).into(),
        },
        "conntrack" if xt.revision >= 2 => {
            // `XT_CONNTRACK_STATE` alone; bits of a state are those of `XT_CONNTRACK_STATE_BIT`.
            const STATE: u16 = 1;
            const NEW: u16 = 8;
            const DNAT: u16 = 0x80;
            let (asked, inverts, states) =
                (word16(info, 146)?, word16(info, 148)?, word16(info, 150)?);
            if asked != STATE {
                return Some(Answer::Unknown);
            }
            let is = if packet.original.is_some() {
                NEW | DNAT
            } else {
                NEW
            };
            ((is & states != 0) != (inverts & STATE != 0)).into()
        }
        // `struct xt_multiport_v1`: which ports, how many, the ports, which of them begin a range, inverted.
        "multiport" if xt.revision == 1 => {
            let (which, count) = (*info.first()?, usize::from(*info.get(1)?));
            let mut holds = false;
            let mut at = 0;
            while at < count {
                let low = word16(info, 2 + 2 * at)?;
                let is_range = *info.get(32 + at)? != 0;
                at += usize::from(is_range);
                let high = word16(info, 2 + 2 * at)?;
                at += 1;
                let has = |port: u16| (low..=high).contains(&port);
                holds |= match which {
                    0 => has(SOURCE_PORT),
                    1 => has(packet.port),
                    _ => has(SOURCE_PORT) || has(packet.port),
                };
            }
            (holds != (*info.get(47)? != 0)).into()
        }
        _ => Answer::Unknown,
    })
}

/// The address and port of `DNAT` and `REDIRECT`: `struct nf_nat_range2`, in revision 0 `struct nf_nat_ipv4_multi_range_compat`.
fn range(xt: Xt<'_>, family: Family) -> Option<(IpAddr, Option<u16>)> {
    const HAS_PORT: u32 = 2;
    let (flags, address, port) = match (xt.revision, family) {
        (0, Family::V4) => (4, 8, 16),
        _ => (0, 4, 36),
    };
    let bytes = xt.info.get(address..)?;
    let address = match family {
        Family::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
        Family::V6 => IpAddr::from(*bytes.first_chunk::<16>()?),
    };
    let has_port = word32(xt.info, flags)? & HAS_PORT != 0;
    let port = word16be(xt.info, port).filter(|_| has_port);
    Some((address, port))
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word16be(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
