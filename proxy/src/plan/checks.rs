//! Owns what load balancers are told of Services whose traffic stays on the node (`spec.healthCheckNodePort`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::index::{Entry, ObjectName};

/// What load balancers are told, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// This node's addresses, those of node ports.
    pub addresses: BTreeSet<IpAddr>,
    /// What is told of Services, by port.
    pub services: BTreeMap<u16, HealthCheck>,
}

/// What a load balancer is told of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ObjectName,
    /// Where it is asked for.
    pub port: u16,
    /// How many of its endpoints are ready on this node.
    pub local_endpoints: usize,
}

/// Only ready endpoints count, also where terminating ones still take traffic: new clients go elsewhere.
pub(super) fn health_check(name: &ObjectName, entry: &Entry) -> Option<HealthCheck> {
    let port = entry.service.as_ref()?.health_check_port?;
    let local: BTreeSet<IpAddr> = (entry.slices())
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.local && endpoint.ready)
        .map(|endpoint| endpoint.address)
        .collect();
    Some(HealthCheck {
        service: name.clone(),
        port,
        local_endpoints: local.len(),
    })
}
