//! Routes.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::addr::Scope;
use super::{Request, Result, Rtnl};
use crate::vocab::{Family, Subnet};

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;

/// Route protocol of routes that the kernel made, such as those of addresses' networks.
pub const PROTOCOL_KERNEL: u8 = 2;

/// Route protocol boot: what `ip route add` and flannel write.
pub const PROTOCOL_BOOT: u8 = 3;

/// The metric that the kernel gives an IPv6 route without one (`IP6_RT_PRIO_USER`).
const METRIC_V6: u32 = 1024;

/// A route. One with several next hops shows neither link nor gateway here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: Subnet,
    /// What happens with the packet.
    pub kind: RouteKind,
    /// The next hop; it may be of the other family.
    pub gateway: Option<IpAddr>,
    /// The index of the interface it leaves by.
    pub link: Option<u32>,
    /// The gateway is taken as reachable on the link whatever its address (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// The source address of packets that this host sends by it.
    pub src: Option<IpAddr>,
    /// The table's number.
    pub table: u32,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// How far the destination is.
    pub scope: Scope,
    /// Of several routes to one destination the least metric wins. IPv6: 0 is set as 1024.
    pub metric: u32,
    /// The route's own MTU in bytes.
    pub mtu: Option<u32>,
    /// The TCP segment size to announce, in bytes.
    pub advmss: Option<u32>,
}

/// What a route does with a packet (include/uapi/linux/rtnetlink.h, `RTN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Takes it in.
    Local,
    /// Takes it in, and sends it as broadcast.
    Broadcast,
    /// Drops it silently.
    Blackhole,
    /// Drops it with an ICMP answer.
    Unreachable,
    /// Another kind by its number.
    Other(u8),
}

impl RouteKind {
    fn number(self) -> RouteType {
        match self {
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Local => RouteType::Local,
            RouteKind::Broadcast => RouteType::Broadcast,
            RouteKind::Blackhole => RouteType::BlackHole,
            RouteKind::Unreachable => RouteType::Unreachable,
            RouteKind::Other(number) => RouteType::from(number),
        }
    }

    fn from_number(kind: RouteType) -> RouteKind {
        match kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Local => RouteKind::Local,
            RouteType::Broadcast => RouteKind::Broadcast,
            RouteType::BlackHole => RouteKind::Blackhole,
            RouteType::Unreachable => RouteKind::Unreachable,
            other => RouteKind::Other(other.into()),
        }
    }
}

impl Route {
    /// A route in the main table with protocol boot, as `ip route add` makes it: by a gateway,
    /// an interface, or both.
    pub fn new(dst: Subnet, gateway: Option<IpAddr>, link: Option<u32>) -> Route {
        let v6 = dst.family() == Family::V6;
        Route {
            dst,
            kind: RouteKind::Unicast,
            gateway,
            link,
            onlink: false,
            src: None,
            table: TABLE_MAIN,
            protocol: PROTOCOL_BOOT,
            scope: if gateway.is_none() && !v6 {
                Scope::LINK
            } else {
                Scope::GLOBAL
            },
            metric: if v6 { METRIC_V6 } else { 0 },
            mtu: None,
            advmss: None,
        }
    }

    /// The same, with the gateway taken as reachable whatever its address.
    pub fn onlink(dst: Subnet, gateway: IpAddr, link: u32) -> Route {
        Route {
            onlink: true,
            ..Route::new(dst, Some(gateway), Some(link))
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: self.dst.base().into(),
            destination_prefix_length: self.dst.prefix(),
            // Numbers above a byte are in the attribute alone.
            table: u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
            protocol: RouteProtocol::from(self.protocol),
            scope: RouteScope::from(self.scope.0),
            kind: self.kind.number(),
            flags: if self.onlink {
                RouteFlags::Onlink
            } else {
                RouteFlags::empty()
            },
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        if self.dst.prefix() > 0 {
            attributes.push(RouteAttribute::Destination(self.dst.base().into()));
        }
        attributes.extend(self.gateway.map(|gateway| {
            if Family::of(gateway) == self.dst.family() {
                RouteAttribute::Gateway(gateway.into())
            } else {
                RouteAttribute::Via(match gateway {
                    IpAddr::V4(v4) => RouteVia::Inet(v4),
                    IpAddr::V6(v6) => RouteVia::Inet6(v6),
                })
            }
        }));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.src.map(|src| RouteAttribute::PrefSource(src.into())));
        if self.table > u8::MAX.into() {
            attributes.push(RouteAttribute::Table(self.table));
        }
        if self.metric > 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        let metrics: Vec<_> = self
            .mtu
            .map(RouteMetric::Mtu)
            .into_iter()
            .chain(self.advmss.map(RouteMetric::Advmss))
            .collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }

