//! The worked example: one request to a node port, followed by hand from the API's objects to the
//! pod and back. Every line is read from the kernel with `ip`, `bridge` and `nft`, and compared
//! with what it must be.

mod cluster;
mod expect;
mod iptables;
mod packets;
mod page;
mod story;

use anyhow::Result;

use crate::lab::{Builder, Lab};
use crate::node::Daemon;
use cluster::{CLUSTER_IP, Cluster, NODE_PORT, SERVICE_PORT};

pub use page::Page;

/// How twill-proxy programs the nodes of the example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// As elements of maps.
    #[default]
    Nftables,
    /// As kube-proxy's chains, with their names of 2019.
    Iptables,
}

/// The nodes of the example.
pub fn nodes(builder: Builder, mode: Mode) -> Result<Builder> {
    let builder = cluster::nodes(builder)?;
    Ok(match mode {
        Mode::Nftables => builder,
        Mode::Iptables => builder.arguments(
            Daemon::Proxy,
            &["--proxy-mode=iptables", "--iptables-legacy-names"],
        ),
    })
}

/// The example, running in a lab with its [`nodes`].
pub struct Demo(Cluster, Mode);

impl Demo {
    /// Starts the example's pods and Services.
    pub fn start(lab: &Lab, mode: Mode) -> Result<Demo> {
        Ok(Demo(Cluster::start(lab)?, mode))
    }

    /// Tells the story on a page.
    pub fn tell(&self, lab: &Lab, page: &mut Page) -> Result<()> {
        let pod = &self.0.hello;
        page.title(
            "A request to port 30001 of any node, followed by hand to the pod that answers",
        )?;
        page.say(&format!(
            "Service default/hello-world-service: {CLUSTER_IP}:{SERVICE_PORT}, node port {NODE_PORT}"
        ))?;
        page.say(&format!(
            "Pod {}: {} on {}",
            pod.name(),
            pod.address(),
            pod.node()
        ))?;
        story::tell(lab, &self.0, self.1, page)?;
        packets::send(lab, &self.0, page)
    }

    /// Where the example's pod runs, and its name.
    pub fn place(&self) -> (String, String) {
        let pod = &self.0.hello;
        (pod.node().to_owned(), pod.name().to_owned())
    }

    /// Where its Service answers: the cluster IP, and the first node's port.
    pub fn targets(&self, lab: &Lab) -> [String; 2] {
        [
            format!("{CLUSTER_IP}:{SERVICE_PORT}"),
            format!("{}:{NODE_PORT}", lab.nodes()[0].ip()),
        ]
    }
}
