//! The index: the last known state of all Services, EndpointSlices and this Node, in plain form.
//!
//! One task owns it and feeds it what the watches tell; it does no I/O and holds no locks. It remembers which
//! Services were touched since it was last asked, so that the work after it grows with what changed:
//!
//! ```text
//!  watch events ──▶ Index ──▶ Dirty { services, node, triggers } ──▶ plan
//! ```

pub mod objects;

mod node;
pub mod saved;
mod service;
mod slice;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use agent::watch::{Delta, Key};
use hostnet::vocab::{Family, Subnet};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use node::Node;
pub use service::{Port, Service};
pub use slice::{Hints, Slice, SliceEndpoint, SlicePort};

/// `namespace/name` of an object. One shared string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// From its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self([namespace, "/", name].concat().into())
    }

    /// Namespace and name.
    pub fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or(("", &self.0))
    }
}

impl From<Key> for ObjectName {
    fn from(key: Key) -> Self {
        Self::new(&key.namespace, &key.name)
    }
}

/// Found by the text of the name.
impl Borrow<str> for ObjectName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One change that one of the watches tells of.
#[derive(Debug)]
pub enum Update {
    /// Of the Services.
    Service(Delta<objects::Service>),
    /// Of the EndpointSlices.
    Slice(Delta<objects::EndpointSlice>),
    /// Of this Node.
    Node(Delta<objects::Node>),
    /// Of the ServiceCIDRs. An API server that has none of this kind tells nothing.
    ServiceCidr(Delta<objects::ServiceCidr>),
}

/// What was touched since the index was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services that came, went, or changed, or whose slices did.
    pub services: HashSet<ObjectName>,
    /// This Node or the service networks changed, and with them possibly every Service.
    pub node: bool,
    /// When the changes to slices were made that are among them, and of which family the slices are.
    pub triggers: Vec<(Family, Timestamp)>,
}

impl Dirty {
    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node
    }
}

/// A Service with its slices. Either may be known before the other.
#[derive(Debug, Default)]
pub struct Entry {
    /// The Service; `None` while only slices of it are known, or where it is not ours to serve.
    pub service: Option<Service>,
    /// Its slices, sorted by name. Most Services have one, and a map would have room for eleven at once.
    slices: Vec<(ObjectName, Slice)>,
}

impl Entry {
    /// Its slices, in the namespace of the Service.
    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.slices.iter().map(|(_, slice)| slice)
    }

    /// Whether anything changed.
    fn set_slice(&mut self, name: &ObjectName, slice: Slice) -> bool {
        match self.find(name) {
            Ok(at) if self.slices[at].1 == slice => return false,
            Ok(at) => self.slices[at].1 = slice,
            Err(at) => {
                self.slices.reserve_exact(1);
                self.slices.insert(at, (name.clone(), slice));
            }
        }
        true
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        if let Ok(at) = self.find(name) {
            self.slices.remove(at);
        }
    }

    fn find(&self, name: &ObjectName) -> Result<usize, usize> {
        self.slices.binary_search_by(|(other, _)| other.cmp(name))
    }
}

/// The state of all objects that rules come from.
#[derive(Debug)]
pub struct Index {
    this_node: String,
    proxy_name: Option<String>,
    entries: HashMap<ObjectName, Entry>,
    /// Slice → Service: a slice may move to another Service by its label.
    service_of: HashMap<ObjectName, ObjectName>,
    node: Option<Node>,
    service_cidrs: BTreeMap<ObjectName, Vec<Subnet>>,
    listed: Listed,
    dirty: Dirty,
}

/// Which kinds of objects have been listed whole at least once.
#[derive(Debug, Default)]
struct Listed {
    services: bool,
    slices: bool,
    node: bool,
    service_cidrs: bool,
}

impl Index {
    /// An empty index of the node with that name: its endpoints are the local ones.
    pub fn new(this_node: impl Into<String>) -> Self {
        Self {
            this_node: this_node.into(),
            proxy_name: None,
            entries: HashMap::new(),
            service_of: HashMap::new(),
            node: None,
            service_cidrs: BTreeMap::new(),
            listed: Listed::default(),
            dirty: Dirty::default(),
        }
    }

    /// Serves only Services with this value of the label `service.kubernetes.io/service-proxy-name`, in place of
    /// those without it.
    #[must_use]
    pub fn proxy_name(self, proxy_name: Option<String>) -> Self {
        Self { proxy_name, ..self }
    }

    /// The name of this node.
    pub fn this_node(&self) -> &str {
        &self.this_node
    }

    /// Whether all kinds of objects have been listed. Before that, what is not here may still exist:
    /// rules made from it would cut off what works.
    pub fn is_complete(&self) -> bool {
        self.listed.services && self.listed.slices && self.listed.node
    }

