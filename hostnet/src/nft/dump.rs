//! Reading a table back from the kernel into the model.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::expr::Expr;
use super::foreign::{ForwardChain, Found};
use super::rule::Rule;
use super::set::{ElementReader, SetDecl};
use super::table::{Base, Chain, ChainKind, Hook, Policy, Table, TableId};
use super::types::Name;
use super::wire::{self, Attrs, Message, Writer, chain, elem, generation, msg, rule, set, table};
use super::{Error, udata};
use crate::nfnetlink::{self, Socket};
use crate::vocab::Family;

/// One reading of a table. None if the ruleset changed meanwhile; inside, None if there is no such table.
pub(super) fn read(socket: &mut Socket, id: &TableId) -> Result<Option<Observed>, Error> {
    let generation = read_generation(socket)?;
    let mut dump = Dump {
        socket,
        id,
        is_steady: true,
    };
    let table = match dump.table() {
        Ok(table) => table,
        // A table or set that went while we read.
        Err(Error::Read {
            errno: Errno::ENOENT,
            ..
        }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let is_steady = dump.is_steady && read_generation(socket)? == generation;
    Ok(is_steady.then_some(Observed { table, generation }))
}

/// A table as the kernel has it.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The table; None if there is none.
    pub table: Option<Table>,
    /// The generation of the namespace's whole ruleset at the time, which every change of any table moves.
    pub generation: u32,
}

/// The generation of the ruleset.
pub(super) fn read_generation(socket: &mut Socket) -> Result<u32, Error> {
    let mut id = None;
    request(
        socket,
        msg::GETGEN,
        wire::F_ACK,
        0,
        "the ruleset's generation",
        |_| {},
        |message| {
            id = id.or(message.attrs().be32(generation::ID));
        },
    )
    .map_err(of_nobody)?;
    id.ok_or(Error::Malformed("no generation id"))
}

/// A question that has nothing in it is invalid only if there is nobody to ask: the subsystem is not there.
fn of_nobody(error: Error) -> Error {
    match error {
        Error::Read {
            errno: Errno::EINVAL,
            ..
        } => Error::Absent,
        other => other,
    }
}

/// All tables of the namespace, of the families that Twill uses.
pub(super) fn read_tables(socket: &mut Socket) -> Result<Vec<TableId>, Error> {
    let mut tables = Vec::new();
    for family in Family::ALL {
        let nfproto = wire::nfproto(family);
        request(
            socket,
            msg::GETTABLE,
            wire::F_DUMP,
            nfproto,
            "tables",
            |_| {},
            |message| {
                tables.extend(
                    message
                        .attrs()
                        .str(table::NAME)
                        .map(|name| TableId::new(family, name)),
                );
            },
        )?;
    }
    Ok(tables)
}

/// The base chains of type filter at the hook of forwarded packets, of the families that see IP.
pub(super) fn read_forward_chains(socket: &mut Socket) -> Result<Vec<ForwardChain>, Error> {
    let families = Family::ALL
        .map(|family| (wire::nfproto(family), Some(family)))
        .into_iter()
        .chain([(wire::NFPROTO_INET, None)]);
    let mut chains = Vec::new();
    for (nfproto, family) in families {
        let each = |message: &Message<'_>| {
            let attrs = message.attrs();
            let hook = attrs
                .nest(chain::HOOK)
                .and_then(|hook| hook.be32(chain::HOOK_NUM));
            if hook == Some(Hook::Forward as u32)
                && attrs.str(chain::TYPE) == Some(ChainKind::Filter.word())
                && let (Some(table), Some(name)) = (attrs.str(chain::TABLE), attrs.str(chain::NAME))
            {
                chains.push(ForwardChain {
                    family,
                    table: table.into(),
                    chain: name.into(),
                    drops: attrs.be32(chain::POLICY) == Some(wire::data::DROP as u32),
                });
            }
        };
        request(
            socket,
            msg::GETCHAIN,
            wire::F_DUMP,
            nfproto,
            "chains",
            |_| {},
            each,
        )?;
    }
    Ok(chains)
}

/// The names of a table's chains; none if there is no such table.
pub(super) fn read_chains(socket: &mut Socket, table: &TableId) -> Result<Vec<Name>, Error> {
    let mut chains = Vec::new();
    let ask = |w: &mut Writer| w.str(chain::TABLE, &table.name);
    let each = |message: &Message<'_>| {
        let attrs = message.attrs();
        // Kernels do not filter chains by table.
        if attrs.str(chain::TABLE) == Some(&*table.name) {
            chains.extend(attrs.str(chain::NAME).map(Name::from));
        }
    };
    let nfproto = wire::nfproto(table.family);
    absent_is_empty(request(
        socket,
        msg::GETCHAIN,
        wire::F_DUMP,
        nfproto,
        "chains",
        ask,
        each,
    ))?;
    Ok(chains)
}

