//! Our hands on this node's kernel: one netlink handle, one of nf_tables, the switches. Reading is in
//! [`observe`](crate::observe), writing in [`apply`](crate::apply).

use std::path::{Path, PathBuf};

use hostnet::{
    netlink::{self, Rtnl},
    nft::{self, Nft},
    sysctl::{self, Sysctl, SysctlError},
};

/// Where an unprivileged container has the host's switches mounted writable: its own are read-only.
const HOST_SYSCTLS: &str = "/host/proc/sys/net";

/// One network namespace's kernel state.
#[derive(Debug)]
pub struct Host {
    pub(crate) rtnl: Rtnl,
    pub(crate) nft: Nft,
    pub(crate) sysctl: Sysctl,
}

/// What failed between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Links, addresses, routes, neighbours, forwarding entries.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// nftables.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// Switches.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A device that an operation needs is not there.
    #[error("there is no device {0}")]
    NoDevice(hostnet::vocab::IfName),
}

/// The switches' root: the host's mount in a container, else the usual place.
#[must_use]
pub fn sysctl_root() -> PathBuf {
    let mounted = Path::new(HOST_SYSCTLS);
    if mounted.is_dir() {
        mounted.into()
    } else {
        sysctl::ROOT.into()
    }
}

impl Host {
    /// Opens the calling thread's network namespace. `sysctls` is the root of its switches.
    ///
    /// # Errors
    /// The kernel gives no sockets.
    pub fn open(sysctls: PathBuf) -> Result<Self, Error> {
        Ok(Self {
            rtnl: Rtnl::open()?,
            nft: Nft::open()?,
            sysctl: Sysctl::new(sysctls),
        })
    }
}
