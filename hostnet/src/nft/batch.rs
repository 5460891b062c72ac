//! Transactions: operations to one batch of messages, and the kernel's answers to errors that name the
//! operation.

use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use super::Error;
use super::diff::{Changes, Op};
use super::error::Refusal;
use super::rule::Rule;
use super::set::{Element, SetDecl, encode_element};
use super::table::{Chain, ChainKind, Policy};
use super::types::Key;
use super::udata;
use super::wire::{self, Attrs, Writer, chain, elem, msg, rule, set, table};
use crate::kernel;
use crate::nfnetlink::{Ack, Socket};
use crate::vocab::Family;

/// The most elements in one list.
const LIST_MAX: usize = 1_000;
/// No element is longer: keys of 64 bytes, a chain's name of 256, a comment of 128.
const ELEMENT_MAX: usize = 1_024;

/// Sends these of the changes as one transaction, and waits for the kernel's verdict on it.
pub(super) fn send(
    socket: &mut Socket,
    changes: &Changes,
    ops: Range<usize>,
    generation: Option<u32>,
) -> Result<(), Error> {
    let batch = Batch::compile(changes, ops, generation, socket.next_seq());
    socket.skip_seqs(batch.messages.len() as u32);
    socket.send(&batch.bytes)?;
    batch.read_answers(socket)
}

/// A transaction in bytes, and which operations each of its messages stands for.
pub(super) struct Batch<'a> {
    changes: &'a Changes,
    /// What is sent.
    pub(super) bytes: Vec<u8>,
    /// The messages, whose sequence numbers follow each other from `first_seq` on: `BATCH_BEGIN`, those of
    /// the operations, `BATCH_END`.
    messages: Vec<Sent>,
    first_seq: u32,
}

/// One message of a batch.
struct Sent {
    ops: Range<usize>,
    /// Where it begins in the batch.
    start: usize,
    /// Of a list of elements: where each operation begins, from the start of the message.
    offsets: Vec<usize>,
}

