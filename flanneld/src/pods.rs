//! What twill-cni has made for this node's pods: the bridge with its addresses and ports, host ports, shaping. The plugin
//! runs only when a pod comes or goes; flanneld is there all the time, and puts back what somebody takes away, from the
//! plugin's records and with its own code.
//!
//! Kernel events say when to look. What the plugin itself does looks the same as harm now and then; then there is nothing
//! to put back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use cni_plugin::{
    error::CniError,
    rebuild::{self, Node},
    record::{self, Records},
    verbs::orphans,
};
use hostnet::{
    netlink::{Event, Link, Object, link::BridgePort},
    nft,
    vocab::{IfName, names},
};

use crate::host::{self, Host};

/// This node's pods.
#[derive(Debug)]
pub struct Pods {
    folder: PathBuf,
    records: Records,
    /// The links that pods' packets pass, by index: as of the last look.
    links: BTreeMap<u32, Known>,
    /// Somebody may have taken something away.
    is_doubtful: bool,
}

/// What of a link shall stay as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    name: IfName,
    master: Option<u32>,
    port: Option<BridgePort>,
}

impl Known {
    fn of(link: &Link) -> Self {
        Self {
            name: link.name.clone(),
            master: link.master,
            port: link.port,
        }
    }
}

/// What could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot be read.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] record::RecordError),
    /// Not all could be put back, or taken down.
    #[error("{}: {}", .0.msg, .0.details)]
    Mend(CniError),
}

impl Pods {
    /// The pods whose records are in this folder.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self {
            records: Records::new(&folder),
            folder,
            links: BTreeMap::new(),
            is_doubtful: true,
        }
    }

    /// The folder of the records.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes a change in the kernel. Returns whether it may have taken something away.
    pub fn hear(&mut self, event: &Event) -> bool {
        let is_harm = match &event.object {
            Object::Link(link) => self.is_harmed(link, event.gone),
            Object::Addr(addr) => event.gone && self.links.contains_key(&addr.link),
            Object::Port(link) | Object::Shaping(link) => self.links.contains_key(link),
            _ => false,
        };
        self.is_doubtful |= is_harm;
        is_harm
    }

    /// Whether a link of pods' is gone, down, off its bridge or of other manners. One that joins a bridge is the
    /// plugin's work, and known from then on.
    fn is_harmed(&mut self, link: &Link, gone: bool) -> bool {
        let joins = link
            .master
            .is_some_and(|bridge| self.links.contains_key(&bridge));
        let known = self.links.get(&link.index).cloned();
        if (joins || known.is_some()) && !gone {
            self.links.insert(link.index, Known::of(link));
        }
        known.is_some_and(|known| gone || !link.up || known != Known::of(link))
    }

    /// Notes a change of the ruleset. Returns whether it may have taken something away: it touched the plugin's table,
    /// and was not the plugin's doing.
    pub fn hear_rules(&mut self, change: &nft::Change, own_port: u32) -> bool {
        let is_harm = change.port != own_port
            && change.process.as_deref() != Some(names::CNI_TYPE)
            && change
                .tables
                .iter()
                .any(|table| *table.name == *names::TABLE_CNI);
        self.is_doubtful |= is_harm;
        is_harm
    }

    /// Looks at everything next time.
    pub fn doubt(&mut self) {
        self.is_doubtful = true;
    }

    /// Puts back what is missing, if there is reason to look. Returns what was done, in words.
    ///
    /// # Errors
    /// See [`Error`]; it is tried again next time.
    pub fn mend(&mut self, host: &mut Host) -> Result<Vec<String>, Error> {
        if !self.is_doubtful {
            return Ok(Vec::new());
        }
        let mut records = self.records.list()?;
        // Those of an earlier boot are void: their pods are gone.
        let boot = record::boot_id()?;
        records.retain(|record| record.boot.is_empty() || record.boot == boot);
        if records.is_empty() {
            self.links.clear();
            self.is_doubtful = false;
            return Ok(Vec::new());
        }
        let done = rebuild::mend(&mut host.rtnl, &mut host.nft, &host.sysctl, &self.records)
            .map_err(Error::Mend)?;
        let node = Node::desired(&records);
        let bridges = node.bridges.iter().map(|bridge| &bridge.name);
        let veths = node.bridges.iter().flat_map(|bridge| &bridge.ports);
        let ifbs = node
            .shaping
            .iter()
            .filter_map(|shaping| shaping.egress.as_ref());
        let wanted: Vec<&IfName> = bridges
            .chain(veths.map(|port| &port.veth))
            .chain(ifbs.map(|(ifb, _)| ifb))
            .collect();
        let links = host.rtnl.links().map_err(host::Error::from)?;
        self.links = links
            .into_iter()
            .filter(|link| wanted.contains(&&link.name))
            .map(|link| (link.index, Known::of(&link)))
            .collect();
        self.is_doubtful = false;
        Ok(done)
    }

    /// Takes down what the runtime has forgotten: attachments whose container is gone. Returns whose they were.
    ///
    /// # Errors
    /// See [`Error`]; what could be done is done.
    pub fn take_down_orphans(&self, host: &mut Host) -> Result<Vec<String>, Error> {
        orphans::take_down(
            &mut host.rtnl,
            &mut host.nft,
            &self.records,
            names::IPAM_DIR.as_ref(),
            names::NETNS_DIR.as_ref(),
        )
        .map_err(Error::Mend)
    }
}
