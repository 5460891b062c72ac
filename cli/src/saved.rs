//! The Services that twill-proxy keeps on disk for its next start: where a name is known without reading a map of thousands.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use hostnet::nft::Proto;
use hostnet::snapshot;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The file's name in the folder of the daemons' snapshots.
pub const FILE: &str = "twill-proxy";

/// What kind of snapshot it is, and the version of its shape.
const KIND: (&str, u32) = ("twill-proxy index", 1);

/// A Service as it was when twill-proxy wrote.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Saved {
    /// Its cluster IPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<SavedPort>,
}

/// A port of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SavedPort {
    /// Empty where it is the only one.
    pub name: String,
    /// Its protocol.
    pub protocol: SavedProtocol,
    /// The port at the cluster IP.
    pub port: u16,
    /// The port at the nodes.
    pub node_port: Option<u16>,
}

/// A protocol as twill-proxy writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum SavedProtocol {
    Tcp,
    Udp,
    Sctp,
}

impl From<SavedProtocol> for Proto {
    fn from(protocol: SavedProtocol) -> Proto {
        match protocol {
            SavedProtocol::Tcp => Proto::TCP,
            SavedProtocol::Udp => Proto::UDP,
            SavedProtocol::Sctp => Proto::SCTP,
        }
    }
}

#[derive(Deserialize)]
struct Index {
    /// Only one is read further.
    services: BTreeMap<String, Box<RawValue>>,
}

/// The Service of a `NAMESPACE/NAME`; `None` where the file does not tell, whatever the cause: it is a shorter way, and
/// never the only one.
pub fn service(file: &Path, name: &str) -> Option<Saved> {
    let (kind, version) = KIND;
    let index: Index = snapshot::read_of_any_node(file, kind, version).ok()?.state;
    serde_json::from_str(index.services.get(name)?.get()).ok()
}