impl<'a> Batch<'a> {
    /// Compiles these of the changes. With a `generation` the kernel refuses them if the ruleset is another.
    pub(super) fn compile(
        changes: &'a Changes,
        ops: Range<usize>,
        generation: Option<u32>,
        first_seq: u32,
    ) -> Batch<'a> {
        let mut compiler = Compiler {
            changes,
            writer: Writer::default(),
            messages: Vec::new(),
            first_seq,
        };
        compiler.mark(wire::BATCH_BEGIN, generation);
        let mut at = ops.start;
        while at < ops.end {
            at = compiler.ops_from(at);
        }
        compiler.writer.add_flags_to_last(wire::F_ACK);
        compiler.mark(wire::BATCH_END, None);
        let Compiler {
            writer, messages, ..
        } = compiler;
        Batch {
            changes,
            bytes: writer.into_bytes(),
            messages,
            first_seq,
        }
    }

    /// The kernel has worked when `send` returns: all its answers wait in the socket.
    fn read_answers(&self, socket: &mut Socket) -> Result<(), Error> {
        let last = self.first_seq.wrapping_add(self.messages.len() as u32 - 2);
        let mut refusals = Vec::new();
        let mut is_acknowledged = false;
        while let Some(datagram) = socket.receive(false)? {
            for message in wire::messages(datagram)? {
                let Some(ack) = Ack::of(&message) else {
                    continue;
                };
                let index = message.seq.wrapping_sub(self.first_seq) as usize;
                let Some(sent) = self.messages.get(index) else {
                    continue;
                };
                match ack.errno {
                    None => is_acknowledged |= message.seq == last,
                    Some(Errno::ERESTART) => {
                        return Err(Error::Stale {
                            table: self.changes.table.clone(),
                        });
                    }
                    Some(errno) => refusals.push(Refusal {
                        operation: self.describe(sent, ack.offset),
                        errno,
                        message: ack.message.map(str::to_owned),
                        lacks: (errno == Errno::ENOENT)
                            .then(|| self.lacking(sent, ack.offset?))
                            .flatten(),
                    }),
                }
            }
        }
        if !refusals.is_empty() {
            return Err(Error::Refused {
                table: self.changes.table.clone(),
                refusals,
            });
        }
        if is_acknowledged {
            Ok(())
        } else {
            Err(Error::Overrun)
        }
    }

    /// The operation that a message stands for, or the one of a list in which the offset lies.
    fn describe(&self, sent: &Sent, offset: Option<usize>) -> String {
        let within = match offset {
            Some(offset) => sent
                .offsets
                .partition_point(|start| *start <= offset)
                .saturating_sub(1),
            None => 0,
        };
        let Some(op) = self.changes.ops[sent.ops.clone()].get(within) else {
            return "the transaction".to_owned();
        };
        let text = op.display(&self.changes.table).to_string();
        // An operation of several commands is known by its first line and its size.
        match text.split_once('\n') {
            Some((first, rest)) => format!("{first} … ({} lines more)", rest.lines().count()),
            None => text,
        }
    }

    /// What the kernel lacks if it has not found what is at this offset of a message: what has a module of its own, and
    /// refers to nothing of a table's that may be missing in its place.
    fn lacking(&self, sent: &Sent, offset: usize) -> Option<String> {
        let (kind, value) = Attrs(self.bytes.get(sent.start + offset..)?)
            .into_iter()
            .next()?;
        match self.changes.ops.get(sent.ops.start)? {
            Op::AddChain(_, is) if kind == chain::TYPE => {
                let is_nat = is.base.as_ref()?.kind == ChainKind::Nat;
                is_nat.then(|| kernel::lacks("NAT in nf_tables", "nft_chain_nat", "CONFIG_NFT_NAT"))
            }
            Op::SetRules(..) | Op::AddRule(..) if kind == rule::LIST_ELEM => {
                let name = Attrs(value).str(rule::EXPR_NAME)?;
                let module = match (name, self.changes.table.family) {
                    ("ct" | "numgen" | "nat" | "masq" | "redir" | "counter", _) => {
                        format!("nft_{name}")
                    }
                    ("fib" | "reject", Family::V4) => format!("nft_{name}_ipv4"),
                    ("fib" | "reject", Family::V6) => format!("nft_{name}_ipv6"),
                    _ => return None,
                };
                let what = format!("expression `{name}` in nf_tables");
                let config = format!("CONFIG_{}", module.to_ascii_uppercase());
                Some(kernel::lacks(&what, &module, &config))
            }
            _ => None,
        }
    }
}

struct Compiler<'a> {
    changes: &'a Changes,
    writer: Writer,
    messages: Vec<Sent>,
    first_seq: u32,
}

