//! Real packets from this node to every other, through the tunnel and beside it: what is lost, how long it takes, what
//! fits, and which of the usual blockers it is.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hostnet::arp;
use hostnet::knock::{Checksum, knock};
use hostnet::netlink::addr::Scope;
use hostnet::netlink::route::PROTOCOL_KERNEL;
use hostnet::netlink::{Link, LinkKind};
use hostnet::nft::{Key, Proto};
use hostnet::ping::{Echo, Pinger, overhead};
use hostnet::vocab::{Family, Mac, Subnet, names};
use serde::{Deserialize, Serialize};

use crate::crowd::at_once;
use crate::table::Table;
use crate::target::proxy_table;
use crate::view::View;
use crate::walk::kube;

/// How many peers are asked at one time.
const AT_ONCE: usize = 64;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// The content of a small packet, as ping(8) has it.
const SMALL: usize = 56;
/// What IPv6 must carry, and nobody has less (RFC 8200, RFC 791).
const LEAST_V6: usize = 1280;
const LEAST_V4: usize = 576;

/// Another node, as the kernel's routes lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its pods.
    pub subnet: Subnet,
    /// What is asked: its end of the tunnel, or itself.
    pub target: IpAddr,
    /// The device that leads there.
    pub device: String,
    /// The largest packet of that device.
    pub mtu: usize,
    /// Its address in the nodes' network and the tunnel's UDP port, where there is a tunnel.
    pub underlay: Option<(IpAddr, u16)>,
}

