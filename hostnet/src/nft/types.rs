//! The data types of nf_tables as `nft` knows them, and values of them: what keys and data of
//! sets are made of.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::selector::Selector;
use super::udata;
use crate::vocab::Family;

/// The name of a table, chain or set. Shared, since thousands of elements name the same chain.
pub type Name = Arc<str>;

/// A transport protocol, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Proto(pub u8);

impl Proto {
    /// TCP.
    pub const TCP: Proto = Proto(6);
    /// UDP.
    pub const UDP: Proto = Proto(17);
    /// SCTP.
    pub const SCTP: Proto = Proto(132);
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("icmp"),
            6 => f.write_str("tcp"),
            17 => f.write_str("udp"),
            58 => f.write_str("ipv6-icmp"),
            132 => f.write_str("sctp"),
            other => write!(f, "{other}"),
        }
    }
}

/// One value of a key, of a map's data, or to compare with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    /// An address; its family decides the length.
    Addr(IpAddr),
    /// A transport protocol.
    Proto(Proto),
    /// A port number.
    Port(u16),
    /// A number of 32 bits (a slot, a mark, bits of a state), in host order.
    Number(u32),
    /// The name of an interface.
    Interface(String),
}

impl Datum {
    /// The reverse of [`Datum::to_bytes`]. None if the length is another.
    fn from_bytes(field: FieldType, bytes: &[u8]) -> Option<Datum> {
        Some(match field {
            FieldType::Ipv4Addr => Datum::Addr(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            FieldType::Ipv6Addr => Datum::Addr(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
            FieldType::InetProto => Datum::Proto(Proto(*bytes.first()?)),
            FieldType::InetService => Datum::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
            FieldType::Mark | FieldType::Integer | FieldType::Bits(_) => {
                Datum::Number(u32::from_ne_bytes(bytes.try_into().ok()?))
            }
            FieldType::IfName => {
                let name = bytes.split(|b| *b == 0).next()?;
                Datum::Interface(String::from_utf8(name.to_vec()).ok()?)
            }
        })
    }

    /// The bytes that registers and keys hold, without padding.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes
    }

    /// Adds [`Datum::to_bytes`] to some.
    fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Datum::Addr(IpAddr::V4(a)) => bytes.extend(a.octets()),
            Datum::Addr(IpAddr::V6(a)) => bytes.extend(a.octets()),
            Datum::Proto(p) => bytes.push(p.0),
            Datum::Port(p) => bytes.extend(p.to_be_bytes()),
            Datum::Number(n) => bytes.extend(n.to_ne_bytes()),
            Datum::Interface(name) => {
                let end = bytes.len() + IFNAMSIZ;
                bytes.extend_from_slice(name.as_bytes());
                bytes.resize(end, 0);
            }
        }
    }

    /// How many bytes [`Datum::to_bytes`] are.
    fn len(&self) -> usize {
        match self {
            Datum::Proto(_) => 1,
            Datum::Port(_) => 2,
            Datum::Addr(IpAddr::V4(_)) | Datum::Number(_) => 4,
            Datum::Addr(IpAddr::V6(_)) | Datum::Interface(_) => 16,
        }
    }
}

/// The length of an interface name in a register, the NUL included (`linux/if.h`).
const IFNAMSIZ: usize = 16;

macro_rules! datum_from {
    ($($from:ty => |$value:ident| $datum:expr),* $(,)?) => {$(
        impl From<$from> for Datum {
            fn from($value: $from) -> Datum {
                $datum
            }
        }
    )*};
}

datum_from! {
    IpAddr => |a| Datum::Addr(a),
    Ipv4Addr => |a| Datum::Addr(a.into()),
    Ipv6Addr => |a| Datum::Addr(a.into()),
    Proto => |p| Datum::Proto(p),
    u16 => |p| Datum::Port(p),
    u32 => |n| Datum::Number(n),
    &str => |name| Datum::Interface(name.to_owned()),
}

