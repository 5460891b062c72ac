//! Network namespaces: opening, comparing, making, and running code inside one.
//!
//! Namespaces belong to threads. [`NetNs::run_in`] switches the calling thread and always switches
//! it back; where that fails the process is aborted, because a thread left in a pod's namespace
//! would go on to change the wrong network. Sockets keep the namespace that they were opened in.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

/// The calling thread's network namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It lives as long as a handle, a process, a socket or a mount holds
/// it; clones share one handle.
#[derive(Clone, Debug)]
pub struct NetNs {
    file: Arc<File>,
    id: NetNsId,
    path: PathBuf,
}

/// What tells one namespace from another, whatever path it was reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetNsId {
    /// The device number of nsfs.
    pub dev: u64,
    /// The namespace's inode number.
    pub ino: u64,
}

/// An operation on a namespace that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// The path could not be opened.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path is there, but it is a plain file, or a namespace of another kind.
    #[error("{} is not a network namespace", path.display())]
    NotANetNs {
        /// The path.
        path: PathBuf,
    },
    /// The thread could not be switched.
    #[error("cannot enter the network namespace {} (this needs CAP_SYS_ADMIN)", path.display())]
    Enter {
        /// The path by which the namespace was opened.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No new namespace could be made.
    #[error("cannot make a network namespace (this needs CAP_SYS_ADMIN)")]
    Create {
        /// Why.
        source: io::Error,
    },
    /// A namespace could not be given a path, or the path not be taken away.
    #[error("cannot {operation} {}", path.display())]
    Mount {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl NetNsError {
    /// Whether the error says that there is no namespace at the path: nothing is there, or what
    /// is there is something else (a mount point's file whose namespace went).
    pub fn is_absent(&self) -> bool {
        match self {
            NetNsError::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
            NetNsError::NotANetNs { .. } => true,
            _ => false,
        }
    }
}

impl NetNs {
    /// Opens the namespace at a path such as `/proc/42/ns/net` or `/run/netns/pod-1`.
    pub fn open(path: impl AsRef<Path>) -> Result<NetNs, NetNsError> {
        let path = path.as_ref();
        let opening = |source| NetNsError::Open {
            path: path.to_owned(),
            source,
        };
        // Non-blocking, because a hostile path may be a pipe without a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(opening)?;
        if !is_net_ns(&file) {
            return Err(NetNsError::NotANetNs {
                path: path.to_owned(),
            });
        }
        let metadata = file.metadata().map_err(opening)?;
        Ok(NetNs {
            file: Arc::new(file),
            id: NetNsId {
                dev: metadata.dev(),
                ino: metadata.ino(),
            },
            path: path.to_owned(),
        })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<NetNs, NetNsError> {
        NetNs::open(CURRENT)
    }

    /// Makes a namespace that has no path: it goes with its last handle and process. Its only
    /// device is `lo`, down.
    pub fn new_anonymous() -> Result<NetNs, NetNsError> {
        in_new_netns(NetNs::current)
    }

    /// Makes a namespace and mounts it at a path, as `ip netns add` does; it lives until
    /// [`NetNs::remove_at`]. The path must not exist yet, its directory must.
    pub fn create_at(path: impl AsRef<Path>) -> Result<NetNs, NetNsError> {
        let path = path.as_ref();
        let failed = |operation| {
            move |source| NetNsError::Mount {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed("make the mount point"))?;
        let made = in_new_netns(|| {
            let none: Option<&str> = None;
            nix::mount::mount(Some(CURRENT), path, none, MsFlags::MS_BIND, none)
                .map_err(|e| failed("mount the network namespace at")(e.into()))?;
            NetNs::open(path)
        });
        if made.is_err() {
            // Nothing half made stays behind; the first error is the one to tell.
            let _ = NetNs::remove_at(path);
        }
        made
    }

    /// Unmounts and removes what [`NetNs::create_at`] made. Succeeds if nothing is there.
    pub fn remove_at(path: impl AsRef<Path>) -> Result<(), NetNsError> {
        let path = path.as_ref();
        let failed = |operation| {
            move |source| NetNsError::Mount {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: a file that is no mount point.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(failed("unmount")(error.into())),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove")(error)),
            _ => Ok(()),
        }
    }

    /// What tells it from other namespaces.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to it as long as this handle lives, for other processes too:
    /// `nsenter --net=/proc/PID/fd/N`.
    pub fn fd_path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.file.as_raw_fd()
        ))
    }

    /// Runs `work` with the calling thread inside the namespace, and switches back, also when it
    /// panics. Threads that `work` starts stay inside.
    pub fn run_in<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetNsError> {
        let home = NetNs::current()?;
        if home.id == self.id {
            return Ok(work());
        }
        self.enter()?;
        let _back = SwitchBack(home);
        Ok(work())
    }

    /// Moves the calling thread for good: for programs of a single thread, and for threads made
    /// for one namespace.
    pub fn enter(&self) -> Result<(), NetNsError> {
        switch_to(&self.file).map_err(|source| NetNsError::Enter {
            path: self.path.clone(),
            source,
        })
    }
}

impl PartialEq for NetNs {
    fn eq(&self, other: &NetNs) -> bool {
        self.id == other.id
    }
}

impl Eq for NetNs {}

impl AsFd for NetNs {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes the thread back when dropped.
struct SwitchBack(NetNs);

impl Drop for SwitchBack {
    fn drop(&mut self) {
        if let Err(error) = switch_to(&self.0.file) {
            // To go on in a pod's namespace would be to change the wrong network.
            eprintln!("cannot leave a network namespace: {error}: aborting");
            std::process::abort();
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that switches namespaces"
)]
fn switch_to(file: &File) -> io::Result<()> {
    Ok(nix::sched::setns(file, CloneFlags::CLONE_NEWNET)?)
}

/// Runs `work` in a new namespace, on a thread of its own, so that the caller never moves.
fn in_new_netns<T: Send>(
    work: impl FnOnce() -> Result<T, NetNsError> + Send,
) -> Result<T, NetNsError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| NetNsError::Create { source: e.into() })?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `NS_GET_NSTYPE` of linux/nsfs.h: `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

#[expect(unsafe_code, reason = "nix has no wrapper for the nsfs ioctls")]
fn is_net_ns(file: &File) -> bool {
    // The ioctl's number may mean something to other files, so the file system comes first.
    let nsfs = nix::sys::statfs::fstatfs(file)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC);
    // SAFETY: the descriptor is open for the length of the call, and the ioctl takes no argument.
    nsfs && unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) } == libc::CLONE_NEWNET
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device_names() -> String {
        std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
    }

    #[test]
    fn runs_inside_and_comes_back() {
        let home = NetNs::current().unwrap();
        let ns = NetNs::new_anonymous().unwrap();
        assert_ne!(ns, home);
        let inside = ns.run_in(|| NetNs::current().unwrap().id()).unwrap();
        assert_eq!(inside, ns.id());
        assert_eq!(NetNs::current().unwrap(), home);
        assert!(ns.run_in(device_names).unwrap().contains("lo:"));
    }

    #[test]
    fn comes_back_from_a_panic() {
        let home = NetNs::current().unwrap();
        let ns = NetNs::new_anonymous().unwrap();
        let result = std::panic::catch_unwind(|| ns.run_in(|| panic!("inside")));
        assert!(result.is_err());
        assert_eq!(NetNs::current().unwrap(), home);
    }

    #[test]
    fn nests() {
        let (a, b) = (
            NetNs::new_anonymous().unwrap(),
            NetNs::new_anonymous().unwrap(),
        );
        let (inner, outer) = a
            .run_in(|| {
                let inner = b.run_in(|| NetNs::current().unwrap()).unwrap();
                (inner, NetNs::current().unwrap())
            })
            .unwrap();
        assert_eq!((inner, outer), (b, a));
    }

    #[test]
    fn a_mounted_namespace_is_the_same_by_every_path_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod");
        let ns = NetNs::create_at(&path).unwrap();
        assert_eq!(NetNs::open(&path).unwrap(), ns);
        assert_eq!(NetNs::open(ns.fd_path()).unwrap(), ns);
        let again = NetNs::create_at(&path).unwrap_err();
        assert!(
            again.to_string().contains("make the mount point"),
            "{again}"
        );
        NetNs::remove_at(&path).unwrap();
        assert!(!path.exists());
        NetNs::remove_at(&path).unwrap();
    }

    #[test]
    fn what_is_no_network_namespace_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [
            file.path(),
            Path::new("/proc/self/ns/mnt"),
            Path::new("/proc/self"),
        ] {
            let error = NetNs::open(path).unwrap_err();
            assert!(matches!(error, NetNsError::NotANetNs { .. }), "{error:?}");
            assert!(error.is_absent());
            assert!(error.to_string().contains(path.to_str().unwrap()));
        }
        let error = NetNs::open("/nonexistent/ns").unwrap_err();
        assert!(error.is_absent());
        assert_eq!(
            error.to_string(),
            "cannot open the network namespace /nonexistent/ns"
        );
    }
}
