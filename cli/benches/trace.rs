//! What `twill trace` takes on a node with thousands of Services: time, and memory at most. Prints its figures; in a private
//! network namespace; needs root.

#![expect(clippy::print_stdout, reason = "the benchmark's result")]

#[path = "../tests/node/services.rs"]
mod services;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser as _;
use cli::args::{self, Args};
use hostnet::testkit::Ns;

const SIZES: [u32; 2] = [100, 10_000];
/// Traces of each kind, of which the median is told.
const RUNS: usize = 15;
/// The argument by which this program is the one that is measured.
const MEASURED: &str = "--measured";

fn main() {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(MEASURED) {
        return measured(words);
    }
    println!(
        "{:<10}{:<34}{:>12}{:>14}",
        "Services", "twill trace node …", "ms (median)", "peak RSS MiB"
    );
    let folder = tempfile::tempdir().unwrap();
    for size in SIZES {
        let node = services::node(size);
        let file = folder.path().join("twill-proxy");
        services::save(&file, size);
        for (to, snapshots, said) in [
            ("10.96.1.7:80", folder.path(), "by address"),
            (
                "svc/default/service-7",
                folder.path(),
                "by name, twill-proxy's file",
            ),
            (
                "svc/default/service-7",
                Path::new("/nowhere"),
                "by name, the map read",
            ),
        ] {
            let mut runs: Vec<_> = (0..RUNS).map(|_| run(&node, snapshots, to)).collect();
            runs.sort();
            let (took, memory) = runs[RUNS / 2];
            println!(
                "{size:<10}{said:<34}{:>12.1}{:>14.1}",
                took.as_secs_f64() * 1e3,
                memory as f64 / 1024.0
            );
        }
    }
}

/// How long it takes, with the start of a process, and how many KiB it has at most.
fn run(node: &Ns, snapshots: &Path, to: &str) -> (Duration, u64) {
    let program = std::env::current_exe().unwrap();
    let snapshots = snapshots.to_str().unwrap();
    let line = [
        MEASURED,
        "--offline",
        "--records",
        "/nowhere",
        "--snapshot-dir",
        snapshots,
        "trace",
        "node",
        to,
    ];
    let start = Instant::now();
    let output = node.output(program.to_str().unwrap(), &line);
    let took = start.elapsed();
    let text = String::from_utf8(output.stdout).unwrap();
    let (told, peak) = text.trim_end().rsplit_once('\n').unwrap();
    assert!(told.contains("chance 50.0 %"), "{told}");
    (took, peak.parse().unwrap())
}

/// Does as `twill` does, and prints the most memory that it had.
fn measured(words: impl Iterator<Item = String>) {
    let args = Args::parse_from(["twill".to_owned()].into_iter().chain(words));
    let mut text = String::new();
    args::run(&args, &mut text).unwrap();
    print!("{text}");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("{}", peak.unwrap().trim_end_matches("kB").trim());
}
