//! The programs that a lab needs: the machine's own tools, and the binaries of this workspace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// What the lab runs of the machine's, and the Debian package that brings it.
const TOOLS: &[(&str, &str)] = &[
    ("bridge", "iproute2"),
    ("ip", "iproute2"),
    ("iptables-save", "iptables"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("unshare", "util-linux"),
];

/// This workspace's binaries, as the lab runs them.
const BINARIES: &[&str] = &["lab", "flanneld", "twill-cni", "twill-proxy", "twill"];

/// Fails with one line if this machine cannot run a lab: no root, or a tool is missing.
pub fn check_host() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces, which needs root: run it with sudo"
    );
    let missing: Vec<_> = TOOLS.iter().filter(|(tool, _)| !on_path(tool)).collect();
    if let Some((tool, package)) = missing.first() {
        bail!("`{tool}` is missing: install it with `apt-get install {package}`");
    }
    Ok(())
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// The folder of this workspace's binaries that belong to the running program: its own folder,
/// or the one above it for a test (`target/debug/deps/…`).
pub fn binaries() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell where this program lies")?;
    let dir = match this.parent() {
        Some(deps) if deps.ends_with("deps") => fresh(deps.parent())?,
        dir => dir.map(Path::to_owned),
    };
    let dir = dir.context("this program lies in no folder")?;
    for name in BINARIES {
        ensure!(
            dir.join(name).is_file(),
            "{} is not there: run `cargo build --workspace` (with --release for target/release)",
            dir.join(name).display()
        );
    }
    Ok(dir)
}

/// Tests must not run against yesterday's daemons: cargo builds only what a test links, so the
/// first lab of a test process has the rest built.
fn fresh(dir: Option<&Path>) -> Result<Option<PathBuf>> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let Some(dir) = dir else { return Ok(None) };
    let built = BUILT.get_or_init(|| build(dir).map_err(|error| format!("{error:#}")));
    match built {
        Ok(()) => Ok(Some(dir.to_owned())),
        Err(error) => bail!("{error}"),
    }
}

fn build(dir: &Path) -> Result<()> {
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--workspace", "--bins", "--quiet", "--profile"])
        .arg(profile)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // What cargo tells a test of its package would tell build scripts of another one: they would
    // run again, and all that depends on them would be built again, each time.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let output = command.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the binaries that the lab runs do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
