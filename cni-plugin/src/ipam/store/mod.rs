//! Reservations on disk, as host-local has them: `DIR/NETWORK/ADDRESS` holds the container's id
//! and interface, `last_reserved_ip.N` the last address of range N, `lock` is locked by whoever
//! changes something.
//!
//! A reservation appears whole or not at all, and survives a loss of power. An empty file, which
//! host-local leaves when it is killed between making and filling one, is nobody's.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hostnet::atomic_file::{self, WriteError};
use hostnet::lock::{FileLock, LockError};

use super::RangeSet;
use crate::request::Identity;

/// The reservations of one network.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// The reservations while nobody else changes them.
#[derive(Debug)]
pub struct Locked<'a> {
    store: &'a Store,
    _lock: FileLock,
}

/// Why there is no address, or why one could not be given back.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// The directory could not be made.
    #[error("cannot make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock could not be taken.
    #[error("cannot reserve an address")]
    Lock(#[from] LockError),
    /// No address is left.
    #[error(
        "no address is left for a pod in {subnets}: all are reserved by the files in {}",
        dir.display()
    )]
    Full {
        /// The subnets of the set.
        subnets: String,
        /// Where the reservations lie.
        dir: PathBuf,
    },
    /// Another program, one that does not take the lock, was faster.
    #[error("the address {addr} was taken by another program at the same moment")]
    Raced {
        /// The address.
        addr: IpAddr,
    },
    /// An address that was asked for is another's.
    #[error("the address {addr} is asked for, and is reserved for {owner}")]
    Taken {
        /// The address.
        addr: IpAddr,
        /// Whom it is reserved for.
        owner: Owner,
    },
    /// An address that was asked for is in no range, or two are in one.
    #[error("the address {addr} is asked for, and {why}")]
    NotOurs {
        /// The address.
        addr: IpAddr,
        /// Why it cannot be.
        why: String,
    },
    /// A reservation could not be written.
    #[error("cannot reserve the address {addr}")]
    Write {
        /// The address.
        addr: IpAddr,
        /// Why.
        source: WriteError,
    },
    /// A reservation could not be read or removed.
    #[error("cannot {operation} the reservation {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Store {
    /// The reservations of a network below host-local's `dataDir`; nothing is touched yet.
    pub fn new(data_dir: &Path, network: &str) -> Store {
        Store {
            dir: data_dir.join(network),
        }
    }

    /// Takes the lock; makes the directory if it is missing.
    pub fn lock(&self) -> Result<Locked<'_>, IpamError> {
        match FileLock::acquire(self.dir.join("lock")) {
            Err(error) if error.is_no_directory() => {
                fs::create_dir_all(&self.dir).map_err(|source| IpamError::Directory {
                    path: self.dir.clone(),
                    source,
                })?;
                let lock = FileLock::acquire(self.dir.join("lock"))?;
                Ok(Locked {
                    store: self,
                    _lock: lock,
                })
            }
            other => Ok(Locked {
                store: self,
                _lock: other?,
            }),
        }
    }

    /// Takes the lock if there is a directory; without one there are no reservations.
    pub fn lock_existing(&self) -> Result<Option<Locked<'_>>, IpamError> {
        match FileLock::acquire(self.dir.join("lock")) {
            Err(error) if error.is_no_directory() => Ok(None),
            other => Ok(Some(Locked {
                store: self,
                _lock: other?,
            })),
        }
    }

    /// An address for each set that is free now, without reserving it: what STATUS asks.
    pub fn free(&self, sets: &[RangeSet]) -> Result<Vec<IpAddr>, IpamError> {
        sets.iter()
            .enumerate()
            .map(|(index, set)| self.free_in(index, set))
            .collect()
    }

    fn free_in(&self, index: usize, set: &RangeSet) -> Result<IpAddr, IpamError> {
        let last = fs::read_to_string(self.last_file(index)).ok();
        let last = last.and_then(|text| text.trim().parse().ok());
        // Whatever cannot be looked at is not given out.
        let is_free = |addr: &IpAddr| match fs::symlink_metadata(self.file(*addr)) {
            Ok(metadata) => metadata.is_file() && metadata.len() == 0,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        set.candidates(last)
            .find(is_free)
            // Reading them all is for when there is no other.
            .or_else(|| {
                set.candidates(last)
                    .find(|addr| is_blank(&self.file(*addr)))
            })
            .ok_or_else(|| IpamError::Full {
                subnets: subnets(set),
                dir: self.dir.clone(),
            })
    }

    /// The addresses that are asked for, each for the set that it is in: `None` where none is.
    ///
    /// # Errors
    /// [`IpamError::NotOurs`] for one that is in no set, or a second one in the same.
    pub fn assign(sets: &[RangeSet], asked: &[IpAddr]) -> Result<Vec<Option<IpAddr>>, IpamError> {
        let mut assigned = vec![None; sets.len()];
        for addr in asked {
            let refuse = |why| IpamError::NotOurs { addr: *addr, why };
            let Some(index) = sets.iter().position(|set| set.range_of(*addr).is_some()) else {
                let all: Vec<String> = sets.iter().map(RangeSet::to_string).collect();
                return Err(refuse(format!("is not in {}", all.join("; "))));
            };
            if let Some(other) = assigned[index].replace(*addr) {
                return Err(refuse(format!("so is {other}, in the same set of ranges")));
            }
        }
        Ok(assigned)
    }

    /// Whether an address is reserved for this attachment.
    pub fn is_owner(&self, owner: &Identity, addr: IpAddr) -> Result<bool, IpamError> {
        Ok(self.owner(addr)?.is_some_and(|found| found.is(owner)))
    }

    /// Whom an address is reserved for; `None` if for nobody, or by a file that tells nothing.
    fn owner(&self, addr: IpAddr) -> Result<Option<Owner>, IpamError> {
        let path = self.file(addr);
        match fs::read(&path) {
            Ok(contents) => Ok(Owner::parse(&String::from_utf8_lossy(&contents))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IpamError::File {
                operation: "read",
                path,
                source,
            }),
        }
    }

    /// The addresses that are reserved for an attachment. This reads every reservation: for
    /// attachments of which there is no record.
    pub fn owned_by(&self, owner: &Identity) -> Result<Vec<IpAddr>, IpamError> {
        let all = self.reservations()?.into_iter();
        Ok(all
            .filter(|(_, found)| found.is(owner))
            .map(|(addr, _)| addr)
            .collect())
    }

    /// All reservations. Without a directory there are none.
    pub fn reservations(&self) -> Result<Vec<(IpAddr, Owner)>, IpamError> {
        let failed = |source| IpamError::File {
            operation: "list",
            path: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            if let Some(addr) = name.to_str().and_then(|name| name.parse().ok()) {
                all.extend(self.owner(addr)?.map(|owner| (addr, owner)));
            }
        }
        Ok(all)
    }

    fn file(&self, addr: IpAddr) -> PathBuf {
        self.dir.join(addr.to_string())
    }

    fn last_file(&self, index: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{index}"))
    }
}

