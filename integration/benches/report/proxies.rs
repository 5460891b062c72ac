//! What the benchmarks of twill-proxy's two modes share: a node for each side, a cluster of many Services, and how
//! long until connects follow what was started or written.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hostnet::netns::NetNs;
use integration::lab::Lab;
use integration::progress::Progress;
use integration::underlay::Seat;
use integration::upstream::Program;
use integration::{Daemon, Node, store, wait};
use nix::sys::signal::Signal;
use nix::sys::socket::{self, Backlog};
use serde_json::{Value, json};

use crate::report::Samples;

/// Changes of one Service's endpoint after each start.
const CHANGES: usize = 5;
/// Between one change and the next: longer than kube-proxy's `minSyncPeriod` of 1 s, which would otherwise be all
/// that is seen of it.
const BETWEEN: Duration = Duration::from_millis(1500);
/// Between one look and the next.
const LOOK: Duration = Duration::from_millis(1);
/// One Service of so many, and the one before it, lead to servers; those of the others nobody asks.
const LIVE: u32 = 500;
const LAST_LIVE: u32 = LIVE - 1;
/// The nodes with a server.
const SERVERS: [&str; 2] = ["first", "second"];
/// Where the servers listen.
const TARGET: u16 = 8080;
/// How many threads each has: one that waits for its turn leaves no connection waiting.
const ACCEPTORS: usize = 2;

/// A lab of two servers and a node for each side.
pub(crate) fn lab(progress: Progress) -> Result<Lab> {
    let lab = Lab::builder()
        .progress(progress)
        .program(Program::KubeProxy)
        .daemons(&[])
        .node("twill", &[])
        .node("reference", &[])
        .node(SERVERS[0], &[])
        .node(SERVERS[1], &[])
        .up()?;
    for name in SERVERS {
        serve(lab.node(name)?)?;
    }
    Ok(lab)
}

/// Takes connections as long as this process lives, and closes each at once.
fn serve(node: &Node) -> Result<()> {
    let address = SocketAddr::from((node.ip(), TARGET));
    let netns = node.machine().netns();
    let listener = netns.run_in(|| TcpListener::bind(address))??;
    // std's is short: where it overflows a connect takes a second.
    socket::listen(&listener, Backlog::MAXALLOWABLE)?;
    for _ in 0..ACCEPTORS {
        let listener = listener.try_clone()?;
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }
    Ok(())
}

/// One of the two.
pub(crate) struct Side<'a> {
    pub(crate) name: &'static str,
    pub(crate) node: &'a Node,
    argv: Vec<String>,
    /// From the start of the process until all Services answer.
    pub(crate) start: Samples,
    /// From the write of a change until a connect follows it.
    pub(crate) change: Samples,
}

impl<'a> Side<'a> {
    /// `twill-proxy` in this mode.
    pub(crate) fn twill(lab: &'a Lab, mode: &str, own: &[&str]) -> Result<Side<'a>> {
        Side::new(lab.node("twill")?, Daemon::Proxy.name(), mode, own)
    }

    /// kube-proxy in this mode.
    pub(crate) fn kube_proxy(lab: &'a Lab, mode: &str) -> Result<Side<'a>> {
        Side::new(lab.node("reference")?, Program::KubeProxy.name(), mode, &[])
    }

    fn new(node: &'a Node, name: &'static str, mode: &str, own: &[&str]) -> Result<Side<'a>> {
        let mut argv = node.proxy_argv(name, mode);
        argv.extend(own.iter().map(|&flag| flag.to_owned()));
        Ok(Side {
            name,
            node,
            argv,
            start: Samples::default(),
            change: Samples::default(),
        })
    }

    /// Starts it with so many Services in the API, on a node that has no rules, until they answer.
    pub(crate) fn start(&mut self, lab: &Lab, services: u32) -> Result<()> {
        let machine = self.node.machine();
        // As on a node that is new.
        machine.run("rm -rf /var/lib/twill/twill-proxy")?;
        // It tells of this start alone.
        let _ = std::fs::remove_file(machine.log(self.name));
        write_endpoint(lab, true)?;
        let started = Instant::now();
        let argv: Vec<_> = self.argv.iter().map(String::as_str).collect();
        machine.spawn(self.name, &argv, &[])?;
        for service in [services - 1, services / LIVE / 2 * LIVE, 0] {
            self.wait(service, Connect::Arrives)?;
        }
        self.start.push(started.elapsed());
        Ok(())
    }

    /// Replaces an endpoint that refuses by one that answers, again and again.
    pub(crate) fn change(&mut self, lab: &Lab) -> Result<()> {
        for _ in 0..CHANGES {
            pause(BETWEEN);
            write_endpoint(lab, false)?;
            self.wait(0, Connect::IsRefused)?;
            pause(BETWEEN);
            let written = Instant::now();
            write_endpoint(lab, true)?;
            self.wait(0, Connect::Arrives)?;
            self.change.push(written.elapsed());
        }
        Ok(())
    }

    /// Ends the process; its rules stay.
    pub(crate) fn stop(&self) -> Result<()> {
        self.node.machine().stop(self.name, Signal::SIGTERM)
    }

    /// Waits until a connect to a Service fares like that.
    fn wait(&self, service: u32, wanted: Connect) -> Result<()> {
        let address = address(service);
        let machine = self.node.machine();
        let started = Instant::now();
        let mut last = Connect::IsLost;
        while started.elapsed() < 2 * wait::PATIENCE {
            last = connect(machine.netns(), address)?;
            if last == wanted {
                return Ok(());
            }
            pause(LOOK);
        }
        bail!(
            "waited {} s until a connect of {} to {address} {wanted:?}; the last one {last:?}\n{}",
            started.elapsed().as_secs(),
            self.node.name(),
            machine.last_words(self.name)
        )
    }
}

/// How a connect fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connect {
    Arrives,
    IsRefused,
    /// Its packet met no rule; it is given up soon.
    IsLost,
}

