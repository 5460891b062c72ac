//! What the objects say of a place, and where the kernel has something else.

use std::net::IpAddr;

use cni_plugin::record::Record;
use hostnet::vocab::annotations::DEFAULT_PREFIX;
use hostnet::vocab::lease::lease_name;
use hostnet::vocab::{AnnotationKeys, BackendData, Family, Mac, Subnet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::choose::PROXY_RESTART;
use super::deliver::FLANNELD;
use super::resolve::internal_ip;
use super::{Tracer, place, step_object};
use crate::objects::Known;
use crate::report::Hop;
use crate::target::{self, Destination};
use crate::walk::{End, Way};

/// Where subnets' Leases are.
const LEASES: &str = "kube-system";

/// A Service's port with its endpoints, as the API server has them.
pub(super) struct ServiceObject {
    /// `NAMESPACE/NAME`.
    name: String,
    /// `None`: there is no such Service.
    service: Option<Service>,
    port: Option<ServicePort>,
    endpoints: Vec<EndpointObject>,
}

struct EndpointObject {
    address: IpAddr,
    port: u16,
    ready: bool,
    /// May be used, though it ends.
    serving: bool,
    slice: String,
    pod: Option<String>,
    node: Option<String>,
    hinted: bool,
}

impl Tracer<'_> {
    /// The Service that a packet is for, by its destination or by what its rules' comments say.
    pub(super) fn service(&mut self, to: &Destination, ways: &[Way]) -> Option<ServiceObject> {
        let steps = ways.iter().flat_map(|way| &way.steps);
        let mut by_comment = steps.filter_map(step_object);
        let by_comment = by_comment.find_map(|o| Some(o.strip_prefix("Service ")?.to_owned()));
        let label = to.service.clone().or(by_comment)?;
        let (name, port_name) = label.split_once(':').unwrap_or((&label, ""));
        let (namespace, short) = name.split_once('/')?;
        let service = match self.cluster.get::<Service>(Some(namespace), short) {
            Known::There(service) => Some(service),
            Known::Absent => None,
            Known::Unseen => return None,
        };
        let label = ("kubernetes.io/service-name", short);
        let slices = self
            .cluster
            .list::<EndpointSlice>(Some(namespace), Some(label))?;
        let ports = service
            .as_ref()
            .and_then(|s| s.spec.as_ref()?.ports.clone());
        let mut ports = ports.into_iter().flatten();
        let port = ports.find(|port| port.name.as_deref().unwrap_or_default() == port_name);
        let family = Family::of(to.address);
        Some(ServiceObject {
            name: name.to_owned(),
            service,
            port,
            endpoints: slices
                .iter()
                .flat_map(|slice| endpoints(slice, port_name, family))
                .collect(),
        })
    }

    /// The node that has a subnet of pods, and the object that says so.
    pub(super) fn holder(&mut self, subnet: Subnet) -> Known<(Node, String)> {
        let lease = lease_name(subnet);
        let holder = match self.cluster.get::<Lease>(Some(LEASES), &lease) {
            Known::There(found) => found.spec.and_then(|spec| spec.holder_identity),
            Known::Absent => None,
            Known::Unseen => return Known::Unseen,
        };
        if let Some(name) = holder {
            return match self.cluster.get::<Node>(None, &name) {
                Known::There(node) => Known::There((node, format!("Lease {lease} of node {name}"))),
                Known::Absent => Known::Absent,
                Known::Unseen => Known::Unseen,
            };
        }
        // A node of flannel's has no Lease.
        let Some(nodes) = self.cluster.list::<Node>(None, None) else {
            return Known::Unseen;
        };
        let has = |node: &Node| {
            let cidrs = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
            cidrs.is_some_and(|cidrs| cidrs.contains(&subnet.to_string()))
        };
        match nodes.into_iter().find(has) {
            Some(node) => {
                let name = node.metadata.name.clone().unwrap_or_default();
                Known::There((node, format!("podCIDR of node {name}")))
            }
            None => Known::Absent,
        }
    }

    /// The pod that a record is of, compared with its object.
    pub(super) fn with_pod(&mut self, hop: Hop, record: &Record, address: IpAddr) -> Hop {
        let Some((namespace, name)) = record.pod.as_deref().and_then(|pod| pod.split_once('/'))
        else {
            return hop;
        };
        match self.cluster.get::<Pod>(Some(namespace), name) {
            Known::Unseen => hop,
            Known::Absent => hop.differs(
                format!("the API server has no pod {namespace}/{name}: it was deleted, and still has its network here"),
                "`crictl pods`: its runtime has not taken it down; `crictl stopp` and `crictl rmp` do",
            ),
            Known::There(pod) => {
                let status = pod.status.unwrap_or_default();
                let ips = status.pod_ips.into_iter().flatten().map(|ip| ip.ip);
                let ips: Vec<String> = ips.collect();
                if ips.is_empty() || ips.contains(&address.to_string()) {
                    return hop;
                }
                hop.differs(
                    format!("the API server has pod {namespace}/{name} at {}", ips.join(", ")),
                    format!("delete the pod: `kubectl -n {namespace} delete pod {name}`"),
                )
            }
        }
    }
}

