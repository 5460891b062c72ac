//! Links: what a network interface is, and reading it. Making and changing links is in
//! the sibling modules, whose functions are found here.

mod change;
mod counters;
mod create;
mod decode;
mod vlan;

use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use serde::{Deserialize, Serialize};

pub use self::change::{
    BridgePort, Change, Ipv4Conf, change, delete, rename, set_bridge, set_port, set_vxlan,
};
pub use self::counters::Counters;
pub use self::create::{NewLink, NewPeer, create};
pub use self::vlan::{PortVlans, add_vlans, delete_vlans};
use super::{Result, Rtnl};
use crate::netns::NetNs;
use crate::vocab::{IfName, Mac};

/// The index of a link in the namespace of the calling thread; `None` where there is none of that name. One system
/// call, where [`Rtnl::link`] reads all that the kernel tells of it.
pub fn index(name: &IfName) -> Option<u32> {
    nix::net::if_::if_nametoindex(name.as_str()).ok()
}

/// A network interface as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The index, unique in its namespace.
    pub index: u32,
    /// The name.
    pub name: IfName,
    /// What it is, with the settings of its kind.
    pub kind: LinkKind,
    /// The hardware address; `None` where there is none of six bytes.
    pub mac: Option<Mac>,
    /// The MTU in bytes.
    pub mtu: u32,
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// Set to receive frames for any hardware address (`IFF_PROMISC`).
    pub promisc: bool,
    /// The layer below is ready (`IFF_LOWER_UP`): a cable, a veth whose peer is up.
    pub carrier: bool,
    /// The kernel has acted upon the carrier (`IFLA_OPERSTATE` is up): packets are sent, and as a
    /// bridge's port it forwards. It follows `carrier` some moments later; from Linux 6.8 on,
    /// [`Rtnl::link`] makes it follow at once. Stays false on links without a carrier to watch.
    pub operational: bool,
    /// The index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// Its settings as a bridge's port.
    pub port: Option<BridgePort>,
    /// The other end of a veth, or the device below a VLAN device.
    pub peer: Option<LinkPeer>,
    /// How IPv6 makes link-local addresses; `None` where IPv6 is off.
    pub addr_gen_mode: Option<AddrGenMode>,
}

/// Another link that one refers to (`IFLA_LINK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LinkPeer {
    /// Its index in its own namespace.
    pub index: u32,
    /// Its namespace, if another, by the number that this namespace has for it: see
    /// [`Rtnl::netns_id`].
    pub netns_id: Option<i32>,
}

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LinkKind {
    /// A bridge.
    Bridge(Bridge),
    /// One end of a veth pair.
    Veth,
    /// A VXLAN tunnel endpoint.
    Vxlan(Vxlan),
    /// Another kind by the kernel's name; empty for what has none, such as `lo` and network cards.
    Other(String),
}

/// The settings of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Bridge {
    /// Frames that are bridged pass the IPv4 hooks of netfilter too (`IFLA_BR_NF_CALL_IPTABLES`).
    /// Needs the module br_netfilter; without it the kernel keeps the value and nothing happens.
    pub nf_call_iptables: bool,
    /// The same for IPv6.
    pub nf_call_ip6tables: bool,
    /// Frames pass only between ports of the same VLAN: see [`PortVlans`]
    /// (`IFLA_BR_VLAN_FILTERING`). A kernel without it refuses to be told.
    pub vlan_filtering: bool,
}

/// The settings of a VXLAN device (RFC 7348).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vxlan {
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port that it listens on and sends to.
    pub port: u16,
    /// The outer source address.
    pub local: Option<IpAddr>,
    /// The index of the device that outer packets leave by.
    pub device: Option<u32>,
    /// Learns remotes from the packets that come in.
    pub learning: bool,
    /// Carries the group policy extension.
    pub gbp: bool,
}

/// How IPv6 makes the interface part of its own addresses (`IFLA_INET6_ADDR_GEN_MODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AddrGenMode {
    /// From the MAC.
    Eui64,
    /// Not at all: the interface gets no link-local address by itself.
    None,
    /// From a secret.
    StablePrivacy,
    /// From a random secret.
    Random,
    /// Another mode by its number.
    Other(u8),
}

