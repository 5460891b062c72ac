//! The API objects as they come over the wire, cut down to the fields that rules are made of.
//!
//! Slim on purpose: a field that is not here is never kept, and most of an object's memory is fields
//! that nobody here reads. Names and meaning are those of core/v1 and discovery.k8s.io/v1.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};

/// Absent and `null` are the same: an API server writes an empty list as `null` where Go's field is not
/// `omitempty` (a slice without endpoints, for one).
fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A Service.
#[derive(Resource, Clone, Debug, Default, Deserialize)]
#[resource(inherit = core::Service)]
pub struct Service {
    /// Name, namespace, labels, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user asked for.
    #[serde(default)]
    pub spec: ServiceSpec,
    /// What a load balancer has given it.
    #[serde(default)]
    pub status: ServiceStatus,
}

/// The fields of a Service's spec that rules depend on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP` (default), `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// The first cluster IP; `None` (the word) for a headless Service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// One cluster IP per family.
    #[serde(rename = "clusterIPs", deserialize_with = "null_is_empty")]
    pub cluster_ips: Vec<String>,
    /// The ports.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<ServicePort>,
    /// `None` (default) or `ClientIP`.
    pub session_affinity: Option<String>,
    /// The timeout of `ClientIP`.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `Cluster` (default) or `Local`, for cluster IPs.
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` (default) or `Local`, for node ports and other external addresses.
    pub external_traffic_policy: Option<String>,
    /// Addresses that lead to this cluster's nodes by the user's own doing.
    #[serde(rename = "externalIPs", deserialize_with = "null_is_empty")]
    pub external_ips: Vec<String>,
    /// Who may come in by the load balancer's addresses; empty: everyone.
    #[serde(deserialize_with = "null_is_empty")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Where a load balancer asks whether this node has endpoints; 0 or absent: nowhere.
    pub health_check_node_port: Option<i32>,
}

/// The status of a Service, as far as rules depend on it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    /// What a load balancer has given it.
    pub load_balancer: LoadBalancerStatus,
}

/// What a load balancer has given a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// The ways in.
    #[serde(deserialize_with = "null_is_empty")]
    pub ingress: Vec<Ingress>,
}

/// One way in by a load balancer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ingress {
    /// Its address; absent where it has a host name only.
    pub ip: Option<String>,
    /// `VIP` (default): packets come to the nodes with this destination. `Proxy`: they come to node ports.
    pub ip_mode: Option<String>,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// Absent or empty only where it is the Service's single port.
    pub name: Option<String>,
    /// `TCP` (default), `UDP` or `SCTP`.
    pub protocol: Option<String>,
    /// The port at the cluster IP.
    pub port: i32,
    /// The port at the nodes; 0 or absent: none.
    pub node_port: Option<i32>,
}

/// Settings of the session affinity.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    /// Settings of `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// Settings of `sessionAffinity: ClientIP`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// 1 to 86,400 seconds.
    pub timeout_seconds: Option<i32>,
}

/// An EndpointSlice.
#[derive(Resource, Clone, Debug, Default, Deserialize)]
#[resource(inherit = discovery::EndpointSlice)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name, namespace, and the labels that name the Service.
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// The endpoints.
    #[serde(deserialize_with = "null_is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Their ports: the same for all.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<EndpointPort>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    /// Its addresses; consumers use the first.
    #[serde(deserialize_with = "null_is_empty")]
    pub addresses: Vec<String>,
    /// Its state.
    pub conditions: Conditions,
    /// The node that it runs on.
    pub node_name: Option<String>,
    /// Which clients it is meant for.
    pub hints: Option<Hints>,
}

/// The state of an endpoint (KEP-1672).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Absent means yes.
    pub ready: Option<bool>,
    /// Absent means yes.
    pub serving: Option<bool>,
    /// Absent means no.
    pub terminating: Option<bool>,
}

/// Which clients an endpoint is meant for (`spec.trafficDistribution` of the Service).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hints {
    /// Those in these zones.
    #[serde(deserialize_with = "null_is_empty")]
    pub for_zones: Vec<Hint>,
    /// Those on these nodes.
    #[serde(deserialize_with = "null_is_empty")]
    pub for_nodes: Vec<Hint>,
}

/// A zone or a node in a hint.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Hint {
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// One port of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// The name of the Service's port; absent is the empty name.
    pub name: Option<String>,
    /// `TCP` (default), `UDP` or `SCTP`.
    pub protocol: Option<String>,
    /// Absent: no restriction, which no rule can say.
    pub port: Option<i32>,
}

/// A ServiceCIDR: networks that cluster IPs are taken from (networking.k8s.io/v1, since 1.33).
#[derive(Resource, Clone, Debug, Default, Deserialize)]
#[resource(inherit = networking::ServiceCIDR)]
#[serde(default)]
pub struct ServiceCidr {
    /// Its name.
    pub metadata: ObjectMeta,
    /// The networks.
    pub spec: ServiceCidrSpec,
}

/// The networks of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    /// One of each family.
    #[serde(deserialize_with = "null_is_empty")]
    pub cidrs: Vec<String>,
}

/// A Node.
#[derive(Resource, Clone, Debug, Default, Deserialize)]
#[resource(inherit = core::Node)]
#[serde(default)]
pub struct Node {
    /// Name and labels.
    pub metadata: ObjectMeta,
    /// Its pod networks.
    pub spec: NodeSpec,
    /// Its addresses.
    pub status: NodeStatus,
}

/// The fields of a Node's spec that rules depend on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The node's pod networks, one per family.
    #[serde(rename = "podCIDRs", deserialize_with = "null_is_empty")]
    pub pod_cidrs: Vec<String>,
    /// Taints: one of them says that the node is on its way out.
    #[serde(deserialize_with = "null_is_empty")]
    pub taints: Vec<Taint>,
}

/// A taint of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its key.
    pub key: String,
}

/// The fields of a Node's status that rules depend on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The node's addresses, the primary one of each kind and family first.
    #[serde(deserialize_with = "null_is_empty")]
    pub addresses: Vec<NodeAddress>,
}

/// An address of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub type_: String,
    /// The address.
    pub address: String,
}
