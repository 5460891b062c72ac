//! From what a watch tells to what the kernel holds, without an API server between: how long one change of an
//! endpoint takes in clusters of any size, whether a stream of changes leaves a queue behind, and what it costs to
//! replace all endpoints of one Service. Prints its figures; in private network namespaces; needs root.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use agent::sync::Pass;
use agent::watch::Delta;
use futures::stream::{StreamExt, poll_fn};
use hostnet::netns::NetNs;
use nix::sys::resource::{UsageWho, getrusage};
use prometheus_client::registry::Registry;
use proxy::health::Health;
use proxy::index::{Index, Update, objects};
use proxy::metrics::Metrics;
use proxy::nft::NftBackend;
use proxy::plan::{Checks, Planner, Settings};
use proxy::run::{Periods, Runner};
use proxy::sync::Syncer;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const SIZES: [u32; 4] = [1_000, 2_000, 10_000, 50_000];
/// First loads that are timed.
const LOADS: u32 = 8;
/// Single changes that are timed.
const CHANGES: u32 = 2_000;
/// The stream: so many changes, one after each such time.
const STREAM: (u32, Duration) = (10_000, Duration::from_millis(1));
/// How long its end is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Endpoints of the Service that is rolled, in a cluster of so many others.
const ROLLS: [u32; 4] = [125, 250, 500, 1_000];
const BESIDE: u32 = 2_000;
/// As many as the controller puts into one slice.
const SLICE: u32 = 100;

fn service(n: u32) -> Update {
    let ip = Ipv4Addr::from(0x0a60_0001 + n);
    let object: objects::Service = serde_json::from_value(json!({
        "metadata": {"name": format!("service-{n}"), "namespace": format!("namespace-{}", n % 100)},
        "spec": {"clusterIPs": [ip], "ports": [{"name": "http", "port": 80}]},
    }))
    .unwrap();
    Update::Service(Delta::Upsert(object))
}

/// The slice of a Service with two endpoints, the second of which is another in each version.
fn slice(n: u32, version: u32) -> Update {
    slice_of(n, 0, [2 * n, 2 * n + 1 + 1_000_000 * version])
}

