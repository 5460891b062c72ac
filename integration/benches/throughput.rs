//! Pod to pod across nodes over VXLAN: what flanneld's tunnel carries, beside flannel's, in one
//! cluster. Runs take turns, so that whatever else the machine does hits both sides alike.

#[path = "report/rates.rs"]
mod rates;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::progress::Progress;
use integration::upstream::{self, Module, Program};
use integration::{Daemon, Lab, Pod, PodSpec, traffic, wait};

const RUNS: usize = 9;
/// How long a run sends.
const RUN: Duration = Duration::from_secs(2);
const CHUNK: usize = 128 * 1024;

const NET_CONF: &str =
    r#"{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#;

/// The sides, with the nodes of each.
const SIDES: [(&str, [&str; 2]); 2] = [
    ("flanneld", ["twill-a", "twill-b"]),
    ("flannel", ["reference-a", "reference-b"]),
];

fn main() -> Result<()> {
    let progress = Progress::shown();
    upstream::assets(Module::Flannel, &[Program::Flannel], progress)?;
    let mut builder = Lab::builder()
        .progress(progress)
        .net_conf(NET_CONF)
        .daemons(&[]);
    let nodes = || {
        SIDES
            .iter()
            .flat_map(|(side, nodes)| nodes.map(|node| (*side, node)))
    };
    for (index, (_, node)) in (1..).zip(nodes()) {
        builder = builder.node(node, &[format!("10.244.{index}.0/24").parse()?]);
    }
    let lab = builder.up()?;
    let mut pods = Vec::new();
    for (side, name) in nodes() {
        let node = lab.node(name)?;
        if side == Daemon::Flanneld.name() {
            node.provide(Daemon::Flanneld, lab.control_plane(), NET_CONF)?;
            node.start(Daemon::Flanneld)?;
            node.wait_ready(Daemon::Flanneld)?;
        } else {
            node.start_flannel(NET_CONF)?;
        }
        pods.push(lab.run_pod(PodSpec::new(&format!("pod-{name}"), name))?);
    }
    let ways: Vec<&[Pod]> = pods.chunks(2).collect();
    for way in &ways {
        wait::until("a way to the other node", wait::PATIENCE, || {
            let there = traffic::ask(way[0].netns(), traffic::Transport::Tcp, way[1].address());
            Ok(there.map(drop))
        })?;
    }

    let step = progress.step(format!("{RUNS} runs on each side, in turn"));
    let mut rates = [const { Vec::new() }; 2];
    // The first round warms up.
    for round in 0..=RUNS {
        for (rates, way) in rates.iter_mut().zip(&ways) {
            let rate = transfer(&way[0], &way[1])?;
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    step.done();
    let [ours, theirs] = rates;
    rates::print(
        "pod → pod, Gbit/s",
        [(SIDES[0].0, ours), (SIDES[1].0, theirs)],
    );
    Ok(())
}

/// Sends from one pod to the other for a while. Returns what came, in Gbit/s.
fn transfer(from: &Pod, to: &Pod) -> Result<f64> {
    let listener = to
        .netns()
        .run_in(|| TcpListener::bind(SocketAddr::from((to.ip(), 0))))??;
    let server = listener.local_addr()?;
    std::thread::scope(|threads| {
        let receiver = threads.spawn(move || -> std::io::Result<(u64, Duration)> {
            let (mut stream, _) = listener.accept()?;
            let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
            let started = Instant::now();
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok((bytes, started.elapsed())),
                    count => bytes += count as u64,
                }
            }
        });
        let mut stream = from.netns().run_in(|| TcpStream::connect(server))??;
        let chunk = vec![0; CHUNK];
        let started = Instant::now();
        while started.elapsed() < RUN {
            stream.write_all(&chunk)?;
        }
        drop(stream);
        let joined = receiver.join();
        let (bytes, took) = joined
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .context("receiving")?;
        Ok(bytes as f64 * 8.0 / took.as_secs_f64() / 1e9)
    })
}
