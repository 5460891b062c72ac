//! What the API server tells, folded into facts: one task owns this, and feeds it deltas.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use agent::watch::{Delta, Key};
use hostnet::vocab::{AnnotationKeys, Family, Subnet, names};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::Deserialize;

use crate::{
    ByFamily,
    lease::{Others, parse_lease_name},
    node::NodeObject,
    peers::{LeaseRank, NodeFacts, Published},
};

/// A Lease, cut down to who holds it since when.
#[derive(Resource, Clone, Debug, Default, Deserialize, PartialEq)]
#[resource(inherit = Lease)]
pub struct LeaseObject {
    /// Name, UID, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The holder.
    #[serde(default)]
    pub spec: LeaseHolder,
}

/// `spec` of a Lease.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct LeaseHolder {
    /// The Node's name.
    #[serde(default, rename = "holderIdentity")]
    pub holder: Option<String>,
}

/// The label selector of the Leases to watch.
pub const LEASES: &str = names::LABEL_SUBNET;

/// How many of the last changes are remembered one by one.
const RECENT: usize = 32;

/// All that is known of this cluster's nodes.
#[derive(Debug)]
pub struct Index {
    own_name: Box<str>,
    keys: AnnotationKeys,
    own: Option<NodeObject>,
    nodes: BTreeMap<Arc<str>, NodeFacts>,
    leases: BTreeMap<Subnet, (Arc<str>, LeaseRank)>,
    nodes_listed: bool,
    leases_listed: bool,
    is_recalled: bool,
    /// How often another node has changed, and which did so last.
    changes: u64,
    recent: VecDeque<Arc<str>>,
}

impl Index {
    /// An index that knows nothing yet, of the Node `own_name`.
    #[must_use]
    pub fn new(own_name: &str, keys: AnnotationKeys) -> Self {
        Self {
            own_name: own_name.into(),
            keys,
            own: None,
            nodes: BTreeMap::new(),
            leases: BTreeMap::new(),
            nodes_listed: false,
            leases_listed: false,
            is_recalled: false,
            changes: 0,
            recent: VecDeque::new(),
        }
    }

    /// An index of what was known in an earlier life: it is never complete.
    #[must_use]
    pub fn recalled(
        own_name: &str,
        keys: AnnotationKeys,
        own: NodeObject,
        others: Vec<NodeFacts>,
    ) -> Self {
        let others = others.into_iter();
        Self {
            own: Some(own),
            nodes: others
                .map(|facts| (Arc::clone(&facts.name), facts))
                .collect(),
            is_recalled: true,
            // Beyond what another index comes to: what one has seen of this says nothing of that.
            changes: u64::MAX,
            ..Self::new(own_name, keys)
        }
    }

