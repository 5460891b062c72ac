//! One expression of a rule, on the registers.

use std::net::IpAddr;

use hostnet::nft::{CmpOp, Data, Expr, Key, Name, Reg, Rule, Verdict};

use super::run::{Place, Run};
use super::{End, Step, kube};
use crate::view::Result;

/// The registers of a rule. A random number stays open until it is asked for.
pub(super) struct Registers {
    pub(super) bytes: [u8; 64],
    pub(super) random: Option<(usize, u32)>,
}

impl Registers {
    fn at(reg: Reg) -> usize {
        usize::from(reg.0) * 4
    }

    fn write(&mut self, reg: Reg, value: &[u8]) {
        let at = Registers::at(reg);
        let end = (at + value.len().next_multiple_of(4)).min(self.bytes.len());
        self.bytes[at.min(end)..end].fill(0);
        let len = value.len().min(end - at.min(end));
        self.bytes[at..at + len].copy_from_slice(&value[..len]);
        if self.random.is_some_and(|(random, _)| random == at) {
            self.random = None;
        }
    }

    fn read(&self, reg: Reg, len: usize) -> &[u8] {
        let at = Registers::at(reg);
        self.bytes.get(at..at + len).unwrap_or_default()
    }
}

impl Run<'_> {
    pub(super) fn expr(
        &mut self,
        place: &Place<'_>,
        rule: &Rule,
        expr: &Expr,
        registers: &mut Registers,
    ) -> Result<ExprEnd> {
        let loaded = |registers: &mut Registers, dreg: Reg, value: Option<Vec<u8>>| match value {
            Some(value) => {
                registers.write(dreg, &value);
                ExprEnd::Next
            }
            None => ExprEnd::Unknown,
        };
        Ok(match expr {
            Expr::Payload {
                header,
                offset,
                len,
                dreg,
            } => loaded(
                registers,
                *dreg,
                self.packet.payload(*header, *offset, *len),
            ),
            Expr::Meta { key, dreg } => loaded(registers, *dreg, self.packet.meta(*key)),
            Expr::Ct { key, dreg, .. } => loaded(registers, *dreg, self.packet.ct(*key)),
            Expr::FibType { addr, dreg } => {
                let address = match addr.0 {
                    1 => self.packet.source,
                    _ => self.packet.destination,
                };
                let kind = self.view.address_type(address)?;
                loaded(registers, *dreg, Some(kind.to_ne_bytes().into()))
            }
            Expr::Random { modulus, dreg } => {
                registers.random = Some((Registers::at(*dreg), (*modulus).max(1)));
                ExprEnd::Next
            }
            Expr::Immediate { dreg, value } => loaded(registers, *dreg, Some(value.clone())),
            Expr::Bitwise {
                sreg,
                dreg,
                mask,
                xor,
            } => {
                let value = registers.read(*sreg, mask.len()).iter();
                let value = value.zip(mask).zip(xor).map(|((v, m), x)| v & m ^ x);
                loaded(registers, *dreg, Some(value.collect()))
            }
            Expr::Cmp { sreg, op, value } => self.cmp(registers, *sreg, *op, value),
            Expr::InSet { set, sreg, invert } => match self.find(place, set, registers, *sreg)? {
                Found::Unknown => ExprEnd::Unknown,
                Found::Not(_) if *invert => ExprEnd::Next,
                Found::Not(_) => ExprEnd::NoMatch,
                Found::Element(..) if *invert => ExprEnd::NoMatch,
                Found::Element(step, _) => {
                    self.steps.push(step);
                    ExprEnd::Next
                }
            },
            Expr::Map { set, sreg, .. } | Expr::VerdictMap { set, sreg } => {
                let found = self.find(place, set, registers, *sreg)?;
                match (self.data_of(found), expr) {
                    (Err(end), _) => end,
                    (Ok(Some(Data::Value(value))), Expr::Map { dreg, .. }) => {
                        loaded(registers, *dreg, Some(value.as_bytes().to_vec()))
                    }
                    (Ok(Some(Data::Verdict(verdict))), Expr::VerdictMap { .. }) => {
                        ExprEnd::Verdict(verdict)
                    }
                    _ => ExprEnd::NoMatch,
                }
            }
            Expr::Verdict(verdict) => {
                let is_told = match verdict {
                    Verdict::Drop => true,
                    Verdict::Jump(to) | Verdict::Goto(to) => kube::is_of_a_service(to),
                    _ => false,
                };
                if is_told {
                    let step = self.step_of_rule(place, rule);
                    self.steps.push(step);
                }
                ExprEnd::Verdict(verdict.clone())
            }
            Expr::Dnat { addr, port, .. } => {
                let len = usize::from(self.packet.family().bits() / 8);
                let address = address(registers.read(*addr, len));
                let port = port.and_then(|port| registers.read(port, 2).try_into().ok());
                match address {
                    Some(address) => ExprEnd::End(End::Dnat(address, port.map(u16::from_be_bytes))),
                    None => ExprEnd::Unknown,
                }
            }
            Expr::Redirect { port, .. } => {
                let port = port.and_then(|port| registers.read(port, 2).try_into().ok());
                ExprEnd::End(End::Redirect(port.map(u16::from_be_bytes)))
            }
            Expr::Masquerade { .. } => {
                let step = self.step_of_rule(place, rule);
                self.steps.push(step);
                ExprEnd::End(End::Masquerade)
            }
            Expr::Reject(_) => {
                let step = self.step_of_rule(place, rule);
                self.steps.push(step);
                ExprEnd::End(End::Reject)
            }
            Expr::Counter | Expr::Dynset { .. } => ExprEnd::Next,
            Expr::Other { .. } => self.xt(place, rule, expr)?,
        })
    }

    fn cmp(&mut self, registers: &Registers, sreg: Reg, op: CmpOp, value: &[u8]) -> ExprEnd {
        let at = Registers::at(sreg);
        let found = match registers.random {
            Some((random, modulus)) if random == at => {
                let wanted = value.try_into().map_or(u32::MAX, u32::from_ne_bytes);
                let share = 1.0 / f64::from(modulus);
                let is_equal = if wanted >= modulus {
                    false
                } else if modulus == 1 {
                    true
                } else {
                    self.choices.choose(|| vec![share, 1.0 - share]) == 0
                };
                if is_equal {
                    std::cmp::Ordering::Equal
                } else {
                    std::cmp::Ordering::Greater
                }
            }
            _ => registers.read(sreg, value.len()).cmp(value),
        };
        let holds = match op {
            CmpOp::EQ => found.is_eq(),
            CmpOp::NEQ => found.is_ne(),
            CmpOp(2) => found.is_lt(),
            CmpOp(3) => found.is_le(),
            CmpOp(4) => found.is_gt(),
            CmpOp(5) => found.is_ge(),
            _ => return ExprEnd::Unknown,
        };
        if holds {
            ExprEnd::Next
        } else {
            ExprEnd::NoMatch
        }
    }

    /// What a map gives, and notes the step; without an element, where that leads.
    fn data_of(&mut self, found: Found) -> std::result::Result<Option<Data>, ExprEnd> {
        match found {
            Found::Unknown => Err(ExprEnd::Unknown),
            Found::Not(step) => {
                self.missing.push(step);
                Err(ExprEnd::NoMatch)
            }
            Found::Element(step, data) => {
                self.steps.push(step);
                Ok(data)
            }
        }
    }

    fn find(
        &mut self,
        place: &Place<'_>,
        set: &Name,
        registers: &mut Registers,
        sreg: Reg,
    ) -> Result<Found> {
        let Some(decl) = self.view.declaration(place.table, set)? else {
            return Ok(Found::Unknown);
        };
        let (at, width) = (Registers::at(sreg), decl.key.width());
        if let Some((random, modulus)) = registers.random
            && (at..at + width).contains(&random)
        {
            let share = 1.0 / f64::from(modulus);
            let number = self.choices.choose(|| vec![share; modulus as usize]);
            registers.random = None;
            let number = u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes();
            registers.bytes[random..random + 4].copy_from_slice(&number);
        }
        let key = Key::from_bytes(registers.read(sreg, width));
        let step = |text, object| Step {
            table: place.table.clone(),
            chain: place.chain.clone(),
            set: Some(set.clone()),
            text,
            object,
        };
        Ok(match self.view.element(place.table, &decl, &key)? {
            None => Found::Not(step(decl.key.show(&key).to_string(), None)),
            Some((key, element)) => {
                let object = element.comment.as_ref().map(|c| c.as_str().to_owned());
                let bare = hostnet::nft::Element {
                    comment: None,
                    data: element.data.clone(),
                };
                Found::Element(
                    step(decl.show(&key, &bare).to_string(), object),
                    element.data,
                )
            }
        })
    }
}

enum Found {
    Element(Step, Option<Data>),
    Not(Step),
    Unknown,
}

/// What an expression leads to.
pub(super) enum ExprEnd {
    Next,
    NoMatch,
    Unknown,
    Verdict(Verdict),
    End(End),
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    }
}
