//! Rules, and the words to write them: a rule in the source reads as in `nft list`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::comment::Comment;
use super::expr::{CmpOp, DynsetOp, Expr, NatFlags, Reg, RejectWith, Verdict};
use super::selector::Selector;
use super::types::{Datum, FieldType, Name};
use super::wire;
use crate::vocab::{Family, Subnet};

/// One rule: its expressions, in order, and a comment.
///
/// ```
/// use hostnet::nft::{CT_DNAT, NatFlags, Proto, Rule, Selector::*};
/// use hostnet::vocab::Family::V4;
///
/// // meta l4proto tcp ct status dnat ct original ip daddr . ct original proto-dst @masq-tcp masquerade fully-random
/// let rule = Rule::new()
///     .eq(L4Proto, Proto::TCP)
///     .has(CtStatus, CT_DNAT)
///     .in_set([CtOriginalDaddr(V4), CtOriginalDport], "masq-tcp")
///     .masquerade(NatFlags::FULLY_RANDOM);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What the kernel runs.
    pub exprs: Vec<Expr>,
    /// What a person reads beside it.
    pub comment: Option<Comment>,
}

impl Rule {
    /// A rule that matches everything and does nothing yet.
    pub fn new() -> Rule {
        Rule::default()
    }

    /// `SELECTOR VALUE`: goes on only if it has this value. An interface name that ends in `*`
    /// stands for all that begin so.
    pub fn eq(self, what: Selector, value: impl Into<Datum>) -> Rule {
        self.cmp(what, CmpOp::EQ, &value.into())
    }

    /// `SELECTOR != VALUE`.
    pub fn ne(self, what: Selector, value: impl Into<Datum>) -> Rule {
        self.cmp(what, CmpOp::NEQ, &value.into())
    }

    /// `ip saddr 10.244.0.0/16`: goes on only if the address is in the subnet.
    pub fn within(self, what: Selector, subnet: Subnet) -> Rule {
        self.prefix(what, CmpOp::EQ, subnet)
    }

    /// `ip saddr != 10.244.0.0/16`.
    pub fn outside(self, what: Selector, subnet: Subnet) -> Rule {
        self.prefix(what, CmpOp::NEQ, subnet)
    }

    /// `ct status dnat`, `ct state established,related`: goes on if any of the bits is set.
    pub fn has(self, what: Selector, bits: u32) -> Rule {
        self.masked(what, bits, CmpOp::NEQ, 0)
    }

    /// `meta mark & MASK == VALUE`.
    pub fn masked_eq(self, what: Selector, mask: u32, value: u32) -> Rule {
        self.masked(what, mask, CmpOp::EQ, value)
    }

    /// `ip saddr . ip daddr @SET`: goes on only if the key is in the set.
    pub fn in_set(self, key: impl IntoIterator<Item = Selector>, set: impl Into<Name>) -> Rule {
        self.load(key).then(Expr::InSet {
            set: set.into(),
            sreg: Reg::FIRST,
            invert: false,
        })
    }

    /// `ip daddr != @SET`.
    pub fn not_in_set(self, key: impl IntoIterator<Item = Selector>, set: impl Into<Name>) -> Rule {
        self.load(key).then(Expr::InSet {
            set: set.into(),
            sreg: Reg::FIRST,
            invert: true,
        })
    }

    /// `ip daddr . meta l4proto . th dport vmap @MAP`: the verdict that the map has for the key.
    pub fn vmap(self, key: impl IntoIterator<Item = Selector>, map: impl Into<Name>) -> Rule {
        self.load(key).then(Expr::VerdictMap {
            set: map.into(),
            sreg: Reg::FIRST,
        })
    }

    /// `dnat ip to KEY map @MAP`: to the address and port that the map has for the key; goes on
    /// with the next rule if it has none.
    pub fn dnat_to_map(
        self,
        family: Family,
        key: impl IntoIterator<Item = Selector>,
        map: impl Into<Name>,
    ) -> Rule {
        let addr = Reg::FIRST;
        self.load(key)
            .then(Expr::Map {
                set: map.into(),
                sreg: Reg::FIRST,
                dreg: addr,
            })
            .then(Expr::Dnat {
                nfproto: u32::from(wire::nfproto(family)),
                addr,
                port: Some(addr.after(FieldType::addr(family).len())),
                flags: NatFlags::NONE,
            })
    }

    /// `dnat to ADDR:PORT`. With a port, nft wants `meta l4proto` before it.
    pub fn dnat_to(self, addr: IpAddr, port: Option<u16>) -> Rule {
        let load = |dreg, datum: Datum| Expr::Immediate {
            dreg,
            value: datum.to_bytes(),
        };
        // Each in one of the wide registers, as nft does.
        let (addr_reg, port_reg) = (Reg::FIRST, Reg::FIRST.after(FieldType::Ipv6Addr.len()));
        let mut rule = self.then(load(addr_reg, addr.into()));
        if let Some(port) = port {
            rule = rule.then(load(port_reg, port.into()));
        }
        rule.then(Expr::Dnat {
            nfproto: u32::from(wire::nfproto(Family::of(addr))),
            addr: addr_reg,
            port: port.map(|_| port_reg),
            flags: NatFlags::NONE,
        })
    }

