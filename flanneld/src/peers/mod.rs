//! Peers: from what Nodes say of themselves to those that can be programmed.
//!
//! What a Node says is hostile until it is checked. Each node comes to the same result from the
//! same objects: of two claims that exclude each other the older wins, and one that holds a Lease
//! wins over one that does not. A bad peer is left out with a [`Reason`], and never harms another.

mod check;
mod reason;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use hostnet::vocab::{AnnotationKeys, Family, Mac, Subnet};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::reason::Reason;
use crate::ByFamily;
use crate::backend::Own;
use crate::config::Backend;

/// What a Node object says, as far as peers care.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The node's name.
    #[serde(serialize_with = "name_to_text", deserialize_with = "name_from_text")]
    pub name: Arc<str>,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: i64,
    /// `spec.podCIDRs`, or the one of `spec.podCIDR`.
    pub pod_cidrs: Vec<String>,
    /// Its annotations.
    pub published: Published,
    /// The Leases of those subnets, where this node holds them.
    pub leases: ByFamily<LeaseRank>,
}

/// What a node's flanneld has published in annotations, as it stands there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// `backend-type`.
    pub backend_type: Option<String>,
    /// `backend-data` and `backend-v6-data`.
    pub backend_data: ByFamily<String>,
    /// `backend-port`.
    pub backend_port: Option<String>,
    /// `public-ip` and `public-ipv6`.
    pub public: ByFamily<String>,
}

fn name_to_text<S: Serializer>(name: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name)
}

fn name_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    Ok(String::deserialize(deserializer)?.into())
}

impl Published {
    /// Picks the annotations that matter; all others are left behind.
    pub fn new(keys: &AnnotationKeys, annotations: &BTreeMap<String, String>) -> Published {
        let get = |key: &str| annotations.get(key).cloned();
        Published {
            backend_type: get(&keys.backend_type),
            backend_data: ByFamily {
                v4: get(&keys.backend_data),
                v6: get(&keys.backend_v6_data),
            },
            backend_port: get(&keys.backend_port),
            public: ByFamily {
                v4: get(&keys.public_ip),
                v6: get(&keys.public_ipv6),
            },
        }
    }
}

/// How old a Lease is: the older ranks first, by time and then by UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaseRank {
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: i64,
    /// `metadata.uid`.
    pub uid: String,
}

/// Another node that can be reached, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's name.
    pub node: Arc<str>,
    /// The subnet of its pods; its family is the peer's.
    pub subnet: Subnet,
    /// The node's address in the underlay.
    pub public: IpAddr,
    /// The MAC of its VTEP; with the vxlan backend always there.
    pub vtep: Option<Mac>,
    /// The UDP port of its VTEP, if it tells: flannel takes it for granted.
    pub port: Option<u16>,
}

impl Peer {
    /// Whether the two cannot both be peers.
    fn excludes(&self, other: &Peer) -> bool {
        let is_vtep = self.vtep.is_some() && self.vtep == other.vtep;
        self.subnet.family() == other.subnet.family()
            && (self.subnet.overlaps(other.subnet) || is_vtep)
    }
}

/// A node that is left out in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The node's name.
    pub node: Arc<str>,
    /// The family in which it is left out.
    pub family: Family,
    /// Why.
    pub reason: Reason,
}

/// The outcome of [`select`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The peers to program, IPv4 first, by rank.
    pub peers: Vec<Peer>,
    /// Those that still speak the backend that we had before, and are reached by it.
    pub former: Vec<Peer>,
    /// The nodes that are left out, or only kept as they were known before.
    pub skipped: Vec<Skipped>,
}

/// What was before a change of the backend, which reaches no two nodes at the same moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past<'a> {
    /// The backend that we had: who still speaks it is reached by it.
    pub former: Option<&'a Backend>,
    /// The last peers: one that speaks another backend now, as we will once we learn of the change, is kept as it was.
    pub peers: &'a [Peer],
}

