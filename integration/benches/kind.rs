//! Clusters of kind's, one after the other: Twill, and flannel with the reference plugins and kube-proxy in nftables
//! mode. From `kubectl apply` until nodes are Ready and CoreDNS serves; how long a kubelet takes for a pod's sandbox;
//! 60 pods at once; and the memory of the network's processes on a node.
//!
//! A start is measured on clusters that were just made, where a kubelet asks for the network ten times a second. (It does
//! so in its first two minutes; then each 5 s, which would hide what is measured.) Two rows divide it: when the plugin's
//! binary is on all nodes, which is the first container's work on both sides, so that all until then is the cluster's; and
//! when the CNI configuration is. flanneld writes that once the node can serve pods; flannel's second init container
//! copies it before flanneld has so much as a subnet, so that its nodes are Ready before a pod can be made there. Where
//! pods can be, CoreDNS says.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use integration::kind::{Cluster, NODES};
use integration::progress::Progress;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const KIND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kind");
const PODS: u32 = 60;
const ROUNDS: usize = 3;

/// One side: the processes of its network, the file of its plugin, and how a cluster gets it.
struct Side {
    programs: [&'static str; 2],
    plugin: &'static str,
    load: fn(&Cluster) -> Result<()>,
    apply: fn(&Cluster) -> Result<()>,
}

/// From `kubectl apply` until …
struct Started {
    installed: Duration,
    configured: Duration,
    ready: Duration,
    serving: Duration,
}

/// What was measured of one side.
struct Figures {
    starts: Vec<Started>,
    sandbox: Duration,
    pods: Duration,
    memory: f64,
}

/// `kubectl wait`, which ends as soon as the condition holds.
fn wait_for(cluster: &Cluster, what: &str) -> Result<()> {
    cluster.kubectl(&format!("wait --timeout=300s {what}"))?;
    Ok(())
}

/// A new cluster, and how long the network took to start on it.
fn start(side: &Side) -> Result<(Cluster, Started)> {
    let cluster = Cluster::create("cluster.yaml", Progress::shown())?;
    (side.load)(&cluster)?;
    let (start, began) = (Instant::now(), SystemTime::now());
    (side.apply)(&cluster)?;
    wait_for(&cluster, "--for=condition=Ready node --all")?;
    let ready = start.elapsed();
    wait_for(
        &cluster,
        "-n kube-system --for=condition=Available deployment/coredns",
    )?;
    let serving = start.elapsed();
    let started = Started {
        installed: last(&cluster, side.plugin)?.duration_since(began)?,
        configured: last(&cluster, "/etc/cni/net.d/*.conflist")?.duration_since(began)?,
        ready,
        serving,
    };
    Ok((cluster, started))
}

fn measure(side: &Side) -> Result<Figures> {
    let mut starts = Vec::new();
    for _ in 1..ROUNDS {
        starts.push(start(side)?.1);
    }
    let (cluster, started) = start(side)?;
    starts.push(started);

    cluster.shell(&format!(
        "sed -e 's/replicas: 1/replicas: 0/' -e 's/PeriodSeconds: 25/PeriodSeconds: 1/' {KIND}/many.yaml | kubectl apply -f -"
    ))?;
    let before = sandboxes(&cluster)?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        cluster.kubectl(&format!("scale deployment/many --replicas={PODS}"))?;
        wait_for(
            &cluster,
            &format!("--for=jsonpath='{{.status.readyReplicas}}'={PODS} deployment/many"),
        )?;
        rounds.push(start.elapsed());
        cluster.kubectl("scale deployment/many --replicas=0")?;
        wait_for(&cluster, "--for=delete pod -l app=many")?;
    }
    rounds.sort();
    let after = sandboxes(&cluster)?;
    let (seconds, count) = (after.0 - before.0, after.1 - before.1);
    ensure!(count > 0.0, "the kubelets have counted no sandbox");
    let mut memory = 0.0;
    for program in side.programs {
        let line = format!("cat /proc/$(pgrep -o -x {program})/status");
        let status = cluster.on(NODES[1], &line)?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.with_context(|| format!("{program} has no memory: {status}"))?;
        memory += resident.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0;
    }
    Ok(Figures {
        starts,
        sandbox: Duration::from_secs_f64(seconds / count),
        pods: rounds[ROUNDS / 2],
        memory,
    })
}

