//! The record of an attachment: what DEL has to take away, and what flanneld needs to rebuild the
//! node's side of it. One file for each, `DIR/CONTAINER-INTERFACE.json`.
//!
//! It is written before the first address is reserved, so whatever moment the plugin is killed
//! at, the record names all that may have to be undone. A reboot makes it void, so it does not
//! wait for the disk.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hostnet::atomic_file::{self, WriteError};
use hostnet::vocab::{Cidr, IfName, Mac};
use serde::{Deserialize, Serialize};

use crate::request::Identity;

/// What was made for one attachment. Keys that a later version adds are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The runtime's name for the container.
    pub container_id: String,
    /// The interface inside it.
    pub if_name: IfName,
    /// The network's name.
    pub network: String,
    /// The path of the container's namespace, as the runtime gave it.
    pub netns: PathBuf,
    /// The bridge it hangs on.
    pub bridge: IfName,
    /// The node's end of its cable, a port of the bridge.
    pub veth: IfName,
    /// The MAC of the interface inside.
    pub mac: Mac,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
    /// The bridge may send a frame back to the port it came from.
    pub hairpin: bool,
    /// The port does not speak with other isolated ports.
    pub isolated: bool,
    /// The addresses inside.
    pub addresses: Vec<RecordAddress>,
}

/// An address inside the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordAddress {
    /// The address with its subnet's prefix length.
    pub address: Cidr,
    /// The bridge's address in that subnet.
    pub gateway: IpAddr,
}

/// The records of a node.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

/// A record that could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could not be written.
    #[error("cannot keep a record of the attachment")]
    Write(#[from] WriteError),
    /// It, or the directory, could not be handled.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Record {
    /// Whether it is this attachment's: two can share a file name (`a-b`, `c` and `a`, `b-c`).
    pub fn is_of(&self, identity: &Identity) -> bool {
        self.container_id == identity.container_id.as_str() && self.if_name == identity.ifname
    }
}

impl Records {
    /// The records below a directory, which may not exist yet.
    pub fn new(dir: &Path) -> Records {
        Records {
            dir: dir.to_owned(),
        }
    }

    /// Where an attachment's record lies.
    pub fn path(&self, identity: &Identity) -> PathBuf {
        self.dir.join(format!(
            "{}-{}.json",
            identity.container_id, identity.ifname
        ))
    }

    /// Reads an attachment's record. `None` if there is none, or one that cannot be understood:
    /// after a loss of power it may be empty, and then what it told is void.
    pub fn read(&self, identity: &Identity) -> Result<Option<Record>, RecordError> {
        let record = read(&self.path(identity))?;
        Ok(record.filter(|record| record.is_of(identity)))
    }

    /// Writes a record where there is none; makes the directory if it is missing.
    pub fn create(&self, identity: &Identity, record: &Record) -> Result<(), RecordError> {
        let path = self.path(identity);
        // Plain data with text keys cannot fail to be written.
        let contents = serde_json::to_vec(record).unwrap_or_default();
        let write = || atomic_file::create_unsynced(&path, &contents, 0o600);
        match write() {
            Err(error) if error.is_no_directory() => {
                fs::create_dir_all(&self.dir).map_err(|source| RecordError::File {
                    operation: "make the directory",
                    path: self.dir.clone(),
                    source,
                })?;
                Ok(write()?)
            }
            // One that cannot be understood tells nothing.
            Err(error) if error.is_exists() && read(&path)?.is_none() => {
                self.remove(identity)?;
                Ok(write()?)
            }
            other => Ok(other?),
        }
    }

    /// Removes an attachment's record, if there is one.
    pub fn remove(&self, identity: &Identity) -> Result<(), RecordError> {
        let path = self.path(identity);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError::File {
                operation: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// All records that can be understood. Without a directory there are none.
    pub fn list(&self) -> Result<Vec<Record>, RecordError> {
        let failed = |source| RecordError::File {
            operation: "list",
            path: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            // Files that are being written start with a dot.
            let hidden = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden
                && path
                    .extension()
                    .is_some_and(|extension| extension == "json")
            {
                records.extend(read(&path)?);
            }
        }
        Ok(records)
    }
}

fn read(path: &Path) -> Result<Option<Record>, RecordError> {
    match fs::read(path) {
        Ok(contents) => Ok(serde_json::from_slice(&contents).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::File {
            operation: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::attachment::tests::identity;

    pub(crate) fn record(id: &str) -> Record {
        Record {
            container_id: id.to_owned(),
            if_name: IfName::new("eth0").unwrap(),
            network: "cbr0".to_owned(),
            netns: "/run/netns/x".into(),
            bridge: IfName::new("cni0").unwrap(),
            veth: IfName::new("veth1").unwrap(),
            mac: "0a:58:0a:f4:03:51".parse().unwrap(),
            mtu: 1450,
            hairpin: true,
            isolated: false,
            addresses: vec![RecordAddress {
                address: "10.244.3.81/24".parse().unwrap(),
                gateway: "10.244.3.1".parse().unwrap(),
            }],
        }
    }

    #[test]
    fn round_trip_in_a_directory_that_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(&dir.path().join("a/b"));
        let id = identity("c1");
        assert_eq!(records.read(&id).unwrap(), None);
        assert_eq!(records.list().unwrap(), []);
        records.remove(&id).unwrap();
        records.create(&id, &record("c1")).unwrap();
        assert_eq!(records.read(&id).unwrap(), Some(record("c1")));
        assert_eq!(records.list().unwrap(), [record("c1")]);
        let text = fs::read_to_string(records.path(&id)).unwrap();
        assert_eq!(
            text,
            r#"{"containerId":"c1","ifName":"eth0","network":"cbr0","netns":"/run/netns/x","bridge":"cni0","veth":"veth1","mac":"0a:58:0a:f4:03:51","mtu":1450,"hairpin":true,"isolated":false,"addresses":[{"address":"10.244.3.81/24","gateway":"10.244.3.1"}]}"#
        );
        records.remove(&id).unwrap();
        assert_eq!(records.read(&id).unwrap(), None);
    }

    #[test]
    fn torn_and_foreign_records_count_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        let id = identity("c1");
        records.create(&id, &record("other")).unwrap();
        assert_eq!(records.read(&id).unwrap(), None);
        records.create(&id, &record("c1")).unwrap_err();
        fs::File::create(records.path(&id)).unwrap();
        assert_eq!(records.read(&id).unwrap(), None);
        assert_eq!(records.list().unwrap(), []);
        records.create(&id, &record("c1")).unwrap();
        assert_eq!(records.read(&id).unwrap(), Some(record("c1")));
    }
}