/// The type of one field of a key, as `nft` names and numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FieldType {
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
    /// `inet_proto`: a transport protocol.
    InetProto,
    /// `inet_service`: a port.
    InetService,
    /// `mark`: a packet mark.
    Mark,
    /// `ifname`.
    IfName,
    /// A number of 32 bits. `nft` can only write it with `typeof`.
    Integer,
    /// Numbers with names, such as `ct state`: in rules, never in keys.
    Bits(BitNames),
}

/// Which names the bits or values of a number have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BitNames {
    /// `ct state` ([`CT_NEW`](super::CT_NEW) and others).
    CtState,
    /// `ct status` ([`CT_DNAT`](super::CT_DNAT) and others).
    CtStatus,
    /// `fib … type`: `RTN_*` of `linux/rtnetlink.h`, a value rather than bits.
    FibType,
}

impl FieldType {
    /// The type of an address.
    pub fn addr(family: Family) -> FieldType {
        match family {
            Family::V4 => FieldType::Ipv4Addr,
            Family::V6 => FieldType::Ipv6Addr,
        }
    }

    /// `enum datatypes` of nftables: the ids by which `nft list` knows what a set holds.
    fn id(self) -> u32 {
        match self {
            FieldType::Integer => 4,
            FieldType::Ipv4Addr => 7,
            FieldType::Ipv6Addr => 8,
            FieldType::InetProto => 12,
            FieldType::InetService => 13,
            FieldType::Mark => 19,
            FieldType::IfName => 41,
            // In rules only.
            FieldType::Bits(_) => 0,
        }
    }

    fn from_id(id: u32) -> Option<FieldType> {
        [
            FieldType::Integer,
            FieldType::Ipv4Addr,
            FieldType::Ipv6Addr,
            FieldType::InetProto,
            FieldType::InetService,
            FieldType::Mark,
            FieldType::IfName,
        ]
        .into_iter()
        .find(|t| t.id() == id)
    }

    /// Its length in bytes, without padding.
    pub(super) fn len(self) -> usize {
        match self {
            FieldType::InetProto => 1,
            FieldType::InetService => 2,
            FieldType::Ipv4Addr | FieldType::Mark | FieldType::Integer | FieldType::Bits(_) => 4,
            FieldType::Ipv6Addr | FieldType::IfName => 16,
        }
    }

    /// `enum byteorder` of nftables: 1 host, 2 network.
    fn byteorder(self) -> u32 {
        match self {
            FieldType::Integer | FieldType::Mark | FieldType::IfName | FieldType::Bits(_) => 1,
            FieldType::Ipv4Addr
            | FieldType::Ipv6Addr
            | FieldType::InetProto
            | FieldType::InetService => 2,
        }
    }

    fn keyword(self) -> &'static str {
        match self {
            FieldType::Ipv4Addr => "ipv4_addr",
            FieldType::Ipv6Addr => "ipv6_addr",
            FieldType::InetProto => "inet_proto",
            FieldType::InetService => "inet_service",
            FieldType::Mark => "mark",
            FieldType::IfName => "ifname",
            FieldType::Integer => "integer",
            FieldType::Bits(_) => "bits",
        }
    }
}

/// What a key or a map's data is made of: one field, or a concatenation of up to 16.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyType {
    fields: Vec<FieldType>,
    selectors: Option<Vec<Selector>>,
}

/// `NFT_REG32_COUNT`: a key lies in 16 registers of 4 bytes.
const KEY_MAX: usize = 64;

impl KeyType {
    /// `type a . b . c`.
    ///
    /// # Panics
    /// If there is no field, or more than nft can name (five) or the registers can hold (64 bytes): tables
    /// are written in the source, so this is a slip there.
    pub fn of(fields: impl IntoIterator<Item = FieldType>) -> KeyType {
        let key = KeyType {
            fields: fields.into_iter().collect(),
            selectors: None,
        };
        assert!(
            (1..=5).contains(&key.fields.len()) && key.len() <= KEY_MAX,
            "no nf_tables key: {key}"
        );
        key
    }

