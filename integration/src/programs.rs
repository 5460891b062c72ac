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

/// Where `make benched` puts what benchmarks run, beside `target/release`.
const SHIPPED: &str = "x86_64-unknown-linux-gnu/dist";

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
/// or the one above it for a test (`target/debug/deps/…`). A benchmark (`target/release/deps/…`)
/// measures what is shipped, the static binaries.
pub fn binaries() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell where this program lies")?;
    let dir = this.parent().context("this program lies in no folder")?;
    let dir = match dir.parent() {
        Some(release) if dir.ends_with("release/deps") => fresh(&release.with_file_name(SHIPPED))?,
        Some(profile) if dir.ends_with("deps") => fresh(profile)?,
        _ => dir.to_owned(),
    };
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
fn fresh(dir: &Path) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build(dir).map_err(|error| format!("{error:#}")));
    match built {
        Ok(()) => Ok(dir.to_owned()),
        Err(error) => bail!("{error}"),
    }
}

fn build(dir: &Path) -> Result<()> {
    let mut command = if dir.ends_with(SHIPPED) {
        let mut make = Command::new("make");
        make.args(["--silent", "benched"]);
        make
    } else {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--workspace", "--bins", "--quiet", "--profile"]);
        cargo.arg(match dir.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        });
        cargo
    };
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // What cargo tells a test of its package would tell build scripts of another one: they would
    // run again, and all that depends on them would be built again, each time.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let output = command.output().context("cannot run cargo or make")?;
    ensure!(
        output.status.success(),
        "the binaries that the lab runs do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
