//! The VLANs of a bridge's ports (IEEE 802.1Q), where the bridge filters by them.

use std::ops::RangeInclusive;

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::{Request, Result, Rtnl};

/// VLANs that pass a port, by their numbers from 1 to 4094.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortVlans {
    /// The first and the last of them.
    pub ids: RangeInclusive<u16>,
    /// Frames leave the port without a tag, and what comes in without one belongs here: of one
    /// VLAN alone. Else they have tags both ways.
    pub untagged: bool,
}

impl PortVlans {
    /// One VLAN, without tags.
    pub fn access(id: u16) -> PortVlans {
        PortVlans {
            ids: id..=id,
            untagged: true,
        }
    }

    fn infos(&self) -> Vec<AfSpecBridge> {
        let (first, last) = (*self.ids.start(), *self.ids.end());
        let tags = match self.untagged {
            true => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            false => BridgeVlanInfoFlags::empty(),
        };
        let info = |flags, vid| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
        if first == last {
            return vec![info(tags, first)];
        }
        vec![
            info(tags | BridgeVlanInfoFlags::RangeBegin, first),
            info(tags | BridgeVlanInfoFlags::RangeEnd, last),
        ]
    }

    fn message(&self, port: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.header.index = port;
        message
            .attributes
            .push(LinkAttribute::AfSpecBridge(self.infos()));
        message
    }

    fn words(&self, port: u32) -> String {
        let (first, last) = (self.ids.start(), self.ids.end());
        let untagged = if self.untagged { " untagged" } else { "" };
        format!("VLAN {first}-{last}{untagged} of bridge port #{port}")
    }
}

/// Lets VLANs pass a bridge's port, by its index.
pub fn add_vlans(port: u32, vlans: &PortVlans) -> Request {
    let what = format!("add {}", vlans.words(port));
    Request::new(what, 0, RouteNetlinkMessage::SetLink(vlans.message(port)))
}

/// Lets VLANs pass a bridge's port no more.
pub fn delete_vlans(port: u32, vlans: &PortVlans) -> Request {
    let what = format!("delete {}", vlans.words(port));
    Request::new(what, 0, RouteNetlinkMessage::DelLink(vlans.message(port)))
}

impl Rtnl {
    /// The VLANs that pass a bridge's port, by its index. None where the kernel's bridges know none.
    pub fn port_vlans(&mut self, port: u32) -> Result<Vec<PortVlans>> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.attributes.push(LinkAttribute::ExtMask(vec![
            LinkExtentMask::BrvlanCompressed,
        ]));
        let message = RouteNetlinkMessage::GetLink(message);
        let of_all = self.dump("list VLANs", &message, |message| match message {
            RouteNetlinkMessage::NewLink(link) if link.header.index == port => Some(vlans(&link)),
            _ => None,
        })?;
        Ok(of_all.into_iter().flatten().collect())
    }
}

fn vlans(link: &LinkMessage) -> Vec<PortVlans> {
    let mut found = Vec::new();
    let mut begun = None;
    let attributes = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::AfSpecBridge(items) => Some(items),
            _ => None,
        });
    for item in attributes.flatten() {
        let AfSpecBridge::VlanInfo(info) = item else {
            continue;
        };
        if info.flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begun = Some(info.vid);
            continue;
        }
        found.push(PortVlans {
            ids: begun.take().unwrap_or(info.vid)..=info.vid,
            untagged: info.flags.contains(BridgeVlanInfoFlags::Untagged),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    fn bytes(message: &LinkMessage) -> String {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// As `bridge vlan add dev #7 vid 100 pvid untagged` and `… vid 200-299` of iproute2 send them.
    #[test]
    fn the_bytes_of_a_port() {
        let header = "07000000070000000000000000000000";
        assert_eq!(
            bytes(&PortVlans::access(100).message(7)),
            format!("{header}0c001a000800020006006400")
        );
        let trunk = PortVlans {
            ids: 200..=299,
            untagged: false,
        };
        assert_eq!(
            bytes(&trunk.message(7)),
            format!("{header}14001a00080002000800c8000800020010002b01")
        );
        assert_eq!(vlans(&trunk.message(7)), [trunk]);
    }
}
