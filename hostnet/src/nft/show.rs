//! Tables, sets, elements and rules in nft's own syntax, for logs, golden files and `nft -f`.

use std::collections::BTreeMap;
use std::fmt;

use super::expr::{CmpOp, DynsetOp, Expr, NatFlags, Reg, RejectWith, Verdict};
use super::rule::Rule;
use super::selector::{Selector, family_word};
use super::set::{Data, DataType, Element, SetDecl};
use super::table::{Base, Chain};
use super::types::{BitNames, FieldType, Key, write_field};
use crate::vocab::Family;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Base {
            kind,
            hook,
            priority,
            policy,
        } = self;
        let (kind, hook, policy) = (kind.word(), hook.word(), policy.word());
        write!(
            f,
            "type {kind} hook {hook} priority {priority}; policy {policy};"
        )
    }
}

/// What stands between the braces of a chain's declaration.
pub(super) fn chain_body(f: &mut fmt::Formatter<'_>, chain: &Chain) -> fmt::Result {
    if let Some(comment) = &chain.comment {
        write!(f, " {comment};")?;
    }
    if let Some(base) = &chain.base {
        write!(f, " {base}")?;
    }
    Ok(())
}

/// What stands between the braces of a set's declaration.
pub(super) fn set_body(f: &mut fmt::Formatter<'_>, decl: &SetDecl) -> fmt::Result {
    let word = if decl.key.selectors().is_some() {
        "typeof"
    } else {
        "type"
    };
    write!(f, " {word} {}", decl.key)?;
    match &decl.data {
        Some(DataType::Verdict) => f.write_str(" : verdict")?,
        Some(DataType::Value(data)) => write!(f, " : {data}")?,
        None => {}
    }
    f.write_str(";")?;
    if let Some(size) = decl.size {
        write!(f, " size {size};")?;
    }
    let flags = [
        (decl.interval, "interval"),
        (decl.dynamic, "dynamic"),
        (decl.timeout.is_some(), "timeout"),
    ];
    let flags: Vec<_> = flags
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, word)| *word)
        .collect();
    if !flags.is_empty() {
        write!(f, " flags {};", flags.join(","))?;
    }
    if let Some(timeout) = decl.timeout {
        write!(f, " timeout {}s;", timeout.as_secs())?;
    }
    if let Some(comment) = &decl.comment {
        write!(f, " {comment};")?;
    }
    Ok(())
}

/// An element: `10.96.0.10 . udp . 53 comment "kube-system/kube-dns:dns" : goto lb-2`.
pub(super) fn element(
    f: &mut fmt::Formatter<'_>,
    decl: &SetDecl,
    key: &Key,
    element: &Element,
) -> fmt::Result {
    write!(f, "{}", decl.key.show(key))?;
    if let Some(comment) = &element.comment {
        write!(f, " {comment}")?;
    }
    match (&element.data, &decl.data) {
        (Some(Data::Verdict(verdict)), _) => write!(f, " : {verdict}"),
        (Some(Data::Value(value)), Some(DataType::Value(data))) => {
            write!(f, " : {}", data.show(value))
        }
        _ => Ok(()),
    }
}

/// A rule in the syntax of nft, for a table of this family. What is not of Twill's making may appear by
/// the kernel's name for it, in brackets.
pub(super) struct RuleText<'a> {
    pub(super) rule: &'a Rule,
    pub(super) family: Family,
}

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        let mut registers = Registers {
            family: self.family,
            terms: BTreeMap::new(),
        };
        for expr in &self.rule.exprs {
            words.extend(registers.statement(expr));
        }
        if let Some(comment) = &self.rule.comment {
            words.push(comment.to_string());
        }
        f.write_str(&words.join(" "))
    }
}

/// What the registers hold while a rule is read from its first expression to its last.
struct Registers {
    family: Family,
    terms: BTreeMap<Reg, Term>,
}

/// What one value in the registers is.
#[derive(Clone)]
struct Term {
    text: String,
    field: FieldType,
    /// How many bytes were loaded.
    len: usize,
    mask: Option<Vec<u8>>,
}

impl Registers {
    /// The words of one expression, or none yet if it only loads.
    fn statement(&mut self, expr: &Expr) -> Option<String> {
        if let Some(selector) = Selector::of(expr, self.family) {
            let len = match expr {
                Expr::Payload { len, .. } => *len as usize,
                _ => selector.field_type().len(),
            };
            let field = selector.field_type();
            self.load(
                expr,
                Term {
                    text: selector.to_string(),
                    field,
                    len,
                    mask: None,
                },
            );
            return None;
        }
        Some(match expr {
            Expr::Immediate { value, .. } => {
                let field = match value.len() {
                    2 => FieldType::InetService,
                    _ => FieldType::addr(self.family),
                };
                let term = Term {
                    text: text(field, value),
                    field,
                    len: value.len(),
                    mask: None,
                };
                self.load(expr, term);
                return None;
            }
            Expr::Bitwise { sreg, mask, .. } => {
                let mut term = self.term(*sreg);
                term.mask = Some(mask.clone());
                self.load(expr, term);
                return None;
            }
            Expr::Map { set, sreg, .. } => {
                let term = Term {
                    text: format!("{} map @{set}", self.key(*sreg)),
                    field: FieldType::Integer,
                    len: 0,
                    mask: None,
                };
                self.terms.clear();
                self.load(expr, term);
                return None;
            }
            Expr::Cmp { sreg, op, value } => comparison(&self.term(*sreg), *op, value),
            Expr::InSet {
                set,
                sreg,
                invert: false,
            } => format!("{} @{set}", self.take(*sreg)),
            Expr::InSet {
                set,
                sreg,
                invert: true,
            } => format!("{} != @{set}", self.take(*sreg)),
            Expr::VerdictMap { set, sreg } => format!("{} vmap @{set}", self.take(*sreg)),
            Expr::Dynset { set, op, sreg_key } => {
                let word = match *op {
                    DynsetOp::ADD => "add",
                    DynsetOp::UPDATE => "update",
                    _ => "delete",
                };
                format!("{word} @{set} {{ {} }}", self.take(*sreg_key))
            }
            Expr::Verdict(verdict) => verdict.to_string(),
            Expr::Dnat {
                addr, port, flags, ..
            } => self.dnat(*addr, *port, *flags),
            Expr::Masquerade { flags } => format!("masquerade{}", nat_flags(*flags)),
            Expr::Redirect { port, flags } => match port {
                Some(port) => format!(
                    "redirect to :{}{}",
                    self.term(*port).text,
                    nat_flags(*flags)
                ),
                None => format!("redirect{}", nat_flags(*flags)),
            },
            Expr::Reject(with) => self.reject(*with),
            Expr::Counter => "counter".to_owned(),
            Expr::Other { name, .. } => match expr.xt() {
                Some(xt) => format!("[{name} {}]", xt.name),
                None => format!("[{name}]"),
            },
            other => format!("[{other:?}]"),
        })
    }

