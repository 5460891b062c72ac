//! Userdata: what the kernel keeps for `nft` beside our objects without reading it itself, so that an
//! administrator sees comments and types.
//!
//! Items of one byte of type, one of length, and a value; numbers in host order. The types are those of
//! libnftnl's `udata.h`; the form of a typeof is what nft 1.0.6 writes.

use super::comment::Comment;
use super::selector::Selector;
use super::set::{DataType, SetDecl};
use super::types::KeyType;
use crate::vocab::Family;

/// `NFTNL_UDATA_{TABLE,CHAIN,RULE,SET_ELEM}_COMMENT`: the same number in all of them.
const COMMENT: u8 = 0;

/// `enum nftnl_udata_set_types`.
const SET_KEY_BYTEORDER: u8 = 0;
const SET_DATA_BYTEORDER: u8 = 1;
const SET_KEY_TYPEOF: u8 = 3;
const SET_DATA_TYPEOF: u8 = 4;
const SET_DATA_INTERVAL: u8 = 6;
const SET_COMMENT: u8 = 7;

/// Inside a typeof: the kind of expression, and the expression's own items.
const TYPEOF_EXPR: u8 = 0;
const TYPEOF_DATA: u8 = 1;

/// `enum expr_types` of nft.
const EXPR_PAYLOAD: u32 = 7;
const EXPR_META: u32 = 9;
const EXPR_CONCAT: u32 = 13;
const EXPR_NUMGEN: u32 = 23;

/// The userdata of a table, chain, rule or element.
pub(super) fn of_comment(comment: &Comment) -> Vec<u8> {
    let mut out = Vec::with_capacity(comment.as_str().len() + 3);
    put_comment(&mut out, COMMENT, comment);
    out
}

/// The comment in the userdata of a table, chain, rule or element.
pub(super) fn comment(userdata: &[u8]) -> Option<Comment> {
    find_comment(userdata, COMMENT)
}

/// The userdata of a set: its comment, and how nft shall read its keys and data.
pub(super) fn of_set(decl: &SetDecl) -> Vec<u8> {
    let mut out = Vec::new();
    put_u32(&mut out, SET_KEY_BYTEORDER, decl.key.byteorder());
    let data_byteorder = match &decl.data {
        Some(DataType::Value(data)) => Some(data.byteorder()),
        Some(DataType::Verdict) => Some(0),
        None => None,
    };
    if let Some(byteorder) = data_byteorder {
        put_u32(&mut out, SET_DATA_BYTEORDER, byteorder);
    }
    put_type(&mut out, SET_KEY_TYPEOF, &decl.key);
    if let Some(DataType::Value(data)) = &decl.data {
        put_type(&mut out, SET_DATA_TYPEOF, data);
    }
    if decl.data.is_some() {
        put_u32(&mut out, SET_DATA_INTERVAL, 0);
    }
    if let Some(comment) = &decl.comment {
        put_comment(&mut out, SET_COMMENT, comment);
    }
    out
}

/// What a set's userdata says: typeof of the key, typeof of the data, comment.
pub(super) fn set_parts(
    userdata: &[u8],
) -> (
    Option<Vec<Selector>>,
    Option<Vec<Selector>>,
    Option<Comment>,
) {
    (
        find(userdata, SET_KEY_TYPEOF).and_then(typeof_selectors),
        find(userdata, SET_DATA_TYPEOF).and_then(typeof_selectors),
        find_comment(userdata, SET_COMMENT),
    )
}

/// Whether nft 1.0.6 can write a typeof of this selector.
pub(super) fn has_typeof(selector: Selector) -> bool {
    typeof_items(selector).is_some()
}

fn put_type(out: &mut Vec<u8>, kind: u8, key: &KeyType) {
    match (key.selectors(), key.fields()) {
        (Some([one]), _) => put_nest(out, kind, |out| put_selector(out, *one)),
        (Some(selectors), _) => put_nest(out, kind, |out| {
            put_u32(out, TYPEOF_EXPR, EXPR_CONCAT);
            put_nest(out, TYPEOF_DATA, |out| {
                for (i, selector) in selectors.iter().enumerate() {
                    put_nest(out, i as u8, |out| put_selector(out, *selector));
                }
            });
        }),
        // nft records of a concatenation that it is one, and nothing of a single type.
        (None, [_]) => {}
        (None, _) => put_nest(out, kind, |out| {
            put_u32(out, TYPEOF_EXPR, EXPR_CONCAT);
            put_nest(out, TYPEOF_DATA, |_| {});
        }),
    }
}