/// The rules of a table, or of one chain of it, with their handles; none if there is no such table or chain.
pub(super) fn read_rules(
    socket: &mut Socket,
    table: &TableId,
    of: Option<&str>,
) -> Result<Vec<Found>, Error> {
    let mut rules = Vec::new();
    let ask = |w: &mut Writer| {
        w.str(rule::TABLE, &table.name);
        if let Some(chain) = of {
            w.str(rule::CHAIN, chain);
        }
    };
    let each = |message: &Message<'_>| {
        let attrs = message.attrs();
        let is_asked_for = attrs.str(rule::TABLE) == Some(&*table.name)
            && of.is_none_or(|chain| attrs.str(rule::CHAIN) == Some(chain));
        if is_asked_for
            && let (Some(chain), Some(handle)) = (attrs.str(rule::CHAIN), attrs.be64(rule::HANDLE))
        {
            rules.push(Found {
                chain: chain.into(),
                handle,
                rule: decode_rule(attrs),
            });
        }
    };
    let nfproto = wire::nfproto(table.family);
    absent_is_empty(request(
        socket,
        msg::GETRULE,
        wire::F_DUMP,
        nfproto,
        "rules",
        ask,
        each,
    ))?;
    Ok(rules)
}

/// Asking for what is in a table that is not there may be refused, or answered by nothing.
fn absent_is_empty(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Read {
            errno: Errno::ENOENT,
            ..
        }) => Ok(()),
        other => other,
    }
}

pub(super) fn decode_rule(attrs: Attrs<'_>) -> Rule {
    let exprs = attrs.nest(rule::EXPRESSIONS).unwrap_or(Attrs(&[]));
    Rule {
        exprs: (exprs.into_iter())
            .map(|(_, expr)| Expr::decode(Attrs(expr)))
            .filter(|expr| !expr.is_idle())
            .collect(),
        comment: attrs.get(rule::USERDATA).and_then(udata::comment),
    }
}

struct Dump<'a> {
    socket: &'a mut Socket,
    id: &'a TableId,
    is_steady: bool,
}

impl Dump<'_> {
    fn table(&mut self) -> Result<Option<Table>, Error> {
        let mut table = Table::new(self.id.family, self.id.name.clone());
        let mut is_there = false;
        let name = self.id.name.clone();
        let found = self.request(
            msg::GETTABLE,
            wire::F_ACK,
            "table",
            |w| w.str(table::NAME, &name),
            |attrs| {
                is_there = true;
                table.comment = attrs.get(table::USERDATA).and_then(udata::comment);
                table.foreign |= attrs.be32(table::FLAGS).unwrap_or(0) != 0;
            },
        );
        match found {
            Err(Error::Read {
                errno: Errno::ENOENT,
                ..
            }) => return Ok(None),
            other => other?,
        }
        if !is_there {
            return Ok(None);
        }
        self.chains(&mut table)?;
        self.rules(&mut table)?;
        self.sets(&mut table)?;
        Ok(Some(table))
    }

    fn chains(&mut self, table: &mut Table) -> Result<(), Error> {
        let name = self.id.name.clone();
        self.request(
            msg::GETCHAIN,
            wire::F_DUMP,
            "chains",
            |w| w.str(chain::TABLE, &name),
            |attrs| {
                // Kernels do not filter chains by table.
                if attrs.str(chain::TABLE) != Some(&*name) {
                    return;
                }
                match (attrs.str(chain::NAME), decode_chain(attrs)) {
                    (Some(chain), Some(is)) => drop(table.chains.insert(chain.into(), is)),
                    _ => table.foreign = true,
                }
            },
        )
    }

    fn rules(&mut self, table: &mut Table) -> Result<(), Error> {
        let name = self.id.name.clone();
        self.request(
            msg::GETRULE,
            wire::F_DUMP,
            "rules",
            |w| w.str(rule::TABLE, &name),
            |attrs| {
                if attrs.str(rule::TABLE) != Some(&*name) {
                    return;
                }
                let rule = decode_rule(attrs);
                let chain = attrs
                    .str(rule::CHAIN)
                    .and_then(|chain| table.chains.get_mut(chain));
                match chain {
                    Some(chain) => chain.rules.push(rule),
                    None => table.foreign = true,
                }
            },
        )
    }

    fn sets(&mut self, table: &mut Table) -> Result<(), Error> {
        let name = self.id.name.clone();
        let mut decls = Vec::new();
        self.request(
            msg::GETSET,
            wire::F_DUMP,
            "sets",
            |w| w.str(set::TABLE, &name),
            |attrs| match SetDecl::decode(attrs) {
                Some(decl) => decls.push(decl),
                None => table.foreign = true,
            },
        )?;
        let mut chains = BTreeSet::new();
        for decl in decls {
            let set_name = decl.name.clone();
            let is_dynamic = decl.dynamic;
            let mut reader = ElementReader::new(decl);
            if !is_dynamic {
                let ask = |w: &mut Writer| {
                    w.str(elem::TABLE, &name);
                    w.str(elem::SET, &set_name);
                };
                self.request(msg::GETSETELEM, wire::F_DUMP, "elements", ask, |attrs| {
                    if let Some(list) = attrs.nest(elem::LIST) {
                        reader.read(list, &mut |chain| shared(&mut chains, chain));
                    }
                })?;
            }
            table.sets.insert(set_name, reader.finish());
        }
        Ok(())
    }

    fn request(
        &mut self,
        kind: u8,
        flags: u16,
        what: &str,
        ask: impl FnOnce(&mut Writer),
        mut each: impl FnMut(Attrs<'_>),
    ) -> Result<(), Error> {
        let nfproto = wire::nfproto(self.id.family);
        let what = format!("{what} of {}", self.id);
        let is_steady = &mut self.is_steady;
        request(self.socket, kind, flags, nfproto, &what, ask, |message| {
            *is_steady &= message.flags & wire::F_DUMP_INTR == 0;
            each(message.attrs());
        })
    }
}

