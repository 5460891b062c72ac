//! Reading by name and key, where a dump of a whole table would be too much: single elements, the rules of one
//! chain, the base chains of a hook. For programs that follow one packet.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::dump::{decode_base, decode_rule, read_chains, request};
use super::rule::Rule;
use super::selector::family_word;
use super::set::{Element, ElementReader, SetDecl};
use super::show::{RuleText, element as write_element};
use super::table::Base;
use super::types::{Key, KeyType, Name};
use super::wire::{self, Attrs, Message, Writer, chain, data, elem, msg, rule, set, table};
use super::{Error, Nft, TableId};
use crate::vocab::Family;

/// A table of anybody's, also of the family `inet`, which sees both. `Display` is nft's way to name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AnyTable {
    /// The family; `None` for `inet`.
    pub family: Option<Family>,
    /// Its name.
    pub name: Name,
}

impl AnyTable {
    fn nfproto(&self) -> u8 {
        self.family.map_or(wire::NFPROTO_INET, wire::nfproto)
    }
}

impl From<TableId> for AnyTable {
    fn from(id: TableId) -> AnyTable {
        AnyTable {
            family: Some(id.family),
            name: id.name,
        }
    }
}

impl fmt::Display for AnyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family.map_or("inet", family_word);
        write!(f, "{family} {}", self.name)
    }
}

/// The families of tables that see IP packets; `None` is `inet`.
const FAMILIES: [Option<Family>; 3] = [Some(Family::V4), Some(Family::V6), None];

/// All that a table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The rules of each chain.
    pub chains: BTreeMap<Name, Vec<Rule>>,
    /// The sets and maps with their elements.
    pub sets: Vec<SetContents>,
}

/// A set or map with its elements, as [`Nft::elements`] gives them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetContents {
    /// What it is.
    pub decl: Arc<SetDecl>,
    /// What is in it.
    pub elements: Vec<(Key, Element)>,
}

/// A chain that packets enter at a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseChain {
    /// The table that it is in.
    pub table: AnyTable,
    /// Its name.
    pub name: Name,
    /// Where packets enter it.
    pub base: Base,
}

impl KeyType {
    /// How many bytes of registers a key takes.
    pub fn width(&self) -> usize {
        self.len()
    }
}

impl Rule {
    /// The rule in nft's syntax, as in a table of this family.
    pub fn show(&self, family: Family) -> impl fmt::Display + '_ {
        RuleText { rule: self, family }
    }
}

impl SetDecl {
    /// Of elements that were all read ([`Nft::elements`]), the one that [`Nft::element`] gives.
    pub fn find(&self, elements: &[(Key, Element)], key: &Key) -> Option<(Key, Element)> {
        if !self.interval {
            let found = elements.iter().find(|(known, _)| known == key);
            return found.cloned();
        }
        let at = self.key.split(key.as_bytes())?;
        let covers = |(range, _): &&(Key, Element)| {
            let (first, last) = self.key.bounds(range);
            let Some((first, last)) = self.key.split(first).zip(self.key.split(last)) else {
                return false;
            };
            let mut fields = first.iter().zip(&last).zip(&at);
            fields.all(|((first, last), at)| (first.1..=last.1).contains(&at.1))
        };
        let (range, element) = elements.iter().find(covers)?;
        // The kernel names a range of one field by its first key.
        let key = match self.key.fields().len() {
            1 => Key::from_bytes(self.key.bounds(range).0),
            _ => range.clone(),
        };
        Some((key, element.clone()))
    }

    /// An element of it in nft's syntax: `10.96.0.10 . udp . 53 comment "…" : goto lb-1`.
    pub fn show<'a>(&'a self, key: &'a Key, element: &'a Element) -> impl fmt::Display + 'a {
        struct Shown<'a>(&'a SetDecl, &'a Key, &'a Element);
        impl fmt::Display for Shown<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_element(f, self.0, self.1, self.2)
            }
        }
        Shown(self, key, element)
    }
}

