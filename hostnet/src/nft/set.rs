//! Sets and maps: their declaration, their elements, and both to and from netlink attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::comment::Comment;
use super::expr::Verdict;
use super::types::{Key, KeyType, Name};
use super::udata;
use super::wire::{Attrs, Writer, data, elem, set};

/// What a map gives for a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataType {
    /// A verdict: a `vmap`.
    Verdict,
    /// A value or a concatenation. By `typeof` if the key is, since nft writes both one way.
    Value(KeyType),
}

/// The declaration of a set, or of a map (a set with data).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDecl {
    /// Its name, unique in the table.
    pub name: Name,
    /// What its keys are.
    pub key: KeyType,
    /// What a map holds; None for a set.
    pub data: Option<DataType>,
    /// Whether keys are ranges (`flags interval`). They must not overlap.
    pub interval: bool,
    /// Whether packets put elements into it (`flags dynamic`). Its elements are then not ours: they are
    /// neither read nor compared.
    pub dynamic: bool,
    /// After which an element that packets have put in goes (`flags timeout`).
    pub timeout: Option<Duration>,
    /// The most elements it can hold. A dynamic set needs it.
    pub size: Option<u32>,
    /// What a person reads beside it.
    pub comment: Option<Comment>,
}

impl SetDecl {
    /// `set NAME { type KEY }`.
    pub fn set(name: impl Into<Name>, key: KeyType) -> SetDecl {
        SetDecl {
            name: name.into(),
            key,
            data: None,
            interval: false,
            dynamic: false,
            timeout: None,
            size: None,
            comment: None,
        }
    }

    /// `map NAME { type KEY : DATA }`.
    pub fn map(name: impl Into<Name>, key: KeyType, data: KeyType) -> SetDecl {
        SetDecl {
            data: Some(DataType::Value(data)),
            ..SetDecl::set(name, key)
        }
    }

    /// `map NAME { type KEY : verdict }`.
    pub fn vmap(name: impl Into<Name>, key: KeyType) -> SetDecl {
        SetDecl {
            data: Some(DataType::Verdict),
            ..SetDecl::set(name, key)
        }
    }

    /// `flags interval`.
    pub fn interval(self) -> SetDecl {
        SetDecl {
            interval: true,
            ..self
        }
    }

    /// `flags dynamic,timeout; timeout T; size N`.
    pub fn dynamic(self, timeout: Duration, size: u32) -> SetDecl {
        SetDecl {
            dynamic: true,
            timeout: Some(timeout),
            size: Some(size),
            ..self
        }
    }

    /// `comment "…"`.
    pub fn comment(self, comment: impl Into<Comment>) -> SetDecl {
        SetDecl {
            comment: Some(comment.into()),
            ..self
        }
    }