fn put_selector(out: &mut Vec<u8>, selector: Selector) {
    let Some((expr, items)) = typeof_items(selector) else {
        return;
    };
    put_u32(out, TYPEOF_EXPR, expr);
    put_nest(out, TYPEOF_DATA, |out| {
        for (i, item) in items.iter().enumerate() {
            put_u32(out, i as u8, *item);
        }
    });
}

/// The kind of expression and its items: of a header field the protocol (`enum proto_desc_id`) and the
/// number of the field in nft's description of that header; of meta the key; of numgen type, modulus and offset.
fn typeof_items(selector: Selector) -> Option<(u32, Vec<u32>)> {
    let (th, ip, ip6) = (11, 12, 13);
    Some(match selector {
        Selector::Saddr(Family::V4) => (EXPR_PAYLOAD, vec![ip, 11]),
        Selector::Daddr(Family::V4) => (EXPR_PAYLOAD, vec![ip, 12]),
        Selector::Saddr(Family::V6) => (EXPR_PAYLOAD, vec![ip6, 8]),
        Selector::Daddr(Family::V6) => (EXPR_PAYLOAD, vec![ip6, 9]),
        Selector::Sport => (EXPR_PAYLOAD, vec![th, 1]),
        Selector::Dport => (EXPR_PAYLOAD, vec![th, 2]),
        Selector::Mark => (EXPR_META, vec![3]),
        Selector::IifName => (EXPR_META, vec![6]),
        Selector::OifName => (EXPR_META, vec![7]),
        Selector::L4Proto => (EXPR_META, vec![16]),
        Selector::Random(modulus) => (EXPR_NUMGEN, vec![1, modulus, 0]),
        _ => return None,
    })
}

/// The reverse of [`put_type`]. None for a typeof that is not ours, and where there is none.
fn typeof_selectors(userdata: &[u8]) -> Option<Vec<Selector>> {
    let expr = find_u32(userdata, TYPEOF_EXPR)?;
    let data = find(userdata, TYPEOF_DATA)?;
    if expr != EXPR_CONCAT {
        return Some(vec![selector(expr, data)?]);
    }
    let selectors = items(data)
        .map(|(_, field)| selector(find_u32(field, TYPEOF_EXPR)?, find(field, TYPEOF_DATA)?))
        .collect::<Option<Vec<_>>>()?;
    (!selectors.is_empty()).then_some(selectors)
}

fn selector(expr: u32, data: &[u8]) -> Option<Selector> {
    if expr == EXPR_NUMGEN {
        let random = Selector::Random(find_u32(data, 1)?);
        return (typeof_items(random) == Some((expr, values(data)?))).then_some(random);
    }
    let wanted = (expr, values(data)?);
    Family::ALL
        .into_iter()
        .flat_map(Selector::all)
        .find(|selector| typeof_items(*selector).as_ref() == Some(&wanted))
}

/// The numbers in a selector's items, in order.
fn values(data: &[u8]) -> Option<Vec<u32>> {
    items(data)
        .map(|(_, value)| Some(u32::from_ne_bytes(value.try_into().ok()?)))
        .collect()
}

fn items(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (kind, len) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        let value = bytes.get(2..2 + len)?;
        bytes = &bytes[2 + len..];
        Some((kind, value))
    })
}

fn find(bytes: &[u8], kind: u8) -> Option<&[u8]> {
    items(bytes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

fn find_u32(bytes: &[u8], kind: u8) -> Option<u32> {
    Some(u32::from_ne_bytes(find(bytes, kind)?.try_into().ok()?))
}

fn find_comment(bytes: &[u8], kind: u8) -> Option<Comment> {
    let text = std::str::from_utf8(find(bytes, kind)?).ok()?;
    Some(Comment::observed(text.trim_end_matches('\0')))
}

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    // All that is put here is short: a comment of 128 bytes, a typeof of a few fields.
    debug_assert!(
        value.len() <= usize::from(u8::MAX),
        "userdata item of {}",
        value.len()
    );
    out.extend_from_slice(&[kind, value.len() as u8]);
    out.extend_from_slice(value);
}

fn put_u32(out: &mut Vec<u8>, kind: u8, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

fn put_comment(out: &mut Vec<u8>, kind: u8, comment: &Comment) {
    put(out, kind, &[comment.as_str().as_bytes(), b"\0"].concat());
}

fn put_nest(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    body(&mut inner);
    put(out, kind, &inner);
}
