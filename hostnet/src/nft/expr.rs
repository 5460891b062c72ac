//! Expressions: the kernel's instructions of which rules are made, to and from their bytes.
//!
//! A rule read back from the kernel is equal to the one that was sent, so that rules are compared by
//! what they do. An expression that Twill does not use stays comparable as [`Expr::Other`].

use serde::{Deserialize, Serialize};

use super::types::Name;
use super::wire::{Attrs, Writer, data, rule};

/// A register: the number of one of the sixteen of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8")]
pub struct Reg(pub u8);

impl TryFrom<u8> for Reg {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Reg, &'static str> {
        match number {
            0..16 => Ok(Reg(number)),
            _ => Err("there are sixteen registers"),
        }
    }
}

impl Reg {
    /// The first register.
    pub const FIRST: Reg = Reg(0);

    /// The register after a value of this many bytes.
    pub fn after(self, len: usize) -> Reg {
        Reg(self.0 + u8::try_from(len.div_ceil(4)).unwrap_or(u8::MAX))
    }

    /// `enum nft_registers`: 1 to 4 are those of 128 bits, 8 and up those of 32; the first part of a
    /// wide one goes by the wide one's number, and so does the kernel's dump.
    fn to_wire(self) -> u32 {
        match u32::from(self.0) {
            n if n.is_multiple_of(4) => 1 + n / 4,
            n => 8 + n,
        }
    }

    /// None for the verdict register and for numbers that are none.
    fn from_wire(number: u32) -> Option<Reg> {
        match number {
            1..=4 => Some(Reg(((number - 1) * 4) as u8)),
            8..=23 => Some(Reg((number - 8) as u8)),
            _ => None,
        }
    }
}

/// `NFT_REG_VERDICT`.
const REG_VERDICT: u32 = 0;

