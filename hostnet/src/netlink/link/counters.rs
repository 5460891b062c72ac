//! What a link has carried.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use serde::{Deserialize, Serialize};

use crate::netlink::{Result, Rtnl};

/// Packets and bytes since a link was made (`IFLA_STATS64`), as the link counts them: what a pod sends is received
/// by the node's end of its cable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that were dropped, in either direction.
    pub dropped: u64,
}

impl Rtnl {
    /// The counters of all links, by index.
    pub fn counters(&mut self) -> Result<Vec<(u32, Counters)>> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("list the counters of links", &message, |message| {
            let RouteNetlinkMessage::NewLink(message) = message else {
                return None;
            };
            let stats = message.attributes.iter().find_map(|a| match a {
                LinkAttribute::Stats64(stats) => Some(stats),
                _ => None,
            })?;
            let counters = Counters {
                rx_packets: stats.rx_packets,
                rx_bytes: stats.rx_bytes,
                tx_packets: stats.tx_packets,
                tx_bytes: stats.tx_bytes,
                dropped: stats.rx_dropped + stats.tx_dropped,
            };
            Some((message.header.index, counters))
        })
    }
}
