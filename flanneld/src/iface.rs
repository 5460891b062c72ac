//! Choosing the interface by which this node reaches the others, from what the kernel holds.

use std::net::IpAddr;

use hostnet::vocab::{Cidr, IfName, Subnet};

/// The interface for one family's underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Our address on it: the source of what we send to other nodes.
    pub addr: Cidr,
    /// The address by which other nodes reach us; another than ours behind NAT.
    pub public: IpAddr,
    /// The main table's routes that packets to other nodes may take, our own left out.
    pub routes: Vec<UplinkRoute>,
}

/// One of the routes around an [`Uplink`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkRoute {
    /// Where to.
    pub dst: Subnet,
    /// It leaves by the uplink and has no gateway: its destinations are on the link.
    pub direct: bool,
}

impl Uplink {
    /// Whether packets to the address go out by this interface and need no router.
    pub fn is_direct(&self, addr: IpAddr) -> bool {
        self.routes
            .iter()
            .filter(|route| route.dst.contains(addr))
            .max_by_key(|route| route.dst.prefix())
            .is_some_and(|route| route.direct)
    }
}
