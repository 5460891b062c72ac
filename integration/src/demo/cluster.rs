//! The example's objects, with its names, addresses and ports.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use hostnet::vocab::names::CNI_NETWORK;
use serde_json::{Value, json};

use crate::lab::{Builder, Lab, Pod};
use crate::objects::PodSpec;
use crate::traffic::{self, Transport};
use crate::wait::{PATIENCE, holds, until};

pub(super) const MASTER: &str = "k8s-master";
pub(super) const NODE_1: &str = "k8s-node-1";
/// The node that runs the pod.
pub(super) const NODE_2: &str = "k8s-node-2";

/// The pod's address, and the one before it.
pub(super) const POD_IP: &str = "10.244.3.81";
const LAST_RESERVED: &str = "10.244.3.80";
pub(super) const POD_PORT: u16 = 8080;

pub(super) const CLUSTER_IP: &str = "10.106.183.112";
pub(super) const SERVICE_PORT: u16 = 4000;
pub(super) const NODE_PORT: u16 = 30001;

const TILLER_IP: Ipv4Addr = Ipv4Addr::new(10, 108, 160, 127);
const TILLER_PORT: u16 = 44134;

/// The nodes and their pod subnets.
pub(super) const NODES: [(&str, &str); 3] = [
    (MASTER, "10.244.1.0/24"),
    (NODE_1, "10.244.2.0/24"),
    (NODE_2, "10.244.3.0/24"),
];

/// A service port: object, protocol, cluster IP and port, where it ends.
pub(super) const SERVICE_PORTS: [(&str, &str, &str, u16); 6] = [
    ("kube-system/kube-dns:dns", "udp", "10.96.0.10", 53),
    ("kube-system/kube-dns:dns-tcp", "tcp", "10.96.0.10", 53),
    ("kube-system/kube-dns:metrics", "tcp", "10.96.0.10", 9153),
    ("default/kubernetes:https", "tcp", "10.96.0.1", 443),
    (
        "kube-system/tiller-deploy:tiller",
        "tcp",
        "10.108.160.127",
        TILLER_PORT,
    ),
    (
        "default/hello-world-service",
        "tcp",
        CLUSTER_IP,
        SERVICE_PORT,
    ),
];

/// What runs in the cluster.
pub(super) struct Cluster {
    /// The pod of the example.
    pub(super) hello: Pod,
    /// A pod on the same node.
    pub(super) neighbour: Pod,
    /// A pod on another node.
    pub(super) dns: Pod,
}

pub(super) fn nodes(mut builder: Builder) -> Result<Builder> {
    for (name, subnet) in NODES {
        builder = builder.node(name, &[subnet.parse().context("a node's subnet")?]);
    }
    Ok(builder)
}

impl Cluster {
    pub(super) fn start(lab: &Lab) -> Result<Cluster> {
        // The node has given out 10.244.3.2 to .80 before: its next pod gets .81.
        let reserved = format!("/var/lib/cni/networks/{CNI_NETWORK}/last_reserved_ip.0");
        lab.node(NODE_2)?
            .machine()
            .write(&reserved, LAST_RESERVED)?;

        lab.api().apply(&deployment())?;
        let hello = PodSpec::new("hello-world-deployment-5f6c7d8b9-x7k2p", NODE_2)
            .label("mylabel", "label_hello_world")
            .ports(&[POD_PORT]);
        let hello = lab.run_pod(hello)?;
        let neighbour = lab.run_pod(PodSpec::new("neighbour", NODE_2))?;
        let dns = PodSpec::new("coredns-7db6d8ff4d-q4m9z", MASTER)
            .namespace("kube-system")
            .label("k8s-app", "kube-dns")
            .ports(&[53, 9153]);
        let dns = lab.run_pod(dns)?;
        let tiller = PodSpec::new("tiller-deploy-6d9f596465-8lw2n", NODE_1)
            .namespace("kube-system")
            .label("name", "tiller")
            .ports(&[TILLER_PORT]);
        let tiller = lab.run_pod(tiller)?;

        lab.expose(&hello_world_service(), &[&hello])?;
        lab.expose(&kube_dns(), &[&dns])?;
        lab.expose(&tiller_deploy(), &[&tiller])?;
        served(lab, &tiller)?;
        Ok(Cluster {
            hello,
            neighbour,
            dns,
        })
    }
}

/// Waits until every node serves the Service that was written last, and with it, since watches
/// keep the order of what was written, all others.
fn served(lab: &Lab, tiller: &Pod) -> Result<()> {
    let address = SocketAddr::from((TILLER_IP, TILLER_PORT));
    for node in lab.nodes() {
        until(
            &format!("tiller-deploy on {}", node.name()),
            PATIENCE,
            || {
                let greeting = traffic::ask(node.machine().netns(), Transport::Tcp, address);
                Ok(greeting.and_then(|greeting| {
                    holds(greeting.server == tiller.name(), "another pod answered")
                }))
            },
        )?;
    }
    Ok(())
}

fn deployment() -> Value {
    let labels = json!({"mylabel": "label_hello_world"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "hello-world-deployment", "namespace": "default"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": "hello-world",
                    "image": "hello-world",
                    "ports": [{"containerPort": POD_PORT}],
                }]},
            },
        },
    })
}

fn hello_world_service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hello-world-service", "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "clusterIP": CLUSTER_IP,
            "selector": {"mylabel": "label_hello_world"},
            "ports": [{
                "protocol": "TCP",
                "port": SERVICE_PORT,
                "targetPort": POD_PORT,
                "nodePort": NODE_PORT,
            }],
        },
    })
}

fn kube_dns() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {
            "clusterIP": "10.96.0.10",
            "selector": {"k8s-app": "kube-dns"},
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53},
                {"name": "metrics", "protocol": "TCP", "port": 9153, "targetPort": 9153},
            ],
        },
    })
}

fn tiller_deploy() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "tiller-deploy", "namespace": "kube-system"},
        "spec": {
            "clusterIP": TILLER_IP,
            "selector": {"name": "tiller"},
            "ports": [{"name": "tiller", "protocol": "TCP", "port": TILLER_PORT, "targetPort": TILLER_PORT}],
        },
    })
}
