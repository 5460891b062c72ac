//! A lab's keeper as seen from outside: how tests and commands speak to it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use super::protocol::{Process, Reply, Request, Spawn};
use crate::registry::{self, LabName};
use crate::wait;

/// How long a lab may take to end: the kernel kills and reaps every process of it.
const END: Duration = Duration::from_secs(5);

/// A living keeper.
#[derive(Debug)]
pub struct Keeper {
    name: LabName,
    /// In our pid namespace.
    pid: Pid,
    /// Of the lab that we started ourselves: its end is the keeper's.
    started: Option<Started>,
    detached: AtomicBool,
}

#[derive(Debug)]
struct Started {
    unshare: Child,
    _lifeline: ChildStdin,
}

impl Keeper {
    /// Starts the keeper of a claimed lab with the `lab` binary at `program`. It ends with this
    /// process, or when the handle is dropped, unless it is detached before.
    pub fn start(name: &LabName, program: &Path) -> Result<Keeper> {
        let log_path = name.logs().join("keeper.log");
        let log = std::fs::File::create(&log_path).context("cannot make the keeper's log")?;
        let mut unshare = Command::new("setsid")
            .args("unshare --mount --pid --net --uts --fork --kill-child=KILL --mount-proc --propagation slave --".split(' '))
            .arg(program)
            .args(["keeper", name.as_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot run setsid")?;
        let lifeline = unshare.stdin.take().context("no pipe to the keeper")?;
        let pid = wait::until("keeper", wait::PATIENCE, || {
            if let Some(status) = unshare.try_wait()? {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                bail!("the keeper ended at once ({status}): {}", log.trim());
            }
            Ok(pid_of(name))
        })?;
        Ok(Keeper {
            name: name.clone(),
            pid,
            started: Some(Started {
                unshare,
                _lifeline: lifeline,
            }),
            detached: AtomicBool::new(false),
        })
    }

    /// Finds the keeper of a lab that is up.
    pub fn attach(name: &LabName) -> Result<Keeper> {
        match pid_of(name) {
            Ok(pid) => Ok(Keeper {
                name: name.clone(),
                pid,
                started: None,
                detached: AtomicBool::new(true),
            }),
            Err(_) => bail!("no lab named {name} is up: start it with `lab up {name}`"),
        }
    }

    /// Lets the lab live on after this process.
    pub fn detach(&self) -> Result<()> {
        self.ask(&Request::Detach)?;
        self.detached.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the lab: afterwards none of its processes, mounts and networks is left.
    pub fn end(mut self) -> Result<()> {
        let started = self.started.take();
        self.finish(started)
    }

    fn finish(&self, started: Option<Started>) -> Result<()> {
        match nix::sys::signal::kill(self.pid, Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => return Err(error).context("cannot kill the lab's keeper"),
        }
        // The kernel lets go of a pid namespace's first process only after all others are gone.
        let gone = format!("/proc/{}", self.pid);
        let what = format!("end of lab {}", self.name);
        wait::until(&what, END, || {
            Ok(wait::holds(!Path::new(&gone).exists(), "it is still there"))
        })?;
        if let Some(mut started) = started {
            // `unshare` ends with its child.
            started.unshare.wait().context("cannot wait for unshare")?;
        }
        registry::sweep()?;
        Ok(())
    }

    /// The lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// Its pid, as seen from here.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A path of the keeper's mount namespace, as seen from here.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let relative = path.strip_prefix("/").unwrap_or(path);
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(relative)
    }

    /// A command that runs in the keeper's namespaces; it ends with the lab.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid.to_string()])
            .args(["--mount", "--net", "--pid", "--uts", "--", program]);
        command
    }

    /// Starts a process that lives on without us.
    pub fn spawn(&self, spawn: Spawn) -> Result<()> {
        let name = spawn.name.clone();
        self.ask(&Request::Spawn(spawn))
            .with_context(|| format!("cannot start {name}"))?;
        Ok(())
    }

    /// Sends a signal to the process of this name, which must be running.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        self.ask(&Request::Kill {
            name: name.to_owned(),
            signal: signal as i32,
        })?;
        Ok(())
    }

    /// All processes that were ever started, ordered by name.
    pub fn processes(&self) -> Result<Vec<Process>> {
        match self.ask(&Request::List)? {
            Reply::Processes(processes) => Ok(processes),
            other => bail!("the keeper answered {other:?}"),
        }
    }

    /// The process of this name.
    pub fn process(&self, name: &str) -> Result<Option<Process>> {
        let processes = self.processes()?;
        Ok(processes.into_iter().find(|process| process.name == name))
    }

    /// Waits until the process of this name has ended.
    pub fn wait_ended(&self, name: &str) -> Result<()> {
        wait::until(&format!("end of {name}"), wait::PATIENCE, || {
            let process = self.process(name)?;
            let process = process.with_context(|| format!("no process is called {name}"))?;
            Ok(wait::holds(process.ended.is_some(), "it is running"))
        })
    }

    /// The pid, in the lab's pid namespace, of a process that must be running.
    pub fn running(&self, name: &str) -> Result<i32> {
        match self.process(name)? {
            Some(Process {
                ended: None, pid, ..
            }) => Ok(pid),
            Some(Process {
                ended: Some(how), ..
            }) => bail!("{name} has ended: {how}"),
            None => bail!("no process is called {name}"),
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        let failed = || format!("the keeper of lab {} does not answer", self.name);
        let mut stream = UnixStream::connect(self.name.socket()).with_context(failed)?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).with_context(failed)?;
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .with_context(failed)?;
        ensure!(!answer.is_empty(), failed());
        match serde_json::from_str(&answer).with_context(failed)? {
            Reply::Failed(why) => bail!("{why}"),
            reply => Ok(reply),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(started) = self.started.take()
            && !self.detached.load(Ordering::Relaxed)
            && let Err(error) = self.finish(Some(started))
        {
            eprintln!("{error:#}");
        }
    }
}

/// Who listens on the lab's socket: the kernel's word, translated into our pid namespace.
fn pid_of(name: &LabName) -> Result<Pid> {
    let stream = UnixStream::connect(name.socket())?;
    let credentials = getsockopt(&stream, PeerCredentials)?;
    Ok(Pid::from_raw(credentials.pid()))
}
