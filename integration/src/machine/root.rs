//! A machine's own program: makes its namespaces and its root file system, and holds them.
//!
//! The root is an overlay: the host's files below, what the machine writes in the lab's private
//! tmpfs above. So a machine has every program of the host, and nothing that happens in it ever
//! reaches the host's disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hostnet::vocab::names::CNI_TYPE;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use crate::registry::PRIVATE;

/// Where a machine sees this workspace's binaries.
pub const BINARIES: &str = "/opt/twill";

/// Where a machine sees Kubernetes' programs.
pub const ASSETS: &str = "/opt/k8s";

/// Where a container runtime looks for CNI plugins.
pub const CNI_BIN: &str = "/opt/cni/bin";

/// A file that is there once the machine is made, and before that nowhere.
pub(super) const READY: &str = "/run/twill-lab-machine";

/// Folders that start empty on every machine, whatever the host has there.
const OWN: &[&str] = &[
    "/etc/cni",
    "/etc/kubernetes",
    "/opt/cni",
    "/run",
    "/tmp",
    "/var/lib/cni",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/twill",
];

/// Folders that a node has before its network: made by the system, the kubelet, the runtime.
const MADE: &[&str] = &[
    "/etc/cni/net.d",
    CNI_BIN,
    "/run/lock",
    "/run/netns",
    "/var/lib/cni/networks",
];

/// What a machine that was just installed has; the kernel would copy the host's values.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "2"),
    ("net/ipv6/conf/all/forwarding", "0"),
];

/// Makes the machine `name` around this process, which must have one thread, and holds it for
/// ever. `binaries` and `assets` appear in it as [`BINARIES`] and [`ASSETS`].
pub fn hold(name: &str, binaries: &Path, assets: &Path) -> Result<()> {
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    nix::sched::unshare(namespaces).context("cannot make the machine's namespaces")?;
    nix::unistd::sethostname(name).context("cannot set the host name")?;
    let root = overlay(&Path::new(PRIVATE).join("machines").join(name))?;
    let inside = |path: &str| root.join(path.trim_start_matches('/'));

    mount("proc", &inside("/proc"), "proc", MsFlags::empty(), "")?;
    mount("sysfs", &inside("/sys"), "sysfs", MsFlags::empty(), "")?;
    bind(Path::new("/dev"), &inside("/dev"))?;
    for own in OWN {
        mount(
            "tmpfs",
            &make(inside(own))?,
            "tmpfs",
            MsFlags::empty(),
            "mode=755",
        )?;
    }
    for made in MADE {
        make(inside(made))?;
    }
    bind(binaries, &make(inside(BINARIES))?)?;
    bind(assets, &make(inside(ASSETS))?)?;
    let plugin = inside(CNI_BIN).join(CNI_TYPE);
    symlink(Path::new(BINARIES).join(CNI_TYPE), &plugin).context("cannot install the plugin")?;

    // The new root on top of the old one, which is then let go (pivot_root(2), last example).
    nix::unistd::chdir(&root).context("cannot enter the new root")?;
    nix::unistd::pivot_root(".", ".").context("cannot change the root")?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the old root")?;
    nix::unistd::chdir("/").context("cannot enter the new root")?;
    // Containers follow the machine's mounts (HostToContainer), as a runtime has it.
    propagate("/", MsFlags::MS_SHARED)?;
    for (key, value) in SYSCTLS {
        #[expect(
            clippy::disallowed_methods,
            reason = "a sysctl is written at once or not at all"
        )]
        fs::write(Path::new("/proc/sys").join(key), value)
            .with_context(|| format!("cannot set {key}"))?;
    }
    fs::File::create(READY).with_context(|| format!("cannot make {READY}"))?;
    loop {
        nix::unistd::pause();
    }
}

/// An overlay over the host's root file system, writable in `dir`.
fn overlay(dir: &Path) -> Result<PathBuf> {
    propagate("/", MsFlags::MS_SLAVE)?;
    let upper = make(dir.join("upper"))?;
    let work = make(dir.join("work"))?;
    let root = make(dir.join("root"))?;
    let options = format!(
        "lowerdir=/,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    mount("overlay", &root, "overlay", MsFlags::empty(), &options)?;
    Ok(root)
}

fn make(dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Mounts, or names what could not be mounted.
pub(super) fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<()> {
    nix::mount::mount(Some(source), target, Some(kind), flags, Some(options))
        .with_context(|| format!("cannot mount {kind} at {}", target.display()))
}

/// Shows a folder, and what is mounted below it, in a second place.
pub(super) fn bind(source: &Path, target: &Path) -> Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(
        Some(source),
        target,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

/// Sets how mounts below `path` travel between mount namespaces.
pub(super) fn propagate(path: &str, how: MsFlags) -> Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(none, path, none, how | MsFlags::MS_REC, none)
        .with_context(|| format!("cannot change the propagation of {path}"))
}
