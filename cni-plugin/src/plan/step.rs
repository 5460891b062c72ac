//! The steps of a plan, and their words for logs and tests.

use std::fmt;

use hostnet::netlink::Addr;
use hostnet::netlink::link::{Bridge, BridgePort};
use hostnet::vocab::{Cidr, Family, IfName, Mac};

use crate::record::Record;
use crate::request::settings::ConfigRoute;
use crate::shaping::Shaping;
use crate::vlans::Vlans;

/// One change of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the bridge, with all it needs to have, and set it up.
    CreateBridge(BridgeSpec),
    /// Give the bridge that is there what it lacks.
    AlterBridge {
        /// The bridge.
        bridge: IfName,
        /// The MAC to fix it to.
        mac: Option<Mac>,
        /// A larger MTU.
        mtu: Option<u32>,
        /// Netfilter's sight of bridged frames, and VLANs.
        settings: Option<Bridge>,
        /// Receive frames for any MAC.
        promisc: bool,
        /// Set it up.
        up: bool,
    },
    /// Have a link for the gateway of a VLAN.
    Gateway(GatewaySpec),
    /// Give the bridge, or the gateway of a VLAN, an address.
    AddBridgeAddr {
        /// Which.
        bridge: IfName,
        /// The address.
        cidr: Cidr,
    },
    /// Lay the cable: the node's end on the bridge and up, the pod's end in its namespace.
    CreateVeth {
        /// The node's end.
        veth: IfName,
        /// Its MAC, so that nobody picks another.
        mac: Mac,
        /// The bridge.
        bridge: IfName,
        /// The pod's end.
        ifname: IfName,
        /// Its MAC.
        pod_mac: Mac,
        /// The MTU of both.
        mtu: u32,
    },
    /// Addresses and routes inside the pod, and its end up.
    ConfigurePod {
        /// The pod's end.
        ifname: IfName,
        /// Its addresses.
        addrs: Vec<Cidr>,
        /// Its routes, each with its next hop.
        routes: Vec<ConfigRoute>,
        /// Wait until nobody else claims an IPv6 address.
        dad: bool,
    },
    /// Set the port's manners, and see that it forwards.
    OpenPort {
        /// The node's end.
        veth: IfName,
        /// The manners.
        port: BridgePort,
        /// The pod's MAC, if no other may send.
        only: Option<Mac>,
        /// Its VLANs.
        vlans: Vlans,
        /// Whether to wait until it forwards: not if the pod's end stays down.
        wait: bool,
    },
    /// Limit its bandwidth.
    Shape(Shaping),
    /// Lead host ports to it, and masquerade.
    Publish(Box<Record>),
    /// Let the node forward a family.
    Forward(Family),
    /// Take an address of an earlier subnet from the bridge.
    RemoveBridgeAddr(Addr),
}

/// A bridge to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name.
    pub name: IfName,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It receives frames for any MAC.
    pub promisc: bool,
    /// It filters by VLAN.
    pub vlan_filtering: bool,
}

/// The gateway of a VLAN: a cable of which one end is a port of the bridge in that VLAN, and the
/// other has the gateway's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySpec {
    /// The end with the addresses.
    pub link: IfName,
    /// Its MAC.
    pub mac: Mac,
    /// The MTU of both ends in bytes.
    pub mtu: u32,
    /// The port's VLANs.
    pub vlans: Vlans,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::CreateBridge(spec) => {
                write!(
                    f,
                    "create bridge {} mac {} mtu {}",
                    spec.name, spec.mac, spec.mtu
                )?;
                if spec.vlan_filtering {
                    write!(f, " vlans")?;
                }
                write!(f, "{}", if spec.promisc { " promisc" } else { "" })
            }
            Step::Gateway(spec) => {
                write!(f, "gateway {} mac {} mtu {}", spec.link, spec.mac, spec.mtu)
            }
            Step::AlterBridge {
                bridge,
                mac,
                mtu,
                settings,
                promisc,
                up,
            } => {
                write!(f, "alter bridge {bridge}")?;
                if let Some(mac) = mac {
                    write!(f, " mac {mac}")?;
                }
                if let Some(mtu) = mtu {
                    write!(f, " mtu {mtu}")?;
                }
                if let Some(settings) = settings {
                    let vlans = settings.vlan_filtering;
                    write!(f, " netfilter{}", if vlans { " vlans" } else { "" })?;
                }
                if *promisc {
                    write!(f, " promisc")?;
                }
                if *up { write!(f, " up") } else { Ok(()) }
            }
            Step::AddBridgeAddr { bridge, cidr } => write!(f, "add address {cidr} to {bridge}"),
            Step::CreateVeth {
                veth,
                bridge,
                ifname,
                pod_mac,
                mtu,
                ..
            } => {
                write!(
                    f,
                    "create veth {veth} on {bridge}, in the pod {ifname} mac {pod_mac} mtu {mtu}"
                )
            }
            Step::ConfigurePod {
                ifname,
                addrs,
                routes,
                dad,
            } => {
                write!(f, "in the pod: {ifname}")?;
                addrs
                    .iter()
                    .try_for_each(|addr| write!(f, " address {addr}"))?;
                for route in routes {
                    write!(f, ", route {}", route.dst)?;
                    if let Some(gateway) = route.gw {
                        write!(f, " via {gateway}")?;
                    }
                }
                write!(f, "{}", if *dad { ", wait for DAD" } else { "" })
            }
            Step::OpenPort {
                veth,
                port,
                only,
                vlans,
                ..
            } => {
                write!(
                    f,
                    "open port {veth} hairpin {} isolated {}",
                    port.hairpin, port.isolated
                )?;
                if let Some(id) = vlans.access {
                    write!(f, " vlan {id}")?;
                }
                for (first, last) in &vlans.trunk {
                    write!(f, " tags {first}-{last}")?;
                }
                match only {
                    Some(mac) => write!(f, " only for {mac}"),
                    None => Ok(()),
                }
            }
            Step::Shape(shaping) => write!(f, "limit the bandwidth of {}", shaping.veth),
            Step::Publish(record) => {
                write!(f, "publish")?;
                for port in &record.ports {
                    write!(f, " {port}")?;
                }
                let masq = record.masquerade_except.is_some();
                write!(f, "{}", if masq { " masquerade" } else { "" })
            }
            Step::Forward(family) => write!(f, "forward {family}"),
            Step::RemoveBridgeAddr(addr) => write!(f, "remove address {addr}"),
        }
    }
}