    /// `typeof a . b . c`: needed where a field is a plain number (`numgen`), whose type `nft`
    /// cannot name.
    ///
    /// # Panics
    /// As [`KeyType::of`].
    pub fn typeof_(selectors: impl IntoIterator<Item = Selector>) -> KeyType {
        let selectors: Vec<_> = selectors.into_iter().collect();
        assert!(
            selectors.iter().all(|s| udata::has_typeof(*s)),
            "nft has no typeof {selectors:?}"
        );
        let mut key = KeyType::of(selectors.iter().map(|s| s.field_type()));
        key.selectors = Some(selectors);
        key
    }

    /// The fields, in order.
    pub fn fields(&self) -> &[FieldType] {
        &self.fields
    }

    /// What the fields are read from, if declared by `typeof`.
    pub(super) fn selectors(&self) -> Option<&[Selector]> {
        self.selectors.as_deref()
    }

    /// The length of a key: fields are padded to registers when there are several.
    pub(super) fn len(&self) -> usize {
        match self.fields.as_slice() {
            [one] => one.len(),
            many => many.iter().map(|f| f.len().next_multiple_of(4)).sum(),
        }
    }

    /// The id in `NFTA_SET_KEY_TYPE`: six bits for each field, the first highest.
    pub(super) fn id(&self) -> u32 {
        self.fields.iter().fold(0, |id, field| id << 6 | field.id())
    }

    /// `enum byteorder` as nft records it: that of a single field, none for a concatenation.
    pub(super) fn byteorder(&self) -> u32 {
        match self.fields.as_slice() {
            [one] => one.byteorder(),
            _ => 0,
        }
    }

    /// The reverse of [`KeyType::id`], with the `typeof` part if there is one. None for types
    /// that Twill does not use.
    pub(super) fn from_id(mut id: u32, selectors: Option<Vec<Selector>>) -> Option<KeyType> {
        if let Some(selectors) = selectors {
            let key = KeyType {
                fields: selectors.iter().map(|s| s.field_type()).collect(),
                selectors: Some(selectors),
            };
            return (key.id() == id).then_some(key);
        }
        let mut fields = Vec::new();
        while id != 0 {
            fields.push(FieldType::from_id(id & 0x3f)?);
            id >>= 6;
        }
        fields.reverse();
        (!fields.is_empty()).then_some(KeyType {
            fields,
            selectors: None,
        })
    }

    /// Splits a key's bytes into its fields. None if the length is wrong.
    pub(super) fn split<'a>(&'a self, bytes: &'a [u8]) -> Option<Vec<(FieldType, &'a [u8])>> {
        if bytes.len() != self.len() {
            return None;
        }
        let mut at = 0;
        let mut out = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            out.push((*field, &bytes[at..at + field.len()]));
            at += field.len().next_multiple_of(4);
        }
        Some(out)
    }

    /// What a key holds, field by field. None if it is a range, or not of this type.
    pub fn decode(&self, key: &Key) -> Option<Vec<Datum>> {
        self.split(&key.0)?
            .into_iter()
            .map(|(field, bytes)| Datum::from_bytes(field, bytes))
            .collect()
    }

    /// A key as nft writes it: `10.96.0.10 . udp . 53`, or hexadecimal if it is not of this type.
    pub fn show<'a>(&'a self, key: &'a Key) -> impl fmt::Display + 'a {
        struct Shown<'a>(&'a KeyType, &'a Key);
        impl fmt::Display for Shown<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Shown(key_type, key) = self;
                let (start, end) = key_type.bounds(key);
                let (Some(start), Some(end)) = (key_type.split(start), key_type.split(end)) else {
                    f.write_str("0x")?;
                    return key.0.iter().try_for_each(|b| write!(f, "{b:02x}"));
                };
                for (i, ((field, low), (_, high))) in start.into_iter().zip(end).enumerate() {
                    if i > 0 {
                        f.write_str(" . ")?;
                    }
                    write_range(f, field, low, high)?;
                }
                Ok(())
            }
        }
        Shown(self, key)
    }

    /// First and last of a key that is a range; twice the same for one that is not.
    pub(super) fn bounds<'a>(&self, key: &'a Key) -> (&'a [u8], &'a [u8]) {
        if key.0.len() == 2 * self.len() {
            key.0.split_at(self.len())
        } else {
            (&key.0, &key.0)
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let between = |i: usize| if i > 0 { " . " } else { "" };
        match &self.selectors {
            Some(selectors) => selectors
                .iter()
                .enumerate()
                .try_for_each(|(i, s)| write!(f, "{}{s}", between(i))),
            None => self
                .fields
                .iter()
                .enumerate()
                .try_for_each(|(i, t)| write!(f, "{}{}", between(i), t.keyword())),
        }
    }
}