/// A neighbour entry, compared with what its node has published.
pub(super) fn with_mac(hop: Hop, node: &Node, mac: Mac, family: Family) -> Hop {
    let Ok(keys) = AnnotationKeys::new(DEFAULT_PREFIX) else {
        return hop;
    };
    let key = match family {
        Family::V4 => keys.backend_data,
        Family::V6 => keys.backend_v6_data,
    };
    let published = annotation(node, &key).and_then(|text| BackendData::parse(text).ok());
    match published {
        Some(data) if data.vtep_mac != mac => hop.fault(
            format!(
                "node {} publishes {} as its end of the tunnel: what goes to {mac} is not taken there",
                name_of(node),
                data.vtep_mac
            ),
            FLANNELD,
        ),
        _ => hop,
    }
}

/// A forwarding entry, compared with where its node says that it is.
pub(super) fn with_address(hop: Hop, node: &Node, at: IpAddr) -> Hop {
    let Ok(keys) = AnnotationKeys::new(DEFAULT_PREFIX) else {
        return hop;
    };
    let family = Family::of(at);
    let key = match family {
        Family::V4 => keys.public_ip,
        Family::V6 => keys.public_ipv6,
    };
    let published = annotation(node, &key).and_then(|text| text.parse().ok());
    match published.or_else(|| internal_ip(node, family)) {
        Some(address) if address != at => hop.fault(
            format!(
                "node {} is at {address}: packets go elsewhere",
                name_of(node)
            ),
            FLANNELD,
        ),
        _ => hop,
    }
}

fn annotation<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    let annotations = node.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

pub(super) fn name_of(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

fn endpoints(slice: &EndpointSlice, port_name: &str, family: Family) -> Vec<EndpointObject> {
    let is_of_family = match family {
        Family::V4 => slice.address_type == "IPv4",
        Family::V6 => slice.address_type == "IPv6",
    };
    let mut ports = slice.ports.iter().flatten();
    let port = ports.find(|port| port.name.as_deref().unwrap_or_default() == port_name);
    let port = port.and_then(|port| u16::try_from(port.port?).ok());
    let Some(port) = port.filter(|_| is_of_family) else {
        return Vec::new();
    };
    let name = slice.metadata.name.clone().unwrap_or_default();
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    let found = slice.endpoints.iter().filter_map(|endpoint| {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|of| of.kind.as_deref() == Some("Pod"));
        Some(EndpointObject {
            address: endpoint.addresses.first()?.parse().ok()?,
            port,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            slice: format!("EndpointSlice {namespace}/{name}"),
            pod: pod.and_then(|of| Some(format!("{namespace}/{}", of.name.as_ref()?))),
            node: endpoint.node_name.clone(),
            hinted: endpoint.hints.is_some(),
        })
    });
    found.collect()
}

