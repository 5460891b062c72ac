//! What daemons use.

use anyhow::{Context, Result, ensure};
use integration::Node;

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// Resident memory, in MiB.
    memory: f64,
    /// Processor time since its start, in seconds; with that of the programs that it has run.
    processor: f64,
    /// How much of that time was the kernel's.
    kernel: f64,
}

/// Prints what processes used, and how much the first needs of the last.
#[expect(clippy::print_stdout, reason = "the benchmark's result")]
pub(crate) fn print(what: &str, rows: &[(&str, Used)]) {
    println!(
        "\n{what:<24}{:>12}{:>12}{:>12}",
        "RSS MiB", "CPU s", "kernel's s"
    );
    let row = |name: &str, [memory, processor, kernel]: [f64; 3]| {
        println!("  {name:<22}{memory:>12.2}{processor:>12.2}{kernel:>12.2}");
    };
    let figures = |used: &Used| [used.memory, used.processor, used.kernel];
    for (name, used) in rows {
        row(name, figures(used));
    }
    if let [(_, first), .., (_, last)] = rows {
        let (first, last) = (figures(first), figures(last));
        row("ratio", std::array::from_fn(|at| first[at] / last[at]));
    }
}

/// What a process on a node uses.
pub(crate) fn used(node: &Node, process: &str) -> Result<Used> {
    /// Clock ticks per second in /proc, on every architecture (`USER_HZ`).
    const TICKS: f64 = 100.0;
    let keeper = node.machine().keeper();
    let pid = keeper.running(&format!("{}/{process}", node.name()))?;
    let read = |file: &str| std::fs::read_to_string(keeper.path(format!("/proc/{pid}/{file}")));
    let status = read("status")?;
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next())
    };
    let name = field("Name:").context("no name in /proc/PID/status")?;
    ensure!(process.starts_with(name), "{process} runs as {name}");
    let resident: f64 = field("VmRSS:").context("no VmRSS")?.parse()?;
    // proc_pid_stat(5): after the name in brackets, utime, stime, cutime and cstime are the 12th to 15th field.
    let stat = read("stat")?;
    let (_, rest) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let seconds = |at: usize| -> Result<f64> {
        let ticks: f64 = fields.get(at).context("short stat")?.parse()?;
        Ok(ticks / TICKS)
    };
    let kernel = seconds(12)? + seconds(14)?;
    Ok(Used {
        memory: resident / 1024.0,
        processor: seconds(11)? + seconds(13)? + kernel,
        kernel,
    })
}
