//! Tests of the index: changes in, what is known and what is dirty out.

use agent::watch::Delta;
use hostnet::vocab::Family;

use super::{Index, ObjectName, Update};
use crate::fixtures::{self, SEED};

fn dirty(index: &mut Index) -> Vec<String> {
    let dirty = index.take_dirty().services;
    let mut names: Vec<_> = dirty.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

fn seed_document(containing: &str) -> &'static str {
    SEED.split("---")
        .find(|document| document.contains(containing))
        .unwrap()
}

fn feed(index: &mut Index, updates: Vec<Update>) {
    updates.into_iter().for_each(|update| index.update(update));
}

const HELLO: &str = "default/hello-world-service";
const SLICE: &str = "name: hello-world-service-x7k2p";

#[test]
fn complete_only_when_all_three_kinds_are_listed() {
    let mut index = Index::new("n");
    for (synced, complete) in [
        (Update::Slice(Delta::Synced), false),
        (Update::Service(Delta::Synced), false),
        (Update::Node(Delta::Synced), true),
    ] {
        assert!(!index.is_complete());
        index.update(synced);
        assert_eq!(index.is_complete(), complete);
    }
}

#[test]
fn a_slice_makes_its_service_dirty_and_tells_when_it_changed() {
    let mut index = fixtures::index(SEED);
    assert_eq!(dirty(&mut index).len(), 4);
    feed(
        &mut index,
        fixtures::upserts(&seed_document(SLICE).replace("3.81", "3.82")),
    );
    let dirty = index.take_dirty();
    assert_eq!(
        dirty.services,
        [ObjectName::new("default", "hello-world-service")].into()
    );
    assert_eq!(
        dirty.triggers,
        [(Family::V4, "2026-11-01T10:00:07Z".parse().unwrap())]
    );
    assert!(!dirty.node);
}

#[test]
fn a_slice_that_moves_to_another_service_leaves_the_old_one() {
    let mut index = fixtures::index(SEED);
    dirty(&mut index);
    let moved = seed_document(SLICE).replace(
        "service-name: hello-world-service",
        "service-name: kubernetes",
    );
    feed(&mut index, fixtures::upserts(&moved));
    assert_eq!(dirty(&mut index), [HELLO, "default/kubernetes"]);
    let slices = |name| {
        index
            .entry(&ObjectName::new("default", name))
            .unwrap()
            .slices
            .len()
    };
    assert_eq!(
        (slices("hello-world-service"), slices("kubernetes")),
        (0, 2)
    );
}

#[test]
fn a_slice_that_loses_its_label_leaves_its_service() {
    let mut index = fixtures::index(SEED);
    dirty(&mut index);
    let unlabelled = seed_document(SLICE).replace("kubernetes.io/service-name", "other");
    feed(&mut index, fixtures::upserts(&unlabelled));
    assert_eq!(dirty(&mut index), [HELLO]);
}

#[test]
fn nothing_is_left_of_what_was_deleted() {
    let mut index = fixtures::index(SEED);
    feed(&mut index, fixtures::removes(SEED));
    assert_eq!(index.names().count(), 0);
    assert!(index.service_of.is_empty());
}

#[test]
fn slices_may_come_before_their_service() {
    let mut index = fixtures::index(seed_document(SLICE));
    assert_eq!(dirty(&mut index), [HELLO]);
    feed(
        &mut index,
        fixtures::upserts(seed_document("nodePort: 30001")),
    );
    assert_eq!(dirty(&mut index), [HELLO]);
    let entry = index
        .entry(&ObjectName::new("default", "hello-world-service"))
        .unwrap();
    assert!(entry.service.is_some());
    assert_eq!(entry.slices.len(), 1);
}

#[test]
fn a_node_that_is_deleted_is_leaving_and_keeps_its_addresses() {
    let mut index = fixtures::index(SEED);
    let before = index.node().unwrap().clone();
    assert_eq!(before.primary_v4, Some("192.168.1.12".parse().unwrap()));
    assert!(!before.leaving);
    index.take_dirty();
    feed(&mut index, fixtures::removes(seed_document("kind: Node")));
    assert!(index.take_dirty().node);
    let after = index.node().unwrap();
    assert!(after.leaving);
    assert_eq!(after.primary_v4, before.primary_v4);
}

#[test]
fn a_node_is_leaving_from_its_deletion_taint_on() {
    let tainted = seed_document("kind: Node").replace(
        "spec:",
        "spec:\n  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]",
    );
    assert!(fixtures::index(&tainted).node().unwrap().leaving);
}

#[test]
fn other_nodes_do_not_matter() {
    let other = seed_document("kind: Node").replace("name: k8s-node-2", "name: k8s-node-1");
    assert_eq!(fixtures::index(&other).node(), None);
}

#[test]
fn the_primary_address_is_internal_before_external() {
    let node = |addresses: &str| {
        let object = format!(
            "kind: Node\nmetadata: {{name: k8s-node-2}}\nstatus: {{addresses: [{addresses}]}}"
        );
        fixtures::index(&object).node().unwrap().clone()
    };
    let both = node(
        "{type: ExternalIP, address: 1.2.3.4}, {type: InternalIP, address: 'fd00::1'}, \
         {type: InternalIP, address: 10.0.0.1}, {type: InternalIP, address: 10.0.0.2}",
    );
    assert_eq!(both.primary_v4, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(both.primary_v6, Some("fd00::1".parse().unwrap()));
    let outer = node("{type: Hostname, address: 10.9.9.9}, {type: ExternalIP, address: 1.2.3.4}");
    assert_eq!(outer.primary_v4, Some("1.2.3.4".parse().unwrap()));
    assert_eq!(outer.primary_v6, None);
}