impl Locked<'_> {
    /// Picks an address of each set: the one that is asked for, or a free one.
    pub fn choose(&self, sets: &[RangeSet], asked: &[IpAddr]) -> Result<Vec<IpAddr>, IpamError> {
        let asked = Store::assign(sets, asked)?;
        let sets = sets.iter().zip(asked).enumerate();
        sets.map(|(index, (set, asked))| match asked {
            None => self.store.free_in(index, set),
            Some(addr) => match self.store.owner(addr)? {
                Some(owner) => Err(IpamError::Taken { addr, owner }),
                None => Ok(addr),
            },
        })
        .collect()
    }

    /// Reserves addresses that were chosen: all or none.
    pub fn commit(&self, owner: &Identity, addrs: &[IpAddr]) -> Result<(), IpamError> {
        for (index, addr) in addrs.iter().enumerate() {
            if let Err(error) = self.commit_one(owner, index, *addr) {
                for done in &addrs[..=index] {
                    // The first error is the one to tell.
                    let _ = self.release(owner, *done);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn commit_one(&self, owner: &Identity, index: usize, addr: IpAddr) -> Result<(), IpamError> {
        let path = self.store.file(addr);
        let contents = format!("{}\r\n{}", owner.container_id, owner.ifname);
        if is_blank(&path) {
            fs::remove_file(&path).map_err(|source| IpamError::File {
                operation: "remove",
                path: path.clone(),
                source,
            })?;
        }
        atomic_file::create(&path, contents.as_bytes(), 0o600).map_err(|source| {
            if source.is_exists() {
                IpamError::Raced { addr }
            } else {
                IpamError::Write { addr, source }
            }
        })?;
        self.remember(index, addr)
            .map_err(|source| IpamError::File {
                operation: "write beside",
                path,
                source,
            })
    }

    /// Torn, it makes the next round start elsewhere, so it is written in place.
    fn remember(&self, index: usize, addr: IpAddr) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.store.last_file(index))?
            .write_all(addr.to_string().as_bytes())
    }

    /// Gives an address back if it is reserved for this attachment, else leaves it alone.
    pub fn release(&self, owner: &Identity, addr: IpAddr) -> Result<(), IpamError> {
        if !self.store.is_owner(owner, addr)? {
            return Ok(());
        }
        let path = self.store.file(addr);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(IpamError::File {
                operation: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// Whom an address is reserved for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The container's id, whatever it is made of.
    pub container_id: String,
    /// The interface; host-local's oldest format has none.
    pub ifname: Option<String>,
}

/// Whether a file that is there names nobody: a loss of power can leave it empty, or full of zeroes.
fn is_blank(path: &Path) -> bool {
    let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    is_file
        && fs::read(path).is_ok_and(|contents| {
            contents
                .iter()
                .all(|byte| *byte == 0 || byte.is_ascii_whitespace())
        })
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}", self.container_id)?;
        match &self.ifname {
            Some(ifname) => write!(f, " interface {ifname}"),
            None => Ok(()),
        }
    }
}

fn subnets(set: &RangeSet) -> String {
    let all = set.ranges().iter().map(|range| range.subnet().to_string());
    all.collect::<Vec<_>>().join(", ")
}

impl Owner {
    fn parse(contents: &str) -> Option<Owner> {
        let contents = contents.trim_matches(|c: char| c == '\0' || c.is_whitespace());
        let (id, ifname) = match contents.split_once('\n') {
            Some((id, ifname)) => (id, Some(ifname.trim().to_owned())),
            None => (contents, None),
        };
        let id = id.trim();
        (!id.is_empty()).then(|| Owner {
            container_id: id.to_owned(),
            ifname,
        })
    }

    /// Whether this is the attachment, or the container where no interface is told.
    pub fn is(&self, identity: &Identity) -> bool {
        self.container_id == identity.container_id.as_str()
            && self
                .ifname
                .as_deref()
                .is_none_or(|ifname| identity.ifname == *ifname)
    }
}

#[cfg(test)]
mod tests;
