//! `flanneld cleanup`: takes away all that is ours on this node, and nothing else.
//!
//! The kernel first, then our files, and the CNI configuration last: as long as that is there, a runtime asks the plugin,
//! which says what is missing. What the API server has (Leases, annotations) goes with the Node object.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use hostnet::vocab::names;

use crate::{
    config::{Flags, flags::Cleanup},
    diff::{Op, diff},
    host::{self, Host, sysctl_root},
    leftovers,
    state::State,
};

/// Why there was no, or no whole, cleanup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon would put everything back.
    #[error(
        "flanneld still runs on this node (port {0} answers), and would put everything back: delete its DaemonSet, or \
         stop its service, first"
    )]
    Running(u16),
    /// The kernel cannot be read.
    #[error("cannot read the kernel's state: {}", agent::chain(.0))]
    Observe(#[from] host::Error),
    /// What could not be removed; the rest was.
    #[error("{} could not be removed: {}", .0.len(), .0.join("; "))]
    Left(Vec<String>),
}

/// Removes everything, goes on past what fails, and logs each step; with `--dry-run` only the log.
///
/// # Errors
/// See [`Error`].
pub fn cleanup(flags: &Flags, how: &Cleanup) -> Result<(), Error> {
    if !how.dry_run && is_running(flags.healthz_port) {
        return Err(Error::Running(flags.healthz_port));
    }
    let mut host = Host::open(sysctl_root())?;
    let ops = removals(&mut host)?;
    let files = files(flags, how);
    for op in &ops {
        tracing::info!(%op, "removing");
    }
    for file in &files {
        tracing::info!(file = %file.display(), "removing");
    }
    if how.dry_run {
        tracing::info!("nothing was removed: --dry-run");
        return Ok(());
    }
    let failures = host.apply(&ops);
    let mut left: Vec<String> = failures
        .iter()
        .map(|failure| agent::chain(failure))
        .collect();
    for file in &files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                left.push(format!("{}: {error}", file.display()));
            }
            _ => {}
        }
    }
    for line in leftovers::legacy_rules() {
        tracing::warn!("{line}");
    }
    if !left.is_empty() {
        return Err(Error::Left(left));
    }
    tracing::info!(
        "this node has nothing of flanneld's any more; its Leases and annotations go with its Node object"
    );
    Ok(())
}

fn is_running(port: u16) -> bool {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    port != 0 && TcpStream::connect_timeout(&server, Duration::from_secs(1)).is_ok()
}

/// What takes away our part of the kernel's state, and flannel's rules.
fn removals(host: &mut Host) -> Result<Vec<Op>, host::Error> {
    let ours = host.observe()?.ours();
    let mut ops = diff(&ours, &State::default());
    let leftovers = leftovers::rules(&mut host.nft)?;
    ops.extend(leftovers.into_iter().map(Op::ChangeTable));
    Ok(ops)
}

/// Our files that are there, in the order in which they go.
fn files(flags: &Flags, how: &Cleanup) -> Vec<PathBuf> {
    let conflist = how.cni_conf_dir.join(names::CONFLIST_FILE);
    let snapshot = Some(PathBuf::from(&flags.snapshot_file)).filter(|file| file.is_file());
    let subnet = Some(flags.subnet_file.clone()).filter(|file| file.is_file());
    let conflist = Some(conflist).filter(|file| is_ours(file));
    snapshot.into_iter().chain(subnet).chain(conflist).collect()
}

/// Whether a CNI configuration is for our plugin: another's of the same name stays.
fn is_ours(conflist: &Path) -> bool {
    let read = || -> Option<serde_json::Value> {
        serde_json::from_str(&fs::read_to_string(conflist).ok()?).ok()
    };
    let plugins = read().and_then(|list| Some(list["plugins"].as_array()?.clone()));
    plugins
        .iter()
        .flatten()
        .any(|plugin| plugin["type"] == names::CNI_TYPE)
}