    /// Whether all Nodes and Leases have been told once: before that, absence means nothing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.nodes_listed && self.leases_listed
    }

    /// Whether it is what was known in an earlier life.
    #[must_use]
    pub fn is_recalled(&self) -> bool {
        self.is_recalled
    }

    /// Our own Node.
    #[must_use]
    pub fn own(&self) -> Option<&NodeObject> {
        self.own.as_ref()
    }

    /// All other Nodes, by name.
    pub fn others(&self) -> impl Iterator<Item = &NodeFacts> {
        self.nodes.values()
    }

    /// Another Node.
    #[must_use]
    pub fn other(&self, name: &str) -> Option<&NodeFacts> {
        self.nodes.get(name)
    }

    /// How often another node has changed so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The other nodes that have changed since there were so many changes; `None` if it is no longer known.
    pub fn changed_since(&self, changes: u64) -> Option<impl Iterator<Item = &str>> {
        let count = usize::try_from(self.changes.checked_sub(changes)?).ok()?;
        let first = self.recent.len().checked_sub(count)?;
        Some(self.recent.range(first..).map(|name| &**name))
    }

    fn note_change(&mut self, name: Arc<str>) {
        self.changes += 1;
        self.recent.push_back(name);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    /// The UID of a Node, our own or another.
    #[must_use]
    pub fn uid(&self, name: &str) -> Option<&str> {
        match &self.own {
            Some(own) if own.name() == name => Some(own.uid()),
            _ => self.nodes.get(name).map(|facts| &*facts.uid),
        }
    }

    /// The Node that holds a subnet's Lease.
    #[must_use]
    pub fn holder(&self, subnet: Subnet) -> Option<&str> {
        self.leases.get(&subnet).map(|(holder, _)| &**holder)
    }

    /// What the other nodes have, as far as picking a subnet goes.
    #[must_use]
    pub fn taken(&self) -> Others {
        let of = |node: &NodeFacts| (Arc::clone(&node.name), subnets(&node.pod_cidrs));
        Others {
            subnets: self.nodes.values().map(of).collect(),
        }
    }

    /// Folds in what happened to a Node. Returns whether anything that matters changed.
    pub fn node(&mut self, delta: Delta<NodeObject>) -> bool {
        match delta {
            Delta::Synced => !std::mem::replace(&mut self.nodes_listed, true),
            Delta::Remove(key) if key.name == self.own_name => self.own.take().is_some(),
            Delta::Remove(key) => match self.nodes.remove(&*key.name) {
                Some(facts) => {
                    self.note_change(facts.name);
                    true
                }
                None => false,
            },
            Delta::Upsert(node) if node.name() == &*self.own_name => {
                let same = self
                    .own
                    .as_ref()
                    .is_some_and(|own| matters(own) == matters(&node));
                self.own = Some(node);
                !same
            }
            Delta::Upsert(node) => {
                let mut facts = self.facts(&node);
                self.rank(&mut facts);
                let same = self.nodes.get(&facts.name) == Some(&facts);
                if !same {
                    self.note_change(Arc::clone(&facts.name));
                    self.nodes.insert(Arc::clone(&facts.name), facts);
                }
                !same
            }
        }
    }

    /// Folds in what happened to a Lease. Returns whether anything that matters changed.
    pub fn lease(&mut self, delta: Delta<LeaseObject>) -> bool {
        let (subnet, now) = match delta {
            Delta::Synced => return !std::mem::replace(&mut self.leases_listed, true),
            Delta::Remove(Key { name, .. }) => (parse_lease_name(&name), None),
            Delta::Upsert(lease) => {
                let metadata = &lease.metadata;
                let rank = LeaseRank {
                    created: metadata
                        .creation_timestamp
                        .as_ref()
                        .map_or(0, |time| time.0.as_second()),
                    uid: metadata.uid.clone().unwrap_or_default(),
                };
                let subnet = metadata.name.as_deref().and_then(parse_lease_name);
                (
                    subnet,
                    lease.spec.holder.map(|holder| (Arc::from(holder), rank)),
                )
            }
        };
        // A Lease with our label that is none of a subnet is somebody's mistake, and nothing to us.
        let Some(subnet) = subnet else { return false };
        let before = self.leases.get(&subnet).cloned();
        if before == now {
            return false;
        }
        match &now {
            Some(held) => self.leases.insert(subnet, held.clone()),
            None => self.leases.remove(&subnet),
        };
        for (holder, _) in before.iter().chain(&now) {
            if let Some(mut facts) = self.nodes.remove(holder) {
                self.rank(&mut facts);
                self.note_change(Arc::clone(&facts.name));
                self.nodes.insert(Arc::clone(&facts.name), facts);
            }
        }
        true
    }

    fn facts(&self, node: &NodeObject) -> NodeFacts {
        NodeFacts {
            name: node.name().into(),
            uid: node.uid().to_owned(),
            created: node.created(),
            pod_cidrs: node.pod_cidrs().to_vec(),
            published: Published::new(&self.keys, node.annotations()),
            leases: ByFamily::default(),
        }
    }

    /// Notes the Leases that a node holds of the subnets that it claims.
    fn rank(&self, facts: &mut NodeFacts) {
        let subnets = subnets(&facts.pod_cidrs);
        facts.leases = ByFamily::from_fn(|family| {
            let (holder, rank) = self.leases.get(subnets.get(family)?)?;
            (*holder == facts.name).then(|| rank.clone())
        });
    }
}

