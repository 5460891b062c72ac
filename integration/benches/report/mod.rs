//! What the benchmarks print: figures of both sides, and their ratio.

use std::time::Duration;

/// Measured times of one side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The value that `percent` of the samples do not exceed (nearest rank), in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted[rank - 1].as_secs_f64() * 1e3
    }
}

/// Prints p50 and p95 of each side and, of two, how much the first needs of the second.
#[expect(clippy::print_stdout, reason = "the benchmark's result")]
pub(crate) fn table<'a>(what: &str, sides: impl AsRef<[(&'a str, &'a Samples)]>) {
    let sides = sides.as_ref();
    println!("\n{what:<24}{:>12}{:>12}", "p50 ms", "p95 ms");
    for (name, samples) in sides {
        println!(
            "  {name:<22}{:>12.2}{:>12.2}",
            samples.percentile(50),
            samples.percentile(95)
        );
    }
    if let [(_, first), (_, second)] = sides {
        let ratio = |percent| first.percentile(percent) / second.percentile(percent);
        println!("  {:<22}{:>12.2}{:>12.2}", "ratio", ratio(50), ratio(95));
    }
}
