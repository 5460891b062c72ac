//! From the kernel's message to a [`Link`].

use std::net::IpAddr;

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

use super::{AddrGenMode, Bridge, BridgePort, Link, LinkKind, LinkPeer, Vxlan};
use crate::vocab::{IfName, Mac};

/// Reads a link; `None` if the message has no name or one that cannot be.
pub(in crate::netlink) fn link(message: &LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let mut name = None;
    let mut peer_index = None;
    let mut netns_id = None;
    let mut link = Link {
        index: message.header.index,
        name: IfName::new("-").ok()?,
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        promisc: flags.contains(LinkFlags::Promisc),
        carrier: flags.contains(LinkFlags::LowerUp),
        operational: false,
        master: None,
        port: None,
        peer: None,
        addr_gen_mode: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = IfName::new(text).ok(),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => link.operational = *state == State::Up,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => peer_index = Some(*index),
            LinkAttribute::LinkNetNsId(id) => netns_id = Some(*id),
            LinkAttribute::LinkInfo(infos) => info(infos, &mut link),
            LinkAttribute::AfSpecUnspec(families) => link.addr_gen_mode = addr_gen_mode(families),
            _ => {}
        }
    }
    link.name = name?;
    // A device that lies on none shows index 0.
    link.peer = peer_index
        .filter(|index| *index != 0)
        .map(|index| LinkPeer { index, netns_id });
    Some(link)
}

fn info(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => {
                link.kind = match kind {
                    InfoKind::Bridge => LinkKind::Bridge(Bridge::default()),
                    InfoKind::Veth => LinkKind::Veth,
                    other => LinkKind::Other(other.to_string()),
                };
            }
            LinkInfo::Data(InfoData::Bridge(data)) => link.kind = LinkKind::Bridge(bridge(data)),
            LinkInfo::Data(InfoData::Vxlan(data)) => link.kind = LinkKind::Vxlan(vxlan(data)),
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => link.port = Some(port(data)),
            _ => {}
        }
    }
}

fn bridge(data: &[InfoBridge]) -> Bridge {
    let mut bridge = Bridge::default();
    for item in data {
        match item {
            InfoBridge::NfCallIpTables(on) => bridge.nf_call_iptables = *on,
            InfoBridge::NfCallIp6Tables(on) => bridge.nf_call_ip6tables = *on,
            InfoBridge::VlanFiltering(on) => bridge.vlan_filtering = *on,
            _ => {}
        }
    }
    bridge
}

fn port(data: &[InfoBridgePort]) -> BridgePort {
    let mut port = BridgePort::default();
    for item in data {
        match item {
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            InfoBridgePort::Locked(on) => port.locked = *on,
            _ => {}
        }
    }
    port
}

fn vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        device: None,
        learning: false,
        gbp: false,
    };
    for item in data {
        match item {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(v4) => vxlan.local = Some(IpAddr::V4(*v4)),
            InfoVxlan::Local6(v6) => vxlan.local = Some(IpAddr::V6(*v6)),
            InfoVxlan::Link(index) => vxlan.device = Some(*index).filter(|index| *index != 0),
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Gbp => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}

fn addr_gen_mode(families: &[AfSpecUnspec]) -> Option<AddrGenMode> {
    families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(items) => items.iter().find_map(|item| match item {
            AfSpecInet6::AddrGenMode(mode) => Some(match mode {
                In6AddrGenMode::Eui64 => AddrGenMode::Eui64,
                In6AddrGenMode::None => AddrGenMode::None,
                In6AddrGenMode::StablePrivacy => AddrGenMode::StablePrivacy,
                In6AddrGenMode::Random => AddrGenMode::Random,
                other => AddrGenMode::Other(other.into()),
            }),
            _ => None,
        }),
        _ => None,
    })
}