    /// nft's word for it.
    pub(super) fn word(&self) -> &'static str {
        if self.data.is_some() { "map" } else { "set" }
    }

    fn flags(&self) -> u32 {
        let concat = self.interval && self.key.fields().len() > 1;
        [
            (self.interval, set::F_INTERVAL),
            (concat, set::F_CONCAT),
            (self.data.is_some(), set::F_MAP),
            (self.timeout.is_some(), set::F_TIMEOUT),
            (self.dynamic, set::F_EVAL),
        ]
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(0, |flags, (_, bit)| flags | bit)
    }

    /// Writes the attributes of `NFT_MSG_NEWSET`. `id` is any number, unique in the transaction.
    pub(super) fn encode(&self, w: &mut Writer, table: &str, id: u32) {
        w.str(set::TABLE, table);
        w.str(set::NAME, &self.name);
        w.be32(set::FLAGS, self.flags());
        w.be32(set::KEY_TYPE, self.key.id());
        w.be32(set::KEY_LEN, self.key.len() as u32);
        match &self.data {
            Some(DataType::Verdict) => {
                w.be32(set::DATA_TYPE, set::TYPE_VERDICT);
                w.be32(set::DATA_LEN, 0);
            }
            Some(DataType::Value(data)) => {
                w.be32(set::DATA_TYPE, data.id());
                w.be32(set::DATA_LEN, data.len() as u32);
            }
            None => {}
        }
        w.be32(set::ID, id);
        let is_concat_of_ranges = self.flags() & set::F_CONCAT != 0;
        if self.size.is_some() || is_concat_of_ranges {
            w.nest(set::DESC, |w| {
                if let Some(size) = self.size {
                    w.be32(set::DESC_SIZE, size);
                }
                if is_concat_of_ranges {
                    w.nest(set::DESC_CONCAT, |w| {
                        for field in self.key.fields() {
                            w.nest(set::DESC_FIELD, |w| {
                                w.be32(set::DESC_FIELD_LEN, field.len() as u32);
                            });
                        }
                    });
                }
            });
        }
        if let Some(timeout) = self.timeout {
            w.be64(
                set::TIMEOUT,
                u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            );
        }
        w.bytes(set::USERDATA, &udata::of_set(self));
    }

    /// Reads the attributes of `NFT_MSG_NEWSET`. None for a set that is not like any of ours.
    pub(super) fn decode(attrs: Attrs<'_>) -> Option<SetDecl> {
        let flags = attrs.be32(set::FLAGS).unwrap_or(0);
        let (key_typeof, data_typeof, comment) =
            udata::set_parts(attrs.get(set::USERDATA).unwrap_or_default());
        let data = match attrs.be32(set::DATA_TYPE) {
            None => None,
            Some(set::TYPE_VERDICT) => Some(DataType::Verdict),
            Some(id) => Some(DataType::Value(KeyType::from_id(id, data_typeof)?)),
        };
        let timeout = attrs
            .be64(set::TIMEOUT)
            .filter(|ms| *ms > 0)
            .map(Duration::from_millis);
        let decl = SetDecl {
            name: attrs.str(set::NAME)?.into(),
            key: KeyType::from_id(attrs.be32(set::KEY_TYPE)?, key_typeof)?,
            data,
            interval: flags & set::F_INTERVAL != 0,
            dynamic: flags & set::F_EVAL != 0,
            timeout,
            size: attrs
                .nest(set::DESC)
                .and_then(|desc| desc.be32(set::DESC_SIZE)),
            comment,
        };
        // What the fields above do not hold would otherwise be taken for equal.
        let is_whole =
            decl.flags() == flags && attrs.be32(set::KEY_LEN) == Some(decl.key.len() as u32);
        is_whole.then_some(decl)
    }
}

/// A set or map with its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What it is.
    pub decl: Arc<SetDecl>,
    /// What is in it.
    pub elements: BTreeMap<Key, Element>,
}

impl Set {
    /// An empty one.
    pub fn new(decl: impl Into<Arc<SetDecl>>) -> Set {
        Set {
            decl: decl.into(),
            elements: BTreeMap::new(),
        }
    }

    /// Puts an element in; one with the same key is replaced.
    pub fn insert(&mut self, key: impl Into<Key>, element: impl Into<Element>) {
        self.elements.insert(key.into(), element.into());
    }

    /// As [`Set::insert`], in a chain of calls.
    pub fn with(mut self, key: impl Into<Key>, element: impl Into<Element>) -> Set {
        self.insert(key, element);
        self
    }
}

impl From<SetDecl> for Set {
    fn from(decl: SetDecl) -> Set {
        Set::new(decl)
    }
}

/// What belongs to a key: the data if it is a map's, and a comment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Element {
    /// None in a set.
    pub data: Option<Data>,
    /// What a person reads beside it.
    pub comment: Option<Comment>,
}

/// The data of a map's element.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// In a verdict map.
    Verdict(Verdict),
    /// In another map.
    Value(Key),
}

impl Element {
    /// An element of a set.
    pub fn new() -> Element {
        Element::default()
    }

    /// An element of a map: `KEY : VALUE`.
    pub fn value(value: impl Into<Key>) -> Element {
        Element {
            data: Some(Data::Value(value.into())),
            comment: None,
        }
    }

    /// `comment "…"`.
    pub fn comment(self, comment: impl Into<Comment>) -> Element {
        Element {
            comment: Some(comment.into()),
            ..self
        }
    }
}

/// An element of a set, without comment.
impl From<()> for Element {
    fn from((): ()) -> Element {
        Element::new()
    }
}

/// An element of a verdict map: `KEY : VERDICT`.
impl From<Verdict> for Element {
    fn from(verdict: Verdict) -> Element {
        Element {
            data: Some(Data::Verdict(verdict)),
            comment: None,
        }
    }
}

