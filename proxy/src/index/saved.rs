//! Owns the index as it lies on disk: what a node goes by after a reboot, until the API server answers.

use std::collections::BTreeMap;

use hostnet::vocab::Subnet;
use serde::{Deserialize, Serialize};

use super::{Index, Listed, Node, ObjectName, Service, Slice};

/// The version of the shape of [`Saved`] and of all in it.
pub const VERSION: u32 = 1;

/// All objects of an index.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Saved {
    node: Option<Node>,
    services: BTreeMap<ObjectName, Service>,
    /// With the Service that they belong to.
    slices: BTreeMap<ObjectName, (ObjectName, Slice)>,
    #[serde(default)]
    service_cidrs: BTreeMap<ObjectName, Vec<Subnet>>,
}

/// The same, borrowed from an index.
#[derive(Debug, Serialize)]
struct Borrowed<'a> {
    node: Option<&'a Node>,
    services: BTreeMap<&'a ObjectName, &'a Service>,
    slices: BTreeMap<&'a ObjectName, (&'a ObjectName, &'a Slice)>,
    service_cidrs: &'a BTreeMap<ObjectName, Vec<Subnet>>,
}

impl Index {
    /// What [`Index::restore`] makes this index from.
    pub fn saved(&self) -> impl Serialize + '_ {
        let slices = self.entries.iter().flat_map(|(service, entry)| {
            (entry.slices.iter()).map(move |(name, slice)| (name, (service, slice)))
        });
        Borrowed {
            node: self.node.as_ref(),
            services: (self.entries.iter())
                .filter_map(|(name, entry)| Some((name, entry.service.as_ref()?)))
                .collect(),
            slices: slices.collect(),
            service_cidrs: &self.service_cidrs,
        }
    }

    /// The index of a node as it was saved, all of it touched. Of the time before a reboot (not `same_boot`) no pod of
    /// this node is left, so its endpoints are left out.
    pub fn restore(this_node: &str, saved: Saved, same_boot: bool) -> Self {
        let mut index = Self::new(this_node);
        for (name, service) in saved.services {
            index.set_service(name, Some(service));
        }
        for (name, (service, mut slice)) in saved.slices {
            if !same_boot {
                let left = slice
                    .endpoints
                    .into_iter()
                    .filter(|endpoint| !endpoint.local);
                slice.endpoints = left.collect();
            }
            let (_, service) = service.parts();
            index.set_slice(name, Some((service.to_owned(), slice)));
        }
        index.service_cidrs = saved.service_cidrs;
        if let Some(node) = saved.node {
            index.set_node(node);
        }
        index.listed = Listed {
            services: true,
            slices: true,
            node: true,
            service_cidrs: true,
        };
        index
    }

    /// Marks everything that another index holds as touched: what it has and this one has not is gone.
    pub fn supersede(&mut self, other: &Self) {
        self.dirty.services.extend(other.names().cloned());
        self.dirty.node = true;
    }
}