    /// Whether the ServiceCIDRs have been listed, which an API server need not have.
    pub fn has_service_networks(&self) -> bool {
        self.listed.service_cidrs
    }

    /// A Service with its slices.
    pub fn entry(&self, name: &ObjectName) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The names of all Services, those of which only slices are known among them.
    pub fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.entries.keys()
    }

    /// This Node; `None` where it has never had an object.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The networks that cluster IPs are taken from, as far as the API server tells.
    pub fn service_networks(&self) -> impl Iterator<Item = Subnet> + '_ {
        self.service_cidrs.values().flatten().copied()
    }

    /// What was touched since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Folds in one change.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Service(Delta::Upsert(object)) => {
                self.set_service(
                    Key::of(&object).into(),
                    Service::fold(&object, self.proxy_name.as_deref()),
                );
            }
            Update::Service(Delta::Remove(key)) => self.set_service(key.into(), None),
            Update::Service(Delta::Synced) => self.listed.services = true,
            Update::Slice(Delta::Upsert(object)) => {
                let folded = Slice::fold(&object, &self.this_node);
                let family = folded.as_ref().map(|(_, slice)| slice.family);
                if self.set_slice(Key::of(&object).into(), folded) {
                    self.dirty
                        .triggers
                        .extend(family.zip(slice::trigger_time(&object)));
                }
            }
            Update::Slice(Delta::Remove(key)) => {
                self.set_slice(key.into(), None);
            }
            Update::Slice(Delta::Synced) => self.listed.slices = true,
            Update::Node(Delta::Upsert(object)) => {
                if object.metadata.name.as_deref() == Some(&self.this_node) {
                    self.set_node(Node::fold(&object));
                }
            }
            Update::Node(Delta::Remove(key)) => {
                if let Some(node) = self.node.clone().filter(|_| *key.name == *self.this_node) {
                    self.set_node(Node {
                        leaving: true,
                        ..node
                    });
                }
            }
            Update::Node(Delta::Synced) => self.listed.node = true,
            Update::ServiceCidr(Delta::Upsert(object)) => {
                let networks = object.spec.cidrs.iter();
                let networks = networks.filter_map(|cidr| cidr.parse().ok()).collect();
                self.set_service_cidr(Key::of(&object).into(), Some(networks));
            }
            Update::ServiceCidr(Delta::Remove(key)) => self.set_service_cidr(key.into(), None),
            Update::ServiceCidr(Delta::Synced) => self.listed.service_cidrs = true,
        }
    }

    fn set_service(&mut self, name: ObjectName, service: Option<Service>) {
        if self
            .entries
            .get(&name)
            .and_then(|entry| entry.service.as_ref())
            == service.as_ref()
        {
            return;
        }
        self.entries.entry(name.clone()).or_default().service = service;
        self.forget_if_empty(&name);
        self.dirty.services.insert(name);
    }

    /// Whether anything changed.
    fn set_slice(&mut self, name: ObjectName, folded: Option<(String, Slice)>) -> bool {
        let old = self.service_of.get(&name).cloned();
        let new = folded.map(|(service, slice)| (ObjectName::new(name.parts().0, &service), slice));
        let mut changed = false;
        if let Some(old) = old
            && new.as_ref().is_none_or(|(service, _)| *service != old)
        {
            self.service_of.remove(&name);
            if let Some(entry) = self.entries.get_mut(&old) {
                entry.remove_slice(&name);
            }
            self.forget_if_empty(&old);
            self.dirty.services.insert(old);
            changed = true;
        }
        if let Some((service, slice)) = new {
            let entry = self.entries.entry(service.clone()).or_default();
            if entry.set_slice(&name, slice) {
                self.service_of.insert(name, service.clone());
                self.dirty.services.insert(service);
                changed = true;
            }
        }
        changed
    }

    fn set_service_cidr(&mut self, name: ObjectName, networks: Option<Vec<Subnet>>) {
        if self.service_cidrs.get(&name) == networks.as_ref() {
            return;
        }
        match networks {
            Some(networks) => self.service_cidrs.insert(name, networks),
            None => self.service_cidrs.remove(&name),
        };
        self.dirty.node = true;
    }

    fn set_node(&mut self, node: Node) {
        if self.node.as_ref() != Some(&node) {
            self.node = Some(node);
            self.dirty.node = true;
        }
    }

    fn forget_if_empty(&mut self, name: &ObjectName) {
        if self
            .entries
            .get(name)
            .is_some_and(|e| e.service.is_none() && e.slices.is_empty())
        {
            self.entries.remove(name);
        }
    }
}