    fn load(&mut self, expr: &Expr, term: Term) {
        if let Some(dreg) = expr.dreg() {
            self.terms.insert(dreg, term);
        }
    }

    fn term(&self, reg: Reg) -> Term {
        self.terms.get(&reg).cloned().unwrap_or(Term {
            text: format!("[reg {}]", reg.0),
            field: FieldType::Integer,
            len: 0,
            mask: None,
        })
    }

    /// The terms that follow each other without a gap from this register on.
    fn key(&self, from: Reg) -> String {
        let mut reg = from;
        let mut parts = Vec::new();
        while let Some(term) = self.terms.get(&reg) {
            parts.push(term.text.clone());
            reg = reg.after(term.len.max(1));
        }
        parts.join(" . ")
    }

    /// The key, and forgets it: what is loaded later starts anew.
    fn take(&mut self, from: Reg) -> String {
        let key = self.key(from);
        self.terms.clear();
        key
    }

    fn dnat(&self, addr: Reg, port: Option<Reg>, flags: NatFlags) -> String {
        let to = self.term(addr).text;
        let flags = nat_flags(flags);
        match port.and_then(|port| self.terms.get(&port)) {
            Some(port) if self.family == Family::V6 => {
                format!("dnat to [{to}]:{}{flags}", port.text)
            }
            Some(port) => format!("dnat to {to}:{}{flags}", port.text),
            // Address and port come out of one map.
            None if port.is_some() => format!("dnat {} to {to}{flags}", family_word(self.family)),
            None => format!("dnat to {to}{flags}"),
        }
    }

    fn reject(&self, with: RejectWith) -> String {
        match (with, self.family) {
            (RejectWith::TCP_RESET, _) => "reject with tcp reset".to_owned(),
            (RejectWith::ICMP_PORT_UNREACHABLE, Family::V4)
            | (RejectWith::ICMPV6_PORT_UNREACHABLE, Family::V6) => "reject".to_owned(),
            (RejectWith(other), Family::V4) => format!("reject with icmp {}", other & 0xff),
            (RejectWith(other), Family::V6) => format!("reject with icmpv6 {}", other & 0xff),
        }
    }
}

fn comparison(term: &Term, op: CmpOp, value: &[u8]) -> String {
    let Term {
        text: what,
        field,
        len,
        mask,
    } = term;
    let is_zero = value.iter().all(|b| *b == 0);
    let (equals, not) = match op {
        CmpOp::EQ => ("", ""),
        CmpOp::NEQ => ("!= ", "!= "),
        _ => return format!("{what} [cmp {}] {value:02x?}", op.0),
    };
    match (mask, field) {
        // A prefix of whole bytes: only these were loaded.
        (None, FieldType::Ipv4Addr | FieldType::Ipv6Addr) if *len < field.len() => {
            let mut addr = value.to_vec();
            addr.resize(field.len(), 0);
            format!("{what} {not}{}/{}", text(*field, &addr), len * 8)
        }
        (None, _) => format!("{what} {equals}{}", text(*field, value)),
        (Some(mask), FieldType::Ipv4Addr | FieldType::Ipv6Addr) => {
            let bits: u32 = mask.iter().map(|b| b.count_ones()).sum();
            format!("{what} {not}{}/{bits}", text(*field, value))
        }
        (Some(mask), FieldType::Bits(BitNames::CtState | BitNames::CtStatus))
            if op == CmpOp::NEQ && is_zero =>
        {
            format!("{what} {}", text(*field, mask))
        }
        (Some(mask), _) => {
            let op = if op == CmpOp::EQ { "==" } else { "!=" };
            format!(
                "{what} & {} {op} {}",
                text(*field, mask),
                text(*field, value)
            )
        }
    }
}

fn text(field: FieldType, bytes: &[u8]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_field(&mut out, field, bytes);
    out
}

fn nat_flags(flags: NatFlags) -> String {
    let words = [
        (NatFlags::RANDOM, "random"),
        (NatFlags::FULLY_RANDOM, "fully-random"),
        (NatFlags::PERSISTENT, "persistent"),
    ];
    let words: Vec<_> = words
        .iter()
        .filter(|(flag, _)| flags.0 & flag.0 != 0)
        .map(|(_, word)| *word)
        .collect();
    if words.is_empty() {
        String::new()
    } else {
        format!(" {}", words.join(","))
    }
}
