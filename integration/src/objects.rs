//! API objects as kubelets, controllers and people would write them.

use std::net::IpAddr;

use anyhow::{Context, Result};
use hostnet::vocab::Subnet;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

/// A Node as its kubelet registers it, ready but for its network.
pub fn node(name: &str, addresses: &[IpAddr], pod_cidrs: &[Subnet]) -> Value {
    let mut listed: Vec<_> = addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    listed.push(json!({"type": "Hostname", "address": name}));
    let mut spec = json!({});
    if let Some(first) = pod_cidrs.first() {
        spec = json!({"podCIDR": first.to_string(), "podCIDRs": texts(pod_cidrs)});
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
        }, "annotations": {
            "volumes.kubernetes.io/controller-managed-attach-detach": "true",
        }},
        "spec": spec,
        "status": {
            "addresses": listed,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

/// What a pod is: in [`crate::Lab::run_pod`] it also runs.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it was scheduled to.
    pub node: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Where it serves TCP and UDP; one at least.
    pub ports: Vec<u16>,
    /// How much it may send, and receive, in bits per second.
    pub bandwidth: Option<u64>,
}

impl PodSpec {
    /// A pod in the default namespace, without labels, that serves on 8080.
    pub fn new(name: &str, node: &str) -> PodSpec {
        PodSpec {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            labels: Vec::new(),
            ports: vec![8080],
            bandwidth: None,
        }
    }

    /// With a limit both ways, in bits per second.
    pub fn bandwidth(mut self, rate: u64) -> PodSpec {
        self.bandwidth = Some(rate);
        self
    }

    /// With one label more.
    pub fn label(mut self, key: &str, value: &str) -> PodSpec {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With other ports than 8080.
    pub fn ports(mut self, ports: &[u16]) -> PodSpec {
        ports.clone_into(&mut self.ports);
        self
    }

    /// In another namespace.
    pub fn namespace(mut self, namespace: &str) -> PodSpec {
        namespace.clone_into(&mut self.namespace);
        self
    }

    pub(crate) fn object(&self) -> Value {
        let labels: serde_json::Map<_, _> = self
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
            .collect();
        let ports: Vec<_> = self
            .ports
            .iter()
            .flat_map(|port| {
                ["TCP", "UDP"].map(|protocol| json!({"containerPort": port, "protocol": protocol}))
            })
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": labels},
            "spec": {
                "nodeName": self.node,
                "containers": [{
                    "name": "server",
                    "image": "lab",
                    "ports": ports,
                }],
            },
        })
    }

    /// The same with the status that a kubelet reports once the pod runs.
    pub(crate) fn running(&self, node: IpAddr, ips: &[IpAddr]) -> Value {
        let mut object = self.object();
        object["status"] = json!({
            "phase": "Running",
            "hostIP": node,
            "podIP": ips.first(),
            "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        object
    }
}

/// One endpoint of a Service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// The node that it is on, if it is a pod.
    pub node: Option<String>,
    /// The pod.
    pub pod: Option<String>,
}

/// A Service's EndpointSlice of one family, as the endpoint slice controller writes it; all
/// endpoints are ready.
pub fn endpoint_slice(service: &Service, endpoints: &[Endpoint]) -> Result<Value> {
    let name = service
        .metadata
        .name
        .as_deref()
        .context("a Service without a name")?;
    let spec = service.spec.as_ref().context("a Service without a spec")?;
    let ports: Vec<_> = spec
        .ports
        .iter()
        .flatten()
        .map(slice_port)
        .collect::<Result<_>>()?;
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "addresses": [endpoint.address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": endpoint.node,
                "targetRef": endpoint.pod.as_ref().map(|pod| json!({"kind": "Pod", "name": pod})),
            })
        })
        .collect();
    Ok(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-ipv4"),
            "namespace": service.metadata.namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }))
}

fn slice_port(port: &ServicePort) -> Result<Value> {
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            anyhow::bail!("target port {name:?}: the lab knows numbers only")
        }
    };
    Ok(json!({
        "name": port.name.as_deref().unwrap_or(""),
        "protocol": port.protocol.as_deref().unwrap_or("TCP"),
        "port": number,
    }))
}

fn texts(subnets: &[Subnet]) -> Vec<String> {
    subnets.iter().map(Subnet::to_string).collect()
}