fn slice_of(n: u32, part: u32, endpoints: impl IntoIterator<Item = u32>) -> Update {
    let endpoint = |n: u32| {
        let address = Ipv4Addr::from(0x0af4_0001 + n);
        json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": format!("node-{}", n % 50)})
    };
    let endpoints: Vec<Value> = endpoints.into_iter().map(endpoint).collect();
    let object: objects::EndpointSlice = serde_json::from_value(json!({
        "metadata": {
            "name": format!("service-{n}-{part}"),
            "namespace": format!("namespace-{}", n % 100),
            "labels": {"kubernetes.io/service-name": format!("service-{n}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints,
    }))
    .unwrap();
    Update::Slice(Delta::Upsert(object))
}

fn objects(services: u32) -> impl Iterator<Item = Update> {
    (0..services).flat_map(|n| [service(n), slice(n, 0)])
}

fn namespace() -> NetNs {
    NetNs::new_anonymous().expect("needs root, to make network namespaces")
}

struct Cluster {
    index: Index,
    syncer: Syncer<NftBackend>,
}

impl Cluster {
    /// Its Services are known, and not in the kernel yet.
    fn new(objects: impl IntoIterator<Item = Update>) -> Cluster {
        let backend = namespace().run_in(NftBackend::open).unwrap().unwrap();
        let metrics = Metrics::new(&mut Registry::default());
        let mut index = Index::new("node-0");
        objects.into_iter().for_each(|update| index.update(update));
        let syncer = Syncer::new(backend, Planner::new(Settings::default()), metrics);
        Cluster { index, syncer }
    }

    fn load(&mut self) {
        self.syncer.pass(&mut self.index, Pass::Full).unwrap();
    }

    /// How long it takes until the kernel follows an update.
    fn follow(&mut self, update: Update) -> Duration {
        let start = Instant::now();
        self.index.update(update);
        self.syncer.pass(&mut self.index, Pass::Dirty).unwrap();
        start.elapsed()
    }
}

/// Loads the Services of each of these clusters into its kernel. Returns how long one took, and how long the kernel
/// worked for it, both on average: the kernel tells its time from what it sees at the clock's ticks, so that it takes
/// several, and a thread that does nothing else.
fn load(clusters: &mut [Cluster]) -> (Duration, Duration) {
    let count = clusters.len() as u32;
    let work = move || {
        let start = Instant::now();
        clusters.iter_mut().for_each(Cluster::load);
        let kernel = getrusage(UsageWho::RUSAGE_THREAD).unwrap().system_time();
        let kernel = Duration::from_micros((kernel.tv_sec() * 1_000_000 + kernel.tv_usec()) as u64);
        (start.elapsed() / count, kernel / count)
    };
    std::thread::scope(|threads| threads.spawn(work).join().unwrap())
}

/// Has the daemon's loop follow a stream of changes. Returns how long after the last of them nothing waits any more.
fn stream(services: u32) -> Duration {
    let ns = namespace();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(move || ns.enter().unwrap())
        .build()
        .unwrap();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (sender, mut updates) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let daemon = runtime.spawn(async move {
        let backend = NftBackend::open().unwrap();
        let planner = Planner::new(Settings::default());
        let periods = Periods {
            full: Duration::from_secs(30),
            least: Duration::ZERO,
        };
        let runner = Runner::new(
            Index::new("node-0"),
            Syncer::new(backend, planner, metrics.clone()),
            periods,
            watch::channel(Health::default()).0,
            watch::channel(Checks::default()).0,
            metrics,
        );
        let updates = poll_fn(move |context| updates.poll_recv(context)).boxed();
        runner.unwrap().run(updates, stopped).await;
    });
    let send = |update| sender.send(update).unwrap();
    objects(services).for_each(send);
    send(Update::Service(Delta::Synced));
    send(Update::Slice(Delta::Synced));
    send(Update::Node(Delta::Synced));
    send(Update::ServiceCidr(Delta::Synced));
    let wait_for = |changes: u32| {
        let start = Instant::now();
        let name = "kubeproxy_sync_proxy_rules_endpoint_changes";
        let lines = [
            format!("{name}_total {changes}\n"),
            format!("{name}_pending 0\n"),
        ];
        loop {
            let text = agent::metrics::reply(&registry).body;
            if lines.iter().all(|line| text.contains(line)) {
                return start.elapsed();
            }
            assert!(start.elapsed() < PATIENCE, "{lines:?} never came:\n{text}");
            pause(Duration::from_millis(1));
        }
    };
    wait_for(services);
    let start = Instant::now();
    for n in 0..STREAM.0 {
        send(slice((n * 7) % services, 1 + n / services));
        pause((start + n * STREAM.1).saturating_duration_since(Instant::now()));
    }
    let left = wait_for(services + STREAM.0);
    stop.cancel();
    runtime.block_on(daemon).unwrap();
    left
}

#[expect(clippy::disallowed_methods, reason = "the pace of the load")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Replaces all endpoints of one Service, one after another. Returns how long the kernel took to follow all of it,
/// and the last tenth.
fn roll(endpoints: u32) -> (Duration, Duration) {
    let n = BESIDE;
    let address = |version, endpoint| 1_000_000 * (1 + version) + endpoint;
    let part = |part: u32, replaced: u32| {
        let of_part = part * SLICE..((part + 1) * SLICE).min(endpoints);
        slice_of(
            n,
            part,
            of_part.map(|e| address(u32::from(e < replaced), e)),
        )
    };
    let service = std::iter::once(service(n));
    let slices = (0..endpoints.div_ceil(SLICE)).map(|it| part(it, 0));
    let mut cluster = Cluster::new(objects(BESIDE).chain(service).chain(slices));
    cluster.load();
    let took: Vec<Duration> = (0..endpoints)
        .map(|e| cluster.follow(part(e / SLICE, e + 1)))
        .collect();
    let last = took.len() - took.len() / 10;
    (took.iter().sum(), took[last..].iter().sum())
}

/// The value that this share of the samples does not exceed, in milliseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    milliseconds(sorted[rank - 1])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn main() {
    println!(
        "{:>8} {:>14} {:>12} {:>10} {:>10} {:>10} {:>22}",
        "services", "all, from", "the kernel's", "one change", "", "", "after 1,000/s for 10 s"
    );
    println!(
        "{:>8} {:>14} {:>12} {:>10} {:>10} {:>10} {:>22}",
        "", "nothing, ms", "of it, ms", "p50 ms", "p99 ms", "max ms", "the queue lasts, ms"
    );
    for size in SIZES {
        let mut clusters: Vec<_> = (0..LOADS).map(|_| Cluster::new(objects(size))).collect();
        let (all, kernel) = load(&mut clusters);
        clusters.truncate(1);
        let cluster = &mut clusters[0];
        let mut took: Vec<Duration> = (0..CHANGES)
            .map(|n| cluster.follow(slice((n * 7) % size, 1 + n / size)))
            .collect();
        took.sort();
        println!(
            "{size:>8} {:>14.1} {:>12.1} {:>10.3} {:>10.3} {:>10.3} {:>22.1}",
            milliseconds(all),
            milliseconds(kernel),
            percentile(&took, 50),
            percentile(&took, 99),
            percentile(&took, 100),
            milliseconds(stream(size)),
        );
    }
    println!(
        "\n{:>8} {:>14} {:>14} {:>22}",
        "roll of", "in all, ms", "each, ms", "each of the last, ms"
    );
    for endpoints in ROLLS {
        let (all, last) = roll(endpoints);
        println!(
            "{endpoints:>8} {:>14.1} {:>14.3} {:>22.3}",
            milliseconds(all),
            milliseconds(all / endpoints),
            milliseconds(last / (endpoints / 10)),
        );
    }
}