/// When the last node got a file. Nodes are containers of this machine: they have its clock.
fn last(cluster: &Cluster, file: &str) -> Result<SystemTime> {
    let mut last = SystemTime::UNIX_EPOCH;
    for node in NODES {
        let times = cluster.on(node, &format!("stat -c %.9Y {file}"))?;
        for time in times.lines() {
            let since = Duration::try_from_secs_f64(time.parse()?)?;
            last = last.max(SystemTime::UNIX_EPOCH + since);
        }
    }
    Ok(last)
}

/// Half of the starts took no longer.
fn median(figures: &Figures, of: fn(&Started) -> Duration) -> f64 {
    let mut times: Vec<Duration> = figures.starts.iter().map(of).collect();
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// The kubelets' seconds for sandboxes, and how many these were.
fn sandboxes(cluster: &Cluster) -> Result<(f64, f64)> {
    let (mut sum, mut count) = (0.0, 0.0);
    for node in NODES {
        let metrics = cluster.kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/metrics"))?;
        for line in metrics.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            if name.starts_with("kubelet_run_podsandbox_duration_seconds_sum") {
                sum += value.parse::<f64>()?;
            } else if name.starts_with("kubelet_run_podsandbox_duration_seconds_count") {
                count += value.parse::<f64>()?;
            }
        }
    }
    Ok((sum, count))
}

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn row(what: &str, unit: &str, ours: f64, theirs: f64) {
    println!(
        "{what:<72}{ours:>10.2}{theirs:>10.2} {unit:<4}{:>8.2}",
        ours / theirs
    );
}

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn main() -> Result<()> {
    let theirs = measure(&Side {
        programs: ["flannel", "kube-proxy"],
        plugin: "/opt/cni/bin/flannel",
        load: Cluster::load_upstream,
        apply: |cluster| {
            ["flannel", "kube-proxy"]
                .iter()
                .try_for_each(|name| cluster.apply_upstream(name))
        },
    })?;
    let ours = measure(&Side {
        programs: ["flanneld", "twill-proxy"],
        plugin: "/opt/cni/bin/twill-cni",
        load: |cluster| cluster.load(&format!("{ROOT}/target/images/twill.tar")),
        apply: |cluster| {
            cluster
                .kubectl(&format!("apply -f {ROOT}/manifests/twill.yaml"))
                .map(drop)
        },
    })?;
    println!(
        "\n{:<72}{:>10}{:>10} {:<4}{:>8}",
        "", "Twill", "flannel", "", "ratio"
    );
    let seconds = |what, of: fn(&Figures) -> Duration| {
        row(
            what,
            "s",
            of(&ours).as_secs_f64(),
            of(&theirs).as_secs_f64(),
        );
    };
    let start = |until, of: fn(&Started) -> Duration| {
        let what = format!("from `kubectl apply` until {until}, median of {ROUNDS}");
        row(&what, "s", median(&ours, of), median(&theirs, of));
    };
    start("the plugin is on all nodes", |of| of.installed);
    start("the CNI configuration is", |of| of.configured);
    start("all nodes are Ready", |of| of.ready);
    start("CoreDNS serves", |of| of.serving);
    seconds("a pod's sandbox, by the kubelets' metric, mean", |of| {
        of.sandbox
    });
    seconds("60 pods at once until all are Ready, median of 3", |of| {
        of.pods
    });
    row(
        "resident memory of the network on a node",
        "MiB",
        ours.memory,
        theirs.memory,
    );
    Ok(())
}
