//! Tests of the plan as a whole: objects in, ruleset out.

mod property;
mod table;

use crate::fixtures::{self, SEED};
use crate::index::Index;
use crate::plan::{Delta, Planner};

fn step(planner: &mut Planner, index: &mut Index) -> Delta {
    let dirty = index.take_dirty();
    planner.update(index, &dirty)
}

#[test]
fn the_worked_example() {
    let mut index = fixtures::index(SEED);
    let ruleset = fixtures::plan(&mut index, &fixtures::cluster_cidr("10.244.0.0/16"));
    insta::assert_snapshot!(ruleset, @r"
    IPv4: pods from 10.244.0.0/16, node ports at 192.168.1.12
    default/hello-world-service/tcp
      cluster IP 10.106.183.112:4000 -> cluster, masquerade all but pods
      node port 30001 -> cluster, masquerade all
      cluster: 10.244.3.81:8080 (local)
    default/kubernetes:https/tcp
      cluster IP 10.96.0.1:443 -> cluster, masquerade all but pods
      cluster: 192.168.1.10:6443
    kube-system/kube-dns:dns/udp
      cluster IP 10.96.0.10:53 -> cluster, masquerade all but pods
      cluster: 10.244.0.4:53, 10.244.0.5:53
    kube-system/kube-dns:dns-tcp/tcp
      cluster IP 10.96.0.10:53 -> cluster, masquerade all but pods
      cluster: 10.244.0.4:53, 10.244.0.5:53
    kube-system/kube-dns:metrics/tcp
      cluster IP 10.96.0.10:9153 -> cluster, masquerade all but pods
      cluster: 10.244.0.4:9153, 10.244.0.5:9153
    kube-system/tiller-deploy:tiller/tcp
      cluster IP 10.108.160.127:44134 -> reject, masquerade all but pods
    IPv6: pods unknown, node ports nowhere
    ");
}

#[test]
fn a_change_costs_what_changed() {
    let mut index = fixtures::index(SEED);
    let mut planner = Planner::new(fixtures::cluster_cidr("10.244.0.0/16"));
    let first = step(&mut planner, &mut index);
    assert_eq!(first.v4.ports.len(), 6, "all service ports are new");

    let scaled = SEED
        .split("---")
        .find(|document| document.contains("name: hello-world-service-x7k2p"))
        .unwrap()
        .replace("[10.244.3.81]", "[10.244.1.7]");
    fixtures::upserts(&scaled)
        .into_iter()
        .for_each(|update| index.update(update));
    let delta = step(&mut planner, &mut index);
    let changed: Vec<_> = delta
        .v4
        .ports
        .iter()
        .map(|change| change.key.to_string())
        .collect();
    assert_eq!(changed, ["default/hello-world-service/tcp"]);
    assert_eq!(delta.v4.node, None);
    assert_eq!(delta.v6, Default::default());
}

#[test]
fn an_update_that_changes_nothing_is_empty() {
    let mut index = fixtures::index(SEED);
    let mut planner = Planner::new(fixtures::cluster_cidr("10.244.0.0/16"));
    step(&mut planner, &mut index);
    fixtures::upserts(SEED)
        .into_iter()
        .for_each(|update| index.update(update));
    assert!(
        index.take_dirty().is_empty(),
        "the same objects again touch nothing"
    );
    let everything = index.names().cloned().collect();
    let dirty = crate::index::Dirty {
        services: everything,
        node: true,
        triggers: Vec::new(),
    };
    assert!(
        planner.update(&index, &dirty).is_empty(),
        "planning all again changes nothing"
    );
}