    pub(super) fn from_message(message: &RouteMessage) -> Option<Route> {
        let header = &message.header;
        let family = match header.address_family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return None,
        };
        let mut route = Route {
            dst: Subnet::any(family),
            kind: RouteKind::from_number(header.kind),
            gateway: None,
            link: None,
            onlink: header.flags.contains(RouteFlags::Onlink),
            src: None,
            table: header.table.into(),
            protocol: header.protocol.into(),
            scope: Scope(header.scope.into()),
            metric: 0,
            mtu: None,
            advmss: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(dst) => {
                    route.dst = Subnet::new(ip(dst)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
                RouteAttribute::Via(RouteVia::Inet(gateway)) => {
                    route.gateway = Some((*gateway).into());
                }
                RouteAttribute::Via(RouteVia::Inet6(gateway)) => {
                    route.gateway = Some((*gateway).into());
                }
                RouteAttribute::Oif(link) => route.link = Some(*link),
                RouteAttribute::PrefSource(src) => route.src = ip(src),
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                            RouteMetric::Advmss(advmss) => route.advmss = Some(*advmss),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(route)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Local => f.write_str("local ")?,
            RouteKind::Broadcast => f.write_str("broadcast ")?,
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Other(number) => write!(f, "kind {number} ")?,
        }
        write!(f, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(f, " dev #{link}")?;
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        if let Some(src) = self.src {
            write!(f, " src {src}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

/// Adds a route; `EEXIST` if there is one to that destination with that metric.
pub fn add(route: &Route) -> Request {
    Request::new(
        format!("add route {route}"),
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewRoute(route.message()),
    )
}

/// Adds a route, in place of one to the same destination with the same metric and table.
/// Replacing a route by an equal one tells nobody.
pub fn replace(route: &Route) -> Request {
    Request::new(
        format!("set route {route}"),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewRoute(route.message()),
    )
}

/// Deletes exactly this route: of several to one destination, the one by this gateway, interface
/// and protocol.
pub fn delete(route: &Route) -> Request {
    let mut message = route.message();
    message
        .attributes
        .retain(|a| !matches!(a, RouteAttribute::Metrics(_)));
    Request::new(
        format!("delete route {route}"),
        0,
        RouteNetlinkMessage::DelRoute(message),
    )
}

/// Which routes to list; the kernel filters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Only of this family.
    pub family: Option<Family>,
    /// Only in this table.
    pub table: Option<u32>,
    /// Only by this interface.
    pub link: Option<u32>,
    /// Only those made by this protocol.
    pub protocol: Option<u8>,
}

impl Filter {
    fn matches(&self, route: &Route) -> bool {
        self.family
            .is_none_or(|family| family == route.dst.family())
            && self.table.is_none_or(|table| table == route.table)
            && self.link.is_none_or(|link| Some(link) == route.link)
            && self
                .protocol
                .is_none_or(|protocol| protocol == route.protocol)
    }
}

impl Rtnl {
    /// The routes that a filter lets through, without the kernel's cached clones.
    pub fn routes(&mut self, filter: Filter) -> Result<Vec<Route>> {
        let families = match filter.family {
            Some(family) => vec![family],
            None => Family::ALL.to_vec(),
        };
        let mut routes = Vec::new();
        for family in families {
            let mut message = RouteMessage::default();
            message.header.address_family = family.unspecified().into();
            message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
            message
                .attributes
                .extend(filter.table.map(RouteAttribute::Table));
            message
                .attributes
                .extend(filter.link.map(RouteAttribute::Oif));
            let message = RouteNetlinkMessage::GetRoute(message);
            let what = format!("list {family} routes");
            let listed = self.dump(&what, &message, |message| match message {
                RouteNetlinkMessage::NewRoute(message) => {
                    Route::from_message(&message).filter(|route| filter.matches(route))
                }
                _ => None,
            });
            match listed {
                Ok(listed) => routes.extend(listed),
                // A table that has no routes does not exist.
                Err(error) if filter.table.is_some() && error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// The route that a packet to an address would take, as `ip route get` shows it. `None` if
    /// there is none.
    pub fn route_to(&mut self, addr: IpAddr) -> Result<Option<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = addr.into();
        message.header.destination_prefix_length = Family::of(addr).bits();
        message.attributes = vec![RouteAttribute::Destination(addr.into())];
        let what = format!("find the route to {addr}");
        match self.get(&what, RouteNetlinkMessage::GetRoute(message)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(message))) => Ok(Route::from_message(&message)),
            Ok(_) => Ok(None),
            Err(error) if error.is_errno(&[libc::ENETUNREACH, libc::EHOSTUNREACH]) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
