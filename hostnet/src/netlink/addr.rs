//! Addresses of interfaces.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use serde::{Deserialize, Serialize};

use super::{Request, Result, Rtnl};
use crate::vocab::{Cidr, Family};

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Addr {
    /// The interface's index.
    pub link: u32,
    /// The address with the prefix length of its network.
    pub cidr: Cidr,
    /// The broadcast address (IPv4 only).
    pub broadcast: Option<Ipv4Addr>,
    /// How far the address is valid.
    pub scope: Scope,
    /// IPv6: no duplicate address detection, the address is usable at once (`IFA_F_NODAD`).
    pub nodad: bool,
    /// The kernel shall make no route to the network (`IFA_F_NOPREFIXROUTE`).
    pub noprefixroute: bool,
}

/// How far an address or route is valid (include/uapi/linux/rtnetlink.h, `enum rt_scope_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope(pub u8);

impl Scope {
    /// Everywhere.
    pub const GLOBAL: Scope = Scope(0);
    /// On the link.
    pub const LINK: Scope = Scope(253);
    /// On this host.
    pub const HOST: Scope = Scope(254);
}

impl Addr {
    /// A global address, with the broadcast address of its network where IPv4 has one (not in
    /// /31 and /32, RFC 3021), and for IPv6 without duplicate address detection: addresses that we
    /// give out are unique by allocation.
    pub fn new(link: u32, cidr: Cidr) -> Addr {
        let broadcast = match cidr.subnet().last() {
            IpAddr::V4(last) if cidr.prefix() < 31 => Some(last),
            _ => None,
        };
        Addr {
            link,
            cidr,
            broadcast,
            scope: Scope::GLOBAL,
            nodad: cidr.family() == Family::V6,
            noprefixroute: false,
        }
    }

    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = self.cidr.addr().into();
        message.header.prefix_len = self.cidr.prefix();
        message.header.scope = AddressScope::from(self.scope.0);
        message.header.index = self.link;
        message.attributes = vec![
            AddressAttribute::Local(self.cidr.addr()),
            AddressAttribute::Address(self.cidr.addr()),
        ];
        message
            .attributes
            .extend(self.broadcast.map(AddressAttribute::Broadcast));
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, self.nodad);
        flags.set(AddressFlags::Noprefixroute, self.noprefixroute);
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        message
    }

    pub(super) fn from_message(message: &AddressMessage) -> Option<Addr> {
        let header = &message.header;
        let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
        let (mut local, mut address, mut broadcast) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                // On a point-to-point interface IFA_ADDRESS is the peer's, IFA_LOCAL ours.
                AddressAttribute::Local(addr) => local = Some(*addr),
                AddressAttribute::Address(addr) => address = Some(*addr),
                AddressAttribute::Broadcast(addr) => broadcast = Some(*addr),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        Some(Addr {
            link: header.index,
            cidr: Cidr::new(local.or(address)?, header.prefix_len).ok()?,
            broadcast,
            scope: Scope(header.scope.into()),
            nodad: flags.contains(AddressFlags::Nodad),
            noprefixroute: flags.contains(AddressFlags::Noprefixroute),
        })
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev #{}", self.cidr, self.link)
    }
}

/// Adds an address; `EEXIST` if it is there.
pub fn add(addr: &Addr) -> Request {
    Request::new(
        format!("add address {addr}"),
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewAddress(addr.message()),
    )
}

/// Adds an address, or leaves it where it is there (its flags and lifetime are renewed).
pub fn replace(addr: &Addr) -> Request {
    Request::new(
        format!("set address {addr}"),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewAddress(addr.message()),
    )
}

/// Deletes an address.
pub fn delete(addr: &Addr) -> Request {
    let mut message = addr.message();
    message.header.flags = AddressHeaderFlags::empty();
    message
        .attributes
        .retain(|a| matches!(a, AddressAttribute::Local(_) | AddressAttribute::Address(_)));
    Request::new(
        format!("delete address {addr}"),
        0,
        RouteNetlinkMessage::DelAddress(message),
    )
}

impl Rtnl {
    /// The addresses of one interface, or with `None` of all.
    pub fn addrs(&mut self, link: Option<u32>) -> Result<Vec<Addr>> {
        let mut message = AddressMessage::default();
        message.header.index = link.unwrap_or(0);
        self.dump(
            "list addresses",
            &RouteNetlinkMessage::GetAddress(message),
            |message| match message {
                RouteNetlinkMessage::NewAddress(message) => Addr::from_message(&message),
                _ => None,
            },
        )
    }

    /// The IPv6 addresses of a link that cannot be used yet, or never will: each with whether
    /// somebody else has it (`IFA_F_TENTATIVE`, `IFA_F_DADFAILED`; RFC 4862, section 5.4).
    pub fn unconfirmed(&mut self, link: u32) -> Result<Vec<(IpAddr, bool)>> {
        let mut message = AddressMessage::default();
        message.header.index = link;
        message.header.family = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED).into();
        let message = RouteNetlinkMessage::GetAddress(message);
        self.dump("list unconfirmed addresses", &message, |message| {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                return None;
            };
            let addr = Addr::from_message(&message)?.cidr.addr();
            let flags = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Flags(flags) => Some(*flags),
                _ => None,
            })?;
            let failed = flags.contains(AddressFlags::Dadfailed);
            let open = failed || flags.contains(AddressFlags::Tentative);
            (message.header.index == link && open).then_some((addr, failed))
        })
    }
}
