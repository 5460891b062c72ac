//! A machine of the lab: its own network, mounts and host name, on the underlay.

pub mod container;
pub mod root;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use hostnet::netns::NetNs;
use nix::sys::signal::Signal;

use crate::keeper::{Keeper, Spawn};
use crate::wait;

/// Where commands of people and tests find programs inside a machine.
const PATH: &str =
    "/opt/twill:/opt/k8s:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The kubeconfig of the cluster's administrator, on every machine of a lab.
pub const ADMIN_CONF: &str = "/etc/kubernetes/admin.conf";

/// A running machine.
#[derive(Clone, Debug)]
pub struct Machine {
    keeper: Arc<Keeper>,
    name: String,
    /// The pid of its holder in the lab's pid namespace.
    pid: i32,
    netns: NetNs,
}

impl Machine {
    /// The name of the process that holds a machine's namespaces.
    fn holder(name: &str) -> String {
        format!("{name}/machine")
    }

    /// Makes a machine; its network is an unconnected `lo`.
    pub fn start(
        keeper: &Arc<Keeper>,
        name: &str,
        binaries: &Path,
        assets: &Path,
    ) -> Result<Machine> {
        let holder = Machine::holder(name);
        let log = keeper.name().logs().join(format!("{name}.machine.log"));
        let argv = [
            path_text(&binaries.join("lab"))?,
            "machine".to_owned(),
            name.to_owned(),
            path_text(binaries)?,
            path_text(assets)?,
        ];
        keeper.spawn(Spawn {
            name: holder.clone(),
            argv: argv.into(),
            env: vec![("PATH".into(), PATH.into())],
            log: log.clone(),
        })?;
        wait::until(&format!("machine {name}"), wait::PATIENCE, || {
            let pid = keeper.running(&holder)?;
            let ready = keeper.path(format!("/proc/{pid}/root{}", root::READY));
            Ok(wait::holds(ready.exists(), "it is still being made"))
        })
        .with_context(|| last_words(name, &log))?;
        Machine::attach(keeper, name)
    }

    /// Finds a machine that runs.
    pub fn attach(keeper: &Arc<Keeper>, name: &str) -> Result<Machine> {
        let pid = keeper.running(&Machine::holder(name))?;
        Ok(Machine {
            keeper: keeper.clone(),
            name: name.to_owned(),
            pid,
            netns: NetNs::open(keeper.path(format!("/proc/{pid}/ns/net")))?,
        })
    }

    /// The machines of a lab, by name.
    pub fn names(keeper: &Keeper) -> Result<Vec<String>> {
        let processes = keeper.processes()?;
        let holders = processes.iter().filter(|process| process.ended.is_none());
        Ok(holders
            .filter_map(|process| process.name.strip_suffix("/machine"))
            .map(str::to_owned)
            .collect())
    }

    /// Its name, which is its host name too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its keeper.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// The pid, in the lab's pid namespace, of the process that holds its namespaces.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The same machine with another network, a pod's: for commands in it.
    pub fn with_netns(&self, netns: NetNs) -> Machine {
        Machine {
            netns,
            ..self.clone()
        }
    }

    /// A path inside the machine, as seen from here.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let relative = path.strip_prefix("/").unwrap_or(path);
        self.keeper
            .path(format!("/proc/{}/root", self.pid))
            .join(relative)
    }

    /// A command that runs inside the machine as root; it ends with the lab.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let of_keeper = |kind: &str| {
            let path = self.keeper.path(format!("/proc/{}/ns/{kind}", self.pid));
            path.display().to_string()
        };
        command
            .arg(format!("--mount={}", of_keeper("mnt")))
            .arg(format!("--net={}", self.netns.path().display()))
            .arg(format!("--uts={}", of_keeper("uts")))
            .arg(format!("--pid={}", of_keeper("pid")))
            .args(["--", program])
            .env("PATH", PATH)
            .env("KUBECONFIG", ADMIN_CONF)
            .env_remove("KUBERNETES_SERVICE_HOST")
            .env_remove("KUBERNETES_SERVICE_PORT");
        command
    }

    /// Runs a command line (split at blanks) and returns what it printed; an error names the
    /// command and what it said.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("no command was given")?);
        command.args(words).stdin(Stdio::null());
        let output = command.output().context("cannot run nsenter")?;
        printed(&format!("{line} on {}", self.name), output)
    }

    /// Starts a process inside the machine that lives on without us, named `MACHINE/name`. The
    /// program's path is one inside the machine.
    pub fn spawn(&self, name: &str, argv: &[&str], env: &[(&str, &str)]) -> Result<()> {
        self.spawn_in(name, argv, env, &[])
    }

    /// [`Machine::spawn`], with further words for `nsenter`.
    pub(crate) fn spawn_in(
        &self,
        name: &str,
        argv: &[&str],
        env: &[(&str, &str)],
        nsenter: &[&str],
    ) -> Result<()> {
        let pid = self.pid;
        let mut line = vec![
            "nsenter".to_owned(),
            format!("--mount=/proc/{pid}/ns/mnt"),
            format!("--uts=/proc/{pid}/ns/uts"),
        ];
        if nsenter.is_empty() {
            line.push(format!("--net=/proc/{pid}/ns/net"));
        }
        line.extend(
            nsenter
                .iter()
                .chain(&["--"])
                .chain(argv)
                .map(|&word| word.to_owned()),
        );
        let mut variables = vec![("PATH".to_owned(), PATH.to_owned())];
        variables.extend(
            env.iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned())),
        );
        self.keeper.spawn(Spawn {
            name: format!("{}/{name}", self.name),
            argv: line,
            env: variables,
            log: self.log(name),
        })
    }

    /// Sends a signal to the process `MACHINE/name` and waits for its end.
    pub fn stop(&self, name: &str, signal: Signal) -> Result<()> {
        let process = format!("{}/{name}", self.name);
        self.keeper.signal(&process, signal)?;
        self.keeper.wait_ended(&process)
    }

    /// The log of the process `MACHINE/name`.
    pub fn log(&self, name: &str) -> PathBuf {
        let logs = self.keeper.name().logs();
        logs.join(format!("{}.{}.log", self.name, name.replace('/', ".")))
    }

    /// What the process `MACHINE/name` logged last: for errors, which outlive the lab's folder.
    pub fn last_words(&self, name: &str) -> String {
        last_words(&format!("{}/{name}", self.name), &self.log(name))
    }

    /// Writes a file inside the machine, with the folders above it.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let outside = self.path(path);
        let failed = || format!("cannot write {path} on {}", self.name);
        if let Some(parent) = outside.parent() {
            std::fs::create_dir_all(parent).with_context(failed)?;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a file of a lab, read after it is written"
        )]
        std::fs::write(&outside, text).with_context(failed)
    }
}

/// What a command printed, or an error with what it said.
pub(crate) fn printed(what: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{what} failed ({}): {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{what} printed bytes"))
}

fn last_words(process: &str, log: &Path) -> String {
    const LINES: usize = 5;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
    format!("{process} logged last:\n  {last}\n")
}

fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str();
    Ok(text
        .with_context(|| format!("{} is not UTF-8", path.display()))?
        .to_owned())
}