impl Nft {
    /// All base chains of type filter and nat that see IP packets, whosever they are.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn base_chains(&mut self) -> Result<Vec<BaseChain>, Error> {
        let mut chains = Vec::new();
        self.each_of_all(msg::GETCHAIN, "chains", |family, attrs| {
            let names = (attrs.str(chain::TABLE), attrs.str(chain::NAME));
            if let ((Some(table), Some(name)), Some(base)) = (names, decode_base(attrs)) {
                let table = AnyTable {
                    family,
                    name: table.into(),
                };
                let name = name.into();
                chains.push(BaseChain { table, name, base });
            }
        })?;
        Ok(chains)
    }

    /// The rules of one chain, in order; none if there is no such chain.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn rules(&mut self, table: &AnyTable, of: &str) -> Result<Vec<Rule>, Error> {
        let mut rules = Vec::new();
        let ask = |w: &mut Writer| {
            w.str(rule::TABLE, &table.name);
            w.str(rule::CHAIN, of);
        };
        let each = |message: &Message<'_>| {
            let attrs = message.attrs();
            if attrs.str(rule::TABLE) == Some(&*table.name) && attrs.str(rule::CHAIN) == Some(of) {
                rules.push(decode_rule(attrs));
            }
        };
        let (nfproto, what) = (table.nfproto(), format!("rules of {table} {of}"));
        let asked = request(
            &mut self.socket,
            msg::GETRULE,
            wire::F_DUMP,
            nfproto,
            &what,
            ask,
            each,
        );
        absent(asked)?;
        Ok(rules)
    }

    /// The names of a table's chains; none if there is no such table.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn chain_names(&mut self, table: &TableId) -> Result<Vec<Name>, Error> {
        read_chains(&mut self.socket, table)
    }

    /// The declaration of a set or map; `None` if there is none of the name, or one that this crate cannot describe.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn declaration(
        &mut self,
        table: &AnyTable,
        name: &str,
    ) -> Result<Option<Arc<SetDecl>>, Error> {
        let mut decl = None;
        let ask = |w: &mut Writer| {
            w.str(set::TABLE, &table.name);
            w.str(set::NAME, name);
        };
        let what = format!("set {table} {name}");
        let asked = request(
            &mut self.socket,
            msg::GETSET,
            wire::F_ACK,
            table.nfproto(),
            &what,
            ask,
            |message| decl = SetDecl::decode(message.attrs()).map(Arc::new),
        );
        absent(asked)?;
        Ok(decl)
    }

    /// The element that a packet with this key finds; of a set of ranges the one that covers the key. `None` if there
    /// is none. The kernel looks it up as it does for packets: the cost does not depend on the set's size.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn element(
        &mut self,
        table: &AnyTable,
        decl: &Arc<SetDecl>,
        key: &Key,
    ) -> Result<Option<(Key, Element)>, Error> {
        let what = format!("an element of {table} {}", decl.name);
        let of_key = |w: &mut Writer| {
            w.nest(elem::LIST, |w| {
                w.nest(elem::LIST_ELEM, |w| {
                    w.nest(elem::KEY, |w| w.bytes(data::VALUE, key.as_bytes()));
                });
            });
        };
        let reader = self.read_elements(table, decl, wire::F_ACK, &what, of_key)?;
        Ok(reader.first())
    }

    /// All elements of one set or map; none if there is no such set.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn elements(
        &mut self,
        table: &AnyTable,
        decl: &Arc<SetDecl>,
    ) -> Result<Vec<(Key, Element)>, Error> {
        let what = format!("elements of {table} {}", decl.name);
        let reader = self.read_elements(table, decl, wire::F_DUMP, &what, |_| {})?;
        Ok(reader.finish().elements.into_iter().collect())
    }

    /// All tables that see IP packets, whosever they are.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn all_tables(&mut self) -> Result<Vec<AnyTable>, Error> {
        let mut tables = Vec::new();
        self.each_of_all(msg::GETTABLE, "tables", |family, attrs| {
            tables.extend(attrs.str(table::NAME).map(|name| AnyTable {
                family,
                name: name.into(),
            }));
        })?;
        Ok(tables)
    }

    /// All that a table holds, whosever it is, for a program that keeps it: sets that this crate cannot describe are left
    /// out.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Socket`].
    pub fn contents(&mut self, table: &AnyTable) -> Result<Contents, Error> {
        let mut contents = Contents::default();
        self.each_of(table, msg::GETCHAIN, chain::TABLE, "chains", |attrs| {
            if let Some(name) = attrs.str(chain::NAME) {
                contents.chains.entry(name.into()).or_default();
            }
        })?;
        self.each_of(table, msg::GETRULE, rule::TABLE, "rules", |attrs| {
            if let Some(name) = attrs.str(rule::CHAIN) {
                let rules = contents.chains.entry(name.into()).or_default();
                rules.push(decode_rule(attrs));
            }
        })?;
        let mut decls = Vec::new();
        self.each_of(table, msg::GETSET, set::TABLE, "sets", |attrs| {
            decls.extend(SetDecl::decode(attrs).map(Arc::new));
        })?;
        for decl in decls {
            let elements = self.elements(table, &decl)?;
            contents.sets.push(SetContents { decl, elements });
        }
        Ok(contents)
    }

    /// All objects of a kind that see IP packets, whosever they are, with the family of their table.
    fn each_of_all(
        &mut self,
        kind: u8,
        what: &str,
        mut each: impl FnMut(Option<Family>, Attrs<'_>),
    ) -> Result<(), Error> {
        for family in FAMILIES {
            let nfproto = family.map_or(wire::NFPROTO_INET, wire::nfproto);
            request(
                &mut self.socket,
                kind,
                wire::F_DUMP,
                nfproto,
                what,
                |_| {},
                |message: &Message<'_>| each(family, message.attrs()),
            )?;
        }
        Ok(())
    }

    /// All objects of a kind in a table, of which `of` is the attribute that names it: kernels do not filter all.
    fn each_of(
        &mut self,
        table: &AnyTable,
        kind: u8,
        of: u16,
        what: &str,
        mut each: impl FnMut(Attrs<'_>),
    ) -> Result<(), Error> {
        absent(request(
            &mut self.socket,
            kind,
            wire::F_DUMP,
            table.nfproto(),
            &format!("{what} of {table}"),
            |w: &mut Writer| w.str(of, &table.name),
            |message: &Message<'_>| {
                if message.attrs().str(of) == Some(&*table.name) {
                    each(message.attrs());
                }
            },
        ))
    }

    /// Asks for elements of a set; `which` narrows the question. A set that is not there has none.
    fn read_elements(
        &mut self,
        table: &AnyTable,
        decl: &SetDecl,
        flags: u16,
        what: &str,
        which: impl FnOnce(&mut Writer),
    ) -> Result<ElementReader, Error> {
        let mut reader = ElementReader::new(decl.clone());
        let asked = request(
            &mut self.socket,
            msg::GETSETELEM,
            flags,
            table.nfproto(),
            what,
            |w: &mut Writer| {
                w.str(elem::TABLE, &table.name);
                w.str(elem::SET, &decl.name);
                which(w);
            },
            |message| {
                if let Some(list) = message.attrs().nest(elem::LIST) {
                    reader.read(list, &mut |chain| chain.into());
                }
            },
        );
        absent(asked)?;
        Ok(reader)
    }
}

fn absent(asked: Result<(), Error>) -> Result<(), Error> {
    match asked {
        Err(Error::Read {
            errno: Errno::ENOENT,
            ..
        }) => Ok(()),
        other => other,
    }
}
