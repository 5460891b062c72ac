//! What both sides get through in a time.

/// Prints the median, the least and the most of runs that took turns, and the ratio of the medians.
#[expect(clippy::print_stdout, reason = "the benchmark's result")]
pub(crate) fn print(what: &str, sides: [(&str, Vec<f64>); 2]) {
    println!("\n{what:<24}{:>12}{:>12}{:>12}", "median", "least", "most");
    let [ours, theirs] = sides.map(|(side, mut rates)| {
        rates.sort_by(f64::total_cmp);
        let (least, most) = (rates[0], rates[rates.len() - 1]);
        let median = rates[rates.len() / 2];
        println!("  {side:<22}{median:>12.2}{least:>12.2}{most:>12.2}");
        median
    });
    println!("  {:<22}{:>12.2}", "ratio", ours / theirs);
}
