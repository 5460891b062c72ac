//! `twill-proxy` beside kube-proxy, both in iptables mode, on one real API server, in turns: from the start of the
//! process until all Services answer, from the write of one change until connects follow it, and memory.
//!
//! Both work on iptables-legacy: with 10,000 Services one restore of iptables-nft takes more than a minute,
//! whoever asks for it.

mod report;
#[path = "report/resources.rs"]
mod resources;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hostnet::netns::NetNs;
use integration::lab::Lab;
use integration::machine::ADMIN_CONF;
use integration::machine::root::{ASSETS, BINARIES};
use integration::progress::Progress;
use integration::traffic::{self, Transport};
use integration::upstream::Program;
use integration::{Daemon, Node, wait};
use nix::sys::signal::Signal;
use report::{Samples, table};
use serde_json::{Value, json};

/// How many Services there are, and how often each side is started with them.
const SIZES: [(u16, usize); 2] = [(2_000, 3), (10_000, 2)];
/// Changes of one Service's endpoint after each start.
const CHANGES: usize = 5;
/// Between one change and the next: longer than kube-proxy's `minSyncPeriod` of 1 s, which would otherwise be all
/// that is seen of it.
const BETWEEN: Duration = Duration::from_millis(1500);
/// Between one look and the next.
const LOOK: Duration = Duration::from_millis(2);
/// How many write Services at once.
const WRITERS: u16 = 8;
/// The servers' names, and where they listen.
const SERVERS: [&str; 2] = ["first", "second"];
const TARGET: u16 = 8080;

/// One of the two.
struct Side<'a> {
    name: &'static str,
    node: &'a Node,
    argv: Vec<String>,
    start: Samples,
    change: Samples,
}

fn main() -> Result<()> {
    let progress = Progress::shown();
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
        let argv = ["/opt/twill/lab", "serve", name, &TARGET.to_string()];
        lab.node(name)?.machine().spawn("server", &argv, &[])?;
    }
    let nodes = [lab.node("twill")?, lab.node("reference")?];
    for node in nodes {
        prepare(node)?;
    }
    let mut there = 0;
    for (services, rounds) in SIZES {
        let step = progress.step(format!("{services} services"));
        write(&lab, there..services)?;
        there = services;
        step.done();
        let mut sides = [twill_proxy(nodes[0]), kube_proxy(nodes[1])];
        let mut used = Vec::new();
        for round in 1..=rounds {
            used.clear();
            for side in &mut sides {
                let step = progress.step(format!("{}, {round} of {rounds}", side.name));
                used.push((side.name, measure(&lab, side, services)?));
                step.done();
            }
        }
        let [ours, theirs] = &sides;
        let both = |of: for<'a> fn(&'a Side<'_>) -> &'a Samples| {
            [(ours.name, of(ours)), (theirs.name, of(theirs))]
        };
        table(
            &format!("{services}: start → served"),
            both(|side| &side.start),
        );
        table(
            &format!("{services}: one change"),
            both(|side| &side.change),
        );
        resources::print(&format!("{services} services × 2"), &used);
    }
    Ok(())
}

fn twill_proxy(node: &Node) -> Side<'_> {
    let own = ["--iptables-variant=legacy"];
    Side::new(node, Daemon::Proxy.name(), BINARIES, &own)
}

fn kube_proxy(node: &Node) -> Side<'_> {
    // These switches are the machine's, not the node's.
    let own = [
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ];
    Side::new(node, Program::KubeProxy.name(), ASSETS, &own)
}

impl<'a> Side<'a> {
    fn new(node: &'a Node, name: &'static str, folder: &str, own: &[&str]) -> Side<'a> {
        let mut argv = vec![
            format!("{folder}/{name}"),
            "--proxy-mode=iptables".to_owned(),
            format!("--kubeconfig={ADMIN_CONF}"),
            format!("--hostname-override={}", node.name()),
            "--cluster-cidr=10.244.0.0/16".to_owned(),
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-min=0".to_owned(),
        ];
        argv.extend(own.iter().map(|&flag| flag.to_owned()));
        Side {
            name,
            node,
            argv,
            start: Samples::default(),
            change: Samples::default(),
        }
    }
}

