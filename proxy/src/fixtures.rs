//! Objects for tests: read from YAML as `kubectl get -o yaml` writes it, and fed to an index.

use agent::watch::{Delta, Key};
use hostnet::vocab::Subnet;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::index::{Index, Update};
use crate::plan::{DetectLocal, Planner, Ruleset, Settings};

/// The worked example's objects.
pub(crate) const SEED: &str = include_str!("../tests/data/seed.yaml");

/// What the API would tell of the objects in these YAML documents: each as new.
pub(crate) fn upserts(yaml: &str) -> Vec<Update> {
    documents(yaml)
        .into_iter()
        .map(|object| match kind(&object) {
            "Service" => Update::Service(Delta::Upsert(parse(object))),
            "EndpointSlice" => Update::Slice(Delta::Upsert(parse(object))),
            "Node" => Update::Node(Delta::Upsert(parse(object))),
            "ServiceCIDR" => Update::ServiceCidr(Delta::Upsert(parse(object))),
            other => panic!("kind {other} is none that the proxy watches"),
        })
        .collect()
}

/// What the API would tell if the objects in these YAML documents were deleted.
pub(crate) fn removes(yaml: &str) -> Vec<Update> {
    documents(yaml)
        .into_iter()
        .map(|object| {
            let text = |field: &str| {
                object["metadata"][field]
                    .as_str()
                    .unwrap_or_default()
                    .into()
            };
            let key = Key {
                namespace: text("namespace"),
                name: text("name"),
            };
            match kind(&object) {
                "Service" => Update::Service(Delta::Remove(key)),
                "EndpointSlice" => Update::Slice(Delta::Remove(key)),
                "Node" => Update::Node(Delta::Remove(key)),
                other => panic!("kind {other} is none that the proxy watches"),
            }
        })
        .collect()
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).expect("test objects are YAML")
}

fn kind(object: &Value) -> &str {
    object["kind"].as_str().expect("test objects have a kind")
}

fn parse<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("test objects are valid")
}

/// An index of the node `k8s-node-2` that holds these objects.
pub(crate) fn index(yaml: &str) -> Index {
    let mut index = Index::new("k8s-node-2");
    upserts(yaml)
        .into_iter()
        .for_each(|update| index.update(update));
    index
}

/// Settings with that cluster CIDR.
pub(crate) fn cluster_cidr(cidr: &str) -> Settings {
    let cidr: Subnet = cidr.parse().expect("a network");
    Settings {
        detect_local: DetectLocal::ClusterCidr(vec![cidr]),
        ..Settings::default()
    }
}

/// The plan of an index, from nothing.
pub(crate) fn plan(index: &mut Index, settings: &Settings) -> Ruleset {
    let mut planner = Planner::new(settings.clone());
    let dirty = index.take_dirty();
    planner.update(index, &dirty);
    planner.ruleset().clone()
}
