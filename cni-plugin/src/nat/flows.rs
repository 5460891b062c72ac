//! UDP flows that the kernel remembers: one that was seen before a host port led to its pod, or
//! that still leads to a pod that went, would keep its way for as long as packets come.

use std::net::{IpAddr, SocketAddr};

use hostnet::conntrack::{Conntrack, Error, Filter, UdpFlow};
use hostnet::vocab::Family;

use crate::error::{CniError, Code};
use crate::record::Record;
use crate::request::ports::{PortMapping, Protocol};

impl From<Error> for CniError {
    fn from(error: Error) -> CniError {
        CniError::of(Code::Kernel, &error)
    }
}

/// Which of the flows to an attachment's ports are stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// Those that do not lead to it, now that its rules are in.
    NotToIt,
    /// Those that lead to it, now that its rules are out.
    ToIt,
}

/// Has the kernel forget stale flows. `local` are the node's addresses: what only passes through to
/// the same port elsewhere is no flow to a host port. Returns how many.
pub fn forget(record: &Record, which: Flows, local: &[IpAddr]) -> Result<usize, CniError> {
    let udp: Vec<&PortMapping> = record
        .ports
        .iter()
        .filter(|port| port.protocol == Protocol::Udp)
        .collect();
    if udp.is_empty() {
        return Ok(0);
    }
    let mut conntrack = Conntrack::open()?;
    let mut stale = Vec::new();
    for addr in record.addrs() {
        let family = Family::of(addr);
        for port in udp.iter().filter(|p| !p.families(&[family]).is_empty()) {
            let target = SocketAddr::new(addr, port.container_port);
            let mut filter = Filter::all(family).to_port(port.host_port);
            if let Some(at) = port.at() {
                filter = filter.to_addr(at);
            }
            conntrack.dump(&filter, |flow| {
                if is_stale(&flow, target, which, local) {
                    stale.push(flow);
                }
            })?;
        }
    }
    if stale.is_empty() {
        return Ok(0);
    }
    Ok(conntrack.delete(&stale)?)
}

/// The answers' source is where the flow leads.
fn is_stale(flow: &UdpFlow, target: SocketAddr, which: Flows, local: &[IpAddr]) -> bool {
    let leads_to_it = flow.reply.src == target;
    let to = flow.original.dst.ip();
    match which {
        Flows::ToIt => leads_to_it,
        Flows::NotToIt => !leads_to_it && (to.is_loopback() || local.contains(&to)),
    }
}
