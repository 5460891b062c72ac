//! Starting labs: `up`, and the demo.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use hostnet::vocab::Subnet;
use serde_json::json;

use super::Which;
use crate::demo::{self, Page};
use crate::lab::{Builder, Lab};
use crate::objects::PodSpec;
use crate::progress::Progress;
use crate::registry::LabName;
use crate::underlay::Seat;
use crate::upstream::Program;

#[derive(Debug, clap::Args)]
pub(super) struct Up {
    /// The lab's name.
    #[arg(default_value = LabName::DEFAULT, value_parser = super::lab_name)]
    name: LabName,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(Seat::MAX_NODES)))]
    nodes: u8,
}

#[derive(Debug, clap::Args)]
pub(super) struct Demo {
    #[command(flatten)]
    which: Which,
    /// Leave the lab standing afterwards, and tell how to look around.
    #[arg(long)]
    keep: bool,
    /// How twill-proxy programs the nodes.
    #[arg(long, value_enum, default_value_t)]
    mode: demo::Mode,
}

impl Up {
    pub(super) fn run(self) -> Result<ExitCode> {
        let lab = nodes(Lab::builder(), self.nodes)?
            .name(self.name.clone())
            .program(Program::Kubectl)
            .progress(Progress::shown())
            .up()?;
        let step = Progress::shown().step("a pod on each node, and a Service for them");
        let mut pods = Vec::new();
        for node in lab.nodes() {
            let name = format!("web-{}", node.name());
            pods.push(lab.run_pod(PodSpec::new(&name, node.name()).label("app", "web"))?);
        }
        let service = lab.expose(&web(), &pods.iter().collect::<Vec<_>>())?;
        step.done();
        let cluster_ip = service.spec.and_then(|spec| spec.cluster_ip);
        let cluster_ip = cluster_ip.context("the Service got no cluster IP")?;
        let (node, pod) = (lab.nodes()[0].name().to_owned(), pods[0].name().to_owned());
        let targets = [
            format!("{cluster_ip}:80"),
            format!("{}:30080", lab.nodes()[0].ip()),
        ];
        lab.detach()?;
        look_around(&self.name, &node, &pod, &targets)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Demo {
    pub(super) fn run(self) -> Result<ExitCode> {
        let start = Instant::now();
        let mut builder = demo::nodes(Lab::builder(), self.mode)?
            .name(self.which.lab.clone())
            .progress(Progress::shown());
        if self.keep {
            builder = builder.program(Program::Kubectl);
        }
        let lab = builder.up()?;
        let mut page = Page::stdout();
        let demo = demo::Demo::start(&lab, self.mode)?;
        demo.tell(&lab, &mut page)?;
        page.verdict(start.elapsed())?;
        if self.keep {
            let (node, pod) = demo.place();
            let targets = demo.targets(&lab);
            lab.detach()?;
            look_around(&self.which.lab, &node, &pod, &targets)?;
        }
        match page.score() {
            (_, 0) => Ok(ExitCode::SUCCESS),
            _ => Ok(ExitCode::FAILURE),
        }
    }
}

/// Nodes as a kubeadm cluster names them, with the subnets that a controller-manager gives.
fn nodes(mut builder: Builder, count: u8) -> Result<Builder> {
    for index in 0..count {
        let name = match index {
            0 => "k8s-master".to_owned(),
            _ => format!("k8s-node-{index}"),
        };
        let subnet: Subnet = format!("10.244.{}.0/24", u16::from(index) + 1)
            .parse()
            .context("a node's subnet")?;
        builder = builder.node(&name, &[subnet]);
    }
    Ok(builder)
}

fn web() -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "web"},
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080},
                {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": 8080, "nodePort": 30080},
            ],
        },
    })
}

/// What to type next. `targets`: a cluster IP and a node's address, with their ports.
fn look_around(name: &LabName, node: &str, pod: &str, targets: &[String; 2]) -> Result<()> {
    let program = std::env::args().next().unwrap_or_else(|| "lab".to_owned());
    let lab = match name.as_str() {
        LabName::DEFAULT => String::new(),
        name => format!(" --lab {name}"),
    };
    let [cluster_ip, node_port] = targets;
    let mut out = std::io::stdout();
    writeln!(out, "\nThe lab stands. Look around:")?;
    for line in [
        format!("exec{lab} outside -- lab ask {node_port}"),
        format!("exec{lab} {pod} -- lab ask {cluster_ip}"),
        format!("exec{lab} {node} -- nft list table ip twill-proxy"),
        format!("exec{lab} {node} -- ip route"),
        format!("exec{lab} {node} -- kubectl get nodes,services,endpointslices -A"),
        format!("pods{lab}"),
        format!("logs{lab}"),
        format!("down {name}"),
    ] {
        writeln!(out, "  {program} {line}")?;
    }
    Ok(())
}
