//! Owns the plain form of an EndpointSlice: what rules depend on, parsed and checked.

use std::net::IpAddr;
use std::sync::Arc;

use hostnet::vocab::Family;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::objects;
use super::service::{port_number, protocol};
use crate::plan::Protocol;

/// discovery.k8s.io: the Service that a slice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// core/v1: slices of headless Services, of no use to a proxy.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// When the change was made that led to this version of the slice (RFC 3339).
const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A slice of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The family of its addresses.
    pub family: Family,
    /// The ports that all of its endpoints have.
    pub ports: Box<[SlicePort]>,
    /// Its endpoints.
    pub endpoints: Box<[SliceEndpoint]>,
}

/// A port of a slice: the target of the Service's port of the same name and protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePort {
    /// The Service port's name.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where the endpoints listen.
    pub port: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceEndpoint {
    /// Its first address: consumers use no other (discovery.k8s.io/v1).
    pub address: IpAddr,
    /// Gets traffic.
    pub ready: bool,
    /// Can take traffic, whether or not it is on its way out.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
    /// Which clients it is meant for, where the cluster says so.
    pub hints: Option<Box<Hints>>,
}

/// Which clients an endpoint is meant for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// Those in these zones.
    pub zones: Box<[Box<str>]>,
    /// Those on these nodes.
    pub nodes: Box<[Box<str>]>,
}

impl Slice {
    /// The folded slice, and the name of its Service (in its own namespace). `None` for a slice that
    /// no rule comes from: without a Service, of a headless one, or of an address type other than IP.
    /// Endpoints and ports that cannot be used are left out.
    pub fn fold(object: &objects::EndpointSlice, this_node: &str) -> Option<(String, Self)> {
        let labels = object.metadata.labels.as_ref()?;
        let service = labels
            .get(SERVICE_NAME_LABEL)
            .filter(|name| !name.is_empty())?;
        if labels.contains_key(HEADLESS_LABEL) {
            return None;
        }
        let family = match object.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return None,
        };
        let slice = Self {
            family,
            ports: object.ports.iter().filter_map(SlicePort::fold).collect(),
            endpoints: (object.endpoints.iter())
                .filter_map(|endpoint| SliceEndpoint::fold(endpoint, family, this_node))
                .collect(),
        };
        Some((service.clone(), slice))
    }
}

/// When the change was made that this version of a slice tells of.
pub(super) fn trigger_time(object: &objects::EndpointSlice) -> Option<Timestamp> {
    object
        .metadata
        .annotations
        .as_ref()?
        .get(TRIGGER_TIME_ANNOTATION)?
        .parse()
        .ok()
}

impl SlicePort {
    fn fold(port: &objects::EndpointPort) -> Option<Self> {
        Some(Self {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(port.protocol.as_deref())?,
            port: port_number(port.port?)?,
        })
    }
}

impl SliceEndpoint {
    fn fold(endpoint: &objects::Endpoint, family: Family, this_node: &str) -> Option<Self> {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        if Family::of(address) != family || !is_reachable(address) {
            return None;
        }
        let conditions = &endpoint.conditions;
        Some(Self {
            address,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            local: endpoint.node_name.as_deref() == Some(this_node),
            hints: endpoint.hints.as_ref().and_then(Hints::fold),
        })
    }
}

impl Hints {
    fn fold(hints: &objects::Hints) -> Option<Box<Self>> {
        let names =
            |hints: &[objects::Hint]| hints.iter().map(|hint| hint.name.as_str().into()).collect();
        let folded = Self {
            zones: names(&hints.for_zones),
            nodes: names(&hints.for_nodes),
        };
        (!folded.zones.is_empty() || !folded.nodes.is_empty()).then(|| folded.into())
    }
}

/// Whether a packet can be sent there by DNAT. The API refuses the others in new slices (its rule: not
/// unspecified, loopback, link-local or multicast), since they would reach into the node itself.
fn is_reachable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}