impl Compiler<'_> {
    /// The number of the next message, which stands for these operations.
    fn next(&mut self, ops: Range<usize>) -> u32 {
        let seq = self.first_seq.wrapping_add(self.messages.len() as u32);
        self.messages.push(Sent {
            ops,
            start: self.writer.len(),
            offsets: Vec::new(),
        });
        seq
    }

    fn mark(&mut self, kind: u16, generation: Option<u32>) {
        let seq = self.next(0..0);
        self.writer
            .message(kind, 0, seq, 0, wire::SUBSYS_NFTABLES, |w| {
                if let Some(generation) = generation {
                    w.be32(wire::BATCH_GENID, generation);
                }
            });
    }

    /// Writes the operation at this index, and with an element those that go into the same list. Returns
    /// the index of the next operation.
    fn ops_from(&mut self, at: usize) -> usize {
        let name = self.changes.table.name.clone();
        match &self.changes.ops[at] {
            Op::AddTable { comment } => self.message(at, msg::NEWTABLE, NEW, |w| {
                w.str(table::NAME, &name);
                w.be32(table::FLAGS, 0);
                if let Some(comment) = comment {
                    w.bytes(table::USERDATA, &udata::of_comment(comment));
                }
            }),
            Op::DeleteTable => self.message(at, msg::DELTABLE, 0, |w| w.str(table::NAME, &name)),
            op @ (Op::AddSet(decl) | Op::ResizeSet(decl)) => {
                let flags = match op {
                    Op::AddSet(_) => NEW,
                    _ => wire::F_CREATE,
                };
                // Any number that no other set of this transaction has.
                let id = at as u32 + 1;
                self.message(at, msg::NEWSET, flags, |w| decl.encode(w, &name, id));
            }
            Op::DeleteSet(decl) => self.message(at, msg::DELSET, 0, |w| {
                w.str(set::TABLE, &name);
                w.str(set::NAME, &decl.name);
            }),
            Op::AddChain(chain, is) => {
                self.message(at, msg::NEWCHAIN, NEW, |w| {
                    encode_chain(w, &name, chain, is)
                });
            }
            Op::DeleteChain(chain) => self.message(at, msg::DELCHAIN, 0, |w| {
                w.str(chain::TABLE, &name);
                w.str(chain::NAME, chain);
            }),
            Op::SetRules(chain, rules) => {
                self.message(at, msg::DELRULE, 0, |w| {
                    w.str(rule::TABLE, &name);
                    w.str(rule::CHAIN, chain);
                });
                for new in rules {
                    self.message(at, msg::NEWRULE, APPEND, |w| {
                        encode_rule(w, &name, chain, new)
                    });
                }
            }
            Op::AddRule(chain, new) => self.message(at, msg::NEWRULE, APPEND, |w| {
                encode_rule(w, &name, chain, new)
            }),
            Op::DeleteRule(chain, handle) => self.message(at, msg::DELRULE, 0, |w| {
                w.str(rule::TABLE, &name);
                w.str(rule::CHAIN, chain);
                w.be64(rule::HANDLE, *handle);
            }),
            Op::AddElement(decl, ..) | Op::DeleteElement(decl, ..) => {
                return self.elements(at, decl);
            }
            Op::ReplaceElement(decl, key, element) => {
                self.element(at, msg::DELSETELEM, 0, decl, key, None);
                self.element(at, msg::NEWSETELEM, NEW, decl, key, Some(element));
            }
        }
        at + 1
    }

    fn message(&mut self, op: usize, kind: u8, flags: u16, body: impl FnOnce(&mut Writer)) {
        let seq = self.next(op..op + 1);
        self.writer.nft(
            kind,
            flags,
            seq,
            wire::nfproto(self.changes.table.family),
            body,
        );
    }

    /// Writes a list of one element.
    fn element(
        &mut self,
        op: usize,
        kind: u8,
        flags: u16,
        decl: &SetDecl,
        key: &Key,
        element: Option<&Element>,
    ) {
        let name = self.changes.table.name.clone();
        self.message(op, kind, flags, |w| {
            w.str(elem::TABLE, &name);
            w.str(elem::SET, &decl.name);
            w.nest(elem::LIST, |w| encode_element(w, decl, key, element));
        });
    }

    /// Writes as many elements as follow each other in the operations and fit into one list.
    fn elements(&mut self, at: usize, decl: &Arc<SetDecl>) -> usize {
        let ops = &self.changes.ops[at..];
        let is_add = matches!(ops[0], Op::AddElement(..));
        let (kind, flags) = if is_add {
            (msg::NEWSETELEM, NEW)
        } else {
            (msg::DELSETELEM, 0)
        };
        let name = self.changes.table.name.clone();
        let mut offsets = Vec::new();
        self.message(at, kind, flags, |w| {
            w.str(elem::TABLE, &name);
            w.str(elem::SET, &decl.name);
            w.nest(elem::LIST, |w| {
                let start = w.offset_in_message();
                for op in ops.iter().take(LIST_MAX) {
                    let (of, key, element) = match op {
                        Op::AddElement(of, key, element) if is_add => (of, key, Some(element)),
                        Op::DeleteElement(of, key) if !is_add => (of, key, None),
                        _ => break,
                    };
                    let is_full = w.offset_in_message() - start > wire::ATTR_MAX - ELEMENT_MAX;
                    if is_full || of.name != decl.name {
                        break;
                    }
                    offsets.push(w.offset_in_message());
                    encode_element(w, decl, key, element);
                }
            });
        });
        let end = at + offsets.len();
        if let Some(sent) = self.messages.last_mut() {
            sent.ops = at..end;
            sent.offsets = offsets;
        }
        end
    }
}

