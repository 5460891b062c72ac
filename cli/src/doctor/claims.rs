//! What the objects say of nodes: no two may have the same subnet, address or tunnel's end, and a node has what its own say.

use std::net::IpAddr;

use hostnet::netlink::LinkKind;
use hostnet::vocab::lease::parse_lease_name;
use hostnet::vocab::{
    AnnotationKeys, BackendData, Mac, Subnet, annotations::DEFAULT_PREFIX, names,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;

use super::{Exam, FLANNELD, Finding, Severity, is_flannels};
use crate::objects::Cluster;
use crate::onward::Place;
use crate::view::Result;

/// Where flanneld keeps its Leases.
const NAMESPACE: &str = "kube-system";

/// What the objects say that a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Its pods' subnets.
    pub subnets: Vec<Subnet>,
    /// The MACs of its tunnels' ends.
    pub vteps: Vec<Mac>,
}

/// A node, by its object.
#[derive(Clone, Debug)]
struct Known {
    place: Place,
    claim: Claim,
    /// Where others send what is for its pods.
    publics: Vec<IpAddr>,
}

impl Known {
    fn of(node: &Node) -> Known {
        let keys = AnnotationKeys::new(DEFAULT_PREFIX).ok();
        let said = |key: fn(&AnnotationKeys) -> &String| {
            let annotations = node.metadata.annotations.as_ref()?;
            annotations.get(key(keys.as_ref()?)).map(String::as_str)
        };
        let cidrs = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
        let cidrs = cidrs.into_iter().flatten();
        let data = [said(|k| &k.backend_data), said(|k| &k.backend_v6_data)];
        let data = data
            .into_iter()
            .flatten()
            .filter_map(|text| BackendData::parse(text).ok());
        let publics = [
            said(|k| &k.public_ip_overwrite).or(said(|k| &k.public_ip)),
            said(|k| &k.public_ipv6_overwrite).or(said(|k| &k.public_ipv6)),
        ];
        Known {
            place: Place::of(node),
            claim: Claim {
                subnets: cidrs.filter_map(|cidr| cidr.parse().ok()).collect(),
                vteps: data.map(|data| data.vtep_mac).collect(),
            },
            publics: (publics.into_iter().flatten())
                .filter_map(|text| text.parse().ok())
                .collect(),
        }
    }
}

/// What the objects say of all nodes, and which of them are in conflict.
#[derive(Debug, Default)]
pub struct Claims {
    nodes: Vec<Known>,
    /// Each with the number of its node.
    conflicts: Vec<(usize, Finding)>,
}

impl Claims {
    /// As the objects say; nothing where they are not seen.
    pub fn of(cluster: &mut Cluster) -> Claims {
        let nodes = cluster.list::<Node>(None, None).unwrap_or_default();
        Claims::by(&nodes, cluster)
    }

    /// The same of nodes that are listed already.
    pub fn by(nodes: &[Node], cluster: &mut Cluster) -> Claims {
        let nodes: Vec<Known> = nodes.iter().map(Known::of).collect();
        let leases = match nodes.is_empty() {
            true => None,
            false => cluster.list::<Lease>(Some(NAMESPACE), None),
        };
        Claims {
            conflicts: conflicts(&nodes, &leases.unwrap_or_default()),
            nodes,
        }
    }

    /// Where the nodes are.
    pub fn places(&self) -> Vec<Place> {
        self.nodes.iter().map(|node| node.place.clone()).collect()
    }

    /// The node that is at one of these addresses.
    pub fn at(&self, addresses: &[IpAddr]) -> Option<&Place> {
        let mut places = self.nodes.iter().map(|node| &node.place);
        places.find(|place| addresses.contains(&place.address))
    }

    /// What is said of a node.
    pub fn of_node(&self, place: &Place) -> Option<&Claim> {
        let node = self.nodes.iter().find(|node| node.place == *place);
        node.map(|node| &node.claim)
    }

    /// In which conflicts a node is.
    pub fn conflicts_of(&self, place: &Place) -> impl Iterator<Item = Finding> {
        let is_its = |(n, _): &&(usize, Finding)| self.nodes[*n].place == *place;
        let its = self.conflicts.iter().filter(is_its);
        its.map(|(_, finding)| finding.clone())
    }
}

/// The first two that are in conflict.
fn first<'a, T>(a: &'a [T], b: &'a [T], is_conflict: fn(&T, &T) -> bool) -> Option<(&'a T, &'a T)> {
    let pairs = a.iter().flat_map(|x| b.iter().map(move |y| (x, y)));
    pairs.into_iter().find(|(x, y)| is_conflict(x, y))
}

fn overlap(a: &Subnet, b: &Subnet) -> bool {
    a.overlaps(*b)
}

const YOUNGER: &str = "delete the Node object of the younger one and let it register again, so that it gets another \
     subnet; then delete its pods, which have addresses of the old one";

