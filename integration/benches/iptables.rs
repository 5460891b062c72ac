//! `twill-proxy` beside kube-proxy, both in iptables mode, on one real API server, in turns: from the start of the
//! process until all Services answer, from the write of one change until connects follow it, and what they use.
//!
//! On iptables-nft, which most hosts use, and on iptables-legacy; with 10,000 Services on the latter alone: there one
//! restore of the former takes more than a minute, whoever asks for it. A change on iptables-legacy has the kernel
//! take its whole table anew, which no proxy can spare it: `iptables-restore` is measured by itself, with the same rules
//! and with one chain more, and what each side needs beside it is printed too.

#[path = "report/proxies.rs"]
mod proxies;
mod report;
#[path = "report/resources.rs"]
mod resources;

use std::time::Instant;

use anyhow::Result;
use integration::Node;
use integration::progress::Progress;
use proxies::Side;
use report::{Samples, table};

/// One row of the benchmark.
struct Case {
    variant: &'static str,
    services: u32,
    /// How often each side is started.
    rounds: usize,
}

const CASES: [Case; 3] = [
    Case {
        variant: "nft",
        services: 2_000,
        rounds: 3,
    },
    Case {
        variant: "legacy",
        services: 2_000,
        rounds: 3,
    },
    Case {
        variant: "legacy",
        services: 10_000,
        rounds: 2,
    },
];

/// Chains that are put in one by one, beside all rules.
const CHAINS: usize = 5;

fn main() -> Result<()> {
    let progress = Progress::shown();
    let lab = proxies::lab(progress)?;
    let mut there = 0;
    for case in CASES {
        let Case {
            variant, services, ..
        } = case;
        let step = progress.step(format!("{services} services"));
        proxies::fill(&lab, there..services)?;
        there = services;
        step.done();
        let flag = format!("--iptables-variant={variant}");
        let mut sides = [
            Side::twill(&lab, "iptables", &[&flag])?,
            Side::kube_proxy(&lab, "iptables")?,
        ];
        let mut used = Vec::new();
        for round in 1..=case.rounds {
            used.clear();
            for side in &mut sides {
                let step = progress.step(format!(
                    "{} on iptables-{variant}, {round} of {}",
                    side.name, case.rounds
                ));
                clear(side.node, variant)?;
                side.start(&lab, services)?;
                side.change(&lab)?;
                used.push((side.name, resources::used(side.node, side.name)?));
                side.stop()?;
                step.done();
            }
        }
        let [ours, theirs] = &sides;
        let [all, one] = restores(ours.node, variant, case.rounds)?;
        let rows = [
            ("start → served", &ours.start, &theirs.start, all),
            ("one change", &ours.change, &theirs.change, one),
        ];
        for (what, our_times, their_times, alone) in rows {
            let what = format!("{services}, {variant}: {what}");
            table(&what, [(ours.name, our_times), (theirs.name, their_times)]);
            print_beside(&alone, our_times, their_times);
        }
        resources::print(&format!("{services} services × 2, {variant}"), &used);
    }
    Ok(())
}

/// Prints the median of what is no side's own, and how much the first needs of the second beside it: nothing, where it takes
/// no longer than that.
#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn print_beside(alone: &Samples, ours: &Samples, theirs: &Samples) {
    let restore = alone.percentile(50);
    let beside = |percent| {
        let rest = |samples: &Samples| samples.percentile(percent) - restore;
        rest(ours).max(0.0) / rest(theirs)
    };
    println!("  {:<22}{restore:>12.2}", "iptables-restore alone");
    println!(
        "  {:<22}{:>12.2}{:>12.2}",
        "ratio beside it",
        beside(50),
        beside(95)
    );
}

/// How long `iptables-restore` by itself takes on a node that has all rules: for all of them anew, and for one more chain.
fn restores(node: &Node, variant: &str, rounds: usize) -> Result<[Samples; 2]> {
    const FILE: &str = "/etc/twill/rules";
    let machine = node.machine();
    let restore = |rules: &str, samples: &mut Samples| -> Result<()> {
        machine.write(FILE, rules)?;
        let started = Instant::now();
        machine.run(&format!("iptables-restore --wait --noflush {FILE}"))?;
        samples.push(started.elapsed());
        Ok(())
    };
    let rules = machine.run("iptables-save")?;
    let [mut all, mut one] = [Samples::default(), Samples::default()];
    for round in 0..rounds {
        clear(node, variant)?;
        restore(&rules, &mut all)?;
        for chain in 0..CHAINS {
            let more = format!("*nat\n:MORE-{round}-{chain} - [0:0]\nCOMMIT\n");
            restore(&more, &mut one)?;
        }
    }
    Ok([all, one])
}

/// Has a machine use this variant of iptables, by the name that kube-proxy calls, and takes all rules away.
fn clear(node: &Node, variant: &str) -> Result<()> {
    let machine = node.machine();
    for family in ["iptables", "ip6tables"] {
        for command in ["", "-save", "-restore"] {
            let link = format!("ln -sf {family}-{variant}{command} /usr/sbin/{family}{command}");
            machine.run(&link)?;
        }
    }
    machine.run("nft flush ruleset")?;
    let tables = ["mangle", "filter", "nat"].map(|table| format!("*{table}\nCOMMIT\n"));
    machine.write("/etc/twill/empty", &tables.concat())?;
    for family in ["iptables", "ip6tables"] {
        machine.run(&format!("{family}-legacy-restore /etc/twill/empty"))?;
    }
    Ok(())
}
