//! `twill-proxy` beside kube-proxy, both in nftables mode, on one real API server: in turns, from the start of the
//! process until all Services answer, the first load of the kernel as each side tells it, from the write of one change
//! until a connect follows it, and what they use; then connects through a cluster IP. More Services than these are
//! twill-proxy's alone: one transaction of kube-proxy's would hold a processor for minutes.

#[path = "report/proxies.rs"]
mod proxies;
#[path = "report/rates.rs"]
mod rates;
mod report;
#[path = "report/resources.rs"]
mod resources;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hostnet::netns::NetNs;
use integration::lab::Lab;
use integration::progress::Progress;
use integration::{Daemon, wait};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt::Linger};
use proxies::Side;
use report::{Samples, table};
use resources::Used;

/// Where both sides are.
const SERVICES: u32 = 2_000;
/// twill-proxy's alone.
const MORE: [u32; 2] = [10_000, 50_000];
/// How often each side is started.
const ROUNDS: usize = 3;
/// How often, in turn, connects are counted, how long, and how many make them at once.
const RUNS: usize = 9;
const RUN: Duration = Duration::from_secs(1);
const CLIENTS: usize = 2;
/// How long one connect may take.
const PATIENCE: Duration = Duration::from_secs(5);

const MODE: &str = "nftables";

/// What is measured of a side besides [`Side`]'s own.
#[derive(Default)]
struct Measured {
    /// The first load.
    load: Samples,
    /// When all Services answered.
    at_start: Option<Used>,
    /// After the changes.
    at_end: Option<Used>,
}

fn main() -> Result<()> {
    let progress = Progress::shown();
    let lab = proxies::lab(progress)?;
    let step = progress.step(format!("{SERVICES} services"));
    proxies::fill(&lab, 0..SERVICES)?;
    step.done();

    let mut sides = [Side::twill(&lab, MODE, &[])?, Side::kube_proxy(&lab, MODE)?];
    let mut measured: [Measured; 2] = Default::default();
    for round in 1..=ROUNDS {
        for (side, measured) in sides.iter_mut().zip(&mut measured) {
            let step = progress.step(format!("{}, {round} of {ROUNDS}", side.name));
            measure(&lab, side, measured, SERVICES)?;
            if round < ROUNDS {
                side.stop()?;
            }
            step.done();
        }
    }
    print(SERVICES, &[0, 1].map(|at| (&sides[at], &measured[at])));

    let step = progress.step(format!("{RUNS} runs of connects on each side, in turn"));
    let mut rates = [const { Vec::new() }; 2];
    // The first round warms up.
    for run in 0..=RUNS {
        for (side, rates) in sides.iter().zip(&mut rates) {
            let rate = connects(side.node.machine().netns(), proxies::address(0))
                .with_context(|| format!("{}, run {run}", side.name))?;
            if run > 0 {
                rates.push(rate);
            }
        }
    }
    step.done();
    let [ours, theirs] = rates;
    let [twill, reference] = &sides;
    rates::print(
        "connects per second",
        [(twill.name, ours), (reference.name, theirs)],
    );
    // Before there are more.
    reference.stop()?;
    twill.stop()?;

    let mut there = SERVICES;
    for services in MORE {
        let step = progress.step(format!("{services} services"));
        proxies::fill(&lab, there..services)?;
        there = services;
        step.done();
        let mut side = Side::twill(&lab, MODE, &[])?;
        let mut measured = Measured::default();
        for round in 1..=ROUNDS {
            let step = progress.step(format!("{}, {round} of {ROUNDS}", side.name));
            measure(&lab, &mut side, &mut measured, services)?;
            side.stop()?;
            step.done();
        }
        print(services, &[(&side, &measured)]);
    }
    Ok(())
}