/// Names a link in a request: by index, or by name where the index is not known (yet).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LinkRef {
    /// By index.
    Index(u32),
    /// By name.
    Name(IfName),
}

impl From<u32> for LinkRef {
    fn from(index: u32) -> LinkRef {
        LinkRef::Index(index)
    }
}

impl From<IfName> for LinkRef {
    fn from(name: IfName) -> LinkRef {
        LinkRef::Name(name)
    }
}

impl From<&IfName> for LinkRef {
    fn from(name: &IfName) -> LinkRef {
        LinkRef::Name(name.clone())
    }
}

impl fmt::Display for LinkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkRef::Index(index) => write!(f, "#{index}"),
            LinkRef::Name(name) => write!(f, "{name}"),
        }
    }
}

impl LinkRef {
    /// A message that names the link and says nothing else yet.
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        match self {
            LinkRef::Index(index) => message.header.index = *index,
            LinkRef::Name(name) => {
                message
                    .attributes
                    .push(LinkAttribute::IfName(name.to_string()));
            }
        }
        message
    }
}

impl LinkKind {
    /// The kernel's name for the kind: `bridge`; empty for what has none.
    pub fn name(&self) -> &str {
        match self {
            LinkKind::Bridge(_) => "bridge",
            LinkKind::Veth => "veth",
            LinkKind::Vxlan(_) => "vxlan",
            LinkKind::Other(name) => name,
        }
    }

    fn info_kind(&self) -> InfoKind {
        match self {
            LinkKind::Bridge(_) => InfoKind::Bridge,
            LinkKind::Veth => InfoKind::Veth,
            LinkKind::Vxlan(_) => InfoKind::Vxlan,
            LinkKind::Other(name) => InfoKind::Other(name.clone()),
        }
    }
}

pub(super) use self::decode::link as from_message;

/// Without statistics, a third of the size.
fn brief(mut message: LinkMessage) -> LinkMessage {
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

impl Rtnl {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.list_links(LinkMessage::default())
    }

    /// The ports of a bridge, by the bridge's index; the kernel filters.
    pub fn ports(&mut self, bridge: u32) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Controller(bridge));
        self.list_links(message)
    }

    /// All links of a kind by the kernel's name for it; the kernel filters.
    pub fn links_of_kind(&mut self, kind: &LinkKind) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                kind.info_kind(),
            )]));
        self.list_links(message)
    }

    fn list_links(&mut self, message: LinkMessage) -> Result<Vec<Link>> {
        let message = RouteNetlinkMessage::GetLink(brief(message));
        self.dump("list links", &message, |message| match message {
            RouteNetlinkMessage::NewLink(message) => decode::link(&message),
            _ => None,
        })
    }

    /// One link by name or index; `None` if there is none.
    pub fn link(&mut self, which: impl Into<LinkRef>) -> Result<Option<Link>> {
        let which = which.into();
        let message = RouteNetlinkMessage::GetLink(brief(which.message()));
        Ok(match self.get(&format!("look up link {which}"), message)? {
            Some(RouteNetlinkMessage::NewLink(message)) => decode::link(&message),
            _ => None,
        })
    }

    /// The number that this namespace has for another, as in [`LinkPeer::netns_id`]. `None` if no
    /// link of this namespace leads there (yet).
    pub fn netns_id(&mut self, ns: &NetNs) -> Result<Option<i32>> {
        use std::os::fd::{AsFd, AsRawFd};
        let mut message = NsidMessage::default();
        message
            .attributes
            .push(NsidAttribute::Fd(ns.as_fd().as_raw_fd() as u32));
        let what = format!("look up the number of namespace {}", ns.path().display());
        let Some(RouteNetlinkMessage::NewNsId(message)) =
            self.get(&what, RouteNetlinkMessage::GetNsId(message))?
        else {
            return Ok(None);
        };
        Ok(message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                // NETNSA_NSID_NOT_ASSIGNED is -1.
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            }))
    }
}
