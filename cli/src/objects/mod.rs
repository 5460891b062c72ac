//! What the API server knows of the things on a packet's way: asked for one by one, by name.
//!
//! ```text
//!  Source (an API server, or objects at hand) ◄── Cluster: typed answers, and notes of what could not be seen
//! ```
//!
//! Nothing here is needed to answer: where there is no API server, no right or no object, names come from the kernel.

mod api;
mod forward;
mod given;

use std::collections::BTreeSet;
use std::fmt;

use kube::Resource;
use kube::api::{ApiResource, DynamicObject};
use serde::de::DeserializeOwned;

pub use api::{ApiServer, Wanted};
pub use given::Given;

/// Why an object could not be seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is no right to it.
    #[error("no right to {verb} {resource}{}", in_namespace(.namespace))]
    Forbidden {
        /// What was tried.
        verb: &'static str,
        /// The resource, with its group.
        resource: String,
        /// Where.
        namespace: Option<String>,
    },
    /// It was not written down.
    #[error("the dump has no {resource}")]
    NotDumped {
        /// The resource, with its group.
        resource: String,
    },
    /// There was no answer, or no use in it.
    #[error("the API server does not answer: {0}")]
    Silent(String),
}

/// `services`, `leases.coordination.k8s.io`.
pub(crate) fn resource(kind: &ApiResource) -> String {
    match kind.group.as_str() {
        "" => kind.plural.clone(),
        group => format!("{}.{group}", kind.plural),
    }
}

fn in_namespace(namespace: &Option<String>) -> String {
    match namespace {
        Some(namespace) => format!(" in namespace {namespace}"),
        None => String::new(),
    }
}

/// Where objects come from.
pub trait Source {
    /// One object by its name.
    ///
    /// # Errors
    /// [`Missing`].
    fn get(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<DynamicObject>, Missing>;

    /// Those of a kind, in one namespace or all, with a label if one is given.
    ///
    /// # Errors
    /// [`Missing`].
    fn list(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        label: Option<(&str, &str)>,
    ) -> Result<Vec<DynamicObject>, Missing>;
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Known<T> {
    /// It is there.
    There(T),
    /// There is none.
    Absent,
    /// It cannot be seen from here.
    Unseen,
}

impl<T> Known<T> {
    /// The object, if it is there.
    pub fn there(self) -> Option<T> {
        match self {
            Known::There(object) => Some(object),
            Known::Absent | Known::Unseen => None,
        }
    }
}

/// The objects of a cluster, as far as they can be seen.
#[derive(Default)]
pub struct Cluster {
    source: Option<Box<dyn Source>>,
    notes: BTreeSet<String>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_there = self.source.is_some();
        f.debug_struct("Cluster")
            .field("source", &is_there)
            .field("notes", &self.notes)
            .finish()
    }
}

impl Cluster {
    /// Objects of this source.
    pub fn of(source: impl Source + 'static) -> Cluster {
        Cluster {
            source: Some(Box::new(source)),
            notes: BTreeSet::new(),
        }
    }

    /// Whether objects are looked at.
    pub fn is_seen(&self) -> bool {
        self.source.is_some()
    }

    /// What could not be seen, each told once.
    pub fn notes(&self) -> Vec<String> {
        self.notes.iter().cloned().collect()
    }

    /// Notes something that could not be seen.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.insert(text.into());
    }

    /// One object by its name.
    pub fn get<K>(&mut self, namespace: Option<&str>, name: &str) -> Known<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let Some(source) = &mut self.source else {
            return Known::Unseen;
        };
        let found = source.get(&ApiResource::erase::<K>(&()), namespace, name);
        let found = found.and_then(|object| object.map(typed).transpose());
        match found {
            Ok(Some(object)) => Known::There(object),
            Ok(None) => Known::Absent,
            Err(missing) => {
                self.missed(missing);
                Known::Unseen
            }
        }
    }

    /// Those of a kind; `None` if they cannot be seen.
    pub fn list<K>(
        &mut self,
        namespace: Option<&str>,
        label: Option<(&str, &str)>,
    ) -> Option<Vec<K>>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let source = self.source.as_mut()?;
        let found = source.list(&ApiResource::erase::<K>(&()), namespace, label);
        let found = found.and_then(|objects| objects.into_iter().map(typed).collect());
        match found {
            Ok(objects) => Some(objects),
            Err(missing) => {
                self.missed(missing);
                None
            }
        }
    }

    /// A server that is silent is not asked again.
    fn missed(&mut self, missing: Missing) {
        if matches!(missing, Missing::Silent(_)) {
            self.source = None;
        }
        let instead = "what is told of it comes from the kernel alone";
        self.note(format!("{missing}; {instead}"));
    }
}

fn typed<K: DeserializeOwned>(object: DynamicObject) -> Result<K, Missing> {
    serde_json::to_value(object)
        .and_then(serde_json::from_value)
        .map_err(|error| Missing::Silent(error.to_string()))
}
