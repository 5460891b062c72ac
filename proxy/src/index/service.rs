//! Owns the plain form of a Service: what rules depend on, parsed and checked.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use hostnet::vocab::{Cidr, Subnet};
use serde::{Deserialize, Serialize};

use super::objects;
use crate::plan::Protocol;

/// A Service that belongs to another proxy (any value).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// core/v1: the timeout of `ClientIP` affinity where none is given.
const DEFAULT_AFFINITY_SECONDS: NonZeroU32 = NonZeroU32::new(10_800).unwrap();

/// A Service that this node serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its UID; 0 where it is not known. A Service that is made anew under its old name has another.
    pub uid: u128,
    /// When it was made, in seconds since 1970: of two that claim one frontend the older has it.
    pub created: i64,
    /// Its cluster IPs, one per family.
    pub cluster_ips: Box<[IpAddr]>,
    /// Addresses of load balancers that leave the destination as it is. Sorted.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Addresses that the user leads to the nodes. Sorted.
    pub external_ips: Box<[IpAddr]>,
    /// Who may come in by `load_balancer_ips`. Sorted; empty: everyone.
    pub source_ranges: Box<[Subnet]>,
    /// Where load balancers ask whether this node has endpoints: under `external_local` only.
    pub health_check_port: Option<u16>,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// `proxy_name`: the label's value that makes it ours; `None`: that there is none.
    /// `None` for a Service that is not ours to serve: headless, `ExternalName`, or another proxy's.
    /// Ports and addresses that cannot be served are left out; the API lets none of them through.
    pub fn fold(object: &objects::Service, proxy_name: Option<&str>) -> Option<Self> {
        let spec = &object.spec;
        let labels = object.metadata.labels.as_ref();
        let proxy = labels.and_then(|labels| labels.get(PROXY_NAME_LABEL));
        if proxy.map(String::as_str) != proxy_name || spec.type_.as_deref() == Some("ExternalName")
        {
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
        let external_local = is_local(&spec.external_traffic_policy);
        let load_balancers = (object.status.load_balancer.ingress.iter())
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| ingress.ip.as_deref());
        Some(Self {
            uid: object.metadata.uid.as_deref().map_or(0, uid),
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            cluster_ips,
            load_balancer_ips: addresses(load_balancers),
            external_ips: addresses(spec.external_ips.iter().map(String::as_str)),
            source_ranges: source_ranges(&spec.load_balancer_source_ranges),
            health_check_port: (spec.health_check_node_port)
                .and_then(port_number)
                .filter(|_| external_local),
            ports: spec.ports.iter().filter_map(Port::fold).collect(),
            internal_local: is_local(&spec.internal_traffic_policy),
            external_local,
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

/// A UID's digits as a number.
fn uid(text: &str) -> u128 {
    u128::from_str_radix(&text.replace('-', ""), 16).unwrap_or(0)
}

/// Those at which packets from elsewhere can arrive, each once, sorted.
fn addresses<'a>(texts: impl Iterator<Item = &'a str>) -> Box<[IpAddr]> {
    let usable = |ip: &IpAddr| !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast());
    let found: BTreeSet<_> = (texts.filter_map(|text| text.parse().ok()))
        .filter(usable)
        .collect();
    found.into_iter().collect()
}

/// Spaces around a range are borne, as kube-proxy does; the API lets no other slip through.
fn source_ranges(texts: &[String]) -> Box<[Subnet]> {
    let found: BTreeSet<_> = (texts.iter())
        .filter_map(|text| Some(text.trim().parse::<Cidr>().ok()?.subnet()))
        .collect();
    found.into_iter().collect()
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