impl Peer {
    /// Its address in the nodes' network: without a tunnel, that is what is asked.
    fn node(&self) -> Option<IpAddr> {
        match self.underlay {
            Some((node, _)) => Some(node),
            None if self.device.starts_with("flannel") => None,
            None => Some(self.target),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probed {
    /// The other node's pods.
    pub subnet: String,
    /// What was asked.
    pub target: IpAddr,
    /// Its address in the nodes' network, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<IpAddr>,
    /// Its name, where all nodes' are seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Small packets that were lost, of those that were sent.
    pub lost_small: [usize; 2],
    /// Packets of full size that were lost, of those that were sent.
    pub lost_full: [usize; 2],
    /// The median time to an answer, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
    /// The largest packet that got there and back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<usize>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The other nodes, by the routes that flanneld has set.
///
/// # Errors
/// The kernel cannot be read.
pub fn peers(view: &mut dyn View) -> crate::view::Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for link in view.links()? {
        let tunnel = tunnel_port(&link);
        for route in view.routes_by(link.index)? {
            let Some(gateway) = route.gateway else {
                continue;
            };
            let is_ours = tunnel.is_some() || route.protocol == names::ROUTE_PROTOCOL;
            if !is_ours || route.protocol == PROTOCOL_KERNEL {
                continue;
            }
            let underlay = match tunnel {
                Some(port) => node_behind(view, &link, gateway)?.map(|node| (node, port)),
                None => None,
            };
            peers.push(Peer {
                subnet: route.dst,
                target: gateway,
                device: link.name.to_string(),
                mtu: usize::try_from(link.mtu).unwrap_or(usize::MAX),
                underlay,
            });
        }
    }
    Ok(peers)
}

fn tunnel_port(link: &Link) -> Option<u16> {
    match &link.kind {
        LinkKind::Vxlan(vxlan) if link.name.as_str().starts_with("flannel") => Some(vxlan.port),
        _ => None,
    }
}

fn node_behind(
    view: &mut dyn View,
    link: &Link,
    gateway: IpAddr,
) -> crate::view::Result<Option<IpAddr>> {
    let neighs = view.neighs(link.index)?;
    let mac = neighs
        .iter()
        .find(|n| n.addr == gateway)
        .and_then(|n| n.mac);
    let fdb = view.fdb(link.index)?;
    let entry = fdb.iter().find(|entry| Some(entry.mac) == mac);
    Ok(entry.and_then(|entry| entry.dst))
}

/// Asks all peers, from the network namespace of the calling thread: `count` small packets each, then as many of full
/// size.
///
/// # Errors
/// No socket (it needs root).
pub fn probe(peers: &[Peer], count: usize) -> std::io::Result<Vec<Probed>> {
    at_once(peers, AT_ONCE, |n, peer| one(peer, count, n))
        .into_iter()
        .collect()
}

fn one(peer: &Peer, count: usize, index: usize) -> std::io::Result<Probed> {
    let family = Family::of(peer.target);
    // Each socket sees all answers to this machine: they are told apart by this.
    let id = (std::process::id() as u16).wrapping_add(index as u16);
    let mut pinger = Pinger::open(family, id)?;
    let full = peer.mtu.saturating_sub(overhead(family));
    let mut times = Vec::new();
    let mut lost = |content: usize, times: &mut Vec<Duration>| -> std::io::Result<usize> {
        let mut lost = 0;
        for _ in 0..count {
            match pinger.ping(peer.target, content, PATIENCE)? {
                Echo::Answered(time) => times.push(time),
                _ => lost += 1,
            }
        }
        Ok(lost)
    };
    let lost_small = lost(SMALL, &mut times)?;
    let lost_full = match lost_small < count {
        true => lost(full, &mut Vec::new())?,
        false => count,
    };
    times.sort();
    let latency = times
        .get(times.len() / 2)
        .map(|time| time.as_secs_f64() * 1e3);
    let mtu = match (lost_small < count, lost_full < count) {
        (true, true) => Some(peer.mtu),
        (true, false) => largest(&mut pinger, peer, family)?,
        (false, _) => None,
    };
    let (problem, remedy) = match trouble(peer, count, lost_small, lost_full, mtu)? {
        Some((problem, remedy)) => (Some(problem), Some(remedy)),
        None => (None, None),
    };
    Ok(Probed {
        subnet: peer.subnet.to_string(),
        target: peer.target,
        node: peer.node(),
        name: None,
        lost_small: [lost_small, count],
        lost_full: [lost_full, count],
        latency,
        mtu,
        problem,
        remedy,
    })
}

/// The largest packet that is answered, by halving.
fn largest(pinger: &mut Pinger, peer: &Peer, family: Family) -> std::io::Result<Option<usize>> {
    let least = match family {
        Family::V4 => LEAST_V4,
        Family::V6 => LEAST_V6,
    };
    let mut fits = |size: usize| -> std::io::Result<bool> {
        let content = size.saturating_sub(overhead(family));
        // One that is lost by chance shall not count.
        for _ in 0..2 {
            if let Echo::Answered(_) = pinger.ping(peer.target, content, PATIENCE / 4)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let (mut low, mut high) = (least, peer.mtu);
    if !fits(low)? {
        return Ok(None);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(Some(low))
}

fn trouble(
    peer: &Peer,
    count: usize,
    lost_small: usize,
    lost_full: usize,
    mtu: Option<usize>,
) -> std::io::Result<Option<(String, String)>> {
    let Peer {
        target,
        device,
        underlay,
        ..
    } = peer;
    if lost_small == count {
        let Some((node, port)) = underlay else {
            return Ok(Some((
                format!("{target} does not answer"),
                format!("`twill trace node {target}:1`, and the same there"),
            )));
        };
        let mut beside = Pinger::open(Family::of(*node), std::process::id() as u16 ^ 0x8000)?;
        let mut is_there = false;
        for _ in 0..count {
            is_there |= matches!(beside.ping(*node, SMALL, PATIENCE)?, Echo::Answered(_));
        }
        return Ok(Some(match is_there {
            true => (
                format!(
                    "{node} answers, but not through the tunnel: UDP port {port} is filtered on the way, or its {device} is not there"
                ),
                format!(
                    "let UDP {port} pass between the nodes (security groups, firewalld, `nft list ruleset` on both); `twill doctor` there"
                ),
            ),
            false => (
                format!("the node {node} does not answer, with or without the tunnel"),
                format!("is it up? `ping {node}`; the nodes' own network is not Twill's"),
            ),
        }));
    }
    if lost_full == count {
        let fits = mtu.map_or("none of full size".to_owned(), |mtu| {
            format!("up to {mtu} bytes")
        });
        let wanted = mtu.map_or(String::new(), |mtu| format!(" to {mtu}"));
        return Ok(Some((
            format!(
                "small packets arrive, those of {} bytes do not ({fits} do): the nodes' network carries less than {device} is set to",
                peer.mtu
            ),
            format!(
                "set Backend.MTU in net-conf.json{wanted}, or the MTU of the network between the nodes higher"
            ),
        )));
    }
    if underlay.is_some() && checksums_are_wrong(*target)? {
        return Ok(Some((
            format!(
                "pings arrive, but nothing whose checksum {device} leaves to the network card, as that of TCP and UDP: \
                 checksum offload of packets in packets is broken here (the card's driver, or the hypervisor)"
            ),
            format!(
                "`ethtool --offload {device} tx-checksum-ip-generic off` on this node, which costs throughput, until a newer \
                 driver, kernel or hypervisor is there"
            ),
        )));
    }
    let lost = lost_small + lost_full;
    Ok((lost > 0).then(|| {
        (
            format!("{lost} of {} packets were lost", 2 * count),
            format!("`ip -s link show {device}`, and the network between the nodes"),
        )
    }))
}

/// Whether what is lost on the way to a peer is just what the kernel has not computed the checksum of itself.
fn checksums_are_wrong(target: IpAddr) -> std::io::Result<bool> {
    let answers = |checksum| knock(target, checksum, PATIENCE / 4);
    // What gets there neither way, a firewall keeps out.
    if answers(Checksum::Device)? || !answers(Checksum::Kernel)? {
        return Ok(false);
    }
    // Once may be chance.
    Ok(!answers(Checksum::Device)? && answers(Checksum::Kernel)?)
}

/// An address of this node's that another machine has too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Twice {
    /// The address.
    pub address: IpAddr,
    /// The device by which the other one was seen.
    pub device: String,
    /// The other one's.
    pub mac: Mac,
}

impl Twice {
    /// What to do.
    pub const REMEDY: &str = "find the machine of that MAC (the switches' tables, the hypervisor, DHCP leases), and give one of \
                          the two another address";
}

impl fmt::Display for Twice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Twice {
            address,
            device,
            mac,
        } = self;
        write!(
            f,
            "{address} is another machine's too: {mac} on {device} says that it has it"
        )
    }
}

/// Which of this node's IPv4 addresses in the nodes' network others have too, from the network namespace of the calling
/// thread. Of IPv6 the kernel sees to it.
///
/// # Errors
/// The kernel cannot be read, or gives no socket.
pub fn twice(view: &mut dyn View) -> anyhow::Result<Vec<Twice>> {
    let (links, addrs) = (view.links()?, view.addrs()?);
    let own: Vec<Mac> = links.iter().filter_map(|link| link.mac).collect();
    let mut found = Vec::new();
    for link in &links {
        let carries = |tunnel: &Link| {
            let LinkKind::Vxlan(vxlan) = &tunnel.kind else {
                return false;
            };
            let has_end = || {
                addrs
                    .iter()
                    .any(|a| a.link == link.index && Some(a.cidr.addr()) == vxlan.local)
            };
            tunnel_port(tunnel).is_some() && (vxlan.device == Some(link.index) || has_end())
        };
        let is_ours = |route: &hostnet::netlink::Route| route.protocol == names::ROUTE_PROTOCOL;
        if !links.iter().any(carries) && !view.routes_by(link.index)?.iter().any(is_ours) {
            continue;
        }
        let Some(mac) = link.mac.filter(|_| link.up) else {
            continue;
        };
        let its = addrs
            .iter()
            .filter(|a| a.link == link.index && a.scope == Scope::GLOBAL);
        for addr in its {
            let IpAddr::V4(address) = addr.cidr.addr() else {
                continue;
            };
            let others = arp::others(link.index, mac, address, PATIENCE / 2)
                .with_context(|| format!("who else has {address} on {}?", link.name))?;
            // Another device of this node on the same link answers too.
            found.extend(
                others
                    .into_iter()
                    .filter(|mac| !own.contains(mac))
                    .map(|mac| Twice {
                        address: addr.cidr.addr(),
                        device: link.name.to_string(),
                        mac,
                    }),
            );
        }
    }
    Ok(found)
}

/// A TCP connection to a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connected {
    /// Where to.
    pub to: SocketAddr,
    /// How long it took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether a Service answers at this address and TCP port, by the rules of twill-proxy on this node.
///
/// # Errors
/// The kernel cannot be read.
pub fn is_service(view: &mut dyn View, to: SocketAddr) -> crate::view::Result<bool> {
    let family = Family::of(to.ip());
    let table = proxy_table(family);
    match view.declaration(&table, "vips")? {
        Some(vips) => {
            let key = Key::from((to.ip(), Proto::TCP, to.port()));
            Ok(view.element(&table, &vips, &key)?.is_some())
        }
        None => Ok(kube::entrances(view, family)?
            .iter()
            .any(|of| (of.address, of.port, of.proto) == (Some(to.ip()), to.port(), Proto::TCP))),
    }
}

/// Opens a connection, and closes it.
pub fn connect(to: SocketAddr) -> Connected {
    let start = Instant::now();
    let connected = TcpStream::connect_timeout(&to, PATIENCE * 3);
    let latency = connected
        .is_ok()
        .then(|| start.elapsed().as_secs_f64() * 1e3);
    Connected {
        to,
        latency,
        problem: connected.err().map(|error| error.to_string()),
    }
}

/// All that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The other nodes.
    pub peers: Vec<Probed>,
    /// A Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Connected>,
    /// This node's addresses that others have too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub twice: Vec<Twice>,
}

impl Report {
    /// Whether everything got through.
    pub fn is_well(&self) -> bool {
        self.peers.iter().all(|peer| peer.problem.is_none())
            && self.service.as_ref().is_none_or(|s| s.problem.is_none())
            && self.twice.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            "PODS",
            "ASKED",
            "LOST",
            "LOST (FULL SIZE)",
            "LATENCY",
            "MTU",
        ]);
        let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for peer in &self.peers {
            let of = |[lost, sent]: [usize; 2]| format!("{lost} of {sent}");
            table.row([
                peer.subnet.clone(),
                peer.target.to_string(),
                of(peer.lost_small),
                of(peer.lost_full),
                or(peer.latency.map(|ms| format!("{ms:.2} ms"))),
                or(peer.mtu.map(|mtu| mtu.to_string())),
            ]);
        }
        write!(f, "{table}")?;
        for peer in &self.peers {
            if let (Some(problem), Some(remedy)) = (&peer.problem, &peer.remedy) {
                writeln!(f, "✗ {}: {problem}", peer.subnet)?;
                writeln!(f, "  remedy: {remedy}")?;
            }
        }
        for twice in &self.twice {
            writeln!(f, "✗ {twice}\n  remedy: {}", Twice::REMEDY)?;
        }
        match &self.service {
            Some(Connected {
                to,
                latency: Some(ms),
                ..
            }) => writeln!(f, "TCP to {to}: {ms:.2} ms"),
            Some(Connected { to, problem, .. }) => {
                writeln!(
                    f,
                    "✗ TCP to {to}: {}",
                    problem.as_deref().unwrap_or_default()
                )?;
                writeln!(f, "  remedy: `twill trace node {to}`")
            }
            None => Ok(()),
        }
    }
}
