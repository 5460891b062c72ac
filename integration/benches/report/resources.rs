//! What daemons use.

use anyhow::{Context, Result, ensure};
use integration::Node;

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// Resident memory, in MiB.
    memory: f64,
    /// Processor time since its start, in seconds.
    processor: f64,
}

/// Prints what processes used, and how much the first needs of the last in memory.
#[expect(clippy::print_stdout, reason = "the benchmark's result")]
pub(crate) fn print(what: &str, rows: &[(&str, Used)]) {
    println!("\n{what:<24}{:>12}{:>12}", "RSS MiB", "CPU s");
    for (name, used) in rows {
        println!("  {name:<22}{:>12.1}{:>12.2}", used.memory, used.processor);
    }
    if let [(_, first), .., (_, last)] = rows {
        println!("  {:<22}{:>12.2}", "ratio", first.memory / last.memory);
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
    // proc_pid_stat(5): after the name in brackets, utime and stime are the 12th and 13th field.
    let stat = read("stat")?;
    let (_, rest) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).context("short stat")?.parse()?) };
    Ok(Used {
        memory: resident / 1024.0,
        processor: (ticks(11)? + ticks(12)?) / TICKS,
    })
}