impl ServiceObject {
    /// The Service itself, and what of it the kernel lacks.
    pub(super) fn hop(&self, ways: &[Way], to: &Destination) -> Hop {
        let name = &self.name;
        let Some(service) = &self.service else {
            return Hop::new("service", name.clone()).differs(
                format!(
                    "the API server has no Service {name}: the rules are of one that was deleted"
                ),
                PROXY_RESTART,
            );
        };
        let spec = service.spec.clone().unwrap_or_default();
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let ready = self.endpoints.iter().filter(|e| e.ready).count();
        let mut text = kind.to_owned();
        if let Some(port) = &self.port {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            text += &format!(", {protocol} {}", port.port);
            if let Some(node_port) = port.node_port {
                text += &format!(", node port {node_port}");
            }
        }
        text += &format!(", {ready} of {} endpoints ready", self.endpoints.len());
        let mut hop = Hop::new("service", text).of(Some(format!("Service {name}")));
        let addresses = [
            spec.cluster_ips.clone().unwrap_or_default(),
            spec.external_ips.clone().unwrap_or_default(),
            balancers(service),
        ];
        let is_its = addresses
            .iter()
            .flatten()
            .any(|ip| *ip == to.address.to_string());
        let node_ports = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| port.node_port);
        let mut node_ports = node_ports.map(|port| u16::try_from(port).unwrap_or_default());
        if !is_its && !node_ports.any(|port| port == to.port) {
            hop = hop.differs(
                format!(
                    "the Service has neither the address {} nor the node port {}: the rules are older than it",
                    to.address, to.port
                ),
                PROXY_RESTART,
            );
        }
        // Where only some endpoints are meant, the rules have fewer by right.
        let is_cluster = |policy: &Option<String>| policy.as_deref() != Some("Local");
        let all_meant = is_cluster(&spec.internal_traffic_policy)
            && is_cluster(&spec.external_traffic_policy)
            && spec.traffic_distribution.is_none();
        let has = |endpoint: &EndpointObject| {
            let end = End::Dnat(endpoint.address, Some(endpoint.port));
            ways.iter().any(|way| way.end == end)
        };
        let in_rules = ways.iter().any(|way| matches!(way.end, End::Dnat(..)));
        let lacking = self
            .endpoints
            .iter()
            .filter(|e| e.ready && !e.hinted && !has(e));
        for endpoint in lacking.filter(|_| all_meant && in_rules) {
            hop = hop.differs(
                format!(
                    "{} is ready, by {}, and the rules do not have it",
                    place(endpoint.address, endpoint.port),
                    endpoint.slice
                ),
                PROXY_RESTART,
            );
        }
        hop
    }

    /// An endpoint of the rules, with its object.
    pub(super) fn endpoint(&self, hop: Hop, address: IpAddr, port: u16, of: Option<String>) -> Hop {
        let is_it = |e: &&EndpointObject| e.address == address && e.port == port;
        let Some(endpoint) = self.endpoints.iter().find(is_it) else {
            return hop.of(of).differs(
                format!(
                    "no EndpointSlice of Service {} has {}: it was an endpoint before",
                    self.name,
                    place(address, port)
                ),
                PROXY_RESTART,
            );
        };
        let pod = endpoint.pod.as_ref().map(|pod| format!("pod {pod}"));
        let node = endpoint.node.as_ref().map(|node| format!("node {node}"));
        let said = [pod, node, Some(endpoint.slice.clone())];
        let said: Vec<String> = said.into_iter().flatten().collect();
        let hop = hop.of(Some(said.join(", ")));
        if endpoint.ready || endpoint.serving {
            return hop;
        }
        hop.differs(
            format!("by {} it is not ready", endpoint.slice),
            PROXY_RESTART,
        )
    }

    /// Why a Service has no endpoint, if that is what refuses.
    pub(super) fn why_none(&self, mut hop: Hop) -> Hop {
        let Some(fault) = hop
            .fault
            .as_mut()
            .filter(|f| f.cause.contains("no endpoint"))
        else {
            return hop;
        };
        if self.endpoints.iter().any(|e| e.ready)
            && fault.cause.contains("that is ready")
            && !fault.cause.contains("Local")
        {
            fault.cause = "the rules have no endpoint, though EndpointSlices have".to_owned();
            fault.remedy = PROXY_RESTART.to_owned();
            return hop;
        }
        let not_ready = self.endpoints.iter().filter(|e| !e.ready);
        let not_ready = not_ready.map(|e| e.pod.clone().unwrap_or_else(|| e.address.to_string()));
        let not_ready: Vec<String> = not_ready.collect();
        fault.cause += &match &not_ready[..] {
            [] if self.endpoints.is_empty() => {
                ": no EndpointSlice has any, so its selector finds no pod".to_owned()
            }
            [] => String::new(),
            names => format!(": {} not ready", names.join(", ")),
        };
        hop
    }
}

fn balancers(service: &Service) -> Vec<String> {
    let status = service.status.as_ref();
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let ips = ingress.into_iter().flatten().filter_map(|i| i.ip.clone());
    ips.collect()
}

/// A name for a place where a pod is, by its record.
pub(super) fn pod_of(record: &Record) -> String {
    format!("pod {}", target::name_of(record))
}
