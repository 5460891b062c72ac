//! A process as a DaemonSet's pod runs it on a machine: with host network, its ServiceAccount's
//! token, no more capabilities and files than its manifest gives it, and all else read-only.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use super::root::{bind, propagate};
use crate::workload::Mount;

/// Where a pod finds its token, the cluster's CA and its namespace.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What a runtime mounts by itself.
const OF_THE_RUNTIME: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What a container is given.
#[derive(Debug, clap::Args)]
pub struct Given {
    /// The folder that holds the ServiceAccount's files.
    #[arg(long)]
    account: PathBuf,
    /// The capabilities that are left, as setpriv(1) writes them.
    #[arg(long, allow_hyphen_values = true)]
    capabilities: String,
    /// A folder of the machine: `HOST INSIDE ro|rw`.
    #[arg(long)]
    mount: Vec<Mount>,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true)]
    argv: Vec<String>,
}

/// Runs a container's program in this process' place.
pub fn run(given: &Given) -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    propagate("/", MsFlags::MS_SLAVE)?;
    volume(&given.account, Path::new(SERVICE_ACCOUNT))?;
    for mount in &given.mount {
        volume(Path::new(&mount.host), Path::new(&mount.inside))?;
    }
    bind(Path::new("/proc/sys"), Path::new("/proc/sys"))?;
    read_only("/proc/sys")?;
    let writable = |at: &str| {
        let mut mounts = given.mount.iter().filter(|mount| !mount.read_only);
        mounts.any(|mount| mount.inside == at)
    };
    for at in mount_points()? {
        let of_the_runtime = OF_THE_RUNTIME
            .iter()
            .any(|root| Path::new(&at).starts_with(root));
        if !of_the_runtime && !writable(&at) {
            read_only(&at)?;
        }
    }
    // Only returns when it fails.
    let error = Command::new("setpriv")
        .args([
            "--bounding-set",
            &given.capabilities,
            "--no-new-privs",
            "--",
        ])
        .args(&given.argv)
        .exec();
    Err(error).context("cannot run setpriv")
}

/// Shows a folder of the machine in the container. Both are made if they are not there.
fn volume(host: &Path, inside: &Path) -> Result<()> {
    for path in [host, inside] {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    bind(host, inside)
}

fn mount_points() -> Result<Vec<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot list mounts")?;
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(str::to_owned));
    Ok(points.collect())
}

fn read_only(at: &str) -> Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    nix::mount::mount(none, at, none, flags, none)
        .with_context(|| format!("cannot make {at} read-only"))
}
