//! At which node a way begins: this one, or another, which is asked then.

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::objects::Cluster;
use crate::onward::{FromHere, Place};
use crate::target::{From, To};
use crate::trace::{PodNetwork, Question, internal_ips, node};
use crate::view::View;

/// Where a packet's way begins; `None` if that is this node, or there is no way to ask another. `networks` are the pods'
/// networks by flanneld on this machine.
///
/// # Errors
/// The node is not known; or this machine is none, and the question does not say which one is meant.
pub(crate) fn place(
    question: &Question,
    here: &mut dyn View,
    networks: &[PodNetwork],
    cluster: &mut Cluster,
    reach: &FromHere,
) -> anyhow::Result<Option<Place>> {
    if reach.others.is_none() {
        return Ok(None);
    }
    match (&question.from, &question.to) {
        (From::Node(Some(name)), _) | (From::Outside, To::Node(name, _)) => {
            of_node(name, cluster, reach)
        }
        (From::Pod(name), _) => {
            let is_it = |pod: Option<&str>| pod == Some(name);
            let is_here = here.records()?.iter().any(|r| is_it(r.pod.as_deref()));
            match node_of_pod(name, cluster).filter(|_| !is_here) {
                Some(node) => of_node(&node, cluster, reach),
                None => Ok(None),
            }
        }
        // flanneld ran here.
        _ if !networks.is_empty() => Ok(None),
        _ => {
            let Some(nodes) = cluster.list::<Node>(None, None) else {
                return Ok(None);
            };
            let is_here = |node: &Node| is_own(node, reach);
            let names = nodes.iter().filter_map(|n| n.metadata.name.as_deref());
            anyhow::ensure!(
                nodes.iter().any(is_here),
                "this machine is none of the cluster's nodes: say at which one the way begins, with --at NODE ({})",
                names.collect::<Vec<_>>().join(", ")
            );
            Ok(None)
        }
    }
}

/// A node by its name; `None` if it is this one.
///
/// # Errors
/// There is none of the name, or nodes cannot be seen from here.
pub(crate) fn of_node(
    name: &str,
    cluster: &mut Cluster,
    reach: &FromHere,
) -> anyhow::Result<Option<Place>> {
    let node = node(cluster, name, "run it there")?;
    Ok((!is_own(&node, reach)).then(|| Place::of(&node)))
}

fn is_own(node: &Node, reach: &FromHere) -> bool {
    internal_ips(node).any(|address| reach.own.contains(&address))
}

fn node_of_pod(name: &str, cluster: &mut Cluster) -> Option<String> {
    let (namespace, name) = name.split_once('/')?;
    let pod = cluster.get::<Pod>(Some(namespace), name).there()?;
    pod.spec?.node_name
}
