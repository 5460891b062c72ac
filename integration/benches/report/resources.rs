//! What daemons use.

use anyhow::{Context, Result, ensure};
use integration::Node;

/// Prints what processes keep in memory, and what they have used of the processor since their start.
#[expect(clippy::print_stdout, reason = "the benchmark's result")]
pub(crate) fn print(what: &str, rows: &[(&str, &Node, &str)]) -> Result<()> {
    println!("\n{what:<24}{:>12}{:>12}", "RSS MiB", "CPU s");
    for &(name, node, process) in rows {
        let (memory, processor) = used(node, process)?;
        println!("  {name:<22}{memory:>12.1}{processor:>12.2}");
    }
    Ok(())
}

/// Resident memory in MiB, and processor time in seconds, of a process on a node.
fn used(node: &Node, process: &str) -> Result<(f64, f64)> {
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
    Ok((resident / 1024.0, (ticks(11)? + ticks(12)?) / TICKS))
}
