//! Why no interface could be chosen.

use std::fmt;
use std::net::IpAddr;

use hostnet::vocab::{Cidr, Family, IfName, Subnet};

/// Nothing that was asked for can be the interface to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfaceError {
    /// The family that needs one.
    pub family: Family,
    /// What was asked for, and why it cannot be.
    pub unfit: Vec<(String, Unfit)>,
    /// The addresses that there are, to choose one by `--iface`.
    pub candidates: Vec<Candidate>,
}

/// An address that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The interface.
    pub name: IfName,
    /// Its address.
    pub addr: Cidr,
}

/// Why an interface cannot be the one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The name.
    #[error("there is no such interface")]
    Absent,
    /// The address.
    #[error("no interface has it")]
    NobodyHas,
    /// The pattern.
    #[error("no interface has a name or address that matches")]
    NoMatch,
    /// No default route.
    #[error("there is none")]
    NoDefaultRoute,
    /// No route to an address.
    #[error("there is no route to it")]
    NoRoute,
    /// No global address of the family.
    #[error("{0} has no such address of global scope")]
    NoAddress(IfName),
    /// The loopback interface.
    #[error("the loopback interface reaches no other node")]
    Loopback,
    /// One of our own devices, or the pods' bridge.
    #[error("{0} belongs to the pods' network")]
    PodsDevice(IfName),
    /// An address among the pods'.
    #[error(
        "its address {addr} is inside the pods' network {network}: give Network in net-conf.json a range that neither \
         nodes nor Services have"
    )]
    InNetwork {
        /// The address.
        addr: IpAddr,
        /// The network.
        network: Subnet,
    },
    /// Not up.
    #[error("{0} is down")]
    Down(IfName),
    /// Too small an MTU.
    #[error("its MTU is {mtu}, less than the {least} that the backend needs")]
    Mtu {
        /// The link's.
        mtu: u32,
        /// What is needed.
        least: u32,
    },
}

impl fmt::Display for IfaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no interface for {} to other nodes", self.family)?;
        for (index, (asked, why)) in self.unfit.iter().enumerate() {
            let separator = if index == 0 { ": " } else { "; " };
            write!(f, "{separator}{asked}: {why}")?;
        }
        if self.candidates.is_empty() {
            return write!(f, "; no interface has a global {} address", self.family);
        }
        f.write_str("; choose by --iface one of ")?;
        for (index, Candidate { name, addr }) in self.candidates.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{name} ({addr})")?;
        }
        Ok(())
    }
}

impl std::error::Error for IfaceError {}
