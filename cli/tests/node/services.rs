//! A node with as many Services as are wanted, for what shall not depend on their number. The benchmark has it too.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use hostnet::snapshot::{self, Subject};
use hostnet::testkit::Ns;
use hostnet::vocab::Family;
use proxy::backend::Backend;
use proxy::index::Index;
use proxy::index::saved::{Saved, VERSION};
use proxy::nft::NftBackend;
use proxy::plan::{
    At, Endpoint, FamilyRuleset, Frontend, Masquerade, NodeRules, PodTraffic, PortKey, PortName,
    Protocol, Ruleset, ServicePort, Verdict, View,
};
use serde_json::json;

/// The file of twill-proxy's that is told of.
pub(crate) const SUBJECT: Subject<'_> = Subject {
    kind: "twill-proxy index",
    version: VERSION,
    node: "here",
};

/// The cluster IP of Service `service-N`.
pub(crate) fn cluster_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + n)
}

/// A node with as many Services of two endpoints, of which each second has a node port.
pub(crate) fn node(services: u32) -> Ns {
    let node = Ns::new("node");
    node.bridge("eth0");
    node.addr("eth0", "172.30.0.12/24");
    node.route("default", "172.30.0.1");
    let endpoint = |n: u32| Endpoint {
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 0)) + n).into(),
        port: 8080,
        local: false,
    };
    let frontend = |at, port| Frontend {
        at,
        port,
        inside: Verdict::Balance(View::Cluster),
        outside: Verdict::Balance(View::Cluster),
        masquerade: Masquerade::Always,
        sources: None,
    };
    let ports: BTreeMap<PortKey, Arc<ServicePort>> = (0..services)
        .map(|n| {
            let mut frontends = vec![frontend(At::ClusterIp(cluster_ip(n).into()), 80)];
            if n % 2 == 1 {
                frontends.push(frontend(At::NodePort, 30_000 + n as u16));
            }
            let port = ServicePort {
                frontends,
                cluster: [endpoint(2 * n + 512), endpoint(2 * n + 513)].into(),
                ..ServicePort::default()
            };
            let name = PortName::new("default", &format!("service-{n}"), "http");
            let protocol = Protocol::Tcp;
            (PortKey { name, protocol }, Arc::new(port))
        })
        .collect();
    let mut ruleset = Ruleset::default();
    *ruleset.family_mut(Family::V4) = FamilyRuleset {
        node: NodeRules {
            pods: PodTraffic::From(vec!["10.244.0.0/16".parse().unwrap()]),
            node_ports: [IpAddr::from([172, 30, 0, 12])].into(),
            service_networks: ["10.96.0.0/12".parse().unwrap()].into(),
            ..NodeRules::default()
        },
        ports,
    };
    let mut backend = node.run(NftBackend::open).unwrap();
    backend.replace(&ruleset).unwrap();
    node
}

/// What twill-proxy keeps on disk of the same Services.
pub(crate) fn save(file: &Path, services: u32) {
    let services: BTreeMap<String, _> = (0..services)
        .map(|n| {
            let node_port = (n % 2 == 1).then_some(30_000 + n);
            let service = json!({
                "uid": n, "created": 0, "cluster_ips": [cluster_ip(n)], "load_balancer_ips": [], "external_ips": [],
                "source_ranges": [], "health_check_port": null, "internal_local": false, "external_local": false,
                "affinity": null,
                "ports": [{"name": "http", "protocol": "Tcp", "port": 80, "node_port": node_port}],
            });
            (format!("default/service-{n}"), service)
        })
        .collect();
    let saved: Saved = serde_json::from_value(json!({"services": services, "slices": {}})).unwrap();
    let index = Index::restore("here", saved, true);
    snapshot::encode(SUBJECT, "uid", &index.saved())
        .unwrap()
        .write(file)
        .unwrap();
}
