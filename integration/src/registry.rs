//! The names of labs: one folder each under [`ROOT`], alive as long as someone holds its lock.
//!
//! Whoever starts a lab and then the lab's keeper hold the lock *shared*; so an exclusive lock
//! can be had exactly when both are dead, and then the folder is a leftover that may go. Claims
//! and sweeps exclude each other by a lock on the root, so that nobody sweeps a folder in the
//! moment between its making and its locking.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Holds every lab's folder: logs, the keeper's socket, the lock.
pub const ROOT: &str = "/run/twill-lab";

/// Where each keeper mounts the lab's private files, in its own mount namespace: the folder is
/// always empty on the host.
pub const PRIVATE: &str = "/run/twill-lab/.private";

const LOCK: &str = "lock";

/// A name that was free and now is ours, as long as this lives or a keeper holds it. When it is
/// dropped and there is no keeper, nothing is left.
#[derive(Debug)]
pub struct Claim {
    name: LabName,
    lock: Option<File>,
}

/// A lab's name: 1 to 20 lower-case letters, digits and hyphens, so that it can be part of file
/// and host names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabName(String);

impl LabName {
    /// The name that `lab up` and `lab demo` use unless told otherwise.
    pub const DEFAULT: &str = "twill";

    /// Checks a name.
    pub fn new(name: &str) -> Result<LabName> {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            (1..=20).contains(&name.len())
                && name.chars().all(fine)
                && name.starts_with(|c: char| c.is_ascii_alphanumeric()),
            "lab name {name:?}: use 1 to 20 lower-case letters, digits and hyphens, such as \"twill-2\""
        );
        Ok(LabName(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The lab's folder.
    pub fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.0)
    }

    /// One file for each process of the lab.
    pub fn logs(&self) -> PathBuf {
        self.dir().join("logs")
    }

    /// The keeper's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("keeper.sock")
    }

    /// Takes the lab's lock as its keeper does: shared, until the file is closed.
    pub fn hold(&self) -> io::Result<File> {
        let lock = File::open(self.dir().join(LOCK))?;
        lock.lock_shared()?;
        Ok(lock)
    }

    /// Whether the lab has a keeper, or is about to get one.
    pub fn is_alive(&self) -> io::Result<bool> {
        let lock = match File::open(self.dir().join(LOCK)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match lock.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl std::fmt::Display for LabName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Claim {
    /// Sweeps what dead labs left, then claims the name.
    pub fn new(name: &LabName) -> Result<Claim> {
        let _exclusive = lock_root()?;
        sweep_dead()?;
        let dir = name.dir();
        match std::fs::create_dir(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "a lab named {name} is already up: end it with `lab down {name}`, or give yours another name"
            ),
            Err(error) => return Err(error).context(format!("cannot make {}", dir.display())),
        }
        std::fs::create_dir(name.logs()).context("cannot make the lab's log folder")?;
        File::create_new(dir.join(LOCK)).context("cannot make the lab's lock")?;
        let lock = name.hold().context("cannot lock the lab's folder")?;
        Ok(Claim {
            name: name.clone(),
            lock: Some(lock),
        })
    }

    /// The claimed name.
    pub fn name(&self) -> &LabName {
        &self.name
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.lock = None;
        if let Err(error) = sweep() {
            eprintln!("{error:#}");
        }
    }
}

/// The labs that are up, by name.
pub fn living() -> Result<Vec<LabName>> {
    let mut names = all()?;
    names.retain(|name| name.is_alive().unwrap_or(false));
    Ok(names)
}

/// Removes the folders of labs that are dead, and of those only. Returns their names.
pub fn sweep() -> Result<Vec<LabName>> {
    let _exclusive = lock_root()?;
    sweep_dead()
}

fn sweep_dead() -> Result<Vec<LabName>> {
    let mut swept = Vec::new();
    for name in all()? {
        if !name.is_alive()? {
            let dir = name.dir();
            std::fs::remove_dir_all(&dir)
                .with_context(|| format!("cannot remove the dead lab's {}", dir.display()))?;
            swept.push(name);
        }
    }
    Ok(swept)
}

fn all() -> Result<Vec<LabName>> {
    let entries = match std::fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("cannot list {ROOT}")),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context(format!("cannot list {ROOT}"))?;
        // What is not named like a lab was not made by one.
        if let Some(Ok(name)) = entry.file_name().to_str().map(LabName::new) {
            names.push(name);
        }
    }
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

fn lock_root() -> Result<File> {
    std::fs::create_dir_all(PRIVATE).context(format!("cannot make {PRIVATE}"))?;
    let path = Path::new(ROOT).join(".lock");
    let lock = File::create(&path).context(format!("cannot make {}", path.display()))?;
    lock.lock()
        .context(format!("cannot lock {}", path.display()))?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["twill", "a", "lab-2", "t12345-0"] {
            assert_eq!(LabName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            ".private",
            "A",
            "a/b",
            "a b",
            "..",
            "a23456789012345678901",
        ] {
            let error = LabName::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
