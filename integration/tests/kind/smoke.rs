//! The whole way of an installation: apply, hello-world, `twill`, restart, upgrade, uninstall.

use integration::kind::{Cluster, NODES};

use crate::load::{self, Load, POD};
use crate::{
    ROOT, addresses, binaries, cluster_ips, command, install, leaves_nothing, look, new_cluster,
    reaches, rolled_out,
};

/// The connections that must not break: a node port by another node, a cluster IP by a node and by a pod, a host port.
fn connects(cluster: &Cluster) -> Vec<Load> {
    let ip = &cluster_ips(cluster, "hello-world-service")[0];
    let other = &addresses(cluster, NODES[2])[0];
    vec![
        load::start(cluster, NODES[0], "", other, 30001),
        load::start(cluster, NODES[1], "", ip, 4000),
        load::start(cluster, NODES[2], POD, ip, 4000),
        load::start(cluster, NODES[1], POD, other, 18080),
    ]
}

#[test]
fn smoke_twill_yaml_makes_a_kind_cluster_work_and_leaves_it_as_it_was() {
    let cluster = new_cluster("cluster.yaml");
    let before = look(&cluster);

    let manifests = format!("-f {ROOT}/manifests/twill.yaml");
    install(&cluster, &manifests);
    reaches(&cluster);
    command::answers(&cluster);

    let loads = connects(&cluster);
    cluster
        .kubectl("rollout restart -n kube-system daemonset/flanneld daemonset/twill-proxy")
        .unwrap();
    rolled_out(&cluster);
    load::all_answered(&cluster, loads);

    let next = upgrade_image(&cluster);
    let loads = connects(&cluster);
    for (set, container) in [("flanneld", "*"), ("twill-proxy", "twill-proxy")] {
        cluster
            .kubectl(&format!(
                "set image -n kube-system daemonset/{set} '{container}={next}'"
            ))
            .unwrap();
    }
    rolled_out(&cluster);
    load::all_answered(&cluster, loads);
    reaches(&cluster);

    leaves_nothing(&cluster, &manifests, &before);
}

/// The same binaries under the name of the next version, built by the engine.
fn upgrade_image(cluster: &Cluster) -> &'static str {
    let next = "twill:0.1.0-next";
    let built = binaries();
    cluster
        .shell(&format!(
            "set -o pipefail; tar -c -C {built} flanneld twill-cni twill-proxy -C {ROOT}/manifests/image Dockerfile | DOCKER_BUILDKIT=0 docker build --quiet -t {next} - && kind load docker-image {next} --name twill"
        ))
        .unwrap();
    next
}
