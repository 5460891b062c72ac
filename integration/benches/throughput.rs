//! Pod to pod across nodes over VXLAN: what flanneld's tunnel carries, beside flannel's, in one
//! cluster. Runs take turns, so that whatever else the machine does hits both sides alike.

#[path = "report/rates.rs"]
mod rates;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::progress::Progress;
use integration::upstream::{self, Module, Program};
use integration::{Daemon, Lab, Pod, PodSpec, traffic, wait};

const RUNS: usize = 9;
/// How long a side sends before it is the other's turn, and how often in a run: what else the machine does comes and
/// goes within seconds.
const TURN: Duration = Duration::from_millis(100);
const TURNS: usize = 20;
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

    let step = progress.step(format!("{RUNS} runs, in each {TURNS} turns of each side"));
    let mut flows = Vec::new();
    for way in &ways {
        flows.push(Flow::start(&way[0], &way[1])?);
    }
    let mut rates = [const { Vec::new() }; 2];
    // The first round warms up.
    for round in 0..=RUNS {
        let mut sums = [(0, Duration::ZERO); 2];
        for _ in 0..TURNS {
            for (sum, flow) in sums.iter_mut().zip(&mut flows) {
                let (bytes, took) = flow.turn()?;
                *sum = (sum.0 + bytes, sum.1 + took);
            }
        }
        for (rates, (bytes, took)) in rates.iter_mut().zip(sums).filter(|_| round > 0) {
            rates.push(bytes as f64 * 8.0 / took.as_secs_f64() / 1e9);
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

/// A connection from one pod to another, and what has come of it.
struct Flow {
    stream: TcpStream,
    sent: u64,
    received: mpsc::Receiver<u64>,
}

impl Flow {
    fn start(from: &Pod, to: &Pod) -> Result<Flow> {
        let listener = to
            .netns()
            .run_in(|| TcpListener::bind(SocketAddr::from((to.ip(), 0))))??;
        let server = listener.local_addr()?;
        let stream = from.netns().run_in(|| TcpStream::connect(server))??;
        let (mut incoming, _) = listener.accept()?;
        let (count, received) = mpsc::channel();
        // It ends with the connection.
        std::thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            while let Ok(bytes @ 1..) = incoming.read(&mut buffer) {
                if count.send(bytes as u64).is_err() {
                    return;
                }
            }
        });
        let sent = 0;
        Ok(Flow {
            stream,
            sent,
            received,
        })
    }

    /// Sends for a while, and waits until all of it has come. Returns how much that was, and how long it took.
    fn turn(&mut self) -> Result<(u64, Duration)> {
        let chunk = vec![0; CHUNK];
        let (mut bytes, started) = (0, Instant::now());
        while started.elapsed() < TURN {
            self.stream.write_all(&chunk)?;
            bytes += CHUNK as u64;
        }
        self.sent += bytes;
        while self.sent > 0 {
            let come = self.received.recv_timeout(wait::PATIENCE);
            self.sent -= come.context("the other pod receives nothing")?;
        }
        Ok((bytes, started.elapsed()))
    }
}
