//! Why a node is left out.

use std::net::IpAddr;
use std::sync::Arc;

use hostnet::vocab::{Family, IfName, Mac, Subnet};

/// Why a node is no peer in one family. `Display` is for a person; [`Reason::label`] for a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Its flanneld has published nothing (yet).
    #[error("no flanneld has published its backend there yet")]
    NotPublished,
    /// It has no subnet in this family (yet).
    #[error("it has no {0} subnet yet")]
    NoSubnet(Family),
    /// It publishes no address in this family (yet).
    #[error("it has published no {0} address yet")]
    NoAddress(Family),
    /// It publishes no VTEP in this family (yet).
    #[error("it has published no {0} VTEP yet")]
    NoVtep(Family),
    /// Its backend is not ours.
    #[error("its backend is {theirs:?}, ours is {ours:?}")]
    OtherBackend {
        /// What it says.
        theirs: String,
        /// What we run.
        ours: &'static str,
    },
    /// Its VXLAN network identifier is not ours.
    #[error("its VNI is {theirs}, ours is {ours}")]
    OtherVni {
        /// What it says.
        theirs: u32,
        /// What we run.
        ours: u32,
    },
    /// A value that cannot be read.
    #[error("its {what} {text:?} cannot be read")]
    Unreadable {
        /// Which.
        what: &'static str,
        /// The value, cut.
        text: String,
    },
    /// A value longer than any good one.
    #[error("its {what} has {bytes} bytes")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// Its subnet is not in the network.
    #[error("its subnet {subnet} is not inside the network {network}")]
    SubnetOutside {
        /// Its subnet.
        subnet: Subnet,
        /// The network.
        network: Subnet,
    },
    /// Its subnet is the whole network, or has no room for pods.
    #[error("its subnet {subnet} is of a length that no node can have in {network}")]
    SubnetLength {
        /// Its subnet.
        subnet: Subnet,
        /// The network.
        network: Subnet,
    },
    /// Its subnet overlaps ours.
    #[error("its subnet {subnet} overlaps ours, {ours}")]
    SubnetOurs {
        /// Its subnet.
        subnet: Subnet,
        /// Our own.
        ours: Subnet,
    },
    /// Its subnet overlaps that of a node with an older claim.
    #[error("its subnet {subnet} overlaps {taken} of node {by}, whose claim is older")]
    SubnetTaken {
        /// Its subnet.
        subnet: Subnet,
        /// The other's.
        taken: Subnet,
        /// The other node.
        by: Arc<str>,
    },
    /// Its address cannot be a node's.
    #[error("its address {addr} cannot be used: it is {why}")]
    AddressUnusable {
        /// Its address.
        addr: IpAddr,
        /// What it is.
        why: &'static str,
    },
    /// Its address is our own.
    #[error("its address {0} is our own")]
    AddressOurs(IpAddr),
    /// Its address lies among the pods', so that packets to it would go round in circles.
    #[error("its address {addr} is inside the pods' network {network}")]
    AddressInNetwork {
        /// Its address.
        addr: IpAddr,
        /// The network.
        network: Subnet,
    },
    /// The backend needs all nodes on one link, and it is behind a router.
    #[error(
        "its address {addr} is behind a router: backend host-gw needs all nodes on the link of {link}"
    )]
    NotDirect {
        /// Its address.
        addr: IpAddr,
        /// Our interface.
        link: IfName,
    },
    /// Its VTEP's MAC is multicast, broadcast or zero.
    #[error("its VTEP's MAC {0} is not unicast")]
    VtepNotUnicast(Mac),
    /// Its VTEP's MAC is our own.
    #[error("its VTEP's MAC {0} is our own")]
    VtepOurs(Mac),
    /// Its VTEP's MAC is that of a node with an older claim.
    #[error("its VTEP's MAC {mac} is that of node {by}, whose claim is older")]
    VtepTaken {
        /// The MAC.
        mac: Mac,
        /// The other node.
        by: Arc<str>,
    },
}

impl Reason {
    /// A short fixed word, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Reason::NotPublished => "not-published",
            Reason::NoSubnet(_) => "no-subnet",
            Reason::NoAddress(_) => "no-address",
            Reason::NoVtep(_) => "no-vtep",
            Reason::OtherBackend { .. } => "other-backend",
            Reason::OtherVni { .. } => "other-vni",
            Reason::Unreadable { .. } => "unreadable",
            Reason::TooLong { .. } => "too-long",
            Reason::SubnetOutside { .. } => "subnet-outside",
            Reason::SubnetLength { .. } => "subnet-length",
            Reason::SubnetOurs { .. } => "subnet-ours",
            Reason::SubnetTaken { .. } => "subnet-taken",
            Reason::AddressUnusable { .. } => "address-unusable",
            Reason::AddressOurs(_) => "address-ours",
            Reason::AddressInNetwork { .. } => "address-in-network",
            Reason::NotDirect { .. } => "not-direct",
            Reason::VtepNotUnicast(_) => "vtep-not-unicast",
            Reason::VtepOurs(_) => "vtep-ours",
            Reason::VtepTaken { .. } => "vtep-taken",
        }
    }

    /// Whether it speaks another backend than ours: the mark of a node that has learned of a change before or after us.
    pub(crate) fn is_another_backend(&self) -> bool {
        matches!(self, Reason::OtherBackend { .. } | Reason::OtherVni { .. })
    }

    /// Whether it is left out because of what another node claims.
    pub(crate) fn is_for_another(&self) -> bool {
        matches!(self, Reason::SubnetTaken { .. } | Reason::VtepTaken { .. })
    }

    /// Whether the node is merely not ready: nothing that it says is wrong.
    pub fn is_pending(&self) -> bool {
        matches!(
            self,
            Reason::NotPublished | Reason::NoSubnet(_) | Reason::NoAddress(_) | Reason::NoVtep(_)
        )
    }
}
