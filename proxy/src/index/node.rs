//! Owns the plain form of this Node.

use std::net::IpAddr;

use hostnet::vocab::{Family, Subnet};
use serde::{Deserialize, Serialize};

use super::objects;

/// core/v1 well-known labels: the failure domain of a node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler is about to remove the node.
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What rules and health depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its UID: a Node that is made anew under its old name has another.
    pub uid: String,
    /// Its zone, for hints.
    pub zone: Option<String>,
    /// The primary IPv4 address.
    pub primary_v4: Option<IpAddr>,
    /// The primary IPv6 address.
    pub primary_v6: Option<IpAddr>,
    /// The networks of its pods.
    pub pod_cidrs: Vec<Subnet>,
    /// Gone or on its way out: deleted, being deleted, or tainted for it. New outside traffic should go
    /// elsewhere; what is known of it stays, so that the traffic that still comes is served.
    pub leaving: bool,
}

impl Node {
    /// Addresses and networks that do not parse are left out.
    pub fn fold(object: &objects::Node) -> Self {
        Self {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            zone: object
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(ZONE_LABEL))
                .cloned(),
            primary_v4: primary(object, Family::V4),
            primary_v6: primary(object, Family::V6),
            pod_cidrs: object
                .spec
                .pod_cidrs
                .iter()
                .filter_map(|cidr| cidr.parse().ok())
                .collect(),
            leaving: object.metadata.deletion_timestamp.is_some()
                || object
                    .spec
                    .taints
                    .iter()
                    .any(|taint| taint.key == DELETION_TAINT),
        }
    }

    /// The primary address of a family.
    pub fn primary(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.primary_v4,
            Family::V6 => self.primary_v6,
        }
    }
}

/// The first internal address of the family, else the first external one (as kube-proxy chooses).
fn primary(object: &objects::Node, family: Family) -> Option<IpAddr> {
    let first = |kind: &str| {
        (object.status.addresses.iter())
            .filter(|address| address.type_ == kind)
            .filter_map(|address| address.address.parse::<IpAddr>().ok())
            .find(|address| Family::of(*address) == family && !address.is_unspecified())
    };
    first("InternalIP").or_else(|| first("ExternalIP"))
}
