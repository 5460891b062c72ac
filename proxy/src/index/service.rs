//! Owns the plain form of a Service: what rules depend on, parsed and checked.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::objects;
use crate::plan::Protocol;

/// A Service that belongs to another proxy (any value).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// core/v1: the timeout of `ClientIP` affinity where none is given.
const DEFAULT_AFFINITY_SECONDS: NonZeroU32 = NonZeroU32::new(10_800).unwrap();

/// A Service that this node serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// When it was made, in seconds since 1970: of two that claim one frontend the older has it.
    pub created: i64,
    /// Its cluster IPs, one per family.
    pub cluster_ips: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[Port]>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `sessionAffinity: ClientIP`: its timeout in seconds.
    pub affinity: Option<NonZeroU32>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Empty where it is the only one.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the cluster IP.
    pub port: u16,
    /// The port at the nodes, where the Service has one.
    pub node_port: Option<u16>,
}

impl Service {
    /// `None` for a Service that is not ours to serve: headless, `ExternalName`, or another proxy's.
    /// Ports and addresses that cannot be served are left out; the API lets none of them through.
    pub fn fold(object: &objects::Service) -> Option<Self> {
        let spec = &object.spec;
        let foreign = object
            .metadata
            .labels
            .as_ref()
            .is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
        if foreign || spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        // Objects from before dual stack have the one field only.
        let ips = if spec.cluster_ips.is_empty() {
            spec.cluster_ip.as_slice()
        } else {
            spec.cluster_ips.as_slice()
        };
        // "None" and "" do not parse: a headless Service has no address left.
        let cluster_ips: Box<[IpAddr]> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        if cluster_ips.is_empty() {
            return None;
        }
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        Some(Self {
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            cluster_ips,
            ports: spec.ports.iter().filter_map(Port::fold).collect(),
            internal_local: is_local(&spec.internal_traffic_policy),
            external_local: is_local(&spec.external_traffic_policy),
            affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
                spec.session_affinity_config
                    .as_ref()
                    .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
                    .and_then(|seconds| NonZeroU32::new(u32::try_from(seconds).ok()?))
                    .unwrap_or(DEFAULT_AFFINITY_SECONDS)
            }),
        })
    }
}

impl Port {
    fn fold(port: &objects::ServicePort) -> Option<Self> {
        Some(Self {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(port.protocol.as_deref())?,
            port: port_number(port.port)?,
            node_port: port.node_port.and_then(port_number),
        })
    }
}

/// The protocol by its API name; absent is TCP. `None`: not one that a Service can have.
pub(super) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// 1 to 65,535, or `None`.
pub(super) fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}
