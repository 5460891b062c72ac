//! `twill-proxy` beside kube-proxy in nftables mode, on one real API server: how long after the
//! write of a Service its cluster IP answers, and what the daemons keep in memory.

mod report;
#[path = "report/resources.rs"]
mod resources;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hostnet::netns::NetNs;
use integration::machine::ADMIN_CONF;
use integration::machine::root::ASSETS;
use integration::progress::Progress;
use integration::upstream::Program;
use integration::{Daemon, Lab, PodSpec, wait};
use report::{Samples, table};
use serde_json::{Value, json};

/// Services written one after another while each side is watched.
const WRITTEN: u8 = 20;
/// Between one write and the next: longer than kube-proxy's `minSyncPeriod` of 1 s, which would
/// otherwise be all that is seen of it.
const BETWEEN: Duration = Duration::from_millis(1500);
/// Services that are there before.
const BEFORE: u8 = 200;

const KUBE_PROXY: &str = "kube-proxy";

fn main() -> Result<()> {
    let progress = Progress::shown();
    let lab = Lab::builder()
        .progress(progress)
        .program(Program::KubeProxy)
        .daemons(&[Daemon::Flanneld])
        .node("twill", &["10.244.1.0/24".parse()?])
        .node("reference", &["10.244.2.0/24".parse()?])
        .node("server", &["10.244.3.0/24".parse()?])
        .up()?;
    // The server's node is neither side's, so that both reach it in the same way.
    let pod = lab.run_pod(PodSpec::new("server", "server"))?;

    let step = progress.step(format!("{BEFORE} services"));
    for index in 0..BEFORE {
        write_slice(&lab, &format!("before-{index}"), pod.ip())?;
        lab.api().apply(&service(
            &format!("before-{index}"),
            Ipv4Addr::new(10, 96, 1, index),
        ))?;
    }
    step.done();

    let step = progress.step("twill-proxy and kube-proxy");
    let twill = lab.node("twill")?;
    twill.provide(Daemon::Proxy, lab.control_plane(), "")?;
    twill.start(Daemon::Proxy)?;
    twill.wait_ready(Daemon::Proxy)?;
    start_kube_proxy(&lab)?;
    step.done();

    let step = progress.step(format!("{WRITTEN} services written, one after another"));
    let reference = lab.node("reference")?;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for index in 0..=WRITTEN {
        let (name, address) = (format!("new-{index}"), Ipv4Addr::new(10, 96, 2, index));
        write_slice(&lab, &name, pod.ip())?;
        #[expect(
            clippy::disallowed_methods,
            reason = "a pace, not a wait for a condition"
        )]
        std::thread::sleep(BETWEEN);
        let (twill, reference) = (twill.machine().netns(), reference.machine().netns());
        let took = scope(|threads| -> Result<_> {
            let started = Instant::now();
            let a = threads.spawn(move || first_connect(twill, address, started));
            let b = threads.spawn(move || first_connect(reference, address, started));
            lab.api().apply(&service(&name, address))?;
            let join = |side: std::thread::ScopedJoinHandle<'_, _>| {
                side.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            Ok((join(a)?, join(b)?))
        })?;
        // The first one also warms the API's caches.
        if index > 0 {
            ours.push(took.0);
            theirs.push(took.1);
        }
    }
    step.done();

    table(
        "Service write → connect",
        [("twill-proxy", &ours), ("kube-proxy nftables", &theirs)],
    );
    resources::print(
        &format!(
            "{} services, 3 nodes",
            u32::from(BEFORE) + u32::from(WRITTEN)
        ),
        &[
            ("twill-proxy", resources::used(twill, Daemon::Proxy.name())?),
            ("flanneld", resources::used(twill, Daemon::Flanneld.name())?),
            ("kube-proxy", resources::used(reference, KUBE_PROXY)?),
        ],
    );
    Ok(())
}

fn service(name: &str, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": address,
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}],
        },
    })
}

/// Writes the endpoints first, so that the Service's own write is what is measured.
fn write_slice(lab: &Lab, service: &str, endpoint: IpAddr) -> Result<()> {
    lab.api().apply(&json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": service,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}, "nodeName": "server"}],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }))?;
    Ok(())
}

/// Tries until a connect succeeds; a try is given up soon, because its packet met no rule.
fn first_connect(netns: &NetNs, address: Ipv4Addr, started: Instant) -> Result<Duration> {
    let server = SocketAddr::from((address, 80));
    netns.run_in(|| {
        while started.elapsed() < wait::PATIENCE {
            if TcpStream::connect_timeout(&server, Duration::from_millis(2)).is_ok() {
                return Ok(started.elapsed());
            }
        }
        anyhow::bail!("{server} never answered")
    })?
}

fn start_kube_proxy(lab: &Lab) -> Result<()> {
    let node = lab.node("reference")?.machine();
    let program = format!("{ASSETS}/{KUBE_PROXY}");
    let argv = [
        program.as_str(),
        "--proxy-mode=nftables",
        &format!("--kubeconfig={ADMIN_CONF}"),
        "--hostname-override=reference",
        "--cluster-cidr=10.244.0.0/16",
        // These switches are the machine's, not the node's.
        "--conntrack-max-per-core=0",
        "--conntrack-min=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ];
    node.spawn(KUBE_PROXY, &argv, &[])?;
    first_connect(node.netns(), Ipv4Addr::new(10, 96, 1, 0), Instant::now())
        .with_context(|| format!("see {}", node.log(KUBE_PROXY).display()))?;
    Ok(())
}
