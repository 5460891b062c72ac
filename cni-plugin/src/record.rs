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
use std::time::SystemTime;

use hostnet::atomic_file::{self, WriteError};
use hostnet::vocab::{Cidr, IfName, IfNameError, Mac, Subnet};
use serde::{Deserialize, Serialize};

use crate::attachment::Attachment;
use crate::plan;
use crate::request::ports::PortMapping;
use crate::request::rates::Rates;
use crate::request::{ContainerId, Identity};
use crate::vlans::Vlans;

/// What was made for one attachment. Keys that a later version adds are passed over, and those
/// that an earlier one did not write have their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The runtime's name for the container.
    pub container_id: String,
    /// The interface inside it.
    pub if_name: IfName,
    /// The network's name.
    pub network: String,
    /// The pod's namespace and name, joined by a slash, if the runtime told them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The path of the container's namespace, as the runtime gave it.
    pub netns: PathBuf,
    /// The boot of the node in which it was made (`/proc/sys/kernel/random/boot_id`).
    #[serde(default)]
    pub boot: String,
    /// When, in nanoseconds since 1970: of two that want the same, the older one has it.
    #[serde(default)]
    pub made: u64,
    /// The bridge it hangs on.
    pub bridge: IfName,
    /// The bridge's addresses that it relies upon.
    #[serde(default)]
    pub bridge_addresses: Vec<Cidr>,
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
    /// Frames with another source MAC than its own are dropped.
    #[serde(default, skip_serializing_if = "is_false")]
    pub locked: bool,
    /// The interface inside was left down.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pod_down: bool,
    /// The VLANs of its port.
    #[serde(default, skip_serializing_if = "Vlans::is_empty")]
    pub vlans: Vlans,
    /// The addresses inside.
    pub addresses: Vec<RecordAddress>,
    /// The routes inside, with their next hops, but for those of the addresses' own subnets.
    #[serde(default)]
    pub routes: Vec<RecordRoute>,
    /// The node's ports that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// The node's 127.0.0.1 and the pod itself reach these ports.
    #[serde(default, skip_serializing_if = "is_false")]
    pub snat: bool,
    /// Whoever reaches these ports is masqueraded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub masq_all: bool,
    /// What the pod sends elsewhere than to these is masqueraded; `None`: nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade_except: Option<Vec<Subnet>>,
    /// Bandwidth.
    #[serde(default, skip_serializing_if = "Rates::is_empty")]
    pub rates: Rates,
    /// The device that shapes what the pod sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifb: Option<IfName>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// An address inside the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordAddress {
    /// The address with its subnet's prefix length.
    pub address: Cidr,
    /// The gateway in that subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route inside the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordRoute {
    /// Where to.
    pub dst: Subnet,
    /// By which next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// In which table, if not the main one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
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
    /// The record of an attachment that has its addresses.
    ///
    /// # Errors
    /// None but for names that the kernel would not take, which [`plan`] does not make.
    pub fn of(
        attachment: &Attachment,
        network: &str,
        netns: &Path,
        boot: &str,
    ) -> Result<Record, IfNameError> {
        let identity = &attachment.identity;
        let ifb = attachment.rates.egress.is_some();
        let ifb = ifb.then(|| IfName::new(&plan::ifb_name(identity)));
        Ok(Record {
            container_id: identity.container_id.to_string(),
            if_name: identity.ifname.clone(),
            network: network.to_owned(),
            pod: attachment.pod.clone(),
            netns: netns.to_owned(),
            boot: boot.to_owned(),
            made: now(),
            bridge: attachment.bridge.name.clone(),
            bridge_addresses: attachment.bridge.addrs.clone(),
            veth: IfName::new(&plan::veth_name(identity))?,
            mac: attachment.mac,
            mtu: attachment.mtu,
            hairpin: attachment.hairpin,
            isolated: attachment.isolated,
            locked: attachment.locked,
            pod_down: attachment.pod_down,
            vlans: attachment.vlans.clone(),
            addresses: attachment.addresses.clone(),
            routes: attachment
                .kernel_routes()
                .iter()
                .map(|route| RecordRoute {
                    dst: route.dst,
                    gw: route.gw,
                    table: route.table,
                })
                .collect(),
            ports: attachment.ports.clone(),
            snat: attachment.snat && !attachment.ports.is_empty(),
            masq_all: attachment.masq_all && !attachment.ports.is_empty(),
            masquerade_except: attachment.masquerade_except.clone(),
            rates: attachment.rates,
            ifb: ifb.transpose()?,
        })
    }

    /// Whether it is of another boot than this one. One of an earlier version does not tell.
    pub fn is_void(&self, boot: &str) -> bool {
        !self.boot.is_empty() && self.boot != boot
    }

    /// What orders records from the oldest to the youngest.
    pub fn age(&self) -> (u64, &str, &str) {
        (self.made, &self.container_id, self.if_name.as_str())
    }

    /// The addresses inside, without prefix lengths.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|a| a.address.addr()).collect()
    }

    /// The link with the gateway's addresses.
    pub fn gateway(&self) -> IfName {
        // A name that is too long was refused, unless there are no addresses.
        let gateway = self.vlans.gateway(&self.bridge);
        gateway.unwrap_or_else(|_| self.bridge.clone())
    }

    /// Whom it belongs to, for people: the pod's name if it is known.
    pub fn whose(&self) -> String {
        match &self.pod {
            Some(pod) => format!("pod {pod} (container {})", self.container_id),
            None => format!("container {}", self.container_id),
        }
    }

    /// What it is known by; `None` if its id is none.
    pub fn identity(&self) -> Option<Identity> {
        ContainerId::new(&self.container_id).map(|container_id| Identity {
            container_id,
            ifname: self.if_name.clone(),
        })
    }

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
                self.make_dir()?;
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

    /// Makes the directory.
    pub(crate) fn make_dir(&self) -> Result<(), RecordError> {
        fs::create_dir_all(&self.dir).map_err(|source| RecordError::File {
            operation: "make the directory",
            path: self.dir.clone(),
            source,
        })
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

    /// The records of attachments that may stand, the oldest first: those that can be understood,
    /// and are not of another boot of the node. Without a directory there are none.
    pub fn list(&self) -> Result<Vec<Record>, RecordError> {
        let mut records = self.list_all()?;
        if !records.is_empty() {
            let boot = boot_id()?;
            records.retain(|record| !record.is_void(&boot));
        }
        Ok(records)
    }

    /// The same with those of another boot, which nothing stands behind any more.
    pub fn list_all(&self) -> Result<Vec<Record>, RecordError> {
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
        records.sort_by(|a, b| a.age().cmp(&b.age()));
        Ok(records)
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// The id of the node's current boot: other namespaces, devices and rules than in the one before.
///
/// # Errors
/// The file could not be read.
pub fn boot_id() -> Result<String, RecordError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|source| RecordError::File {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(text.trim().to_owned())
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
            pod: None,
            netns: "/run/netns/x".into(),
            boot: "b".to_owned(),
            made: 7,
            bridge: IfName::new("cni0").unwrap(),
            bridge_addresses: vec!["10.244.3.1/24".parse().unwrap()],
            veth: IfName::new("veth1").unwrap(),
            mac: "0a:58:0a:f4:03:51".parse().unwrap(),
            mtu: 1450,
            hairpin: true,
            isolated: false,
            locked: false,
            pod_down: false,
            vlans: Vlans::default(),
            addresses: vec![RecordAddress {
                address: "10.244.3.81/24".parse().unwrap(),
                gateway: Some("10.244.3.1".parse().unwrap()),
            }],
            routes: Vec::new(),
            ports: Vec::new(),
            snat: false,
            masq_all: false,
            masquerade_except: None,
            rates: Rates::default(),
            ifb: None,
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
        assert_eq!(records.list_all().unwrap(), [record("c1")]);
        let text = fs::read_to_string(records.path(&id)).unwrap();
        assert_eq!(
            text,
            r#"{"containerId":"c1","ifName":"eth0","network":"cbr0","netns":"/run/netns/x","boot":"b","made":7,"bridge":"cni0","bridgeAddresses":["10.244.3.1/24"],"veth":"veth1","mac":"0a:58:0a:f4:03:51","mtu":1450,"hairpin":true,"isolated":false,"addresses":[{"address":"10.244.3.81/24","gateway":"10.244.3.1"}],"routes":[]}"#
        );
        records.remove(&id).unwrap();
        assert_eq!(records.read(&id).unwrap(), None);
    }

    #[test]
    fn records_of_an_earlier_version_are_understood() {
        let old = r#"{"containerId":"c1","ifName":"eth0","network":"cbr0","netns":"/run/netns/x","bridge":"cni0","veth":"veth1","mac":"0a:58:0a:f4:03:51","mtu":1450,"hairpin":true,"isolated":false,"addresses":[{"address":"10.244.3.81/24","gateway":"10.244.3.1"}]}"#;
        let read: Record = serde_json::from_str(old).unwrap();
        let expected = Record {
            boot: String::new(),
            made: 0,
            bridge_addresses: Vec::new(),
            ..record("c1")
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn what_another_boot_left_does_not_stand() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path());
        for (id, boot) in [("a", "another"), ("b", ""), ("c", &boot_id().unwrap())] {
            let boot = boot.to_owned();
            let made = Record { boot, ..record(id) };
            records.create(&identity(id), &made).unwrap();
        }
        let ids = |list: Vec<Record>| -> Vec<String> {
            list.into_iter().map(|record| record.container_id).collect()
        };
        assert_eq!(ids(records.list().unwrap()), ["b", "c"]);
        assert_eq!(ids(records.list_all().unwrap()), ["a", "b", "c"]);
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