/// Writes an element into `NFTA_SET_ELEM_LIST_ELEMENTS`. For a deletion only the key is needed.
pub(super) fn encode_element(w: &mut Writer, decl: &SetDecl, key: &Key, element: Option<&Element>) {
    let (first, last) = decl.key.bounds(key);
    let is_concat = decl.key.fields().len() > 1;
    let value = |w: &mut Writer, kind, bytes: &[u8]| w.nest(kind, |w| w.bytes(data::VALUE, bytes));
    w.nest(elem::LIST_ELEM, |w| {
        value(w, elem::KEY, first);
        if decl.interval && is_concat {
            value(w, elem::KEY_END, last);
        }
        let Some(element) = element else { return };
        match &element.data {
            Some(Data::Verdict(verdict)) => w.nest(elem::DATA, |w| verdict.encode(w)),
            Some(Data::Value(bytes)) => value(w, elem::DATA, &bytes.0),
            None => {}
        }
        if let Some(comment) = &element.comment {
            w.bytes(elem::USERDATA, &udata::of_comment(comment));
        }
    });
    // A range of a single field is two elements: its first key, and, marked, the one after its last.
    // The range that ends at the last key of all is open.
    if decl.interval
        && !is_concat
        && let Some(end) = after(last)
    {
        w.nest(elem::LIST_ELEM, |w| {
            w.be32(elem::FLAGS, elem::F_INTERVAL_END);
            value(w, elem::KEY, &end);
        });
    }
}

/// Collects the elements of a set from the messages of a dump.
pub(super) struct ElementReader {
    set: Set,
    /// Of ranges of a single field: the keys after their last ones.
    ends: BTreeSet<Vec<u8>>,
}

impl ElementReader {
    pub(super) fn new(decl: SetDecl) -> ElementReader {
        ElementReader {
            set: Set::new(decl),
            ends: BTreeSet::new(),
        }
    }

    /// Reads one `NFT_MSG_NEWSETELEM`. `name` makes (or shares) the names of chains.
    pub(super) fn read(&mut self, list: Attrs<'_>, name: &mut dyn FnMut(&str) -> Name) {
        for (_, item) in list {
            let attrs = Attrs(item);
            let value = |kind| attrs.nest(kind).and_then(|nest| nest.get(data::VALUE));
            let Some(first) = value(elem::KEY) else {
                continue;
            };
            if attrs.be32(elem::FLAGS).unwrap_or(0) & elem::F_INTERVAL_END != 0 {
                self.ends.insert(first.to_vec());
                continue;
            }
            let key = match value(elem::KEY_END) {
                Some(last) => Key::range(Key(first.into()), Key(last.into())),
                None => Key(first.into()),
            };
            let data = attrs
                .nest(elem::DATA)
                .and_then(|nest| match nest.nest(data::VERDICT) {
                    Some(verdict) => Some(Data::Verdict(Verdict::decode(verdict, name)?)),
                    None => Some(Data::Value(Key(nest.get(data::VALUE)?.into()))),
                });
            let comment = attrs.get(elem::USERDATA).and_then(udata::comment);
            self.set.elements.insert(key, Element { data, comment });
        }
    }

    /// The element that was asked for, as its key is in the kernel.
    pub(super) fn first(self) -> Option<(Key, Element)> {
        self.set.elements.into_iter().next()
    }

    /// The set, after the last message.
    pub(super) fn finish(mut self) -> Set {
        let decl = &self.set.decl;
        if decl.interval && decl.key.fields().len() == 1 {
            let last_of_all = vec![0xff; decl.key.len()];
            let ends = self.ends;
            let last = |first: &[u8]| {
                let end = ends
                    .range::<[u8], _>((Bound::Excluded(first), Bound::Unbounded))
                    .next();
                end.map_or(last_of_all.clone(), |end| before(end))
            };
            self.set.elements = std::mem::take(&mut self.set.elements)
                .into_iter()
                .map(|(first, element)| {
                    let last = Key(last(&first.0).into());
                    (Key::range(first, last), element)
                })
                .collect();
        }
        self.set
    }
}

/// The key after this one, counted as a big-endian number; None after the last of all.
fn after(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

/// The key before this one, which is not the first of all.
fn before(key: &[u8]) -> Vec<u8> {
    let mut previous = key.to_vec();
    for byte in previous.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            break;
        }
    }
    previous
}
