//! `twill-proxy` beside kube-proxy, both in iptables mode, on one real API server, in turns: from the start of the
//! process until all Services answer, from the write of one change until connects follow it, and what they use.
//!
//! Both work on iptables-legacy: with 10,000 Services one restore of iptables-nft takes more than a minute,
//! whoever asks for it.

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

/// How many Services there are, and how often each side is started with them.
const SIZES: [(u32, usize); 2] = [(2_000, 3), (10_000, 2)];

fn main() -> Result<()> {
    let progress = Progress::shown();
    let lab = proxies::lab(progress)?;
    let mut there = 0;
    for (services, rounds) in SIZES {
        let step = progress.step(format!("{services} services"));
        proxies::fill(&lab, there..services)?;
        there = services;
        step.done();
        let mut sides = [
            Side::twill(&lab, "iptables", &["--iptables-variant=legacy"])?,
            Side::kube_proxy(&lab, "iptables")?,
        ];
        let mut used = Vec::new();
        for round in 1..=rounds {
            used.clear();
            for side in &mut sides {
                let step = progress.step(format!("{}, {round} of {rounds}", side.name));
                clear(side.node)?;
                side.start(&lab, services)?;
                side.change(&lab)?;
                used.push((side.name, resources::used(side.node, side.name)?));
                side.stop()?;
                step.done();
            }
        }
        let [ours, theirs] = &sides;
        table(
            &format!("{services}: start → served"),
            [(ours.name, &ours.start), (theirs.name, &theirs.start)],
        );
        table(
            &format!("{services}: one change"),
            [(ours.name, &ours.change), (theirs.name, &theirs.change)],
        );
        resources::print(&format!("{services} services × 2"), &used);
    }
    Ok(())
}

/// Has a machine use iptables-legacy, by the name that kube-proxy calls, and takes all rules away.
fn clear(node: &Node) -> Result<()> {
    let machine = node.machine();
    for family in ["iptables", "ip6tables"] {
        for command in ["", "-save", "-restore"] {
            let link = format!("ln -sf {family}-legacy{command} /usr/sbin/{family}{command}");
            machine.run(&link)?;
        }
    }
    let tables = ["mangle", "filter", "nat"].map(|table| format!("*{table}\nCOMMIT\n"));
    machine.write("/etc/twill/empty", &tables.concat())?;
    for family in ["iptables", "ip6tables"] {
        machine.run(&format!("{family}-legacy-restore /etc/twill/empty"))?;
    }
    Ok(())
}
