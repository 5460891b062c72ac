//! The kernel's switches for networking, `/proc/sys/net`.
//!
//! What lies there belongs to the network namespace of the thread that looks, whatever mount it
//! looks through; only whether it may be written depends on the mount.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Where the switches lie on a host.
pub const ROOT: &str = "/proc/sys/net";

/// The switches below one root: [`ROOT`], or where a container has the host's mounted writable.
#[derive(Clone, Debug)]
pub struct Sysctl {
    root: PathBuf,
}

/// A switch that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// It could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has the wrong value and could not be written.
    #[error("cannot set {} to {wanted} (it is {found}): {}", path.display(), remedy(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
        /// Why.
        source: io::Error,
    },
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "the kernel forbids it in this network namespace: set it on the host"
        }
        _ => "set it on the host, or mount the host's /proc/sys/net writable",
    }
}

impl Default for Sysctl {
    fn default() -> Sysctl {
        Sysctl::new(ROOT)
    }
}

impl Sysctl {
    /// The switches below a root.
    pub fn new(root: impl Into<PathBuf>) -> Sysctl {
        Sysctl { root: root.into() }
    }

    /// Reads a switch by its path below the root, such as `ipv4/ip_forward`, without the line's
    /// end.
    pub fn get(&self, key: impl AsRef<Path>) -> Result<String, SysctlError> {
        let path = self.root.join(key);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim_end().to_owned()),
            Err(source) => Err(SysctlError::Read { path, source }),
        }
    }

    /// Gives a switch a value, writing only if it has another: on many hosts it may be read but
    /// not written, and is right already. Returns whether it was written.
    pub fn ensure(&self, key: impl AsRef<Path>, wanted: &str) -> Result<bool, SysctlError> {
        let path = self.root.join(key.as_ref());
        let found = self.get(key.as_ref())?;
        if found == wanted {
            return Ok(false);
        }
        match self.write(key, wanted) {
            Ok(()) => Ok(true),
            Err(source) => Err(SysctlError::Write {
                path,
                wanted: wanted.to_owned(),
                found,
                source,
            }),
        }
    }

    /// Gives a switch a value without reading it first: for one that is new, and has another value.
    /// Returns whether the kernel has such a switch.
    pub fn set(&self, key: impl AsRef<Path>, wanted: &str) -> Result<bool, SysctlError> {
        match self.write(key.as_ref(), wanted) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // It may be right already.
            Err(_) => self.ensure(key, wanted).map(|_| true),
        }
    }

    fn write(&self, key: impl AsRef<Path>, wanted: &str) -> io::Result<()> {
        // procfs takes a value in one write, and has nothing to create or to cut off.
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .open(self.root.join(key))?;
        file.write_all(wanted.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;

    #[test]
    fn switches_belong_to_the_threads_namespace() {
        let sysctl = Sysctl::default();
        let before = sysctl.get("ipv4/conf/lo/arp_notify").unwrap();
        NetNs::new_anonymous()
            .unwrap()
            .run_in(|| {
                let wanted = if before == "0" { "1" } else { "0" };
                sysctl.ensure("ipv4/conf/lo/arp_notify", wanted).unwrap();
                assert_eq!(sysctl.get("ipv4/conf/lo/arp_notify").unwrap(), wanted);
                assert!(!sysctl.ensure("ipv4/conf/lo/arp_notify", wanted).unwrap());
                assert!(sysctl.set("ipv4/conf/lo/arp_notify", &before).unwrap());
                assert_eq!(sysctl.get("ipv4/conf/lo/arp_notify").unwrap(), before);
                assert!(!sysctl.set("ipv4/conf/nobody/arp_notify", "1").unwrap());
            })
            .unwrap();
        assert_eq!(sysctl.get("ipv4/conf/lo/arp_notify").unwrap(), before);
    }

    #[test]
    fn errors_name_the_file_and_the_values() {
        let root = tempfile::tempdir().unwrap();
        let sysctl = Sysctl::new(root.path());
        let error = sysctl.get("ipv4/ip_forward").unwrap_err().to_string();
        assert_eq!(
            error,
            format!("cannot read {}/ipv4/ip_forward", root.path().display())
        );
        // The kernel refuses to read what is no number.
        let ns = NetNs::new_anonymous().unwrap();
        let refused = || {
            Sysctl::default()
                .ensure("ipv4/ip_forward", "what")
                .unwrap_err()
        };
        let error = ns.run_in(refused).unwrap().to_string();
        assert!(error.starts_with("cannot set /proc/sys/net/ipv4/ip_forward to what (it is "));
        // The size of the host's table is the first namespace's to set.
        let key = "netfilter/nf_conntrack_max";
        let forbidden = || Sysctl::default().ensure(key, "1").unwrap_err();
        let error = ns.run_in(forbidden).unwrap().to_string();
        let remedy = "the kernel forbids it in this network namespace: set it on the host";
        assert!(error.ends_with(remedy), "{error}");
    }
}
