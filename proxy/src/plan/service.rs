//! Owns the plan of one Service: a pure function of it, its slices, and what is known of this node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hostnet::vocab::{Family, Subnet};

use super::endpoints::{Target, Views};
use super::settings::outermost;
use super::{At, Frontend, Masquerade, PortKey, PortName, ServicePort, Verdict, View};
use crate::index::{Entry, ObjectName, Port, Service};

/// What the plan of every Service depends on besides its own objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    /// The name of this node.
    pub(super) node: String,
    /// Its zone.
    pub(super) zone: Option<String>,
    /// Its own addresses, one of each family.
    pub(super) node_ips: Vec<IpAddr>,
    /// Masquerade all connections to cluster IPs.
    pub(super) masquerade_all: bool,
}

/// What a Service asks for in one family and port, before it is known whether another Service has a better right
/// to one of its frontends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) created: i64,
    pub(super) family: Family,
    pub(super) key: PortKey,
    pub(super) port: Arc<ServicePort>,
}

/// The plan of a Service: one part per family and port, none where it is not ours to serve.
pub(super) fn plan(name: &ObjectName, entry: &Entry, context: &Context) -> Vec<Wanted> {
    let Some(service) = &entry.service else {
        return Vec::new();
    };
    let mut wanted = Vec::new();
    for family in Family::ALL {
        // A family in which it has no cluster IP is not its own, whatever other addresses say.
        if of_family(&service.cluster_ips, family).next().is_none() {
            continue;
        }
        // It stays for long.
        wanted.reserve_exact(service.ports.len());
        for port in &service.ports {
            let target = Target {
                family,
                port_name: &port.name,
                protocol: port.protocol,
                node: &context.node,
                zone: context.zone.as_deref(),
            };
            let views = Views::choose(entry.slices(), target);
            wanted.push(Wanted {
                created: service.created,
                family,
                key: key(name, port),
                port: plan_port(service, port, family, views, context).into(),
            });
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
    family: Family,
    views: Views,
    context: &Context,
) -> ServicePort {
    let mut frontends = frontends(service, port, family, &views, context);
    frontends.sort();
    // They stay for long.
    frontends.shrink_to_fit();
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
        serving: views.serving,
        health_check: service.health_check_port,
        frontends,
    }
}

fn of_family(addresses: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> {
    (addresses.iter().copied()).filter(move |ip| Family::of(*ip) == family)
}

/// All frontends of a port, each address once: what else it is named does not make a cluster IP another
/// thing, and a load balancer's address keeps its guard.
fn frontends(
    service: &Service,
    port: &Port,
    family: Family,
    views: &Views,
    context: &Context,
) -> Vec<Frontend> {
    let cluster = verdict(View::Cluster, views);
    let local = verdict(View::Local, views);
    let internal = if service.internal_local {
        local
    } else {
        cluster
    };
    let cluster_ips = of_family(&service.cluster_ips, family).map(|ip| Frontend {
        at: At::ClusterIp(ip),
        port: port.port,
        inside: internal,
        outside: internal,
        masquerade: if context.masquerade_all {
            Masquerade::Always
        } else {
            Masquerade::NotPods
        },
        sources: None,
    });
    // Pods and this node are never bound to the external policy: for them, going straight to any
    // endpoint is what a load balancer would do, only shorter.
    let external = |at: At, port: u16, sources: Option<Arc<[Subnet]>>| Frontend {
        at,
        port,
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
        sources,
    };
    let load_balancers = of_family(&service.load_balancer_ips, family).map(|ip| {
        let sources = sources(service, ip, context);
        external(At::LoadBalancer(ip), port.port, sources)
    });
    let external_ips = of_family(&service.external_ips, family)
        .map(|ip| external(At::ExternalIp(ip), port.port, None));
    let node_port = (port.node_port).map(|number| external(At::NodePort, number, None));

    let mut frontends: Vec<_> = (cluster_ips.chain(load_balancers).chain(external_ips))
        .chain(node_port)
        .collect();
    frontends.sort_by_key(|frontend| frontend.at.address());
    frontends.dedup_by_key(|frontend| frontend.at.address());
    frontends
}

/// Who may come in by a load balancer's address. Ranges of the other family say nothing about this one.
fn sources(service: &Service, at: IpAddr, context: &Context) -> Option<Arc<[Subnet]>> {
    let family = Family::of(at);
    let mut networks: BTreeSet<_> = (service.source_ranges.iter().copied())
        .filter(|network| network.family() == family)
        .collect();
    if networks.is_empty() {
        return None;
    }
    // Where the address is on an interface of this node, the node's own packets to it come from it.
    let is_allowed = |ip: &IpAddr| networks.iter().any(|network| network.contains(*ip));
    if context.node_ips.iter().any(is_allowed) {
        networks.insert(Subnet::host(at));
    }
    Some(outermost(networks).into_iter().collect())
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
