//! A process as a DaemonSet's pod runs it on a machine: with host network, its ServiceAccount's
//! token, no more capabilities than its manifest grants, and `/proc/sys` read-only.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use super::root::{bind, propagate};

/// Where a pod finds its token, the cluster's CA and its namespace.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The host's network sysctls, mounted writable: an unprivileged container's own are read-only.
const HOST_SYSCTLS: &str = "/host/proc/sys/net";

/// What the manifests' `drop: [ALL]`, `add: [NET_ADMIN, NET_RAW]` leaves.
const CAPABILITIES: &str = "-all,+net_admin,+net_raw";

/// Runs `argv` in this process' place, as a container on this machine. `account` is the folder
/// that holds the ServiceAccount's files.
pub fn run(account: &Path, argv: &[String]) -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    propagate("/", MsFlags::MS_SLAVE)?;
    for target in [SERVICE_ACCOUNT, HOST_SYSCTLS] {
        std::fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
    }
    bind(account, Path::new(SERVICE_ACCOUNT))?;
    bind(Path::new("/proc/sys/net"), Path::new(HOST_SYSCTLS))?;
    bind(Path::new("/proc/sys"), Path::new("/proc/sys"))?;
    let none: Option<&str> = None;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    nix::mount::mount(none, "/proc/sys", none, read_only, none)
        .context("cannot make /proc/sys read-only")?;
    // Only returns when it fails.
    let error = Command::new("setpriv")
        .args(["--bounding-set", CAPABILITIES, "--no-new-privs", "--"])
        .args(argv)
        .exec();
    Err(error).context("cannot run setpriv")
}
