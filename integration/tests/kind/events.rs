//! What happens to the pods and nodes of a cluster of two families that works.

use integration::kind::{Cluster, NODES};

use crate::load::{self, Load, POD};
use crate::{
    KIND, PATIENCE, ROOT, addresses, cluster_ips, diagnosis, install, leaves_nothing, look,
    new_cluster, nodes_ready, pods_ready, reaches, rolled_out, words,
};

/// Connections that `node` has no part in.
fn connects_without(cluster: &Cluster, node: &str) -> Vec<Load> {
    let [one, other] = NODES
        .into_iter()
        .filter(|name| *name != node)
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let mut loads = Vec::new();
    for address in addresses(cluster, other) {
        loads.push(load::start(cluster, one, "", &address, 18080));
        loads.push(load::start(cluster, one, POD, &address, 18080));
    }
    loads
}

#[test]
fn a_cluster_of_two_families_lives_through_what_happens_to_pods_and_nodes() {
    let cluster = new_cluster("cluster-dual-stack.yaml");
    let before = look(&cluster);
    let manifests = format!("-k {ROOT}/manifests/dual-stack");
    install(&cluster, &manifests);
    reaches(&cluster);
    cluster
        .kubectl(&format!("apply -f {KIND}/many.yaml"))
        .unwrap();
    pods_ready(&cluster, "default");

    limits_are_in_the_kernel(&cluster);
    pods_come_and_go(&cluster);
    daemons_are_killed(&cluster);
    kubelet_and_containerd_restart(&cluster);
    a_node_restarts(&cluster);
    a_node_leaves_and_returns(&cluster);

    cluster
        .kubectl(&format!("delete -f {KIND}/many.yaml"))
        .unwrap();
    leaves_nothing(&cluster, &manifests, &before);
}

/// The annotations reach twill-cni by way of containerd.
fn limits_are_in_the_kernel(cluster: &Cluster) {
    let queues = cluster.on(NODES[1], "tc qdisc show").unwrap();
    for rate in ["rate 30Mbit", "rate 20Mbit"] {
        let limits = queues
            .lines()
            .filter(|line| line.contains("tbf") && line.contains(rate));
        assert_eq!(limits.count(), 1, "{rate}: {queues}");
    }
}

/// 1 pod, 20, 1: no connection is lost. 0: refused at once, until there is one again.
fn pods_come_and_go(cluster: &Cluster) {
    let ips = cluster_ips(cluster, "many");
    assert_eq!(ips.len(), 2);
    let mut loads = Vec::new();
    for ip in &ips {
        loads.push(load::start(cluster, NODES[0], "", ip, 80));
        loads.push(load::start(cluster, NODES[1], POD, ip, 80));
    }
    for pods in [20, 1] {
        scale(cluster, pods);
    }
    load::all_answered(cluster, loads);
    scale(cluster, 0);
    for ip in &ips {
        for node in NODES {
            let connect = format!(
                "docker exec {node} bash -c 'timeout 1 bash -c \"exec 3<>/dev/tcp/{ip}/80\"' 2>&1 || true"
            );
            cluster
                .until("a connection to be refused", PATIENCE, &connect, |answer| {
                    answer.contains("Connection refused")
                })
                .unwrap();
        }
    }
    scale(cluster, 1);
    let loads = ips
        .iter()
        .map(|ip| load::start(cluster, NODES[2], POD, ip, 80))
        .collect();
    load::all_answered(cluster, loads);
}