/// Has a machine use iptables-legacy, by the name that kube-proxy calls.
fn prepare(node: &Node) -> Result<()> {
    for family in ["iptables", "ip6tables"] {
        for command in ["", "-save", "-restore"] {
            let link = format!("ln -sf {family}-legacy{command} /usr/sbin/{family}{command}");
            node.machine().run(&link)?;
        }
    }
    let tables = ["mangle", "filter", "nat"].map(|table| format!("*{table}\nCOMMIT\n"));
    node.machine().write("/etc/twill/empty", &tables.concat())
}

/// Starts a side on a node without rules, changes things, and stops it. Returns what it used.
fn measure(lab: &Lab, side: &mut Side<'_>, services: u16) -> Result<resources::Used> {
    let machine = side.node.machine();
    for family in ["iptables", "ip6tables"] {
        machine.run(&format!("{family}-legacy-restore /etc/twill/empty"))?;
    }
    // As on a node that is new.
    machine.run("rm -rf /var/lib/twill/twill-proxy")?;
    endpoint(lab, 0, &SERVERS[..1])?;
    let started = Instant::now();
    let argv: Vec<_> = side.argv.iter().map(String::as_str).collect();
    machine.spawn(side.name, &argv, &[])?;
    for service in [services - 1, services / 2, 0] {
        reached(side, service, None)?;
    }
    side.start.push(started.elapsed());
    for change in 1..=CHANGES {
        pause(BETWEEN);
        let server = SERVERS[change % SERVERS.len()];
        let written = Instant::now();
        endpoint(lab, 0, &[server])?;
        reached(side, 0, Some(server))?;
        side.change.push(written.elapsed());
    }
    let used = resources::used(side.node, side.name)?;
    machine.stop(side.name, Signal::SIGTERM)?;
    Ok(used)
}

/// Waits until a Service answers, by that server if one is named.
fn reached(side: &Side<'_>, service: u16, server: Option<&str>) -> Result<()> {
    let address = SocketAddr::from((cluster_ip(service), 80));
    let machine = side.node.machine();
    let started = Instant::now();
    while started.elapsed() < 2 * wait::PATIENCE {
        if answers(machine.netns(), address, server) {
            return Ok(());
        }
        pause(LOOK);
    }
    bail!(
        "{address} never answered: {}",
        machine.last_words(side.name)
    )
}

/// A connect whose packet met no rule is given up soon.
fn answers(netns: &NetNs, address: SocketAddr, server: Option<&str>) -> bool {
    const SOON: Duration = Duration::from_millis(20);
    let connected = netns.run_in(|| TcpStream::connect_timeout(&address, SOON).is_ok());
    let is_served = connected.is_ok_and(|connected| connected);
    let Some(server) = server else {
        return is_served;
    };
    let answer = || traffic::ask(netns, Transport::Tcp, address);
    is_served && answer().is_ok_and(|greeting| greeting.server == server)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a pace, not a wait for a condition"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn cluster_ip(service: u16) -> Ipv4Addr {
    let [high, low] = service.to_be_bytes();
    Ipv4Addr::new(10, 97, high, low)
}

/// Writes these Services with two endpoints each, many at once.
fn write(lab: &Lab, services: std::ops::Range<u16>) -> Result<()> {
    scope(|threads| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let own = services.clone().filter(move |n| n % WRITERS == writer);
                threads.spawn(move || {
                    own.into_iter().try_for_each(|n| {
                        endpoint(lab, n, &SERVERS)?;
                        lab.api().apply(&service(n)).map(|_| ())
                    })
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| {
            writer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn service(n: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": format!("service-{n}"), "namespace": "default"},
        "spec": {
            "clusterIP": cluster_ip(n),
            "ports": [{"port": 80, "targetPort": TARGET, "protocol": "TCP"}],
        },
    })
}

/// Writes who serves a Service.
fn endpoint(lab: &Lab, n: u16, servers: &[&str]) -> Result<()> {
    let endpoints = servers.iter().map(|&server| {
        let address = lab.node(server)?.ip();
        Ok(json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": server}))
    });
    lab.api()
        .apply(&json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("service-{n}"),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": format!("service-{n}")},
            },
            "addressType": "IPv4",
            "endpoints": endpoints.collect::<Result<Vec<_>>>()?,
            "ports": [{"name": "", "port": TARGET, "protocol": "TCP"}],
        }))
        .context("write a slice")?;
    Ok(())
}
