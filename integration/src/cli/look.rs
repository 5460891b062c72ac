//! Looking around in a lab that is up: `exec`, `pods`, `logs`.

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use hostnet::netns::NetNs;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::Which;
use crate::control_plane::{self, ControlPlane};
use crate::keeper::Keeper;
use crate::machine::Machine;
use crate::sandbox::Sandbox;
use crate::traffic::{self, Transport};
use crate::{inspect, programs};

#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    #[command(flatten)]
    which: Which,
    /// A machine (k8s-node-1, control-plane, outside) or a pod (NAME, or NAMESPACE/NAME).
    target: String,
    /// The command and its arguments; a shell if there is none.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Pods {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    #[command(flatten)]
    which: Which,
    /// flanneld, twill-proxy, kube-apiserver, etcd; all daemons of the nodes if none is named.
    daemon: Option<String>,
    /// Only on this machine.
    #[arg(long)]
    node: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Ask {
    /// By datagram.
    #[arg(long)]
    udp: bool,
    /// Where: ADDRESS:PORT.
    server: SocketAddr,
}

impl Ask {
    pub(super) fn run(&self) -> Result<ExitCode> {
        let transport = if self.udp {
            Transport::Udp
        } else {
            Transport::Tcp
        };
        let greeting = traffic::ask(&NetNs::current()?, transport, self.server)?;
        print(&format!("{greeting}\n"))
    }
}

impl Exec {
    pub(super) fn run(&self) -> Result<ExitCode> {
        programs::check_host()?;
        let keeper = Arc::new(Keeper::attach(&self.which.lab)?);
        let shell = ["bash".to_owned()];
        let line = match self.command.is_empty() {
            true => shell.as_slice(),
            false => &self.command,
        };
        let (program, arguments) = line.split_first().context("no command")?;
        let names = Machine::names(&keeper)?;
        let mut command = if names.contains(&self.target) {
            Machine::attach(&keeper, &self.target)?.command(program)
        } else {
            self.in_pod(&keeper, &names)?
                .with_context(|| no_such_target(&self.target, &keeper, &names))?
                .command(program)
        };
        let status = command
            .args(arguments)
            .status()
            .context("cannot run nsenter")?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.unwrap_or(1)))
    }

    /// The pod as something to run commands in: its node's files, its own network.
    fn in_pod(&self, keeper: &Arc<Keeper>, names: &[String]) -> Result<Option<Machine>> {
        let (namespace, pod) = match self.target.split_once('/') {
            Some(parts) => parts,
            None => ("default", self.target.as_str()),
        };
        for name in names {
            let machine = Machine::attach(keeper, name)?;
            if let Some(netns) = Sandbox::find(&machine, namespace, pod) {
                return Ok(Some(machine.with_netns(netns)));
            }
        }
        Ok(None)
    }
}

fn no_such_target(target: &str, keeper: &Keeper, machines: &[String]) -> String {
    format!(
        "{target} is neither a machine ({}) nor a pod (`lab pods --lab {}`)",
        machines.join(", "),
        keeper.name()
    )
}

impl Pods {
    pub(super) fn run(&self) -> Result<ExitCode> {
        programs::check_host()?;
        let keeper = Arc::new(Keeper::attach(&self.which.lab)?);
        let machine = Machine::attach(&keeper, control_plane::NAME)?;
        let api = ControlPlane::attach(machine)?.api;
        let mut rows =
            vec![["NAMESPACE", "NAME", "NODE", "ADDRESS", "HOST VETH"].map(str::to_owned)];
        for pod in api.list::<Pod>(None)? {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
            let address = pod
                .status
                .and_then(|status| status.pod_ip)
                .unwrap_or_default();
            let machine = Machine::attach(&keeper, &node)?;
            let veth = match Sandbox::find(&machine, &namespace, &name) {
                Some(netns) => inspect::host_veth(&machine, &netns)?,
                None => "-".to_owned(),
            };
            rows.push([namespace, name, node, address, veth]);
        }
        print(&table(&rows))
    }
}

impl Logs {
    pub(super) fn run(&self) -> Result<ExitCode> {
        programs::check_host()?;
        let keeper = Arc::new(Keeper::attach(&self.which.lab)?);
        let mut text = String::new();
        for process in keeper.processes()? {
            let Some((machine, name)) = process.name.split_once('/') else {
                continue;
            };
            let wanted = match &self.daemon {
                Some(daemon) => name == daemon,
                None => name == "flanneld" || name == "twill-proxy",
            };
            if wanted && self.node.as_deref().is_none_or(|node| node == machine) {
                let log = Machine::attach(&keeper, machine)?.log(name);
                let log = std::fs::read_to_string(&log)
                    .with_context(|| format!("cannot read {}", log.display()))?;
                for line in log.lines() {
                    let _ = writeln!(text, "{}: {line}", process.name);
                }
            }
        }
        if text.is_empty()
            && let Some(daemon) = &self.daemon
        {
            bail!("nothing was logged by {daemon}");
        }
        print(&text)
    }
}

/// Columns as wide as they need to be.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn print(text: &str) -> Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // `lab logs | head`
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [["A", "LONG"], ["longer", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A       LONG\nlonger  b\n");
    }
}
