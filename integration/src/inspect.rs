//! Reading the kernel with the tools that a person would use: `ip`, `bridge`, `nft`. What the
//! product did is checked with other people's code.

use anyhow::{Context, Result};
use hostnet::netns::NetNs;
use serde_json::Value;

use crate::machine::{Machine, printed};

/// Runs a command line on a machine that prints JSON.
pub fn json(machine: &Machine, line: &str) -> Result<Vec<Value>> {
    parse(line, &machine.run(line)?)
}

/// Runs a command line inside a network namespace (a pod's) with the host's tools, that prints
/// JSON.
pub fn json_in(netns: &NetNs, line: &str) -> Result<Vec<Value>> {
    parse(line, &run_in(netns, line)?)
}

/// Runs a command line inside a network namespace with the host's tools.
pub fn run_in(netns: &NetNs, line: &str) -> Result<String> {
    let output = std::process::Command::new("nsenter")
        .arg(format!("--net={}", netns.fd_path().display()))
        .arg("--")
        .args(line.split_whitespace())
        .output()
        .context("cannot run nsenter")?;
    printed(line, output)
}

fn parse(line: &str, text: &str) -> Result<Vec<Value>> {
    // iproute2 prints nothing at all for an empty list of some kinds.
    match text.trim() {
        "" => Ok(Vec::new()),
        text => serde_json::from_str(text).with_context(|| format!("{line}: not a list: {text}")),
    }
}

/// The host's end of a pod's cable: the device on the machine whose index the pod's `eth0` names
/// as its peer.
pub fn host_veth(machine: &Machine, pod: &NetNs) -> Result<String> {
    let inside = json_in(pod, "ip -j link show dev eth0")?;
    let peer = inside
        .first()
        .and_then(|link| link["link_index"].as_u64())
        .context("the pod's eth0 names no peer")?;
    let links = json(machine, "ip -j link show")?;
    let found = links
        .iter()
        .find(|link| link["ifindex"] == peer)
        .with_context(|| format!("no device {peer} on {}", machine.name()))?;
    Ok(found["ifname"]
        .as_str()
        .context("a device without a name")?
        .to_owned())
}
