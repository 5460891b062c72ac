//! `flanneld` beside upstream's flannel, on one real API server with many Nodes: how long from the
//! start of the process until every peer is programmed, how long one more takes, what both keep in
//! memory and use of the processor.

mod report;
#[path = "report/resources.rs"]
mod resources;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hostnet::netlink::{Event, Monitor, Object};
use integration::progress::Progress;
use integration::upstream::{self, Module, Program};
use integration::wait::PATIENCE;
use integration::{Daemon, Lab, Node};
use k8s_openapi::api::core::v1::Node as NodeObject;
use nix::sys::signal::Signal;
use report::{Samples, table};
use resources::Used;
use serde_json::{Value, json};

/// Nodes that are only objects.
const PEERS: u16 = 1000;
/// Peers that come later, one by one.
const LATER: u16 = 100;
/// How far apart: in a cluster nodes come when the last one has long been programmed.
const APART: Duration = Duration::from_millis(100);
/// What a kubelet says of a node's images, in bytes: a watch of whole Nodes carries it.
const IMAGES: usize = 50_000;

const NET_CONF: &str = r#"{"Network": "10.0.0.0/11", "SubnetLen": 24, "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#;

fn main() -> Result<()> {
    let progress = Progress::shown();
    let lab = Lab::builder()
        .progress(progress)
        .net_conf(NET_CONF)
        .daemons(&[])
        .node("twill", &["10.255.1.0/24".parse()?])
        .node("reference", &["10.255.2.0/24".parse()?])
        .up()?;
    let step = progress.step(format!("{PEERS} Nodes"));
    for index in 0..PEERS {
        lab.api().apply(&peer(index))?;
    }
    step.done();

    let (twill, reference) = (lab.node("twill")?, lab.node("reference")?);
    // Built now, not while its time is taken.
    upstream::assets(Module::Flannel, &[Program::Flannel], progress)?;
    twill.provide(Daemon::Flanneld, lab.control_plane(), NET_CONF)?;
    // One after the other: a node runs one of them, and each would take the other's time.
    let step = progress.step("flanneld");
    let ours = measure(
        &lab,
        twill,
        Daemon::Flanneld.name(),
        usize::from(PEERS),
        || twill.start(Daemon::Flanneld),
    )?;
    twill.stop(Daemon::Flanneld, Signal::SIGTERM)?;
    step.done();
    let step = progress.step("flannel");
    let flannel = Program::Flannel.name();
    // The other side's node is a peer of it too.
    let theirs = measure(&lab, reference, flannel, usize::from(PEERS) + 1, || {
        reference.start_flannel(NET_CONF)
    })?;
    step.done();

    table(
        &format!("start → {PEERS} peers"),
        [("flanneld", &ours.start), ("flannel", &theirs.start)],
    );
    table(
        "Node write → route",
        [("flanneld", &ours.later), ("flannel", &theirs.later)],
    );
    resources::print(
        &format!("{PEERS} peers"),
        &[("flanneld", ours.used), ("flannel", theirs.used)],
    );
    Ok(())
}

/// What is measured of a side.
struct Measured {
    start: Samples,
    later: Samples,
    used: Used,
}

/// Starts a side that then knows so many peers, and lets some more come, one after another, and go.
fn measure(
    lab: &Lab,
    node: &Node,
    name: &str,
    known: usize,
    start: impl FnOnce() -> Result<()>,
) -> Result<Measured> {
    let mut routes = Routes::of(node)?;
    let started = Instant::now();
    start()?;
    let mut start = Samples::default();
    start.push(routes.wait_for(known, started)?);
    let mut later = Samples::default();
    let more = PEERS..PEERS + LATER;
    for index in more.clone() {
        #[expect(clippy::disallowed_methods, reason = "it is the load that is measured")]
        std::thread::sleep(APART);
        let started = Instant::now();
        std::thread::scope(|threads| -> Result<()> {
            let route = threads.spawn(|| routes.wait_for(1, started));
            lab.api().apply(&peer(index))?;
            let took = route
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            later.push(took?);
            Ok(())
        })?;
    }
    let used = resources::used(node, name)?;
    for index in more {
        lab.api()
            .delete::<NodeObject>(None, &format!("peer-{index}"))?;
    }
    Ok(Measured { start, later, used })
}

/// A Node as flannel on it would leave it.
fn peer(index: u16) -> Value {
    let [high, low] = index.to_be_bytes();
    let subnet = format!("10.{high}.{low}.0/24");
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": format!("peer-{index}"), "annotations": {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data":
                format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:{high:02x}:{low:02x}\"}}"),
            "flannel.alpha.coreos.com/public-ip": Ipv4Addr::new(172, 31, high, low),
        }},
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
        "status": {"images": [{"names": ["i".repeat(IMAGES)], "sizeBytes": 1}]},
    })
}

/// The routes of a node, as they come.
struct Routes(Monitor);

impl Routes {
    /// Those that come from now on.
    fn of(node: &Node) -> Result<Routes> {
        Ok(Routes(node.machine().netns().run_in(Monitor::open)??))
    }

    /// Waits for so many more by the tunnel. Returns how long after `started` the last one came.
    fn wait_for(&mut self, count: usize, started: Instant) -> Result<Duration> {
        let mut seen = 0;
        while seen < count {
            match self.0.next(false)? {
                Some(Event {
                    object: Object::Route(route),
                    gone: false,
                }) => {
                    seen += usize::from(route.gateway.is_some());
                }
                Some(_) => {}
                None => {
                    ensure!(
                        started.elapsed() < PATIENCE,
                        "only {seen} of {count} routes came"
                    );
                    #[expect(clippy::disallowed_methods, reason = "how exact the figures are")]
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
        Ok(started.elapsed())
    }
}
