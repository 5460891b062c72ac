//! The `lab` command: its line, and what each subcommand does.

mod look;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::keeper::Keeper;
use crate::machine::{container, root};
use crate::progress::Progress;
use crate::registry::{self, LabName};
use crate::upstream;
use crate::{programs, traffic};

/// A whole cluster on this machine, in namespaces: real API server, real daemons, real packets.
///
/// Needs root. Changes nothing on the host: everything lives in namespaces that end with the lab.
#[derive(Debug, Parser)]
#[command(version)]
struct Line {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Start a lab and leave it standing: a control plane, nodes, a pod on each, a Service.
    Up(start::Up),
    /// Show a packet's whole way, each line read from the kernel and checked.
    Demo(start::Demo),
    /// Run a command on a node, in a pod, on the control plane, or outside the cluster.
    Exec(look::Exec),
    /// List the pods, with the host's end of each one's cable.
    Pods(look::Pods),
    /// Print what the daemons logged.
    Logs(look::Logs),
    /// Ask a pod's server who it is and whom it saw (for use in `lab exec`).
    Ask(look::Ask),
    /// End a lab: nothing of it stays.
    Down(Down),
    /// Build what tests need of other projects, if it is not there yet.
    Prepare,
    /// Pid 1 of a lab.
    #[command(hide = true)]
    Keeper { name: String },
    /// The process that holds a machine's namespaces.
    #[command(hide = true)]
    Machine {
        name: String,
        binaries: PathBuf,
        assets: PathBuf,
    },
    /// A pod's server.
    #[command(hide = true)]
    Serve { name: String, ports: Vec<u16> },
    /// A DaemonSet's container on a machine.
    #[command(hide = true)]
    Container(container::Given),
}

/// Which lab.
#[derive(Debug, clap::Args)]
struct Which {
    /// The lab's name.
    #[arg(short, long, default_value = LabName::DEFAULT, value_parser = lab_name)]
    lab: LabName,
}

#[derive(Debug, clap::Args)]
struct Down {
    /// The lab's name.
    #[arg(default_value = LabName::DEFAULT, value_parser = lab_name)]
    name: LabName,
    /// All labs that are up.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

/// Runs the command that the process was given.
pub fn main() -> ExitCode {
    let outcome = match Line::parse().command {
        Sub::Up(up) => up.run(),
        Sub::Demo(demo) => demo.run(),
        Sub::Exec(exec) => exec.run(),
        Sub::Pods(pods) => pods.run(),
        Sub::Logs(logs) => logs.run(),
        Sub::Ask(ask) => ask.run(),
        Sub::Down(down) => down.run(),
        Sub::Prepare => prepare().map(|()| ExitCode::SUCCESS),
        hidden => run_inside(hidden).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}

/// Builds what is not there yet before tests begin: beside them a build would take their time.
fn prepare() -> Result<()> {
    for (module, programs) in upstream::OF_TESTS {
        upstream::assets(*module, programs, Progress::shown())?;
    }
    Ok(())
}

/// What the lab runs in its own namespaces.
fn run_inside(command: Sub) -> Result<()> {
    match command {
        Sub::Keeper { name } => crate::keeper::serve(&LabName::new(&name)?),
        Sub::Machine {
            name,
            binaries,
            assets,
        } => root::hold(&name, &binaries, &assets),
        Sub::Serve { name, ports } => {
            for port in ports {
                traffic::serve(&name, port)?;
            }
            loop {
                nix::unistd::pause();
            }
        }
        Sub::Container(given) => container::run(&given),
        _ => Ok(()),
    }
}

impl Down {
    fn run(&self) -> Result<ExitCode> {
        programs::check_host()?;
        let names = match self.all {
            true => registry::living()?,
            false => vec![self.name.clone()],
        };
        for name in names {
            Keeper::attach(&name)?
                .end()
                .with_context(|| format!("lab {name}"))?;
        }
        registry::sweep()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn lab_name(text: &str) -> Result<LabName, String> {
    LabName::new(text).map_err(|error| error.to_string())
}
