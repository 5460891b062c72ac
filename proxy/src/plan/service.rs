//! Owns the plan of one Service: a pure function of it, its slices, and what is known of this node.

use std::net::IpAddr;

use hostnet::vocab::Family;

use super::endpoints::{Target, Views};
use super::{At, Frontend, Masquerade, PortKey, PortName, ServicePort, Verdict, View};
use crate::index::{Entry, ObjectName, Port, Service};

/// What the plan of every Service depends on besides its own objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    /// The name of this node.
    pub(super) node: String,
    /// Its zone.
    pub(super) zone: Option<String>,
    /// Masquerade all connections to cluster IPs.
    pub(super) masquerade_all: bool,
}

/// One port of a Service in one family, before it is known whether another Service has a better right
/// to one of its frontends.
pub(super) type Wanted = (Family, PortKey, ServicePort);

/// The plan of a Service: one part per family and port, none where it is not ours to serve.
pub(super) fn plan(name: &ObjectName, entry: &Entry, context: &Context) -> Vec<Wanted> {
    let Some(service) = &entry.service else {
        return Vec::new();
    };
    let mut wanted: Vec<Wanted> = Vec::new();
    for family in Family::ALL {
        let cluster_ips: Vec<_> = service
            .cluster_ips
            .iter()
            .copied()
            .filter(|ip| Family::of(*ip) == family)
            .collect();
        for port in service.ports.iter().filter(|_| !cluster_ips.is_empty()) {
            let target = Target {
                family,
                port_name: &port.name,
                protocol: port.protocol,
                node: &context.node,
                zone: context.zone.as_deref(),
            };
            let views = Views::choose(entry.slices.values(), target);
            let planned = plan_port(service, port, &cluster_ips, views, context);
            wanted.push((family, key(name, port), planned));
        }
    }
    wanted
}

fn key(name: &ObjectName, port: &Port) -> PortKey {
    let (namespace, service) = name.parts();
    PortKey {
        name: PortName::new(namespace, service, &port.name),
        protocol: port.protocol,
    }
}

fn plan_port(
    service: &Service,
    port: &Port,
    cluster_ips: &[IpAddr],
    views: Views,
    context: &Context,
) -> ServicePort {
    let cluster = verdict(View::Cluster, &views);
    let local = verdict(View::Local, &views);
    let internal = if service.internal_local {
        local
    } else {
        cluster
    };
    let cluster_ips = cluster_ips.iter().map(|ip| Frontend {
        at: At::ClusterIp(*ip),
        port: port.port,
        inside: internal,
        outside: internal,
        masquerade: if context.masquerade_all {
            Masquerade::Always
        } else {
            Masquerade::NotPods
        },
    });
    // Pods and this node are never bound to the external policy: for them, going straight to any
    // endpoint is what a load balancer would do, only shorter.
    let node_port = port.node_port.map(|number| Frontend {
        at: At::NodePort,
        port: number,
        inside: cluster,
        outside: if service.external_local {
            local
        } else {
            cluster
        },
        masquerade: if service.external_local {
            Masquerade::ThisNode
        } else {
            Masquerade::Always
        },
    });
    let mut frontends: Vec<_> = cluster_ips.chain(node_port).collect();
    frontends.sort();
    let uses = |view| {
        frontends
            .iter()
            .any(|f| [f.inside, f.outside].contains(&Verdict::Balance(view)))
    };
    ServicePort {
        cluster: if uses(View::Cluster) {
            views.cluster
        } else {
            Default::default()
        },
        local: if uses(View::Local) {
            views.local
        } else {
            Default::default()
        },
        affinity: service.affinity,
        frontends,
    }
}

fn verdict(view: View, views: &Views) -> Verdict {
    let endpoints = match view {
        View::Cluster => &views.cluster,
        View::Local => &views.local,
    };
    match (endpoints.is_empty(), views.any) {
        (false, _) => Verdict::Balance(view),
        (true, true) => Verdict::Drop,
        (true, false) => Verdict::Reject,
    }
}
