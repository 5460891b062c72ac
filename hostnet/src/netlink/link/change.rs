//! Changing and deleting links.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoPortKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
};
use serde::{Deserialize, Serialize};

use super::{AddrGenMode, Bridge, LinkRef, Vxlan, create};
use crate::netlink::Request;
use crate::vocab::{IfName, Mac};

/// What to change of a link; `None` and empty leave it alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Set up or down.
    pub up: Option<bool>,
    /// The hardware address.
    pub mac: Option<Mac>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
    /// Make it a port of the bridge with this index; 0 releases it.
    pub master: Option<u32>,
    /// How IPv6 makes link-local addresses. Set it before the link goes up.
    pub addr_gen_mode: Option<AddrGenMode>,
    /// Receive frames for any hardware address (`IFF_PROMISC`).
    pub promisc: Option<bool>,
    /// Switches of IPv4 on this link: by netlink they need no writable `/proc/sys`.
    pub ipv4: Vec<(Ipv4Conf, u32)>,
}

/// A switch of IPv4 on one link, as in `/proc/sys/net/ipv4/conf/DEVICE`
/// (include/uapi/linux/ip.h, `IPV4_DEVCONF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Ipv4Conf {
    /// Reverse path filter: 0 off, 1 strict, 2 loose.
    RpFilter = 8,
    /// Announces its address when it comes up.
    ArpNotify = 22,
    /// Packets from and to 127.0.0.0/8 may pass this link. Whoever sets it has to keep those out
    /// that come from others (CVE-2020-8558).
    RouteLocalnet = 26,
}

/// `IFLA_INET_CONF`.
const IFLA_INET_CONF: u16 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// The settings of a bridge's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct BridgePort {
    /// A frame may leave by the port that it came in by: a pod that reaches itself by a service.
    pub hairpin: bool,
    /// The port speaks with ports that are not isolated only.
    pub isolated: bool,
    /// Frames come in only from MACs of which the bridge has a forwarding entry for this port, and
    /// none is learned from a frame that is refused (`IFLA_BRPORT_LOCKED`, Linux 5.18).
    pub locked: bool,
}

/// Changes a link.
pub fn change(link: impl Into<LinkRef>, change: &Change) -> Request {
    let link = link.into();
    let mut message = link.message();
    let mut parts = Vec::new();
    if let Some(up) = change.up {
        message.header.change_mask |= LinkFlags::Up;
        message.header.flags.set(LinkFlags::Up, up);
        parts.push(if up {
            "up".to_owned()
        } else {
            "down".to_owned()
        });
    }
    if let Some(promisc) = change.promisc {
        message.header.change_mask |= LinkFlags::Promisc;
        message.header.flags.set(LinkFlags::Promisc, promisc);
        parts.push(format!("promiscuous {promisc}"));
    }
    let attributes = &mut message.attributes;
    if let Some(mac) = change.mac {
        attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        parts.push(format!("MAC {mac}"));
    }
    if let Some(mtu) = change.mtu {
        attributes.push(LinkAttribute::Mtu(mtu));
        parts.push(format!("MTU {mtu}"));
    }
    if let Some(master) = change.master {
        attributes.push(LinkAttribute::Controller(master));
        parts.push(format!("master #{master}"));
    }
    let mut families = Vec::new();
    if !change.ipv4.is_empty() {
        families.push(AfSpecUnspec::Inet(vec![ipv4_conf(&change.ipv4)]));
        parts.extend(
            change
                .ipv4
                .iter()
                .map(|(key, value)| format!("{key:?} {value}")),
        );
    }
    if let Some(mode) = change.addr_gen_mode {
        let number = match mode {
            AddrGenMode::Eui64 => In6AddrGenMode::Eui64,
            AddrGenMode::None => In6AddrGenMode::None,
            AddrGenMode::StablePrivacy => In6AddrGenMode::StablePrivacy,
            AddrGenMode::Random => In6AddrGenMode::Random,
            AddrGenMode::Other(number) => In6AddrGenMode::from(number),
        };
        families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(number)]));
        parts.push(format!("IPv6 address generation {mode:?}"));
    }
    if !families.is_empty() {
        attributes.push(LinkAttribute::AfSpecUnspec(families));
    }
    let what = format!("set link {link} {}", parts.join(", "));
    Request::new(what, 0, RouteNetlinkMessage::SetLink(message))
}

/// One nested attribute per switch. (The library's own form leaves out values of zero.)
fn ipv4_conf(switches: &[(Ipv4Conf, u32)]) -> AfSpecInet {
    let mut nest = Vec::new();
    for (key, value) in switches {
        nest.extend(8u16.to_ne_bytes());
        nest.extend((*key as u16).to_ne_bytes());
        nest.extend(value.to_ne_bytes());
    }
    AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NESTED, nest))
}

/// Gives a link another name, and keeps all that lies on it. One that is up the kernel renames from Linux 6.2 on; before,
/// it says `EBUSY`.
pub fn rename(link: u32, name: &IfName) -> Request {
    let mut message = LinkRef::Index(link).message();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_string()));
    let what = format!("rename link #{link} to {name}");
    Request::new(what, 0, RouteNetlinkMessage::SetLink(message))
}

/// Changes a bridge's settings. VLAN filtering is only ever turned on.
pub fn set_bridge(link: impl Into<LinkRef>, bridge: &Bridge) -> Request {
    let link = link.into();
    let mut message = link.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(create::bridge_data(bridge))),
    ]));
    let vlans = match bridge.vlan_filtering {
        true => ", VLAN filtering",
        false => "",
    };
    let what = format!(
        "set bridge {link} nf_call_iptables {}, nf_call_ip6tables {}{vlans}",
        bridge.nf_call_iptables, bridge.nf_call_ip6tables
    );
    Request::new(what, 0, RouteNetlinkMessage::NewLink(message))
}

/// Changes what can be changed of a VXLAN device that is there: the outer source address, the device below, learning.
/// Its identifier must be the one that it has; port and group policy are left out, since the kernel changes neither.
/// Addresses, neighbours and forwarding entries stay.
pub fn set_vxlan(link: impl Into<LinkRef>, vxlan: &Vxlan) -> Request {
    let link = link.into();
    let mut message = link.message();
    let unchangeable = |item: &InfoVxlan| matches!(item, InfoVxlan::Port(_) | InfoVxlan::Gbp);
    let mut data = create::vxlan_data(vxlan);
    data.retain(|item| !unchangeable(item));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(data)),
    ]));
    let what = format!("set the ways of VXLAN device {link}");
    Request::new(what, 0, RouteNetlinkMessage::NewLink(message))
}

/// Changes the settings of a link that is a bridge's port already.
pub fn set_port(link: impl Into<LinkRef>, port: BridgePort) -> Request {
    let link = link.into();
    let mut message = link.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(port.hairpin),
            InfoBridgePort::Isolated(port.isolated),
            InfoBridgePort::Locked(port.locked),
        ])),
    ]));
    let what = format!(
        "set bridge port {link} hairpin {}, isolated {}, locked {}",
        port.hairpin, port.isolated, port.locked
    );
    Request::new(what, 0, RouteNetlinkMessage::NewLink(message))
}

/// Deletes a link; with one end of a veth goes the other.
pub fn delete(link: impl Into<LinkRef>) -> Request {
    let link = link.into();
    let what = format!("delete link {link}");
    Request::new(what, 0, RouteNetlinkMessage::DelLink(link.message()))
}