/// A value of a [`KeyType`]: the key of an element, or the data of a map's.
///
/// Made from a datum or a tuple of them: `Key::from((vip, Proto::TCP, 443u16))`. Holds the bytes
/// as the kernel does, so that what is observed compares with what is desired.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub(super) Box<[u8]>);

/// As hexadecimal digits: as numbers each byte would take three times as much.
impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = self.0.iter().map(|byte| format!("{byte:02x}"));
        serializer.serialize_str(&digits.collect::<String>())
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = (text.chars())
            .map(|digit| Some(digit.to_digit(16)? as u8))
            .collect();
        match digits {
            Some(digits) if digits.len() % 2 == 0 => {
                let bytes = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]);
                Ok(Key(bytes.collect()))
            }
            _ => Err(de::Error::custom("a key is pairs of hexadecimal digits")),
        }
    }
}

impl Key {
    fn concat(data: &[Datum]) -> Key {
        if let [datum] = data {
            return Key(datum.to_bytes().into());
        }
        // Thousands are made: each is allocated once.
        let len = data.iter().map(|datum| datum.len().next_multiple_of(4));
        let mut bytes = Vec::with_capacity(len.sum());
        for datum in data {
            datum.write(&mut bytes);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Key(bytes.into())
    }

    /// A key as it lies in registers: each field padded to four bytes if there are several.
    pub fn from_bytes(bytes: &[u8]) -> Key {
        Key(bytes.into())
    }

    /// The bytes of [`Key::from_bytes`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether the last fields are these: a port at one address and the same port at all of them.
    pub fn ends_with(&self, fields: &Key) -> bool {
        self.0.ends_with(&fields.0)
    }

    /// All keys from `first` to `last`, both included, field by field: for interval sets.
    pub fn range(first: impl Into<Key>, last: impl Into<Key>) -> Key {
        let (first, last) = (first.into(), last.into());
        if first == last {
            first
        } else {
            Key([first.0, last.0].concat().into())
        }
    }
}

impl<A: Into<Datum>> From<A> for Key {
    fn from(a: A) -> Key {
        Key::concat(&[a.into()])
    }
}

macro_rules! key_from_tuple {
    ($($name:ident)+) => {
        impl<$($name: Into<Datum>),+> From<($($name,)+)> for Key {
            #[allow(non_snake_case, reason = "the type parameters name the values too")]
            fn from(($($name,)+): ($($name,)+)) -> Key {
                Key::concat(&[$($name.into()),+])
            }
        }
    };
}
key_from_tuple!(A B);
key_from_tuple!(A B C);
key_from_tuple!(A B C D);
key_from_tuple!(A B C D E);

/// Writes one field, or the range of it, as nft does.
fn write_range(
    f: &mut fmt::Formatter<'_>,
    field: FieldType,
    low: &[u8],
    high: &[u8],
) -> fmt::Result {
    if low == high {
        return write_field(f, field, low);
    }
    if let (FieldType::Ipv4Addr | FieldType::Ipv6Addr, Some(prefix)) = (field, prefix(low, high)) {
        write_field(f, field, low)?;
        return write!(f, "/{prefix}");
    }
    write_field(f, field, low)?;
    f.write_str("-")?;
    write_field(f, field, high)
}

/// The prefix length, if the range is all of one prefix.
fn prefix(low: &[u8], high: &[u8]) -> Option<u32> {
    let differing = low.iter().zip(high).map(|(l, h)| l ^ h).collect::<Vec<_>>();
    let prefix = differing
        .iter()
        .position(|d| *d != 0)
        .map(|i| i as u32 * 8 + differing[i].leading_zeros())?;
    let is_whole = low.iter().zip(high).enumerate().all(|(i, (l, h))| {
        let host = match prefix.saturating_sub(i as u32 * 8) {
            0 => 0xff,
            bits if bits >= 8 => 0,
            bits => 0xff >> bits,
        };
        l & host == 0 && h & host == host
    });
    is_whole.then_some(prefix)
}

/// Writes the bytes of one field as nft does.
pub(super) fn write_field(f: &mut impl fmt::Write, field: FieldType, bytes: &[u8]) -> fmt::Result {
    let number = || bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default();
    match field {
        FieldType::Ipv4Addr => match <[u8; 4]>::try_from(bytes) {
            Ok(octets) => write!(f, "{}", Ipv4Addr::from(octets)),
            Err(_) => write_hex(f, bytes),
        },
        FieldType::Ipv6Addr => match <[u8; 16]>::try_from(bytes) {
            Ok(octets) => write!(f, "{}", Ipv6Addr::from(octets)),
            Err(_) => write_hex(f, bytes),
        },
        FieldType::InetProto => match bytes {
            [number] => write!(f, "{}", Proto(*number)),
            _ => write_hex(f, bytes),
        },
        FieldType::InetService => match <[u8; 2]>::try_from(bytes) {
            Ok(port) => write!(f, "{}", u16::from_be_bytes(port)),
            Err(_) => write_hex(f, bytes),
        },
        FieldType::Mark => write!(f, "0x{:08x}", number()),
        FieldType::Integer => write!(f, "{}", number()),
        FieldType::IfName => {
            let end = bytes.iter().position(|b| *b == 0);
            let name = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]);
            // A comparison of fewer than 16 bytes is one with a prefix.
            let wildcard = if end.is_none() && bytes.len() < IFNAMSIZ {
                "*"
            } else {
                ""
            };
            write!(f, "\"{name}{wildcard}\"")
        }
        FieldType::Bits(names) => names.write(f, number()),
    }
}

fn write_hex(f: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    f.write_str("0x")?;
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

impl BitNames {
    fn write(self, f: &mut impl fmt::Write, number: u32) -> fmt::Result {
        let names: &[(u32, &str)] = match self {
            BitNames::CtState => &[
                (1, "invalid"),
                (2, "established"),
                (4, "related"),
                (8, "new"),
                (64, "untracked"),
            ],
            BitNames::CtStatus => &[(1, "expected"), (4, "assured"), (16, "snat"), (32, "dnat")],
            BitNames::FibType => {
                let name = [
                    (1, "unicast"),
                    (2, "local"),
                    (3, "broadcast"),
                    (5, "multicast"),
                ]
                .into_iter()
                .find(|(value, _)| *value == number);
                return match name {
                    Some((_, name)) => f.write_str(name),
                    None => write!(f, "{number}"),
                };
            }
        };
        let mut left = number;
        let mut first = true;
        for (bit, name) in names {
            if number & bit != 0 {
                left &= !bit;
                write!(f, "{}{name}", if first { "" } else { "," })?;
                first = false;
            }
        }
        if left != 0 || first {
            write!(f, "{}0x{left:x}", if first { "" } else { "," })?;
        }
        Ok(())
    }
}
