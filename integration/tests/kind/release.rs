//! A release of helm's; metrics that answer to others; a kube-proxy that stays.

use integration::kind::{Cluster, NODES};
use integration::progress::Progress;
use integration::upstream::{Module, Program, assets};

use crate::migration::{daemons, label};
use crate::{
    KIND, PATIENCE, ROOT, addresses, hello, new_cluster, nodes_ready, pods_ready, reaches,
    rolled_out,
};

/// The kinds of the Prometheus operator, without what it knows of them.
fn kinds_of_prometheus(cluster: &Cluster) {
    for (kind, plural) in [
        ("ServiceMonitor", "servicemonitors"),
        ("PrometheusRule", "prometheusrules"),
    ] {
        let definition = format!(
            r#"{{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {{"name": "{plural}.monitoring.coreos.com"}},
                "spec": {{"group": "monitoring.coreos.com", "scope": "Namespaced", "names": {{"kind": "{kind}", "plural": "{plural}"}},
                "versions": [{{"name": "v1", "served": true, "storage": true, "schema": {{"openAPIV3Schema":
                {{"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}}]}}}}"#
        );
        cluster
            .shell(&format!("kubectl apply -f - <<'END'\n{definition}\nEND"))
            .unwrap();
        let made = format!(
            "wait --for=condition=Established crd/{plural}.monitoring.coreos.com --timeout=60s"
        );
        cluster.kubectl(&made).unwrap();
    }
}

#[test]
fn a_release_of_helms_then_monitors_then_a_kube_proxy_that_stays() {
    let cluster = new_cluster("cluster.yaml");
    let helm = assets(Module::Helm, &[Program::Helm], Progress::shown()).unwrap();
    let helm = helm.join(Program::Helm.name());
    let release = format!(
        "HOME=$TWILL_KIND_RUN {} --namespace kube-system",
        helm.display()
    );
    cluster
        .shell(&format!(
            "{release} install twill {ROOT}/manifests/chart --wait --timeout 180s"
        ))
        .unwrap();
    nodes_ready(&cluster);
    hello(&cluster);
    reaches(&cluster);

    // Another value: routes in place of the tunnel.
    cluster
        .shell(&format!(
            "{release} upgrade twill {ROOT}/manifests/chart --set flannel.backend=host-gw"
        ))
        .unwrap();
    let routes = format!("docker exec {} ip route show root 10.244.0.0/16", NODES[1]);
    cluster
        .until("routes by the other nodes", PATIENCE, &routes, |routes| {
            routes.matches(" dev eth0 ").count() == 2
        })
        .unwrap();
    cluster
        .shell(&format!("{release} uninstall twill --wait"))
        .unwrap();

    // What the release has left in the kernels goes on; the folder with monitors takes over, and the tunnel is back.
    kinds_of_prometheus(&cluster);
    cluster
        .kubectl(&format!("apply -k {ROOT}/manifests/monitoring"))
        .unwrap();
    rolled_out(&cluster);
    cluster
        .until("routes through the tunnel", PATIENCE, &routes, |routes| {
            routes.matches(" dev flannel.1 ").count() == 2
        })
        .unwrap();
    reaches(&cluster);
    let address = &addresses(&cluster, NODES[1])[0];
    for (port, metric) in [
        (8082, "flanneld_peers{"),
        (10249, "kubeproxy_sync_proxy_rules"),
    ] {
        let get = format!(
            "exec 3<>/dev/tcp/{address}/{port}; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; timeout 5 cat <&3"
        );
        let answer = cluster.shell(&get).unwrap();
        assert!(answer.contains(metric), "{port}: {answer}");
    }

    // kube-proxy takes twill-proxy's place.
    cluster.load_upstream().unwrap();
    cluster
        .kubectl(&format!("apply -k {ROOT}/manifests/with-kube-proxy"))
        .unwrap();
    cluster
        .kubectl("delete -n kube-system daemonset/twill-proxy")
        .unwrap();
    for node in NODES {
        daemons(&cluster, node, &["flanneld"]);
    }
    cluster.apply_upstream("kube-proxy").unwrap();
    for node in NODES {
        daemons(&cluster, node, &["flanneld", "kube-proxy"]);
    }
    cluster
        .kubectl(&format!(
            "apply -f {ROOT}/manifests/flannel-migration/back.yaml"
        ))
        .unwrap();
    for node in NODES {
        label(&cluster, node, "=left");
    }
    for node in NODES {
        daemons(&cluster, node, &["flanneld", "kube-proxy", "twill-left"]);
        let tables = cluster.on(node, "nft list tables").unwrap();
        assert!(
            tables.contains("ip kube-proxy") && !tables.contains("twill-proxy"),
            "{tables}"
        );
    }
    pods_ready(&cluster, "kube-system");
    reaches(&cluster);
    cluster
        .kubectl(&format!("delete -f {KIND}/hello.yaml"))
        .unwrap();
}
