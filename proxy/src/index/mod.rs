//! The index: the last known state of all Services, EndpointSlices and this Node, in plain form.
//!
//! One task owns it and feeds it watch events; it does no I/O and holds no locks. It remembers which
//! Services were touched since it was last asked, so that the work after it grows with what changed:
//!
//! ```text
//!  watch events ──▶ Index ──▶ Dirty { services, node, triggers } ──▶ plan
//! ```

pub mod objects;

mod node;
mod service;
mod slice;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::runtime::watcher::Event;

pub use node::Node;
pub use service::{Port, Service};
pub use slice::{Hints, Slice, SliceEndpoint, SlicePort};

/// `namespace/name` of an object. One shared string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// From its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    fn of(metadata: &ObjectMeta) -> Self {
        Self::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        )
    }

    /// Namespace and name.
    pub fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or(("", &self.0))
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

/// One event of one of the watches.
#[derive(Debug)]
pub enum Update {
    /// Of the Services.
    Service(Event<objects::Service>),
    /// Of the EndpointSlices.
    Slice(Event<objects::EndpointSlice>),
    /// Of this Node.
    Node(Event<objects::Node>),
}

/// What was touched since the index was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services that came, went, or changed, or whose slices did.
    pub services: BTreeSet<ObjectName>,
    /// This Node changed, and with it possibly every Service.
    pub node: bool,
    /// When the changes to slices were made that are among them.
    pub triggers: Vec<Timestamp>,
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
    /// Its slices by name, in the namespace of the Service.
    pub slices: BTreeMap<ObjectName, Slice>,
}

/// The state of all objects that rules come from.
#[derive(Debug)]
pub struct Index {
    this_node: String,
    entries: HashMap<ObjectName, Entry>,
    /// Slice → Service: a slice may move to another Service by its label.
    service_of: HashMap<ObjectName, ObjectName>,
    node: Option<Node>,
    services_list: Listing,
    slices_list: Listing,
    node_list: Listing,
    dirty: Dirty,
}

/// Where the watch of one kind of object stands.
#[derive(Debug, Default)]
struct Listing {
    /// At least one list is complete.
    complete: bool,
    /// What a list that is under way has named so far.
    seen: Option<HashSet<ObjectName>>,
}

impl Listing {
    fn begin(&mut self) {
        self.seen = Some(HashSet::new());
    }

    fn saw(&mut self, name: &ObjectName) {
        if let Some(seen) = &mut self.seen {
            seen.insert(name.clone());
        }
    }

    /// Ends the list; what it did not name is gone.
    fn end(&mut self) -> HashSet<ObjectName> {
        self.complete = true;
        self.seen.take().unwrap_or_default()
    }
}

impl Index {
    /// An empty index of the node with that name: its endpoints are the local ones.
    pub fn new(this_node: impl Into<String>) -> Self {
        Self {
            this_node: this_node.into(),
            entries: HashMap::new(),
            service_of: HashMap::new(),
            node: None,
            services_list: Listing::default(),
            slices_list: Listing::default(),
            node_list: Listing::default(),
            dirty: Dirty::default(),
        }
    }

    /// The name of this node.
    pub fn this_node(&self) -> &str {
        &self.this_node
    }

    /// Whether all kinds of objects have been listed. Before that, what is not here may still exist:
    /// rules made from it would cut off what works.
    pub fn is_complete(&self) -> bool {
        self.services_list.complete && self.slices_list.complete && self.node_list.complete
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

    /// What was touched since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Folds in one watch event.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Service(event) => self.service_event(event),
            Update::Slice(event) => self.slice_event(event),
            Update::Node(event) => self.node_event(event),
        }
    }

    fn service_event(&mut self, event: Event<objects::Service>) {
        match event {
            Event::Init => self.services_list.begin(),
            Event::InitApply(object) | Event::Apply(object) => {
                let name = ObjectName::of(&object.metadata);
                self.services_list.saw(&name);
                self.set_service(name, Service::fold(&object));
            }
            Event::Delete(object) => self.set_service(ObjectName::of(&object.metadata), None),
            Event::InitDone => {
                let seen = self.services_list.end();
                let gone: Vec<_> = self
                    .entries
                    .keys()
                    .filter(|name| !seen.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.set_service(name, None);
                }
            }
        }
    }

    fn slice_event(&mut self, event: Event<objects::EndpointSlice>) {
        match event {
            Event::Init => self.slices_list.begin(),
            Event::InitApply(object) | Event::Apply(object) => {
                let name = ObjectName::of(&object.metadata);
                self.slices_list.saw(&name);
                let folded = Slice::fold(&object, &self.this_node);
                if self.set_slice(name, folded) {
                    self.dirty.triggers.extend(slice::trigger_time(&object));
                }
            }
            Event::Delete(object) => {
                self.set_slice(ObjectName::of(&object.metadata), None);
            }
            Event::InitDone => {
                let seen = self.slices_list.end();
                let gone: Vec<_> = self
                    .service_of
                    .keys()
                    .filter(|name| !seen.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.set_slice(name, None);
                }
            }
        }
    }

    fn node_event(&mut self, event: Event<objects::Node>) {
        match event {
            Event::Init => self.node_list.begin(),
            Event::InitApply(object) | Event::Apply(object) => {
                if object.metadata.name.as_deref() == Some(&self.this_node) {
                    self.node_list.saw(&ObjectName::of(&object.metadata));
                    self.set_node(Node::fold(&object));
                }
            }
            Event::Delete(object) => {
                if object.metadata.name.as_deref() == Some(&self.this_node) {
                    self.node_is_gone();
                }
            }
            Event::InitDone => {
                if self.node_list.end().is_empty() {
                    self.node_is_gone();
                }
            }
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
                entry.slices.remove(&name);
            }
            self.forget_if_empty(&old);
            self.dirty.services.insert(old);
            changed = true;
        }
        if let Some((service, slice)) = new {
            let entry = self.entries.entry(service.clone()).or_default();
            if entry.slices.get(&name) != Some(&slice) {
                entry.slices.insert(name.clone(), slice);
                self.service_of.insert(name, service.clone());
                self.dirty.services.insert(service);
                changed = true;
            }
        }
        changed
    }

    fn set_node(&mut self, node: Node) {
        if self.node.as_ref() != Some(&node) {
            self.node = Some(node);
            self.dirty.node = true;
        }
    }

    fn node_is_gone(&mut self) {
        if let Some(node) = self.node.clone() {
            self.set_node(Node {
                leaving: true,
                ..node
            });
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
