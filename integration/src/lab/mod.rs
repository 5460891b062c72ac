//! A whole lab: its nodes, pods and Services.

mod builder;
mod pod;

use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde::Serialize;

pub use builder::Builder;
pub use pod::Pod;

use crate::api::ClusterApi;
use crate::control_plane::ControlPlane;
use crate::keeper::Keeper;
use crate::machine::Machine;
use crate::node::Node;
use crate::objects::{self, Endpoint};

/// The machine of the client that is no part of the cluster.
pub const OUTSIDE: &str = "outside";

/// A lab that is up. It ends when this is dropped, or when the process dies, unless it is
/// [detached](Lab::detach).
pub struct Lab {
    // Declared first, dropped first: the API client goes before the network that it is in.
    control_plane: ControlPlane,
    nodes: Vec<Node>,
    outside: Machine,
    net_conf: String,
    keeper: Arc<Keeper>,
}

impl Lab {
    /// A lab to be started.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The API, as its administrator.
    pub fn api(&self) -> &ClusterApi {
        &self.control_plane.api
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The nodes, in the order in which they were added.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node is called {name}"))
    }

    /// The client that is no part of the cluster.
    pub fn outside(&self) -> &Machine {
        &self.outside
    }

    /// Lets the lab live on after this process.
    pub fn detach(self) -> Result<()> {
        self.keeper.detach()
    }

    /// Writes a Service, and the EndpointSlice that has these pods as its ready endpoints, as
    /// the endpoint slice controller would. Returns the Service with the addresses it got.
    pub fn expose(&self, service: &impl Serialize, pods: &[&Pod]) -> Result<Service> {
        let service: Service = typed(&self.api().apply(service)?)?;
        let endpoints: Vec<_> = pods
            .iter()
            .flat_map(|pod| {
                pod.ips()
                    .iter()
                    .filter(|ip| ip.is_ipv4())
                    .map(|ip| Endpoint {
                        address: *ip,
                        node: Some(pod.node().to_owned()),
                        pod: Some(pod.name().to_owned()),
                    })
            })
            .collect();
        self.api()
            .apply(&objects::endpoint_slice(&service, &endpoints)?)?;
        Ok(service)
    }

    /// Deletes a Service and its EndpointSlices.
    pub fn unexpose(&self, service: &Service) -> Result<()> {
        let (namespace, name) = (service.namespace(), service.name_any());
        for slice in self.api().list::<EndpointSlice>(namespace.as_deref())? {
            if slice.labels().get("kubernetes.io/service-name") == Some(&name) {
                let slice = slice.name_any();
                self.api()
                    .delete::<EndpointSlice>(namespace.as_deref(), &slice)?;
            }
        }
        self.api().delete::<Service>(namespace.as_deref(), &name)
    }
}

fn typed<K: serde::de::DeserializeOwned>(object: &impl Serialize) -> Result<K> {
    Ok(serde_json::from_value(serde_json::to_value(object)?)?)
}