/// What is added must not be there: a surprise is an error, and not silently merged.
const NEW: u16 = wire::F_CREATE | wire::F_EXCL;
/// A rule behind those that are there.
const APPEND: u16 = wire::F_CREATE | wire::F_APPEND;

fn encode_chain(w: &mut Writer, table: &str, name: &str, is: &Chain) {
    w.str(chain::TABLE, table);
    w.str(chain::NAME, name);
    if let Some(base) = &is.base {
        w.str(chain::TYPE, base.kind.word());
        w.be32(
            chain::POLICY,
            match base.policy {
                Policy::Accept => wire::data::ACCEPT as u32,
                Policy::Drop => wire::data::DROP as u32,
            },
        );
        w.nest(chain::HOOK, |w| {
            w.be32(chain::HOOK_NUM, base.hook as u32);
            w.be32(chain::HOOK_PRIORITY, base.priority as u32);
        });
    }
    if let Some(comment) = &is.comment {
        w.bytes(chain::USERDATA, &udata::of_comment(comment));
    }
}

fn encode_rule(w: &mut Writer, table: &str, chain: &str, new: &Rule) {
    w.str(rule::TABLE, table);
    w.str(rule::CHAIN, chain);
    w.nest(rule::EXPRESSIONS, |w| {
        new.exprs.iter().for_each(|expr| expr.encode(w))
    });
    if let Some(comment) = &new.comment {
        w.bytes(rule::USERDATA, &udata::of_comment(comment));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;
    use crate::nft::{FIB_LOCAL, Hook, Selector, Table, diff};

    /// What a kernel says to a table that asks for something under a name that no kernel has.
    fn refused(table: Table, name: &str) -> String {
        let ns = NetNs::new_anonymous().unwrap();
        let mut socket = ns.run_in(Socket::open).unwrap().unwrap();
        let changes = diff(None, table);
        let all = 0..changes.ops.len();
        let batch = Batch::compile(&changes, all, None, socket.next_seq());
        let (name, no_name) = (format!("{name}\0"), "?".repeat(name.len()));
        let mut bytes = batch.bytes.clone();
        let at =
            (0..bytes.len() - name.len()).rfind(|at| bytes[*at..].starts_with(name.as_bytes()));
        let at = at.unwrap();
        bytes[at..at + no_name.len()].copy_from_slice(no_name.as_bytes());
        socket.send(&bytes).unwrap();
        batch.read_answers(&mut socket).unwrap_err().to_string()
    }

    #[test]
    fn what_a_kernel_lacks_is_told_from_what_a_table_lacks() {
        let v4 = || Table::new(Family::V4, "twill-test");
        let nat = || v4().chain("in", Chain::nat(Hook::Prerouting, -100));
        let said = refused(nat(), "nat");
        assert!(said.contains("`modprobe nft_chain_nat`"), "{said}");
        let said = refused(nat(), "twill-test");
        assert!(
            said.contains("ENOENT") && !said.contains("modprobe"),
            "{said}"
        );

        let local = Rule::new().eq(Selector::FibDaddrType, FIB_LOCAL).drop();
        let table =
            Table::new(Family::V6, "twill-test").chain("local", Chain::regular().rule(local));
        let said = refused(table, "fib");
        assert!(said.contains("`modprobe nft_fib_ipv6`"), "{said}");
        let nowhere = Chain::regular().rule(Rule::new().jump("nowhere"));
        let said = refused(v4().chain("lost", nowhere), "nowhere");
        assert!(
            said.contains("ENOENT") && !said.contains("modprobe"),
            "{said}"
        );
    }
}