/// Claims are served in this order, on every node alike.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    lease: Leased<'a>,
    created: i64,
    uid: &'a str,
    name: &'a str,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Leased<'a> {
    By(&'a LeaseRank),
    Not,
}

impl NodeFacts {
    fn rank(&self, family: Family) -> Rank<'_> {
        Rank {
            lease: self.leases.get(family).map_or(Leased::Not, Leased::By),
            created: self.created,
            uid: &self.uid,
            name: &self.name,
        }
    }
}

/// Checks all nodes but `own_name` against our own place and each other. Families are judged
/// apart: a fault in one leaves the other alone.
pub fn select<'a>(
    nodes: impl IntoIterator<Item = &'a NodeFacts>,
    own_name: &str,
    own: &ByFamily<Own>,
    backend: &Backend,
    past: Past<'_>,
) -> Selection {
    let nodes: Vec<&NodeFacts> = nodes
        .into_iter()
        .filter(|node| *node.name != *own_name)
        .collect();
    let mut selection = Selection::default();
    for (family, own) in own.iter() {
        let mut nodes = nodes.clone();
        nodes.sort_by(|a, b| a.rank(family).cmp(&b.rank(family)));
        let mut claims = Claims::default();
        let mut left_behind = Vec::new();
        for node in nodes {
            let reason = match admit(node, family, own, backend, &mut claims) {
                Ok(peer) => {
                    selection.peers.push(peer);
                    continue;
                }
                Err(reason) => reason,
            };
            if reason.is_another_backend() {
                let former = past
                    .former
                    .map(|former| admit(node, family, own, former, &mut claims));
                if let Some(Ok(peer)) = former {
                    selection.former.push(peer);
                    continue;
                }
                left_behind.push(node);
            }
            selection.skipped.push(Skipped {
                node: node.name.clone(),
                family,
                reason,
            });
        }
        // Last, so that nobody who can be reached as desired loses to one that can only be kept.
        let kept = left_behind
            .into_iter()
            .filter_map(|node| keep(node, family, own, past.peers, &mut claims));
        selection.peers.extend(kept);
    }
    selection
}

/// What became of a selection when a few nodes changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amendment {
    /// Those of them that were peers, as they were.
    pub gone: Vec<Peer>,
    /// Those that are, as they are.
    pub come: Vec<Peer>,
}

/// Checks only the nodes that have changed since `selection` was made, where that cannot concern any other. `None`: all
/// must be checked anew, and `selection` is of no more use.
pub fn amend<'a>(
    selection: &mut Selection,
    changed: impl Iterator<Item = &'a str>,
    facts: impl Fn(&str) -> Option<&'a NodeFacts>,
    own: &ByFamily<Own>,
    backend: &Backend,
) -> Option<Amendment> {
    let changed: BTreeSet<&str> = changed.collect();
    let is_changed = |name: &str| changed.contains(name);
    // Who is left out for another's sake, or keeps others out though it is no peer.
    let is_entangled = |skipped: &Skipped| {
        let holds = facts(&skipped.node).is_none_or(|node| node.leases.iter().next().is_some());
        holds || skipped.reason.is_for_another() || skipped.reason.is_another_backend()
    };
    let mut others = selection
        .skipped
        .iter()
        .filter(|skipped| !is_changed(&skipped.node));
    if !selection.former.is_empty() || others.any(is_entangled) {
        return None;
    }
    let gone = selection
        .peers
        .extract_if(.., |peer| is_changed(&peer.node))
        .collect();
    selection
        .skipped
        .retain(|skipped| !is_changed(&skipped.node));
    let mut come = Vec::new();
    for node in changed.iter().filter_map(|name| facts(name)) {
        for (family, own) in own.iter() {
            match admit(node, family, own, backend, &mut Claims::default()) {
                Ok(peer) if selection.peers.iter().any(|other| other.excludes(&peer)) => {
                    return None;
                }
                Ok(peer) => {
                    selection.peers.push(peer.clone());
                    come.push(peer);
                }
                Err(reason) => {
                    let skipped = Skipped {
                        node: Arc::clone(&node.name),
                        family,
                        reason,
                    };
                    if is_entangled(&skipped) {
                        return None;
                    }
                    selection.skipped.push(skipped);
                }
            }
        }
    }
    Some(Amendment { gone, come })
}

