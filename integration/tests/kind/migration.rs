//! A cluster with flannel and kube-proxy becomes one of Twill, a node at a time, and a node goes back.

use integration::kind::{Cluster, NODES};

use crate::load::{self, Load, POD};
use crate::{
    KIND, PATIENCE, ROOT, addresses, cluster_ips, diagnosis, new_cluster, nodes_ready, pods_ready,
    reaches,
};

const LABEL: &str = "twill.io/network";

/// Waits until the pods of these names (as far as the pods' own) on a node are these, all Ready.
pub(crate) fn daemons(cluster: &Cluster, node: &str, expected: &[&str]) {
    let question = format!(
        "kubectl get pods -A --field-selector spec.nodeName={node} --no-headers -o custom-columns=N:.metadata.name,R:'.status.conditions[?(@.type==\"Ready\")].status' | grep -E '^(flanneld|kube-flannel-ds|kube-proxy|twill)-' | sort"
    );
    let what = format!("{} on {node}", expected.join(", "));
    cluster
        .until(&what, PATIENCE, &question, |answer| {
            let pods: Vec<_> = answer.lines().collect();
            pods.len() == expected.len()
                && pods
                    .iter()
                    .zip(expected)
                    .all(|(pod, name)| pod.starts_with(name) && pod.ends_with(" True"))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", diagnosis(cluster)));
}

/// Connections between each pair of the three, and by the Service from nodes and pods.
fn connects(cluster: &Cluster) -> Vec<Load> {
    let service = &cluster_ips(cluster, "hello-world-service")[0];
    let mut loads = Vec::new();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let [from, to] = [from, to].map(|index: usize| NODES[index]);
        let pod = pod_ip(cluster, to);
        loads.push(load::start(cluster, from, POD, &pod, 8080));
        loads.push(load::start(cluster, from, POD, service, 4000));
        loads.push(load::start(cluster, from, "", service, 4000));
        let address = &addresses(cluster, to)[0];
        loads.push(load::start(cluster, from, "", address, 30001));
    }
    loads
}

/// The address of the client pod on a node.
fn pod_ip(cluster: &Cluster, node: &str) -> String {
    let question = format!(
        "get pods -l app=client --field-selector spec.nodeName={node} -o jsonpath='{{.items[0].status.podIP}}'"
    );
    cluster.kubectl(&question).unwrap()
}

pub(crate) fn label(cluster: &Cluster, node: &str, value: &str) {
    cluster
        .kubectl(&format!("label --overwrite node {node} {LABEL}{value}"))
        .unwrap();
}

#[test]
fn a_cluster_of_flannel_and_kube_proxy_migrates_node_by_node_and_a_node_goes_back() {
    let cluster = new_cluster("cluster.yaml");
    let migration = format!("{ROOT}/manifests/flannel-migration");
    cluster.load_upstream().unwrap();
    for name in ["flannel", "kube-proxy"] {
        cluster.apply_upstream(name).unwrap();
    }
    nodes_ready(&cluster);
    for node in NODES {
        daemons(&cluster, node, &["kube-flannel-ds", "kube-proxy"]);
    }
    pods_ready(&cluster, "kube-system");
    cluster
        .kubectl(&format!("apply -f {KIND}/hello.yaml"))
        .unwrap();
    pods_ready(&cluster, "default");
    reaches(&cluster);
    let subnets = cluster
        .kubectl("get nodes -o jsonpath='{.items[*].spec.podCIDR}'")
        .unwrap();

    for set in [
        "-n kube-flannel daemonset/kube-flannel-ds",
        "-n kube-system daemonset/kube-proxy",
    ] {
        cluster
            .kubectl(&format!(
                "patch {set} --patch-file {migration}/keep-away.yaml"
            ))
            .unwrap();
    }
    cluster.kubectl(&format!("apply -k {migration}")).unwrap();
    for node in NODES {
        let loads = connects(&cluster);
        label(&cluster, node, "=twill");
        daemons(&cluster, node, &["flanneld", "twill-proxy"]);
        load::all_answered(&cluster, loads);
        reaches(&cluster);
        // A pod that Twill makes, beside those that others made.
        cluster
            .kubectl(&format!(
                "delete pod -l app=client --field-selector spec.nodeName={node}"
            ))
            .unwrap();
        cluster
            .kubectl("rollout status --timeout=180s daemonset/client")
            .unwrap_or_else(|error| panic!("{error:#}\n{}", diagnosis(&cluster)));
        reaches(&cluster);
    }
    let after = cluster
        .kubectl("get nodes -o jsonpath='{.items[*].spec.podCIDR}'")
        .unwrap();
    assert_eq!(after, subnets);

    let node = NODES[2];
    let loads = connects(&cluster);
    label(&cluster, node, "-");
    daemons(&cluster, node, &["kube-flannel-ds", "kube-proxy"]);
    cluster
        .kubectl(&format!("apply -f {migration}/back.yaml"))
        .unwrap();
    label(&cluster, node, "=left");
    daemons(
        &cluster,
        node,
        &["kube-flannel-ds", "kube-proxy", "twill-left"],
    );
    load::all_answered(&cluster, loads);
    let tables = cluster.on(node, "nft list tables").unwrap();
    assert!(
        tables.contains("ip kube-proxy") && !tables.contains("twill-proxy"),
        "{tables}"
    );
    reaches(&cluster);
}
