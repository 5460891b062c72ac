//! Starting labs.

use std::process::ExitCode;

use anyhow::{Context, Result};
use hostnet::vocab::Subnet;

use crate::lab::{Builder, Lab};
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

impl Up {
    pub(super) fn run(self) -> Result<ExitCode> {
        let lab = nodes(Lab::builder(), self.nodes)?
            .name(self.name)
            .program(Program::Kubectl)
            .progress(Progress::shown())
            .up()?;
        lab.detach()?;
        Ok(ExitCode::SUCCESS)
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