/// A node as it was known before, if it has the same subnet and address still.
fn keep(
    node: &NodeFacts,
    family: Family,
    own: &Own,
    before: &[Peer],
    claims: &mut Claims,
) -> Option<Peer> {
    let (subnet, public) = (
        check::subnet(node, family, own).ok()?,
        check::public(node, family, own).ok()?,
    );
    let peer = before
        .iter()
        .find(|peer| peer.node == node.name && peer.subnet == subnet && peer.public == public)?;
    claims.subnet(subnet, &node.name).ok()?;
    if let Some(mac) = peer.vtep {
        claims.vtep(mac, &node.name).ok()?;
    }
    Some(peer.clone())
}

/// Checks one node, and claims what it needs for itself alone.
fn admit(
    node: &NodeFacts,
    family: Family,
    own: &Own,
    backend: &Backend,
    claims: &mut Claims,
) -> Result<Peer, Reason> {
    let subnet = check::subnet(node, family, own);
    // A Lease holds its subnet also while the rest of the node's data cannot be used: otherwise
    // whoever copies the subnet would get its traffic each time the node is away.
    let leased = node.leases.get(family).is_some();
    if let (Ok(subnet), true) = (&subnet, leased) {
        claims.subnet(*subnet, &node.name)?;
    }
    check::backend_type(node, backend)?;
    let subnet = subnet?;
    let public = check::public(node, family, own)?;
    let (vtep, port) = match backend {
        Backend::Vxlan(vxlan) => {
            let mac = check::vtep(node, family, own, vxlan.vni)?;
            (Some(mac), check::port(node)?)
        }
        Backend::HostGw if !own.uplink.is_direct(public) => {
            return Err(Reason::NotDirect {
                addr: public,
                link: own.uplink.name.clone(),
            });
        }
        Backend::HostGw | Backend::Alloc => (None, None),
    };
    if !leased {
        claims.subnet(subnet, &node.name)?;
    }
    if let Some(mac) = vtep {
        claims.vtep(mac, &node.name)?;
    }
    Ok(Peer {
        node: node.name.clone(),
        subnet,
        public,
        vtep,
        port,
    })
}

/// What peers hold of what only one can hold.
#[derive(Default)]
struct Claims {
    /// Subnets that do not overlap, by their base.
    subnets: BTreeMap<IpAddr, (Subnet, Arc<str>)>,
    vteps: HashMap<Mac, Arc<str>>,
}

impl Claims {
    fn subnet(&mut self, subnet: Subnet, node: &Arc<str>) -> Result<(), Reason> {
        // Networks overlap only by one holding the other. As those that are claimed do not, it is
        // either the last that begins at or before our base, or one that begins inside.
        let near = self.subnets.range(..=subnet.last()).next_back();
        let in_the_way = |(_, (taken, by)): &(&IpAddr, &(Subnet, Arc<str>))| {
            taken.overlaps(subnet) && (*taken, by) != (subnet, node)
        };
        if let Some((_, (taken, by))) = near.filter(in_the_way) {
            return Err(Reason::SubnetTaken {
                subnet,
                taken: *taken,
                by: by.clone(),
            });
        }
        self.subnets.insert(subnet.base(), (subnet, node.clone()));
        Ok(())
    }

    fn vtep(&mut self, mac: Mac, node: &Arc<str>) -> Result<(), Reason> {
        if let Some(by) = self.vteps.get(&mac).filter(|by| *by != node) {
            return Err(Reason::VtepTaken {
                mac,
                by: by.clone(),
            });
        }
        self.vteps.insert(mac, node.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