    /// `redirect`, `redirect to :PORT`: to this host.
    pub fn redirect(self, port: Option<u16>) -> Rule {
        let Some(port) = port else {
            return self.then(Expr::Redirect {
                port: None,
                flags: NatFlags::NONE,
            });
        };
        self.then(Expr::Immediate {
            dreg: Reg::FIRST,
            value: Datum::from(port).to_bytes(),
        })
        .then(Expr::Redirect {
            port: Some(Reg::FIRST),
            flags: NatFlags::NONE,
        })
    }

    /// `masquerade`, `masquerade fully-random`.
    pub fn masquerade(self, flags: NatFlags) -> Rule {
        self.then(Expr::Masquerade { flags })
    }

    /// `update @SET { KEY }`: puts the key into a dynamic set, or renews its timeout.
    pub fn update(self, key: impl IntoIterator<Item = Selector>, set: impl Into<Name>) -> Rule {
        self.load(key).then(Expr::Dynset {
            set: set.into(),
            op: DynsetOp::UPDATE,
            sreg_key: Reg::FIRST,
        })
    }

    /// `reject with tcp reset`. Only after `meta l4proto tcp`.
    pub fn reject_tcp_reset(self) -> Rule {
        self.then(Expr::Reject(RejectWith::TCP_RESET))
    }

    /// `reject`: drops, and answers with ICMP port unreachable.
    pub fn reject(self, family: Family) -> Rule {
        self.then(Expr::Reject(match family {
            Family::V4 => RejectWith::ICMP_PORT_UNREACHABLE,
            Family::V6 => RejectWith::ICMPV6_PORT_UNREACHABLE,
        }))
    }

    /// `counter`.
    pub fn counter(self) -> Rule {
        self.then(Expr::Counter)
    }

    /// `accept`.
    pub fn accept(self) -> Rule {
        self.verdict(Verdict::Accept)
    }

    /// `drop`.
    pub fn drop(self) -> Rule {
        self.verdict(Verdict::Drop)
    }

    /// `return`.
    pub fn return_(self) -> Rule {
        self.verdict(Verdict::Return)
    }

    /// `jump CHAIN`.
    pub fn jump(self, chain: impl Into<Name>) -> Rule {
        self.verdict(Verdict::Jump(chain.into()))
    }

    /// `goto CHAIN`.
    pub fn goto(self, chain: impl Into<Name>) -> Rule {
        self.verdict(Verdict::Goto(chain.into()))
    }

    /// Ends the rule with this verdict.
    pub fn verdict(self, verdict: Verdict) -> Rule {
        self.then(Expr::Verdict(verdict))
    }

    /// `comment "…"`.
    pub fn comment(mut self, comment: impl Into<Comment>) -> Rule {
        self.comment = Some(comment.into());
        self
    }

    pub(crate) fn then(mut self, expr: Expr) -> Rule {
        self.exprs.push(expr);
        self
    }

    /// Loads the key's parts into registers that follow each other, from the first on. No value
    /// is kept from one statement to the next, so each may start there.
    fn load(mut self, key: impl IntoIterator<Item = Selector>) -> Rule {
        let mut reg = Reg::FIRST;
        for selector in key {
            self.exprs.push(selector.load(reg));
            reg = reg.after(selector.field_type().len());
        }
        self
    }

    fn cmp(self, what: Selector, op: CmpOp, value: &Datum) -> Rule {
        let mut value = value.to_bytes();
        if what.field_type() == FieldType::IfName {
            // "eth*": the kernel compares as many bytes as it is given.
            let name_len = value.iter().position(|b| *b == 0).unwrap_or(value.len());
            if name_len > 0 && value[name_len - 1] == b'*' {
                value.truncate(name_len - 1);
            }
        }
        self.load([what]).then(Expr::Cmp {
            sreg: Reg::FIRST,
            op,
            value,
        })
    }

    fn masked(self, what: Selector, mask: u32, op: CmpOp, value: u32) -> Rule {
        self.load([what])
            .then(Expr::Bitwise {
                sreg: Reg::FIRST,
                dreg: Reg::FIRST,
                mask: mask.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            })
            .then(Expr::Cmp {
                sreg: Reg::FIRST,
                op,
                value: value.to_ne_bytes().to_vec(),
            })
    }

    /// As nft compiles it, so that a listing that was saved and loaded again is still equal: a
    /// prefix of whole bytes loads only these, another is masked.
    fn prefix(mut self, what: Selector, op: CmpOp, subnet: Subnet) -> Rule {
        let mut value = Datum::from(subnet.base()).to_bytes();
        let bits = usize::from(subnet.prefix());
        let mut load = what.load(Reg::FIRST);
        match &mut load {
            Expr::Payload { len, .. } if bits > 0 && bits.is_multiple_of(8) => {
                *len = (bits / 8) as u32;
                value.truncate(bits / 8);
                self.exprs.push(load);
            }
            _ => {
                self.exprs.push(load);
                let mask = (0..value.len())
                    .map(|i| match bits.saturating_sub(i * 8) {
                        n if n >= 8 => 0xff,
                        n => !(0xff_u8 >> n),
                    })
                    .collect();
                let xor = vec![0; value.len()];
                self.exprs.push(Expr::Bitwise {
                    sreg: Reg::FIRST,
                    dreg: Reg::FIRST,
                    mask,
                    xor,
                });
            }
        }
        self.then(Expr::Cmp {
            sreg: Reg::FIRST,
            op,
            value,
        })
    }
}