/// One name for all elements that lead to the same chain.
fn shared(names: &mut BTreeSet<Name>, name: &str) -> Name {
    if let Some(known) = names.get(name) {
        return known.clone();
    }
    let new = Name::from(name);
    names.insert(new.clone());
    new
}

/// Where packets enter a chain; None if they do not, or at a hook or by a type that is not modelled.
pub(super) fn decode_base(attrs: Attrs<'_>) -> Option<Base> {
    let hook = attrs.nest(chain::HOOK)?;
    Some(Base {
        kind: match attrs.str(chain::TYPE)? {
            "nat" => ChainKind::Nat,
            "filter" => ChainKind::Filter,
            _ => return None,
        },
        hook: Hook::from_number(hook.be32(chain::HOOK_NUM)?)?,
        priority: hook.be32(chain::HOOK_PRIORITY)? as i32,
        policy: match attrs.be32(chain::POLICY)? as i32 {
            wire::data::DROP => Policy::Drop,
            _ => Policy::Accept,
        },
    })
}

/// None for a chain that is not like any of ours.
fn decode_chain(attrs: Attrs<'_>) -> Option<Chain> {
    let base = match attrs.nest(chain::HOOK) {
        None => None,
        Some(_) => Some(decode_base(attrs)?),
    };
    // An anonymous chain, or one that hardware shall run.
    let is_special = attrs.be32(chain::FLAGS).unwrap_or(0) & !chain::F_BASE != 0;
    let comment = attrs.get(chain::USERDATA).and_then(udata::comment);
    (!is_special).then_some(Chain {
        base,
        comment,
        rules: Vec::new(),
    })
}

/// Takes bytes for the kernel's answer, and for a part of one, and decodes them in every way that there is: what tests
/// and the fuzz target hold decoders to, whatever the bytes are.
#[cfg(any(test, feature = "testkit"))]
pub fn decode_all(bytes: &[u8]) {
    for message in wire::messages(bytes).unwrap_or_default() {
        decode_attrs(message.attrs());
    }
    decode_attrs(Attrs(bytes));
}

#[cfg(any(test, feature = "testkit"))]
fn decode_attrs(attrs: Attrs<'_>) {
    let _ = (decode_chain(attrs), decode_rule(attrs), Expr::decode(attrs));
    for (_, value) in attrs {
        let _ = (udata::comment(value), udata::set_parts(value));
    }
    if let Some(decl) = SetDecl::decode(attrs) {
        let mut reader = ElementReader::new(decl);
        if let Some(list) = attrs.nest(elem::LIST) {
            reader.read(list, &mut |name| name.into());
        }
        reader.read(attrs, &mut |name| name.into());
        reader.finish();
    }
}

/// Sends a request to read, and hands each answer on until the last.
pub(super) fn request(
    socket: &mut Socket,
    kind: u8,
    flags: u16,
    nfproto: u8,
    what: &str,
    ask: impl FnOnce(&mut Writer),
    each: impl FnMut(&Message<'_>),
) -> Result<(), Error> {
    let kind = wire::SUBSYS_NFTABLES << 8 | u16::from(kind);
    nfnetlink::request(socket, kind, flags, nfproto, ask, each).map_err(|error| match error {
        nfnetlink::Error::Refused(errno) => Error::Read {
            what: what.to_owned(),
            errno,
        },
        other => other.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_nf_tables_is_named() {
        // It answers for a subsystem that it does not have as for one that no kernel has.
        let nobody = 0x7f << 8 | u16::from(msg::GETGEN);
        let mut socket = Socket::open().unwrap();
        let refused =
            nfnetlink::request(&mut socket, nobody, wire::F_ACK, 0, |_| {}, |_| {}).unwrap_err();
        let said = of_nobody(refused.into()).to_string();
        assert!(
            said.starts_with("the kernel has no nf_tables: `modprobe nf_tables` on the node"),
            "{said}"
        );
    }
}
