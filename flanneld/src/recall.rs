//! What was known last, kept on disk: for the time from our start to the first answer of the API server, and above all
//! for a node that starts while there is none.
//!
//! Kept are the facts of peers, not what was made of them: they are checked again as if they had just come. They are
//! used only with the very configuration that they were kept under, and until the API server has told everything.

use std::{collections::BTreeMap, path::Path};

use hostnet::{
    snapshot::{self, Refusal, Snapshot, Subject},
    vocab::Subnet,
};
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::{ByFamily, config::Config, index::Index, node::NodeObject, peers::NodeFacts};

/// The version of [`State`].
const VERSION: u32 = 2;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The configuration that it was kept under, as text to compare.
    conf: String,
    /// The subnets that we hold.
    held: ByFamily<Subnet>,
    /// The annotations of our own Node that have a say in our place.
    annotations: BTreeMap<String, String>,
    /// The other nodes.
    nodes: Vec<NodeFacts>,
}

/// What was known last, to be used in place of what the API server tells.
#[derive(Debug)]
pub struct Recalled {
    /// The UID of our Node then.
    pub uid: String,
    /// The subnets that we held.
    pub held: ByFamily<Subnet>,
    /// The Nodes.
    pub index: Index,
}

fn subject(config: &Config) -> Subject<'_> {
    Subject {
        kind: "flanneld peers",
        version: VERSION,
        node: &config.node_name,
    }
}

/// The state to be kept.
#[must_use]
pub fn state(config: &Config, held: &ByFamily<Subnet>, index: &Index) -> State {
    let keys = &config.annotations;
    let ours = [
        &keys.backend_data,
        &keys.backend_v6_data,
        &keys.public_ip_overwrite,
        &keys.public_ipv6_overwrite,
        &keys.node_public_ip,
        &keys.node_public_ipv6,
    ];
    let annotations = index.own().map(NodeObject::annotations);
    State {
        conf: conf(config),
        held: *held,
        annotations: annotations
            .into_iter()
            .flatten()
            .filter(|(key, _)| ours.contains(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        nodes: index.others().cloned().collect(),
    }
}

/// Only ever compared with another of the same version of this program, or found to differ.
fn conf(config: &Config) -> String {
    format!("{:?}", config.net)
}

/// Writes a state that was kept for the Node of this UID.
///
/// # Errors
/// The file cannot be written.
pub fn keep(
    path: &Path,
    config: &Config,
    uid: &str,
    state: &State,
) -> Result<(), snapshot::WriteError> {
    snapshot::encode(subject(config), uid, state)?.write(path)
}

/// Reads what was kept.
///
/// # Errors
/// See [`Refusal`]; a state of another configuration is another state.
pub fn recall(path: &Path, config: &Config) -> Result<Recalled, Refusal> {
    let Snapshot {
        state, uid, age, ..
    }: Snapshot<State> = snapshot::read(path, subject(config), None)?;
    if state.conf != conf(config) {
        return Err(Refusal::Other {
            found: "of another net-conf.json".to_owned(),
            expected: "of this one".to_owned(),
        });
    }
    tracing::info!(
        peers = state.nodes.len(),
        age = %format_args!("{age:.0?}"),
        file = %path.display(),
        "starting with what was known last, until the API server has told everything"
    );
    let own = NodeObject {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            uid: Some(uid.clone()),
            annotations: Some(state.annotations),
            ..ObjectMeta::default()
        },
        ..NodeObject::default()
    };
    Ok(Recalled {
        index: Index::recalled(
            &config.node_name,
            config.annotations.clone(),
            own,
            state.nodes,
        ),
        held: state.held,
        uid,
    })
}

/// Says in the log why nothing is recalled.
pub fn explain(path: &Path, refusal: &Refusal) {
    match refusal {
        Refusal::Absent => tracing::debug!(file = %path.display(), "no peers are known yet"),
        refusal => tracing::warn!(
            file = %path.display(),
            reason = agent::chain(refusal),
            "what was known last is not used; waiting for the API server"
        ),
    }
}