/// Starts a side on a node without rules and changes things.
fn measure(lab: &Lab, side: &mut Side<'_>, measured: &mut Measured, services: u32) -> Result<()> {
    side.node.machine().run("nft flush ruleset")?;
    side.start(lab, services)?;
    measured.at_start = Some(resources::used(side.node, side.name)?);
    measured.load.push(first_load(side)?);
    side.change(lab)?;
    measured.at_end = Some(resources::used(side.node, side.name)?);
    Ok(())
}

fn print(services: u32, sides: &[(&Side<'_>, &Measured)]) {
    let times = |what: &str, of: fn(&Side<'_>, &Measured) -> Samples| {
        let samples: Vec<_> = sides
            .iter()
            .map(|(side, m)| (side.name, of(side, m)))
            .collect();
        let samples: Vec<_> = samples
            .iter()
            .map(|(name, samples)| (*name, samples))
            .collect();
        table(&format!("{services}: {what}"), &samples);
    };
    times("start → served", |side, _| side.start.clone());
    times("first load", |_, measured| measured.load.clone());
    times("one change", |side, _| side.change.clone());
    let used = |what: &str, of: fn(&Measured) -> Option<Used>| {
        let used: Vec<_> = sides
            .iter()
            .filter_map(|(side, m)| Some((side.name, of(m)?)))
            .collect();
        resources::print(&format!("{services}: {what}"), &used);
    };
    used("served", |measured| measured.at_start);
    used("after the changes", |measured| measured.at_end);
}

/// How long the first pass took, from Services to rules in the kernel, as the side itself tells.
fn first_load(side: &Side<'_>) -> Result<Duration> {
    let what = format!("the end of the first pass of {}", side.name);
    let seconds = wait::until(&what, wait::PATIENCE, || {
        let log = std::fs::read_to_string(side.node.machine().log(side.name))?;
        if let Some(took) = log.lines().find_map(logged) {
            return Ok(Ok(took));
        }
        // kube-proxy's are at the same port.
        let metrics = side.node.metrics(Daemon::Proxy)?;
        let took = metrics.lines().find_map(counted);
        Ok(took.context("there was none yet"))
    })?;
    Ok(Duration::from_secs_f64(seconds))
}

/// In seconds, from twill-proxy's log: its metric goes on to count the comparison that follows.
fn logged(line: &str) -> Option<f64> {
    let (_, took) = line.split_once("rules are in line with all Services")?;
    let (_, took) = took.split_once("took=")?;
    match took.strip_suffix("ms") {
        Some(number) => Some(number.parse::<f64>().ok()? / 1e3),
        None => took.strip_suffix('s')?.parse().ok(),
    }
}

/// In seconds, from kube-proxy's metrics, where there is no such log.
fn counted(line: &str) -> Option<f64> {
    const SUM: &str = "kubeproxy_sync_full_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} ";
    let sum = line.strip_prefix(SUM)?.parse().ok()?;
    (sum > 0.0).then_some(sum)
}

/// How many connects a second come through, one after another in each of a few threads.
fn connects(netns: &NetNs, address: SocketAddr) -> Result<f64> {
    let count = || -> Result<u32> {
        let started = Instant::now();
        let mut count = 0;
        while started.elapsed() < RUN {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
                .with_context(|| format!("connect {count} to {address}"))?;
            // The server closes at once. So no more connections wait for it than there are clients.
            stream.set_read_timeout(Some(PATIENCE))?;
            let read = stream.read(&mut [0]);
            let read =
                read.with_context(|| format!("the end of connection {count} to {address}"))?;
            ensure!(read == 0, "{address} sent something");
            // Ended by a reset, so that neither ports nor connection tracking fill with what is over.
            let at_once = linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&stream, Linger, &at_once)?;
            count += 1;
        }
        Ok(count)
    };
    let counts = std::thread::scope(|threads| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| threads.spawn(|| netns.run_in(count)?))
            .collect();
        let join = |client: std::thread::ScopedJoinHandle<'_, _>| {
            client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        clients.into_iter().map(join).collect::<Result<Vec<u32>>>()
    })?;
    Ok(f64::from(counts.iter().sum::<u32>()) / RUN.as_secs_f64())
}
