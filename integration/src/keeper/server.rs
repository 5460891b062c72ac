//! The keeper's own program: runs as pid 1 of the lab's pid namespace.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::protocol::{Process, Reply, Request, Spawn};
use crate::registry::{LabName, PRIVATE};

/// Keeps the lab `name` until its lifeline (standard input) ends, or for ever once detached.
/// Must run as pid 1 of its pid namespace, with a mount namespace of its own.
pub fn serve(name: &LabName) -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "the keeper is started by `lab up`, not by hand"
    );
    let _lock = name.hold().context("cannot lock the lab's folder")?;
    let none: Option<&str> = None;
    nix::mount::mount(none, PRIVATE, Some("tmpfs"), MsFlags::empty(), none)
        .context(format!("cannot mount {PRIVATE}"))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the keeper's runtime")?
        .block_on(keep(name))
}

async fn keep(name: &LabName) -> Result<()> {
    let mut children = signal(SignalKind::child()).context("cannot watch for ended processes")?;
    let listener = UnixListener::bind(name.socket())
        .with_context(|| format!("cannot listen on {}", name.socket().display()))?;
    let lifeline = std::io::stdin().as_fd().try_clone_to_owned();
    let mut lifeline = lifeline
        .and_then(pipe::Receiver::from_owned_fd)
        .context("standard input is no pipe")?;
    let mut table = Table::default();
    let mut detached = false;
    loop {
        let mut byte = [0];
        tokio::select! {
            connection = listener.accept() => match connection {
                Ok((stream, _)) => match answer(stream, &mut table).await {
                    Ok(detach) => detached |= detach,
                    Err(error) => eprintln!("a request failed: {error:#}"),
                },
                Err(error) => eprintln!("cannot accept: {error}"),
            },
            _ = children.recv() => table.reap(),
            _ = lifeline.read(&mut byte), if !detached => {
                // The logs have no reader any more: this lab was never detached.
                return std::fs::remove_dir_all(name.dir()).context("cannot remove the lab's folder");
            }
        }
    }
}

/// Answers one request; returns whether it was to detach.
async fn answer(stream: UnixStream, table: &mut Table) -> Result<bool> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        // Only a look at who listens.
        return Ok(false);
    }
    let request: Request = serde_json::from_str(&line)?;
    let detach = matches!(request, Request::Detach);
    // What has ended since the last signal has ended.
    table.reap();
    let reply = match request {
        Request::Spawn(spawn) => table.spawn(spawn).map(|()| Reply::Done),
        Request::Kill { name, signal } => table.kill(&name, signal).map(|()| Reply::Done),
        Request::List => Ok(Reply::Processes(table.0.values().cloned().collect())),
        Request::Detach => Ok(Reply::Done),
    };
    let reply = reply.unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    Ok(detach)
}

/// All processes by name. Only [`Table::reap`] waits for them, so a pid in here that has not
/// ended is surely still that process.
#[derive(Default)]
struct Table(BTreeMap<String, Process>);

impl Table {
    fn spawn(&mut self, spawn: Spawn) -> Result<()> {
        if let Some(process) = self.0.get(&spawn.name) {
            ensure!(process.ended.is_some(), "{} is running", spawn.name);
        }
        let open = |path| -> Result<File> {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .context("cannot open its log")
        };
        let log = open(&spawn.log)?;
        let (program, arguments) = spawn.argv.split_first().context("no program was given")?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(spawn.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot open its log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let process = Process {
            name: spawn.name.clone(),
            pid: i32::try_from(child.id()).context("no such pid")?,
            ended: None,
        };
        self.0.insert(spawn.name, process);
        Ok(())
    }

    fn kill(&self, name: &str, signal: i32) -> Result<()> {
        let process = self
            .0
            .get(name)
            .with_context(|| format!("no process is called {name}"))?;
        if let Some(how) = &process.ended {
            anyhow::bail!("{name} has ended already ({how})");
        }
        let signal = Signal::try_from(signal).context(format!("signal {signal}"))?;
        nix::sys::signal::kill(Pid::from_raw(process.pid), signal)
            .with_context(|| format!("cannot signal {name}"))
    }

    /// Waits for every process that has ended: ours, and as pid 1 the orphans too.
    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, format!("exit status {status}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("signal {signal}")),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    eprintln!("cannot wait for processes: {error}");
                    return;
                }
            };
            let mut processes = self.0.values_mut();
            if let Some(process) = processes.find(|p| p.pid == pid.as_raw() && p.ended.is_none()) {
                process.ended = Some(how);
            }
        }
    }
}