fn conflicts(nodes: &[Known], leases: &[Lease]) -> Vec<(usize, Finding)> {
    let mut found = Vec::new();
    let error = |what: String, evidence: String, remedy: String| Finding {
        severity: Severity::Error,
        what,
        evidence,
        remedy,
        fix: None,
    };
    for (n, a) in nodes.iter().enumerate() {
        for (m, b) in nodes.iter().enumerate().skip(n + 1) {
            let mut both = |finding: Finding| {
                found.extend([(n, finding.clone()), (m, finding)]);
            };
            let (x, y) = (&a.place, &b.place);
            if let Some((of_a, of_b)) = first(&a.claim.subnets, &b.claim.subnets, overlap) {
                both(error(
                    format!("nodes {x} and {y} have the same pod addresses to give"),
                    format!("podCIDR {of_a} of Node {x}, {of_b} of Node {y}"),
                    YOUNGER.to_owned(),
                ));
            }
            if let Some((public, _)) = first(&a.publics, &b.publics, IpAddr::eq) {
                both(error(
                    format!("nodes {x} and {y} say that they are at one address"),
                    format!("annotation {DEFAULT_PREFIX}/public-ip of both Nodes: {public}"),
                    "one of them has an address twice, or was told it: look for `public-ip-overwrite` in its annotations \
                     and `--public-ip` of its flanneld, and give each node an address of its own"
                        .to_owned(),
                ));
            }
            if let Some((mac, _)) = first(&a.claim.vteps, &b.claim.vteps, Mac::eq) {
                both(error(
                    format!("the tunnels' ends of nodes {x} and {y} have one MAC"),
                    format!("annotation {DEFAULT_PREFIX}/backend-data of both Nodes: {mac}"),
                    format!(
                        "one is a copy of the other: on it delete that annotation and the device, `ip link del flannel.1`, \
                         and restart flanneld, which makes another: `kubectl annotate node {y} {DEFAULT_PREFIX}/backend-data-`"
                    ),
                ));
            }
        }
    }
    for lease in leases {
        let Some((name, held)) = subnet_of(lease) else {
            continue;
        };
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or_default();
        let is_holder = |node: &Known| node.place.name.as_deref() == Some(holder);
        let has = |node: &Known| {
            node.claim
                .subnets
                .iter()
                .any(|subnet| subnet.overlaps(held))
        };
        // Two nodes with one subnet are told above.
        if nodes.iter().any(|node| is_holder(node) && has(node)) {
            continue;
        }
        let robbed = nodes.iter().enumerate().filter(|(_, node)| has(node));
        found.extend(robbed.map(|(n, node)| {
            let finding = error(
                format!("the subnet of node {} is held by another", node.place),
                format!("Lease {name} of {held}: holder {holder:?}"),
                format!(
                    "`kubectl -n {NAMESPACE} delete lease {name}`, if there is no node {holder:?} any more; else {YOUNGER}"
                ),
            );
            (n, finding)
        }));
    }
    found
}

fn subnet_of(lease: &Lease) -> Option<(&str, Subnet)> {
    let labels = lease.metadata.labels.as_ref()?;
    let name = lease.metadata.name.as_deref()?;
    labels.get(names::LABEL_SUBNET)?;
    Some((name, parse_lease_name(name)?))
}

fn list<T: ToString>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    texts.join(", ")
}

impl Exam<'_> {
    /// What the objects say of this node is what it has.
    pub(super) fn claim(&mut self, claim: &Claim) -> Result<()> {
        for network in self.networks {
            let family = network.own.family();
            let said = claim.subnets.iter().filter(|s| s.family() == family);
            let said: Vec<Subnet> = said.copied().collect();
            // Before flanneld has one, nobody says anything.
            if !said.is_empty() && !said.contains(&network.own) {
                self.error(
                    &format!("this node's {family} pods get addresses of another subnet than its Node has"),
                    format!("{} has {}, podCIDRs of the Node {}", names::SUBNET_ENV, network.own, list(&said)),
                    "flanneld follows the Node where it runs, its log says what hinders it; pods with addresses of the old \
                     subnet have to be deleted, and are made anew",
                );
            }
        }
        let links = self.view.links()?;
        let is_end = |link: &&hostnet::netlink::Link| {
            is_flannels(link) && matches!(link.kind, LinkKind::Vxlan(_))
        };
        let ends: Vec<_> = links.iter().filter(is_end).collect();
        for mac in &claim.vteps {
            if ends.iter().any(|link| link.mac == Some(*mac)) {
                continue;
            }
            let has: Vec<String> = (ends.iter())
                .filter_map(|link| Some(format!("{} has {}", link.name, link.mac?)))
                .collect();
            let has = match has.is_empty() {
                true => "there is no such device".to_owned(),
                false => list(&has),
            };
            self.error(
                "other nodes send to an end of the tunnel that this node does not have",
                format!("VtepMAC {mac} in the Node's annotation backend-data; {has}"),
                FLANNELD,
            );
        }
        Ok(())
    }
}
