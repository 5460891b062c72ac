//! From what a watch tells to what the kernel holds, without an API server between: how long one change of an
//! endpoint takes in clusters of any size, and whether a stream of changes leaves a queue behind. Prints its
//! figures; in private network namespaces; needs root.

use std::time::{Duration, Instant};

use agent::sync::Pass;
use agent::watch::Delta;
use hostnet::netns::NetNs;
use prometheus_client::registry::Registry;
use proxy::index::{Index, Update, objects};
use proxy::metrics::Metrics;
use proxy::nft::NftBackend;
use proxy::plan::{Planner, Settings};
use proxy::sync::Syncer;
use serde_json::json;

const SIZES: [u32; 4] = [1_000, 2_000, 10_000, 50_000];
/// Single changes that are timed.
const CHANGES: u32 = 2_000;
/// A second's worth of the stream, and how many seconds.
const PACE: (u32, u32) = (1_000, 10);

struct Cluster {
    index: Index,
    syncer: Syncer<NftBackend>,
}

fn service(n: u32) -> Update {
    let ip = std::net::Ipv4Addr::from(0x0a60_0001 + n);
    let object: objects::Service = serde_json::from_value(json!({
        "metadata": {"name": format!("service-{n}"), "namespace": format!("namespace-{}", n % 100)},
        "spec": {"clusterIPs": [ip], "ports": [{"name": "http", "port": 80}]},
    }))
    .unwrap();
    Update::Service(Delta::Upsert(object))
}

fn slice(n: u32, version: u32) -> Update {
    let address = |n: u32| std::net::Ipv4Addr::from(0x0af4_0001 + n);
    let endpoint = |n: u32| json!({"addresses": [address(n)], "conditions": {"ready": true}, "nodeName": format!("node-{}", n % 50)});
    let object: objects::EndpointSlice = serde_json::from_value(json!({
        "metadata": {
            "name": format!("service-{n}-abcde"),
            "namespace": format!("namespace-{}", n % 100),
            "labels": {"kubernetes.io/service-name": format!("service-{n}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [endpoint(2 * n), endpoint(2 * n + 1 + 1_000_000 * version)],
    }))
    .unwrap();
    Update::Slice(Delta::Upsert(object))
}

impl Cluster {
    fn new(services: u32) -> (Cluster, Duration) {
        let ns = NetNs::new_anonymous().expect("needs root, to make network namespaces");
        let backend = ns.run_in(NftBackend::open).unwrap().unwrap();
        let metrics = Metrics::new(&mut Registry::default());
        let mut index = Index::new("node-0");
        for n in 0..services {
            index.update(service(n));
            index.update(slice(n, 0));
        }
        let mut syncer = Syncer::new(backend, Planner::new(Settings::default()), metrics);
        let start = Instant::now();
        syncer.pass(&mut index, Pass::Full).unwrap();
        (Cluster { index, syncer }, start.elapsed())
    }

    fn pass(&mut self) {
        self.syncer.pass(&mut self.index, Pass::Dirty).unwrap();
    }
}

/// The value that this share of the samples does not exceed, in milliseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1].as_secs_f64() * 1e3
}

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn main() {
    println!(
        "{:>8} {:>14} {:>10} {:>10} {:>10} {:>22}",
        "services", "all, from", "one change", "", "", "stream of 1,000/s"
    );
    println!(
        "{:>8} {:>14} {:>10} {:>10} {:>10} {:>22}",
        "", "nothing, ms", "p50 ms", "p99 ms", "max ms", "for 10 s needs, s"
    );
    for size in SIZES {
        let (mut cluster, all) = Cluster::new(size);
        let mut took: Vec<Duration> = (0..CHANGES)
            .map(|n| {
                let update = slice((n * 7) % size, 1 + n / size);
                let start = Instant::now();
                cluster.index.update(update);
                cluster.pass();
                start.elapsed()
            })
            .collect();
        took.sort();
        // As the daemon does it: what was told while a pass ran is one pass's work.
        let start = Instant::now();
        for second in 0..PACE.1 {
            for n in 0..PACE.0 {
                cluster.index.update(slice((n * 3) % size, 10 + second));
                if n % 10 == 9 {
                    cluster.pass();
                }
            }
        }
        let stream = start.elapsed();
        println!(
            "{size:>8} {:>14.1} {:>10.3} {:>10.3} {:>10.3} {:>22.2}",
            all.as_secs_f64() * 1e3,
            percentile(&took, 50),
            percentile(&took, 99),
            percentile(&took, 100),
            stream.as_secs_f64(),
        );
    }
}
