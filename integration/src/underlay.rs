//! The network below the cluster: a bridge that all its machines are on, and a router (the
//! keeper's network namespace) between it and the outside, which knows nothing of pod networks.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use hostnet::netns::NetNs;

use crate::keeper::Keeper;
use crate::machine::{Machine, printed};

/// A machine's place on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// The control plane's machine.
    ControlPlane,
    /// The node of this index, from 0.
    Node(u8),
    /// The client that is no part of the cluster.
    Outside,
}

/// The cluster's network and the outside's: what comes before a host's number.
struct Segment {
    v4: [u8; 3],
    v6: [u16; 3],
}

const CLUSTER: Segment = Segment {
    v4: [172, 30, 0],
    v6: [0xfd00, 0x30, 0],
};

/// From the ranges for documentation (RFC 5737, RFC 3849): surely no pod, node or service.
const ELSEWHERE: Segment = Segment {
    v4: [198, 51, 100],
    v6: [0x2001, 0xdb8, 0x51],
};

impl Segment {
    const ROUTER: u8 = 1;

    fn v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.v4;
        Ipv4Addr::new(a, b, c, host)
    }

    fn v6(&self, host: u8) -> Ipv6Addr {
        let [a, b, c] = self.v6;
        Ipv6Addr::new(a, b, c, 0, 0, 0, 0, host.into())
    }
}

impl Seat {
    /// More nodes than this have no address.
    pub const MAX_NODES: u8 = 200;

    /// Its IPv4 address.
    pub fn v4(self) -> Ipv4Addr {
        self.segment().v4(self.host())
    }

    /// Its IPv6 address.
    pub fn v6(self) -> Ipv6Addr {
        self.segment().v6(self.host())
    }

    fn segment(self) -> &'static Segment {
        match self {
            Seat::ControlPlane | Seat::Node(_) => &CLUSTER,
            Seat::Outside => &ELSEWHERE,
        }
    }

    fn host(self) -> u8 {
        match self {
            Seat::ControlPlane => 2,
            Seat::Node(index) => 11 + index,
            Seat::Outside => 10,
        }
    }

    /// The router's end of its cable.
    fn cable(self) -> String {
        match self {
            Seat::ControlPlane => "to-control".to_owned(),
            Seat::Node(index) => format!("to-node-{index}"),
            Seat::Outside => "to-outside".to_owned(),
        }
    }
}

/// Makes the bridge and the router.
pub fn build(keeper: &Keeper) -> Result<()> {
    let mut script = "link set lo up\n\
         link add underlay type bridge stp_state 0 mcast_snooping 0\n\
         link set underlay up\n"
        .to_owned();
    script += &addresses("underlay", &CLUSTER, Segment::ROUTER);
    batch(keeper.command("ip"), &script).context("cannot build the underlay")?;
    let netns = NetNs::open(keeper.path("/proc/1/ns/net"))?;
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/net/{key}");
        #[expect(
            clippy::disallowed_methods,
            reason = "a sysctl is written at once or not at all"
        )]
        netns
            .run_in(|| std::fs::write(&path, "1"))?
            .with_context(|| format!("cannot set {path}"))?;
    }
    Ok(())
}

/// Connects a machine: `eth0` with its addresses and default routes.
pub fn connect(machine: &Machine, seat: Seat) -> Result<()> {
    let failed = || format!("cannot connect {} to the underlay", machine.name());
    let cable = seat.cable();
    let mut script = format!(
        "link add {cable} type veth peer name eth0 netns {}\n",
        machine.pid()
    );
    script += &match seat {
        Seat::Outside => addresses(&cable, &ELSEWHERE, Segment::ROUTER),
        Seat::ControlPlane | Seat::Node(_) => format!("link set {cable} master underlay\n"),
    };
    script += &format!("link set {cable} up\n");
    batch(machine.keeper().command("ip"), &script).with_context(failed)?;

    let segment = seat.segment();
    let mut script = "link set lo up\nlink set eth0 up\n".to_owned();
    script += &addresses("eth0", segment, seat.host());
    for router in [
        IpAddr::V4(segment.v4(Segment::ROUTER)),
        IpAddr::V6(segment.v6(Segment::ROUTER)),
    ] {
        script += &format!("route add default via {router}\n");
    }
    batch(machine.command("ip"), &script).with_context(failed)
}

/// Pulls a node's cable, or plugs it in again.
pub fn set_cable(keeper: &Keeper, seat: Seat, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    let script = format!("link set {} {state}\n", seat.cable());
    batch(keeper.command("ip"), &script).context("cannot switch a cable")
}

fn addresses(device: &str, segment: &Segment, host: u8) -> String {
    format!(
        "addr add {}/24 dev {device}\naddr add {}/64 dev {device} nodad\n",
        segment.v4(host),
        segment.v6(host)
    )
}

/// Runs many `ip` commands in one process. The lab's own plumbing is done by iproute2, so that
/// what the product does is never checked with the product's own code.
pub(crate) fn batch(mut ip: Command, script: &str) -> Result<()> {
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(script.as_bytes())
            .context("ip ended early")?;
    }
    let output = child.wait_with_output().context("cannot wait for ip")?;
    printed("ip -batch", output)?;
    Ok(())
}