/// Numbers of the kernel's header, with names for those that Twill uses.
macro_rules! numbers {
    ($(#[$doc:meta] $name:ident($int:ty) { $($(#[$const_doc:meta])* $const:ident = $value:expr),* $(,)? })*) => {$(
        #[$doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $int);
        #[allow(missing_docs, reason = "the names are those of linux/netfilter/nf_tables.h")]
        impl $name {
            $($(#[$const_doc])* pub const $const: $name = $name($value);)*
        }
    )*};
}

numbers! {
    /// `enum nft_payload_bases`: the header that an offset counts from.
    Header(u32) { NETWORK = 1, TRANSPORT = 2 }
    /// `enum nft_meta_keys`.
    MetaKey(u32) { MARK = 3, IIF = 4, IIFNAME = 6, OIFNAME = 7, L4PROTO = 16 }
    /// `enum nft_ct_keys`.
    CtKey(u32) {
        STATE = 0, STATUS = 2, PROTO_DST = 12, SRC_IP = 19, DST_IP = 20, SRC_IP6 = 21, DST_IP6 = 22,
    }
    /// `enum ip_conntrack_dir`.
    Direction(u8) { ORIGINAL = 0 }
    /// `enum nft_fib_flags`: which address is looked up.
    FibAddr(u32) { SADDR = 1, DADDR = 2 }
    /// `enum nft_cmp_ops`.
    CmpOp(u32) { EQ = 0, NEQ = 1 }
    /// `enum nft_dynset_ops`.
    DynsetOp(u32) { ADD = 0, UPDATE = 1, DELETE = 2 }
    /// `NF_NAT_RANGE_*` of `linux/netfilter/nf_nat.h`: how NAT chooses ports.
    NatFlags(u32) { NONE = 0, RANDOM = 4, PERSISTENT = 8, FULLY_RANDOM = 16 }
    /// `enum nft_reject_types` and the ICMP code, as `type << 8 | code`.
    RejectWith(u32) { TCP_RESET = 0x100, ICMP_PORT_UNREACHABLE = 3, ICMPV6_PORT_UNREACHABLE = 4 }
}

/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`: set by the kernel where there is an address
/// or a port, and shown in its dumps.
const NAT_IMPLIED: u32 = 3;
/// `NFT_LOOKUP_F_INV`.
const LOOKUP_INVERT: u32 = 1;
/// `NFT_FIB_RESULT_ADDRTYPE`.
const FIB_RESULT_ADDRTYPE: u32 = 3;
/// `NFT_NAT_DNAT`.
const NAT_DNAT: u32 = 1;

/// What happens to a packet: of a rule, or from a verdict map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// Ends this base chain; later ones still see the packet.
    Accept,
    /// Ends it all.
    Drop,
    /// Back to the calling chain.
    Return,
    /// To a chain, and back after it.
    Jump(Name),
    /// To a chain, and not back.
    Goto(Name),
}

/// `jump CHAIN`.
pub fn jump(chain: impl Into<Name>) -> Verdict {
    Verdict::Jump(chain.into())
}

/// `goto CHAIN`.
pub fn goto(chain: impl Into<Name>) -> Verdict {
    Verdict::Goto(chain.into())
}

impl Verdict {
    /// Writes `NFTA_DATA_VERDICT`.
    pub(super) fn encode(&self, w: &mut Writer) {
        w.nest(data::VERDICT, |w| {
            let (code, chain) = match self {
                Verdict::Accept => (data::ACCEPT, None),
                Verdict::Drop => (data::DROP, None),
                Verdict::Return => (data::RETURN, None),
                Verdict::Jump(chain) => (data::JUMP, Some(chain)),
                Verdict::Goto(chain) => (data::GOTO, Some(chain)),
            };
            w.be32(data::CODE, code as u32);
            if let Some(chain) = chain {
                w.str(data::CHAIN, chain);
            }
        });
    }

    /// Reads the inside of `NFTA_DATA_VERDICT`; `name` makes (or shares) a chain's name.
    pub(super) fn decode(attrs: Attrs<'_>, name: &mut dyn FnMut(&str) -> Name) -> Option<Verdict> {
        Some(match attrs.be32(data::CODE)? as i32 {
            data::ACCEPT => Verdict::Accept,
            data::DROP => Verdict::Drop,
            data::RETURN => Verdict::Return,
            data::JUMP => Verdict::Jump(name(attrs.str(data::CHAIN)?)),
            data::GOTO => Verdict::Goto(name(attrs.str(data::CHAIN)?)),
            _ => return None,
        })
    }
}

/// One instruction. Loads write a register, the others read registers that loads have written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields are those of linux/netfilter/nf_tables.h"
)]
pub enum Expr {
    /// Loads bytes of a header.
    Payload {
        header: Header,
        offset: u32,
        len: u32,
        dreg: Reg,
    },
    /// Loads what the kernel knows of the packet.
    Meta { key: MetaKey, dreg: Reg },
    /// Loads what the kernel knows of the connection.
    Ct {
        key: CtKey,
        direction: Option<Direction>,
        dreg: Reg,
    },
    /// Loads the type of an address (`RTN_*`).
    FibType { addr: FibAddr, dreg: Reg },
    /// Loads a random number below the modulus.
    Random { modulus: u32, dreg: Reg },
    /// Loads a constant.
    Immediate { dreg: Reg, value: Vec<u8> },
    /// `dreg = sreg & mask ^ xor`.
    Bitwise {
        sreg: Reg,
        dreg: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Goes on with the rule only if it holds.
    Cmp {
        sreg: Reg,
        op: CmpOp,
        value: Vec<u8>,
    },
    /// Goes on only if the key is in the set (or, inverted, is not).
    InSet { set: Name, sreg: Reg, invert: bool },
    /// Loads the data of the key in a map; goes on only if it is there.
    Map { set: Name, sreg: Reg, dreg: Reg },
    /// The verdict of the key in a verdict map; goes on with the next rule if it is not there.
    VerdictMap { set: Name, sreg: Reg },
    /// Adds to or updates a dynamic set.
    Dynset {
        set: Name,
        op: DynsetOp,
        sreg_key: Reg,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// Destination NAT to an address, and a port if there is one. `nfproto` is `NFPROTO_*`.
    Dnat {
        nfproto: u32,
        addr: Reg,
        port: Option<Reg>,
        flags: NatFlags,
    },
    /// Source NAT to the address of the interface that the packet leaves by.
    Masquerade { flags: NatFlags },
    /// Destination NAT to this host.
    Redirect { port: Option<Reg>, flags: NatFlags },
    /// Drops and answers.
    Reject(RejectWith),
    /// Counts packets and bytes. The counts are not part of it.
    Counter,
    /// One that Twill does not use, in a foreign rule: its name and its attributes' bytes.
    Other { name: String, data: Vec<u8> },
}

impl Expr {
    /// The register that a load writes.
    pub(super) fn dreg(&self) -> Option<Reg> {
        match self {
            Expr::Payload { dreg, .. }
            | Expr::Meta { dreg, .. }
            | Expr::Ct { dreg, .. }
            | Expr::FibType { dreg, .. }
            | Expr::Random { dreg, .. }
            | Expr::Immediate { dreg, .. }
            | Expr::Bitwise { dreg, .. }
            | Expr::Map { dreg, .. } => Some(*dreg),
            _ => None,
        }
    }

    /// The kernel's name for it (`NFTA_EXPR_NAME`).
    fn name(&self) -> &str {
        match self {
            Expr::Payload { .. } => "payload",
            Expr::Meta { .. } => "meta",
            Expr::Ct { .. } => "ct",
            Expr::FibType { .. } => "fib",
            Expr::Random { .. } => "numgen",
            Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
            Expr::Bitwise { .. } => "bitwise",
            Expr::Cmp { .. } => "cmp",
            Expr::InSet { .. } | Expr::Map { .. } | Expr::VerdictMap { .. } => "lookup",
            Expr::Dynset { .. } => "dynset",
            Expr::Dnat { .. } => "nat",
            Expr::Masquerade { .. } => "masq",
            Expr::Redirect { .. } => "redir",
            Expr::Reject(_) => "reject",
            Expr::Counter => "counter",
            Expr::Other { name, .. } => name,
        }
    }

    /// Whether it changes nothing: nft turns the byte order of a key for ranges, also where a field of it has
    /// one byte alone. A rule that it has loaded is then still equal to ours.
    pub(super) fn is_idle(&self) -> bool {
        let Expr::Other { name, data } = self else {
            return false;
        };
        // `enum nft_byteorder_attributes`: source and destination register, operation, length, size of a unit.
        let attrs = Attrs(data);
        let (len, size) = (attrs.be32(4), attrs.be32(5));
        name == "byteorder" && attrs.be32(1) == attrs.be32(2) && len.is_some() && len < size
    }

    /// Writes one element of `NFTA_RULE_EXPRESSIONS`, attributes in the order in which `nft` does.
    pub(super) fn encode(&self, w: &mut Writer) {
        w.nest(rule::LIST_ELEM, |w| {
            w.str(rule::EXPR_NAME, self.name());
            match self {
                Expr::Other { data, .. } => w.bytes(rule::EXPR_DATA, data),
                _ => w.nest(rule::EXPR_DATA, |w| self.encode_data(w)),
            }
        });
    }

    /// Attribute numbers are those of the `enum nft_*_attributes` of each expression.
    fn encode_data(&self, w: &mut Writer) {
        let value =
            |w: &mut Writer, kind, bytes: &[u8]| w.nest(kind, |w| w.bytes(data::VALUE, bytes));
        match self {
            Expr::Payload {
                header,
                offset,
                len,
                dreg,
            } => {
                w.be32(1, dreg.to_wire());
                w.be32(2, header.0);
                w.be32(3, *offset);
                w.be32(4, *len);
            }
            Expr::Meta { key, dreg } => {
                w.be32(2, key.0);
                w.be32(1, dreg.to_wire());
            }
            Expr::Ct {
                key,
                direction,
                dreg,
            } => {
                w.be32(2, key.0);
                w.be32(1, dreg.to_wire());
                if let Some(direction) = direction {
                    w.u8(3, direction.0);
                }
            }
            Expr::FibType { addr, dreg } => {
                w.be32(3, addr.0);
                w.be32(2, FIB_RESULT_ADDRTYPE);
                w.be32(1, dreg.to_wire());
            }
            Expr::Random { modulus, dreg } => {
                w.be32(1, dreg.to_wire());
                w.be32(2, *modulus);
                w.be32(3, NG_RANDOM);
                w.be32(4, 0);
            }
            Expr::Immediate { dreg, value: bytes } => {
                w.be32(1, dreg.to_wire());
                value(w, 2, bytes);
            }
            Expr::Verdict(verdict) => {
                w.be32(1, REG_VERDICT);
                w.nest(2, |w| verdict.encode(w));
            }
            Expr::Bitwise {
                sreg,
                dreg,
                mask,
                xor,
            } => {
                w.be32(1, sreg.to_wire());
                w.be32(2, dreg.to_wire());
                w.be32(3, mask.len() as u32);
                value(w, 4, mask);
                value(w, 5, xor);
            }
            Expr::Cmp {
                sreg,
                op,
                value: bytes,
            } => {
                w.be32(1, sreg.to_wire());
                w.be32(2, op.0);
                value(w, 3, bytes);
            }
            Expr::InSet { set, sreg, invert } => {
                w.be32(2, sreg.to_wire());
                w.str(1, set);
                if *invert {
                    w.be32(5, LOOKUP_INVERT);
                }
            }
            Expr::Map { set, sreg, dreg } => {
                w.be32(2, sreg.to_wire());
                w.be32(3, dreg.to_wire());
                w.str(1, set);
            }
            Expr::VerdictMap { set, sreg } => {
                w.be32(2, sreg.to_wire());
                w.be32(3, REG_VERDICT);
                w.str(1, set);
            }
            Expr::Dynset { set, op, sreg_key } => {
                w.be32(4, sreg_key.to_wire());
                w.be32(3, op.0);
                w.str(1, set);
            }
            Expr::Dnat {
                nfproto,
                addr,
                port,
                flags,
            } => {
                w.be32(1, NAT_DNAT);
                w.be32(2, *nfproto);
                w.be32(3, addr.to_wire());
                if let Some(port) = port {
                    w.be32(5, port.to_wire());
                }
                if *flags != NatFlags::NONE {
                    w.be32(7, flags.0);
                }
            }
            Expr::Masquerade { flags } => {
                if *flags != NatFlags::NONE {
                    w.be32(1, flags.0);
                }
            }
            Expr::Redirect { port, flags } => {
                if let Some(port) = port {
                    w.be32(1, port.to_wire());
                }
                if *flags != NatFlags::NONE {
                    w.be32(3, flags.0);
                }
            }
            Expr::Reject(with) => {
                w.be32(1, with.0 >> 8);
                w.u8(2, with.0 as u8);
            }
            Expr::Counter | Expr::Other { .. } => {}
        }
    }

    /// Reads one element of `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn decode(attrs: Attrs<'_>) -> Expr {
        let name = attrs.str(rule::EXPR_NAME).unwrap_or_default();
        let data = attrs.get(rule::EXPR_DATA).unwrap_or_default();
        Expr::decode_known(name, Attrs(data)).unwrap_or_else(|| Expr::Other {
            name: name.to_owned(),
            data: data.to_vec(),
        })
    }

    fn decode_known(name: &str, a: Attrs<'_>) -> Option<Expr> {
        let reg = |kind| a.be32(kind).and_then(Reg::from_wire);
        let value = |kind| Some(a.nest(kind)?.get(data::VALUE)?.to_vec());
        // The kernel shows a range of registers where one was given; a true range is not ours.
        let single = |min, max| a.be32(max).is_none_or(|max| a.be32(min) == Some(max));
        Some(match name {
            "payload" => Expr::Payload {
                dreg: reg(1)?,
                header: Header(a.be32(2)?),
                offset: a.be32(3)?,
                len: a.be32(4)?,
            },
            "meta" => Expr::Meta {
                key: MetaKey(a.be32(2)?),
                dreg: reg(1)?,
            },
            "ct" => Expr::Ct {
                key: CtKey(a.be32(2)?),
                direction: a.u8(3).map(Direction),
                dreg: reg(1)?,
            },
            "fib" if a.be32(2)? == FIB_RESULT_ADDRTYPE => Expr::FibType {
                addr: FibAddr(a.be32(3)?),
                dreg: reg(1)?,
            },
            "numgen" if a.be32(3)? == NG_RANDOM && a.be32(4).unwrap_or(0) == 0 => Expr::Random {
                modulus: a.be32(2)?,
                dreg: reg(1)?,
            },
            "immediate" if a.be32(1)? == REG_VERDICT => {
                let verdict = a.nest(2)?.nest(data::VERDICT)?;
                Expr::Verdict(Verdict::decode(verdict, &mut |name| name.into())?)
            }
            "immediate" => Expr::Immediate {
                dreg: reg(1)?,
                value: value(2)?,
            },
            // Only `NFT_BITWISE_BOOL`; shifts are not ours.
            "bitwise" if a.be32(6).unwrap_or(0) == 0 => Expr::Bitwise {
                sreg: reg(1)?,
                dreg: reg(2)?,
                mask: value(4)?,
                xor: value(5)?,
            },
            "cmp" => Expr::Cmp {
                sreg: reg(1)?,
                op: CmpOp(a.be32(2)?),
                value: value(3)?,
            },
            "lookup" => {
                let (set, sreg) = (Name::from(a.str(1)?), reg(2)?);
                let invert = a.be32(5).unwrap_or(0) & LOOKUP_INVERT != 0;
                match a.be32(3) {
                    None => Expr::InSet { set, sreg, invert },
                    Some(REG_VERDICT) => Expr::VerdictMap { set, sreg },
                    Some(_) => Expr::Map {
                        set,
                        sreg,
                        dreg: reg(3)?,
                    },
                }
            }
            // With data, expressions or flags it is not ours. The timeout shown is the set's.
            "dynset"
                if [5, 7, 10].iter().all(|kind| a.get(*kind).is_none())
                    && a.be32(9).unwrap_or(0) == 0 =>
            {
                Expr::Dynset {
                    set: Name::from(a.str(1)?),
                    op: DynsetOp(a.be32(3)?),
                    sreg_key: reg(4)?,
                }
            }
            "nat" if a.be32(1)? == NAT_DNAT && single(3, 4) && single(5, 6) => Expr::Dnat {
                nfproto: a.be32(2)?,
                addr: reg(3)?,
                port: reg(5),
                flags: NatFlags(a.be32(7).unwrap_or(0) & !NAT_IMPLIED),
            },
            "masq" if a.get(2).is_none() => Expr::Masquerade {
                flags: NatFlags(a.be32(1).unwrap_or(0)),
            },
            "redir" if single(1, 2) => Expr::Redirect {
                port: reg(1),
                flags: NatFlags(a.be32(3).unwrap_or(0) & !NAT_IMPLIED),
            },
            "reject" => Expr::Reject(RejectWith(
                a.be32(1)? << 8 | u32::from(a.u8(2).unwrap_or(0)),
            )),
            "counter" => Expr::Counter,
            _ => return None,
        })
    }
}

/// A match or target of xtables, as `iptables-nft` puts it into its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xt<'a> {
    /// Whether it does something; else it asks.
    pub is_target: bool,
    /// Its name: `conntrack`, `DNAT`.
    pub name: &'a str,
    /// The revision, which says how its bytes are laid out.
    pub revision: u32,
    /// Its bytes: a struct of `linux/netfilter/xt_….h`.
    pub info: &'a [u8],
}

impl Expr {
    /// A match or target of xtables, as `iptables-nft` would put it into a rule.
    pub(crate) fn of_xt(word: &str, name: &str, revision: u8, info: &[u8]) -> Expr {
        let mut w = Writer::default();
        w.str(1, name);
        w.be32(2, revision.into());
        w.bytes(3, info);
        Expr::Other {
            name: word.to_owned(),
            data: w.into_bytes(),
        }
    }

    /// What of xtables it is, if it is.
    pub fn xt(&self) -> Option<Xt<'_>> {
        let Expr::Other { name, data } = self else {
            return None;
        };
        let is_target = match name.as_str() {
            "target" => true,
            "match" => false,
            _ => return None,
        };
        // `enum nft_match_attributes`, `enum nft_target_attributes`.
        let attrs = Attrs(data);
        Some(Xt {
            is_target,
            name: attrs.str(1)?,
            revision: attrs.be32(2)?,
            info: attrs.get(3)?,
        })
    }
}

/// `NFT_NG_RANDOM`.
const NG_RANDOM: u32 = 1;
