//! Overlays that change what a node holds: routes in place of the tunnel, and iptables in place of nf_tables.

use integration::kind::{Cluster, NODES};

use crate::{
    KIND, PATIENCE, ROOT, install, new_cluster, nodes_ready, pods_ready, reaches, rolled_out,
};

/// Waits until a line of shell says on every node what is wished for.
fn on_every_node(cluster: &Cluster, what: &str, line: &str, wish: impl Fn(&str) -> bool) {
    for node in NODES {
        let question = format!("docker exec {node} bash -c '{line}'");
        cluster.until(what, PATIENCE, &question, &wish).unwrap();
    }
}

#[test]
fn routes_without_a_tunnel_then_the_tunnel_and_kube_proxys_chains() {
    let cluster = new_cluster("cluster.yaml");
    let image = format!("{ROOT}/target/images/twill-iptables.tar");
    cluster.load(&image).unwrap();
    install(&cluster, &format!("-k {ROOT}/manifests/host-gw"));
    reaches(&cluster);
    on_every_node(
        &cluster,
        "routes by the other nodes",
        "ip route show root 10.244.0.0/16; ip link show flannel.1 2>&1 || true",
        |answer| answer.matches(" dev eth0 ").count() == 2 && answer.contains("does not exist"),
    );

    // The other overlay over it: the network changes while it runs, and the proxies' mode as they are replaced.
    cluster
        .kubectl(&format!("apply -k {ROOT}/manifests/iptables"))
        .unwrap();
    rolled_out(&cluster);
    on_every_node(
        &cluster,
        "routes through the tunnel",
        "ip route show root 10.244.0.0/16",
        |answer| answer.matches(" dev flannel.1 ").count() == 2 && !answer.contains("eth0"),
    );
    on_every_node(
        &cluster,
        "chains of Services alone",
        "iptables-nft-save -t nat; nft list tables",
        |answer| answer.contains("-A KUBE-SVC-") && !answer.contains("twill-proxy"),
    );
    nodes_ready(&cluster);
    pods_ready(&cluster, "kube-system");
    reaches(&cluster);

    // And back, to elements of maps.
    cluster
        .kubectl(&format!("apply -f {ROOT}/manifests/twill.yaml"))
        .unwrap();
    rolled_out(&cluster);
    on_every_node(
        &cluster,
        "no chain of Services",
        "iptables-nft-save -t nat; nft list tables",
        |answer| !answer.contains("KUBE-SVC-") && answer.contains("ip twill-proxy"),
    );
    reaches(&cluster);
    cluster
        .kubectl(&format!("delete -f {KIND}/hello.yaml"))
        .unwrap();
}
