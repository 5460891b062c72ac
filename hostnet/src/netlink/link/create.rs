//! Making links.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::{Bridge, LinkKind, Vxlan};
use crate::netlink::Request;
use crate::netns::NetNs;
use crate::vocab::{IfName, Mac};

/// A link to be made. What is left out is the kernel's choice.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// The name.
    pub name: IfName,
    /// The kind and its settings.
    pub kind: LinkKind,
    /// The hardware address. A bridge without one of its own takes its lowest port's, and changes
    /// it as ports come and go.
    pub mac: Option<Mac>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
    /// The index of the bridge that it shall be a port of.
    pub master: Option<u32>,
    /// Whether it is set up at once.
    pub up: bool,
    /// A veth's other end.
    pub peer: Option<NewPeer>,
}

/// The other end of a new veth pair, made straight in its namespace. It comes up down: `IFF_UP`
/// here is refused by the kernel (ENOTCONN), so it is set from inside.
#[derive(Clone, Debug)]
pub struct NewPeer {
    /// Its name, in its namespace.
    pub name: IfName,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Its namespace; `None` for the same.
    pub ns: Option<NetNs>,
}

impl NewLink {
    /// A link of a kind, with the kernel's choice of the rest, down.
    pub fn new(name: IfName, kind: LinkKind) -> NewLink {
        NewLink {
            name,
            kind,
            mac: None,
            mtu: None,
            master: None,
            up: false,
            peer: None,
        }
    }

    /// A veth pair, this end down.
    pub fn veth(name: IfName, peer: NewPeer) -> NewLink {
        NewLink {
            peer: Some(peer),
            ..NewLink::new(name, LinkKind::Veth)
        }
    }
}

impl NewPeer {
    /// A peer in a namespace, with the kernel's choice of the rest.
    pub fn new(name: IfName, ns: NetNs) -> NewPeer {
        NewPeer {
            name,
            mac: None,
            mtu: None,
            ns: Some(ns),
        }
    }
}

/// Makes a link; `EEXIST` if one of the name is there (for a veth: of either end's name).
pub fn create(link: &NewLink) -> Request {
    let mut message = common(&link.name, link.mac, link.mtu);
    if link.up {
        message.header.flags |= LinkFlags::Up;
        message.header.change_mask |= LinkFlags::Up;
    }
    message
        .attributes
        .extend(link.master.map(LinkAttribute::Controller));
    let mut info = vec![LinkInfo::Kind(link.kind.info_kind())];
    let data = match &link.kind {
        LinkKind::Bridge(bridge) => {
            let mut data = bridge_data(bridge);
            // Without STP a port forwards at once, but the kernel still tells of it again when the
            // delay is over: 15 seconds after a pod has come, each time.
            data.push(InfoBridge::ForwardDelay(0));
            Some(InfoData::Bridge(data))
        }
        LinkKind::Vxlan(vxlan) => Some(InfoData::Vxlan(vxlan_data(vxlan))),
        LinkKind::Veth => link
            .peer
            .as_ref()
            .map(|peer| InfoData::Veth(InfoVeth::Peer(peer_message(peer)))),
        LinkKind::Other(_) => None,
    };
    info.extend(data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(info));

    let what = match &link.peer {
        Some(peer) => {
            let place = match &peer.ns {
                Some(ns) => format!(" in {}", ns.path().display()),
                None => String::new(),
            };
            format!(
                "create veth {} with its peer {}{place}",
                link.name, peer.name
            )
        }
        None => format!("create {} {}", link.kind.name(), link.name),
    };
    let ns = link.peer.as_ref().and_then(|peer| peer.ns.clone());
    Request::new(
        what,
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewLink(message),
    )
    .keeping(ns)
}

fn common(name: &IfName, mac: Option<Mac>, mtu: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_string())];
    message
        .attributes
        .extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message
}

fn peer_message(peer: &NewPeer) -> LinkMessage {
    let mut message = common(&peer.name, peer.mac, peer.mtu);
    message.attributes.extend(
        peer.ns
            .as_ref()
            .map(|ns| LinkAttribute::NetNsFd(ns.as_fd().as_raw_fd())),
    );
    message
}

/// Off is what a bridge has anyway, and the only word for VLANs that some kernels bear.
pub(super) fn bridge_data(bridge: &Bridge) -> Vec<InfoBridge> {
    let mut data = vec![
        InfoBridge::NfCallIpTables(bridge.nf_call_iptables),
        InfoBridge::NfCallIp6Tables(bridge.nf_call_ip6tables),
    ];
    if bridge.vlan_filtering {
        data.push(InfoBridge::VlanFiltering(true));
    }
    data
}

pub(super) fn vxlan_data(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let mut data = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(vxlan.learning),
    ];
    data.extend(vxlan.device.map(InfoVxlan::Link));
    data.extend(vxlan.local.map(|local| match local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    }));
    if vxlan.gbp {
        data.push(InfoVxlan::Gbp);
    }
    data
}
