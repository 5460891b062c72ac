//! Backends: how packets reach the other nodes. Each is a pure function from our own place and the
//! peers to devices, neighbours, forwarding entries and routes.

pub mod vxlan;

use hostnet::vocab::{Mac, Subnet};

use crate::iface::Uplink;

/// This node's own place in one family's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The network of all nodes' pods.
    pub network: Subnet,
    /// Our lease: the subnet of this node's pods.
    pub subnet: Subnet,
    /// The interface by which we reach other nodes.
    pub uplink: Uplink,
    /// The MAC of our VTEP.
    pub vtep: Mac,
}
