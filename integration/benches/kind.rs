//! Clusters of kind's, one after the other: Twill, and flannel with the reference plugins and kube-proxy in nftables
//! mode. From `kubectl apply` until nodes are Ready and CoreDNS serves; how long a kubelet takes for a pod's sandbox;
//! 60 pods at once; and the memory of the network's processes on a node.
//!
//! A kubelet asks the container runtime every 5 s only whether there is a network, so that Ready comes up to 5 s after
//! there is one, whoever made it. When the CNI configuration came is therefore a row of its own: the latest of the nodes'
//! files. flanneld writes it once the node can serve pods; flannel's init container copies it before flanneld has so much
//! as a subnet, so that its nodes are Ready before a pod can be made there. Where pods can be, CoreDNS says.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use integration::kind::{Cluster, NODES};
use integration::progress::Progress;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const KIND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kind");
const PODS: u32 = 60;
const ROUNDS: usize = 3;

/// What was measured of one side.
struct Figures {
    configured: Duration,
    ready: Duration,
    serving: Duration,
    sandbox: Duration,
    pods: Duration,
    memory: f64,
}

/// `kubectl wait`, which ends as soon as the condition holds.
fn wait_for(cluster: &Cluster, what: &str) -> Result<()> {
    cluster.kubectl(&format!("wait --timeout=300s {what}"))?;
    Ok(())
}

fn measure(
    programs: &[&str],
    load: impl Fn(&Cluster) -> Result<()>,
    apply: impl Fn(&Cluster) -> Result<()>,
) -> Result<Figures> {
    let cluster = Cluster::create("cluster.yaml", Progress::shown())?;
    load(&cluster)?;
    let (start, began) = (Instant::now(), SystemTime::now());
    apply(&cluster)?;
    wait_for(&cluster, "--for=condition=Ready node --all")?;
    let ready = start.elapsed();
    wait_for(
        &cluster,
        "-n kube-system --for=condition=Available deployment/coredns",
    )?;
    let serving = start.elapsed();
    let configured = configured(&cluster)?.duration_since(began)?;

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
    for program in programs {
        let line = format!("cat /proc/$(pgrep -o -x {program})/status");
        let status = cluster.on(NODES[1], &line)?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.with_context(|| format!("{program} has no memory: {status}"))?;
        memory += resident.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0;
    }
    Ok(Figures {
        configured,
        ready,
        serving,
        sandbox: Duration::from_secs_f64(seconds / count),
        pods: rounds[ROUNDS / 2],
        memory,
    })
}

/// When the last node got its CNI configuration. Nodes are containers of this machine: they have its clock.
fn configured(cluster: &Cluster) -> Result<SystemTime> {
    let mut last = SystemTime::UNIX_EPOCH;
    for node in NODES {
        let times = cluster.on(node, "stat -c %.9Y /etc/cni/net.d/*.conflist")?;
        for time in times.lines() {
            let since = Duration::try_from_secs_f64(time.parse()?)?;
            last = last.max(SystemTime::UNIX_EPOCH + since);
        }
    }
    Ok(last)
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
        "{what:<66}{ours:>10.2}{theirs:>10.2} {unit:<4}{:>8.2}",
        ours / theirs
    );
}

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn main() -> Result<()> {
    let theirs = measure(
        &["flannel", "kube-proxy"],
        Cluster::load_upstream,
        |cluster| {
            ["flannel", "kube-proxy"]
                .iter()
                .try_for_each(|name| cluster.apply_upstream(name))
        },
    )?;
    let ours = measure(
        &["flanneld", "twill-proxy"],
        |cluster| cluster.load(&format!("{ROOT}/target/images/twill.tar")),
        |cluster| {
            cluster
                .kubectl(&format!("apply -f {ROOT}/manifests/twill.yaml"))
                .map(drop)
        },
    )?;
    println!(
        "\n{:<66}{:>10}{:>10} {:<4}{:>8}",
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
    seconds(
        "from `kubectl apply` until the CNI configuration is on all nodes",
        |of| of.configured,
    );
    seconds("from `kubectl apply` to all nodes Ready", |of| of.ready);
    seconds("from `kubectl apply` until CoreDNS serves", |of| of.serving);
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
