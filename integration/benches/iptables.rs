//! `twill-proxy` beside kube-proxy, both in iptables mode, on one real API server, in turns: from the start of the
//! process until all Services answer, from the write of one change until connects follow it, and what they use.
//!
//! On iptables-nft, which most hosts use, and on iptables-legacy; with 10,000 Services on the latter alone: there one
//! restore of the former takes more than a minute, whoever asks for it. A change on iptables-legacy has the kernel
//! take its whole table anew, which no proxy can spare it.

#[path = "report/proxies.rs"]
mod proxies;
mod report;
#[path = "report/resources.rs"]
mod resources;

use anyhow::Result;
use integration::Node;
use integration::progress::Progress;
use proxies::Side;
use report::table;

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
        table(
            &format!("{services}, {variant}: start → served"),
            [(ours.name, &ours.start), (theirs.name, &theirs.start)],
        );
        table(
            &format!("{services}, {variant}: one change"),
            [(ours.name, &ours.change), (theirs.name, &theirs.change)],
        );
        resources::print(&format!("{services} services × 2, {variant}"), &used);
    }
    Ok(())
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