fn connect(netns: &NetNs, address: SocketAddr) -> Result<Connect> {
    const SOON: Duration = Duration::from_millis(20);
    let connected = netns.run_in(|| TcpStream::connect_timeout(&address, SOON))?;
    Ok(match connected {
        Ok(_) => Connect::Arrives,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Connect::IsRefused,
        Err(_) => Connect::IsLost,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a pace, not a wait for a condition"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 97, 0, 0)) + service)
}

/// Where a Service answers.
pub(crate) fn address(service: u32) -> SocketAddr {
    SocketAddr::from((cluster_ip(service), 80))
}

/// Puts Services with two endpoints each into the store.
pub(crate) fn fill(lab: &Lab, services: Range<u32>) -> Result<()> {
    let servers = [lab.node(SERVERS[0])?.ip(), lab.node(SERVERS[1])?.ip()];
    let endpoints = |n: u32| {
        if matches!(n % LIVE, 0 | LAST_LIVE) {
            servers
        } else {
            [2 * n, 2 * n + 1].map(|n| Ipv4Addr::from(0x0af4_0000 + n).into())
        }
    };
    let objects = services.flat_map(|n| {
        let name = name(n);
        [
            (format!("ipaddresses/{}", cluster_ip(n)), ip_address(n)),
            (
                format!("endpointslices/default/{name}"),
                slice(n, &endpoints(n)),
            ),
            (format!("services/specs/default/{name}"), service(n)),
        ]
    });
    store::put(lab.control_plane(), objects)
}

/// Writes that Service 0 has an endpoint that answers, or one that refuses.
fn write_endpoint(lab: &Lab, answers: bool) -> Result<()> {
    let address = if answers {
        lab.node(SERVERS[0])?.ip()
    } else {
        Seat::ControlPlane.v4().into()
    };
    lab.api()
        .apply(&slice(0, &[address]))
        .context("write a slice")?;
    Ok(())
}

fn name(n: u32) -> String {
    format!("service-{n}")
}

/// As the API server keeps it, with what it would have added.
fn service(n: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(0, n, &json!({})),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip(n),
            "clusterIPs": [cluster_ip(n)],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [{"port": 80, "targetPort": TARGET, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// That the Service's address is taken.
fn ip_address(n: u32) -> Value {
    let labels = json!({
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    });
    let mut metadata = metadata(1, n, &labels);
    metadata["name"] = json!(cluster_ip(n));
    metadata["namespace"] = Value::Null;
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": metadata,
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": name(n)}},
    })
}

/// Who serves a Service.
fn slice(n: u32, endpoints: &[IpAddr]) -> Value {
    let endpoints = endpoints
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}));
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(2, n, &json!({"kubernetes.io/service-name": name(n)})),
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "", "port": TARGET, "protocol": "TCP"}],
    })
}

fn metadata(kind: u32, n: u32, labels: &Value) -> Value {
    json!({
        "name": name(n),
        "namespace": "default",
        "uid": format!("00000000-0000-4000-800{kind}-{n:012x}"),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels,
    })
}
