//! The lab: a whole cluster on one machine, for people and for tests.
//!
//! Nodes are network and mount namespaces, the control plane is a real etcd and a real
//! kube-apiserver, the daemons are the real binaries and run with the rights that `manifests/`
//! gives them, pods are attached by the real `twill-cni` as a container runtime attaches them,
//! and packets are packets.
//!
//! ```text
//!   keeper: pid 1 of the lab; its network namespace is the underlay's router
//!   ├── bridge `underlay` 172.30.0.1/24, fd00:30::1/64
//!   │   ├── control-plane  172.30.0.2    etcd, kube-apiserver :6443
//!   │   ├── k8s-master     172.30.0.11   flanneld, twill-proxy, pods
//!   │   ├── k8s-node-1     172.30.0.12
//!   │   └── k8s-node-2     172.30.0.13
//!   └── outside            198.51.100.10 a client that is no part of the cluster
//! ```
//!
//! Everything hangs on the keeper: when it ends, however it ends, the kernel ends the lab's
//! processes, and with them its mounts and networks. Nothing of a lab has a name outside it but
//! its folder under [`registry::ROOT`]. The host's own network is never touched.
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod control_plane;
pub mod demo;
pub mod http;
pub mod inspect;
pub mod keeper;
pub mod kind;
pub mod lab;
pub mod machine;
pub mod manifests;
pub mod monitor;
pub mod node;
pub mod objects;
pub mod programs;
pub mod progress;
pub mod registry;
pub mod sandbox;
pub mod snapshot;
pub mod store;
pub mod testing;
pub mod traffic;
pub mod underlay;
pub mod upstream;
pub mod wait;
pub mod workload;

pub use lab::{Lab, Pod};
pub use node::{Daemon, Node};
pub use objects::PodSpec;
