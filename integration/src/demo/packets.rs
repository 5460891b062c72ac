//! The end of the story: real requests, who answered them, and whom the server saw.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use hostnet::netns::NetNs;

use super::cluster::{CLUSTER_IP, Cluster, NODE_PORT, SERVICE_PORT};
use super::page::Page;
use crate::lab::{Lab, Pod};
use crate::node::Node;
use crate::traffic::{self, Greeting, Transport};

/// Sends them, and tells of each on `page`.
pub(super) fn send(lab: &Lab, cluster: &Cluster, page: &mut Page) -> Result<()> {
    let mut packets = Packets {
        page,
        hello: &cluster.hello,
    };
    packets
        .page
        .chapter("From outside, the pod answers on every node")?;
    packets
        .page
        .say("The pod sees the node that let the request in: it was masqueraded.")?;
    for node in lab.nodes() {
        let addresses = addresses(node)?;
        let target = SocketAddr::from((node.ip(), NODE_PORT));
        packets.ask("outside", lab.outside().netns(), target, &addresses)?;
    }

    let cluster_ip: IpAddr = CLUSTER_IP.parse()?;
    let target = SocketAddr::from((cluster_ip, SERVICE_PORT));
    packets
        .page
        .chapter("From inside, it answers on the cluster IP")?;
    packets
        .page
        .say("A pod is seen by its own address, on the same node and across; a node by its own.")?;
    for pod in [&cluster.dns, &cluster.neighbour] {
        packets.ask(pod.name(), pod.netns(), target, &[pod.ip()])?;
    }
    for node in lab.nodes() {
        let addresses = addresses(node)?;
        packets.ask(node.name(), node.machine().netns(), target, &addresses)?;
    }
    packets
        .page
        .say("And the pod reaches itself, as one that came from its node:")?;
    let home = addresses(lab.node(cluster.hello.node())?)?;
    packets.ask(cluster.hello.name(), cluster.hello.netns(), target, &home)
}

struct Packets<'a> {
    page: &'a mut Page,
    hello: &'a Pod,
}

impl Packets<'_> {
    /// The pod must answer, and must have seen one of `sources`.
    fn ask(&mut self, place: &str, from: &NetNs, to: SocketAddr, sources: &[IpAddr]) -> Result<()> {
        self.page.prompt(place, &format!("lab ask {to}"))?;
        let right = |greeting: &Greeting| {
            greeting.server == self.hello.name()
                && greeting.address == self.hello.ip()
                && sources.contains(&greeting.client)
        };
        match traffic::ask(from, Transport::Tcp, to) {
            Ok(greeting) if right(&greeting) => self.page.right(&greeting.to_string()),
            other => {
                let sources: Vec<_> = sources.iter().map(IpAddr::to_string).collect();
                let wanted = format!(
                    "hello-world from {} ({}) to {}",
                    self.hello.name(),
                    self.hello.ip(),
                    sources.join(" or ")
                );
                let found = match other {
                    Ok(greeting) => greeting.to_string(),
                    Err(error) => format!("{error:#}"),
                };
                self.page.wrong(&wanted, &found)
            }
        }
    }
}

/// All addresses of a node.
fn addresses(node: &Node) -> Result<Vec<IpAddr>> {
    let links = crate::inspect::json(node.machine(), "ip -j address show")?;
    let infos = links.iter().filter_map(|link| link["addr_info"].as_array());
    infos
        .flatten()
        .map(|info| {
            let address = info["local"].as_str().context("an address without local")?;
            Ok(address.parse()?)
        })
        .collect()
}