/// There are so many pods, and their addresses are the Service's.
fn scale(cluster: &Cluster, pods: usize) {
    cluster
        .kubectl(&format!("scale deployment/many --replicas={pods}"))
        .unwrap();
    let question = "kubectl get pods -l app=many --no-headers; kubectl get endpointslices -l kubernetes.io/service-name=many -o jsonpath='{range .items[*].endpoints[*]}{\"endpoint \"}{.conditions.ready}{\"\\n\"}{end}'";
    cluster
        .until(&format!("{pods} pods"), PATIENCE, question, |answer| {
            let ready = answer.matches("endpoint true").count();
            let running = answer.matches(" Running ").count();
            ready == 2 * pods && running == pods && !answer.contains("endpoint false")
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", diagnosis(cluster)));
}

/// All of them at once: the kernel goes on by itself.
fn daemons_are_killed(cluster: &Cluster) {
    let loads = connects_without(cluster, NODES[2]);
    cluster
        .kubectl("delete pod -n kube-system -l app.kubernetes.io/name=twill")
        .unwrap();
    rolled_out(cluster);
    load::all_answered(cluster, loads);
}

fn kubelet_and_containerd_restart(cluster: &Cluster) {
    let loads = connects_without(cluster, NODES[2]);
    let node = NODES[1];
    cluster
        .on(node, "systemctl restart containerd kubelet")
        .unwrap();
    let question = format!("kubectl get --raw /api/v1/nodes/{node}/proxy/healthz");
    cluster
        .until("the kubelet", PATIENCE, &question, |answer| answer == "ok")
        .unwrap();
    let client = format!("pod -l app=client --field-selector spec.nodeName={node}");
    cluster.kubectl("rollout restart deployment/many").unwrap();
    cluster
        .kubectl("rollout status --timeout=180s deployment/many")
        .unwrap();
    load::all_answered(cluster, loads);
    let restarts = words(
        cluster,
        &client,
        ".items[*].status.containerStatuses[*].restartCount",
    );
    assert_eq!(restarts, ["0"]);
}

/// The node is turned off and on: its kernel state is gone, its files are there.
fn a_node_restarts(cluster: &Cluster) {
    let node = NODES[2];
    let loads = connects_without(cluster, node);
    cluster.shell(&format!("docker restart {node}")).unwrap();
    all_restarted(cluster, node);
    load::all_answered(cluster, loads);
    reaches(cluster);
    addresses_are_those_of_pods(cluster, node);
}

/// Every pod of the node has been started again, and all is Ready.
pub(crate) fn all_restarted(cluster: &Cluster, node: &str) {
    let question = format!(
        "kubectl get pods -A --field-selector spec.nodeName={node} -o jsonpath='{{.items[*].status.containerStatuses[*].restartCount}}'"
    );
    cluster
        .until("the node's pods", PATIENCE, &question, |counts| {
            !counts.is_empty() && counts.split_whitespace().all(|count| count != "0")
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", diagnosis(cluster)));
    nodes_ready(cluster);
    pods_ready(cluster, "kube-system");
    pods_ready(cluster, "default");
}

/// No address stays reserved for a pod that is gone.
fn addresses_are_those_of_pods(cluster: &Cluster, node: &str) {
    let question = format!(
        "kubectl get pods -A --field-selector spec.nodeName={node} -o jsonpath='{{range .items[*].status.podIPs[*]}}{{.ip}}{{\"\\n\"}}{{end}}' | grep -E '^(10[.]244[.]|fd00:10:244:)' | sort; echo; docker exec {node} ls /var/lib/cni/networks/cbr0 | grep -E '^[0-9]|:' | sort"
    );
    cluster
        .until(
            "the addresses of pods alone",
            PATIENCE,
            &question,
            |answer| {
                answer
                    .split_once("\n\n")
                    .is_some_and(|(pods, reserved)| pods.trim() == reserved.trim())
            },
        )
        .unwrap();
}

/// The node's object is deleted while it is off: the others forget it. It comes back under its name, and gets a subnet.
fn a_node_leaves_and_returns(cluster: &Cluster) {
    let node = NODES[2];
    let loads = connects_without(cluster, node);
    cluster.shell(&format!("docker stop {node}")).unwrap();
    cluster.kubectl(&format!("delete node {node}")).unwrap();
    for other in &NODES[..2] {
        for family in ["-4", "-6"] {
            let question = format!(
                "docker exec {other} sh -c 'for link in flannel.1 flannel-v6.1; do ip {family} route show dev $link; done' | grep -v -E '^(fe80|ff00)'"
            );
            cluster
                .until("one peer's route", PATIENCE, &question, |routes| {
                    routes
                        .lines()
                        .filter(|route| route.contains(" via "))
                        .count()
                        == 1
                })
                .unwrap();
        }
    }
    cluster.shell(&format!("docker start {node}")).unwrap();
    nodes_ready(cluster);
    pods_ready(cluster, "kube-system");
    cluster
        .kubectl("rollout status --timeout=180s daemonset/client")
        .unwrap_or_else(|error| panic!("{error:#}\n{}", diagnosis(cluster)));
    pods_ready(cluster, "default");
    load::all_answered(cluster, loads);
    reaches(cluster);
    addresses_are_those_of_pods(cluster, node);
}