/// What of our own Node matters: not the times at which its conditions were confirmed.
fn matters(node: &NodeObject) -> impl PartialEq + '_ {
    (node.uid(), &node.spec, node.annotations(), &node.status)
}

fn subnets(pod_cidrs: &[String]) -> ByFamily<Subnet> {
    let readable = || {
        pod_cidrs
            .iter()
            .filter_map(|text| text.parse::<Subnet>().ok())
    };
    ByFamily::from_fn(|family: Family| readable().find(|subnet| subnet.family() == family))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn index() -> Index {
        Index::new(
            "n1",
            AnnotationKeys::new("flannel.alpha.coreos.com").unwrap(),
        )
    }

    fn node(name: &str, cidr: &str) -> Delta<NodeObject> {
        let node =
            json!({ "metadata": { "name": name, "uid": "u" }, "spec": { "podCIDRs": [cidr] } });
        Delta::Upsert(serde_json::from_value(node).unwrap())
    }

    fn lease(name: &str, holder: &str) -> Delta<LeaseObject> {
        let metadata = json!({ "name": name, "namespace": "kube-system", "uid": "lease-uid", "creationTimestamp": "2026-11-22T10:00:00Z" });
        Delta::Upsert(
            serde_json::from_value(
                json!({ "metadata": metadata, "spec": { "holderIdentity": holder } }),
            )
            .unwrap(),
        )
    }

    fn gone<K>(namespace: &str, name: &str) -> Delta<K> {
        Delta::Remove(Key {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    fn is_leased(index: &Index, name: &str) -> bool {
        index.nodes[name].leases.v4.is_some()
    }

    #[test]
    fn a_lease_ranks_its_holder_whichever_comes_first() {
        let mut index = index();
        assert!(index.lease(lease("subnet-10-244-2-0-24", "n2")));
        assert!(index.node(node("n2", "10.244.2.0/24")));
        assert!(is_leased(&index, "n2"));
        assert!(index.node(node("n3", "10.244.3.0/24")));
        assert!(index.lease(lease("subnet-10-244-3-0-24", "n3")));
        assert!(is_leased(&index, "n3"));
        assert_eq!(index.holder("10.244.3.0/24".parse().unwrap()), Some("n3"));
        assert!(index.lease(gone("kube-system", "subnet-10-244-3-0-24")));
        assert!(!is_leased(&index, "n3"));
    }

    #[test]
    fn a_lease_of_another_subnet_or_another_holder_gives_no_rank() {
        let mut index = index();
        index.node(node("n2", "10.244.2.0/24"));
        index.lease(lease("subnet-10-244-3-0-24", "n2"));
        index.lease(lease("subnet-10-244-2-0-24", "n3"));
        assert!(!is_leased(&index, "n2"));
        assert!(!index.lease(lease("not-a-subnet", "n2")));
    }

    #[test]
    fn only_what_matters_counts_as_change() {
        let mut index = index();
        assert!(index.node(node("n1", "10.244.1.0/24")) && index.node(node("n2", "10.244.2.0/24")));
        assert!(
            !index.node(node("n1", "10.244.1.0/24")) && !index.node(node("n2", "10.244.2.0/24"))
        );
        assert!(index.node(node("n2", "10.244.9.0/24")));
        assert_eq!(index.own().unwrap().name(), "n1");
        assert_eq!(index.others().count(), 1, "we are no peer of ours");
        assert_eq!(
            index.taken().subnets,
            [(
                "n2".into(),
                ByFamily {
                    v4: "10.244.9.0/24".parse().ok(),
                    v6: None
                }
            )]
        );
        assert!(index.node(gone("", "n2")) && index.node(gone("", "n1")));
        assert!(!index.node(gone("", "n2")) && index.own().is_none());
    }

    #[test]
    fn it_is_complete_once_both_kinds_are_listed() {
        let mut index = index();
        index.node(Delta::Synced);
        assert!(!index.is_complete());
        index.lease(Delta::Synced);
        assert!(index.is_complete());
    }
}
