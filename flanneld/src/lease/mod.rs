//! This node's subnets, each held by a Lease object that is named after it.
//!
//! Creating an object is the one thing that an API server lets only one client do, so the Lease's name is the claim:
//! two nodes cannot hold one subnet. Names do not exclude overlaps of subnets of different lengths; there the younger
//! Lease yields. Which subnet to hold is for `spec.podCIDRs` to say; where it says nothing, a free one is picked.

mod claim;
mod object;
mod pick;

use std::sync::Arc;

use hostnet::vocab::Subnet;

pub use claim::{Leases, renew_in};
pub use hostnet::vocab::lease::{lease_name, parse_lease_name};
pub use object::{Holding, Owner};
pub use pick::{Taken, pick};

use crate::ByFamily;

/// What other nodes have, as far as picking goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Others {
    /// Each other Node's subnets, by its name.
    pub subnets: Vec<(Arc<str>, ByFamily<Subnet>)>,
}

/// Why no subnet is held.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Our Node object does not exist.
    #[error(
        "there is no Node {node}: has the kubelet registered under another name? (--node-name, NODE_NAME)"
    )]
    NoNode {
        /// The name that was looked for.
        node: String,
    },
    /// A request failed.
    #[error("cannot {what}: {}", agent::client::explain(.source))]
    Api {
        /// The operation and its object.
        what: String,
        /// Why.
        source: kube::Error,
    },
    /// `spec.podCIDRs` lacks a family that net-conf.json enables, and can no longer be changed.
    #[error(
        "Node {node} has podCIDRs {has:?}, but net-conf.json wants an {family} subnet too: they cannot be changed any \
         more; delete the Node object and let it register again, or change net-conf.json"
    )]
    LacksFamily {
        /// Our node.
        node: String,
        /// What it has.
        has: Vec<String>,
        /// The family.
        family: hostnet::vocab::Family,
    },
    /// `spec.podCIDRs` has a subnet that is not in the network.
    #[error(
        "Node {node} has podCIDR {subnet}, which is not a part of the Network {network} in net-conf.json: make the \
         controller-manager's --cluster-cidr and net-conf.json agree"
    )]
    Outside {
        /// Our node.
        node: String,
        /// Its subnet.
        subnet: Subnet,
        /// The network.
        network: Subnet,
    },
    /// Another node holds our subnet.
    #[error(
        "subnet {subnet} of Node {node} is held by Node {holder} (Lease {lease}): delete the Node object of the one \
         that is younger and let it register again, so that it gets another subnet"
    )]
    Clash {
        /// The subnet in our `spec.podCIDRs`.
        subnet: Subnet,
        /// Our node.
        node: String,
        /// The node that holds it, or a part of it.
        holder: String,
        /// The Lease by which it does.
        lease: String,
    },
    /// Somebody has reserved our subnet.
    #[error(
        "subnet {subnet} of Node {node} is reserved: Lease {lease} names no holder. Delete that Lease, or delete the Node \
         object and let it register again, so that it gets another subnet"
    )]
    Reserved {
        /// The subnet in our `spec.podCIDRs`.
        subnet: Subnet,
        /// Our node.
        node: String,
        /// The Lease by which it is reserved.
        lease: String,
    },
    /// We wait for somebody else to assign a subnet.
    #[error("Node {node} has no spec.podCIDRs yet: {why}")]
    Unassigned {
        /// Our node.
        node: String,
        /// For whom we wait.
        why: &'static str,
    },
    /// All subnets are taken.
    #[error(
        "no free subnet is left in {network} (/{len} from {min} to {max}): remove Nodes that are gone, or make the \
         Network larger"
    )]
    Exhausted {
        /// The network.
        network: Subnet,
        /// The prefix length of a node's subnet.
        len: u8,
        /// The first.
        min: Subnet,
        /// The last.
        max: Subnet,
    },
    /// Others were always faster.
    #[error("other nodes took each subnet that was tried, {tries} of them; trying again")]
    Busy {
        /// How many were tried.
        tries: usize,
    },
}
