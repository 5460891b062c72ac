//! What services cost in the kernel: all of them from nothing, a restart that finds them there, and one endpoint
//! that changes. In private network namespaces; needs root.

use std::net::IpAddr;
use std::sync::Arc;

use divan::Bencher;
use hostnet::netns::NetNs;
use proxy::backend::Backend;
use proxy::nft::NftBackend;
use proxy::plan::{
    At, Change, Delta, Endpoint, FamilyDelta, FamilyRuleset, Frontend, Masquerade, NodeRules,
    PodTraffic, PortKey, PortName, Protocol, Ruleset, ServicePort, Verdict, View,
};

const SIZES: [u32; 3] = [1_000, 10_000, 50_000];

fn main() {
    divan::main();
}

fn key(n: u32) -> PortKey {
    let name = PortName::new(
        &format!("namespace-{}", n % 100),
        &format!("service-{n}"),
        "http",
    );
    PortKey {
        name,
        protocol: Protocol::Tcp,
    }
}

/// A service with a cluster IP and two endpoints, the second of which is number `second`.
fn port(n: u32, second: u32) -> Arc<ServicePort> {
    let address = |base: u32, n: u32| IpAddr::from((base + n).to_be_bytes());
    let endpoint = |n| Endpoint {
        address: address(0x0af4_0000, n),
        port: 8080,
        local: n % 100 == 0,
    };
    let verdict = Verdict::Balance(View::Cluster);
    let frontend = Frontend {
        at: At::ClusterIp(address(0x0a60_0000, n)),
        port: 80,
        inside: verdict,
        outside: verdict,
        masquerade: Masquerade::NotPods,
        sources: None,
    };
    let cluster = [endpoint(2 * n), endpoint(second)].into();
    Arc::new(ServicePort {
        frontends: vec![frontend],
        cluster,
        ..ServicePort::default()
    })
}

fn services(count: u32) -> Ruleset {
    let node = NodeRules {
        pods: PodTraffic::From(vec!["10.244.0.0/15".parse().unwrap()]),
        node_ports: [IpAddr::from([192, 168, 1, 1])].into(),
        ..NodeRules::default()
    };
    let ports = (0..count).map(|n| (key(n), port(n, 2 * n + 1))).collect();
    Ruleset {
        v4: FamilyRuleset { node, ports },
        ..Ruleset::default()
    }
}

fn backend() -> NftBackend {
    let ns = NetNs::new_anonymous().expect("needs root, to make network namespaces");
    ns.run_in(NftBackend::open).unwrap().unwrap()
}

#[divan::bench(args = SIZES, sample_count = 5)]
fn all_from_nothing(bencher: Bencher, count: u32) {
    let ruleset = services(count);
    bencher
        .with_inputs(backend)
        .bench_local_refs(|backend| backend.replace(&ruleset).unwrap());
}

#[divan::bench(args = SIZES, sample_count = 5)]
fn restart(bencher: Bencher, count: u32) {
    let ruleset = services(count);
    let mut backend = backend();
    backend.replace(&ruleset).unwrap();
    bencher.bench_local(|| assert_eq!(backend.replace(&ruleset).unwrap().ops, 0));
}

#[divan::bench(args = SIZES, sample_count = 200)]
fn one_endpoint_changes(bencher: Bencher, count: u32) {
    let mut backend = backend();
    backend.replace(&services(count)).unwrap();
    let spare = 2 * count + 2;
    let mut n = 0;
    let mut is_moved = false;
    bencher.bench_local(|| {
        let (old, new) = (port(n, 2 * n + 1), port(n, spare));
        let (before, after) = if is_moved { (new, old) } else { (old, new) };
        let change = Change {
            key: key(n),
            before: Some(before),
            after: Some(after),
        };
        let v4 = FamilyDelta {
            node: None,
            ports: vec![change],
        };
        assert_eq!(
            backend
                .update(&Delta {
                    v4,
                    ..Delta::default()
                })
                .unwrap()
                .ops,
            1
        );
        if is_moved {
            n = (n + 7) % count;
        }
        is_moved = !is_moved;
    });
}
