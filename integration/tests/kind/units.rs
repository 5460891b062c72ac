//! The daemons as units of systemd: `manifests/systemd`, put in place as its README says.

use integration::kind::{Cluster, NODES};

use crate::events::all_restarted;
use crate::load::{self, POD};
use crate::{
    KIND, PATIENCE, ROOT, addresses, binaries, cluster_ips, new_cluster, nodes_ready, pods_ready,
    reaches, words,
};

const NAMES: [&str; 2] = ["flanneld", "twill-proxy"];

fn install(cluster: &Cluster) {
    for name in NAMES {
        cluster
            .kubectl(&format!("apply -f {ROOT}/manifests/base/{name}-rbac.yaml"))
            .unwrap();
    }
    let server = format!("https://{}:6443", addresses(cluster, NODES[0])[0]);
    let conf = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    for node in NODES {
        cluster
            .on(node, "mkdir -p /etc/twill /etc/cni/net.d /opt/cni/bin")
            .unwrap();
        for program in ["flanneld", "twill-cni", "twill-proxy"] {
            let built = format!("{}/{program}", binaries());
            cluster
                .shell(&format!("docker cp {built} {node}:/usr/local/bin/"))
                .unwrap();
        }
        for name in NAMES {
            let unit = format!("{ROOT}/manifests/systemd/{name}.service");
            cluster
                .shell(&format!("docker cp {unit} {node}:/etc/systemd/system/"))
                .unwrap();
            cluster
                .shell(&format!(
                    "{ROOT}/manifests/systemd/kubeconfig {name} {server} | docker exec -i {node} sh -c 'cat >/etc/twill/{name}.conf'"
                ))
                .unwrap();
        }
        cluster
            .shell(&format!(
                "echo '{conf}' | docker exec -i {node} sh -c 'cat >/etc/twill/net-conf.json'"
            ))
            .unwrap();
        cluster
            .on(
                node,
                "systemctl daemon-reload && systemctl enable --quiet --now flanneld twill-proxy",
            )
            .unwrap();
    }
    nodes_ready(cluster);
    pods_ready(cluster, "kube-system");
}

#[test]
fn units_serve_like_pods_and_a_restarted_node_before_the_api_server_does() {
    let cluster = new_cluster("cluster.yaml");
    install(&cluster);
    cluster
        .kubectl(&format!("apply -f {KIND}/hello.yaml"))
        .unwrap();
    pods_ready(&cluster, "default");
    reaches(&cluster);

    let service = &cluster_ips(&cluster, "hello-world-service")[0];
    let loads = vec![
        load::start(&cluster, NODES[0], "", service, 4000),
        load::start(&cluster, NODES[1], POD, service, 4000),
        load::start(&cluster, NODES[2], POD, service, 4000),
    ];
    for node in NODES {
        cluster
            .on(node, "systemctl restart flanneld twill-proxy")
            .unwrap();
        for (port, path) in [(8081, "readyz"), (10256, "healthz")] {
            let question = format!(
                "docker exec {node} bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; printf \"GET /{path} HTTP/1.0\\r\\n\\r\\n\" >&3; timeout 5 cat <&3' 2>&1 || true"
            );
            cluster
                .until("a ready daemon", PATIENCE, &question, |answer| {
                    answer.contains("200 OK")
                })
                .unwrap();
        }
    }
    load::all_answered(&cluster, loads);

    // One endpoint, on another node than the one that is restarted, while there is no API server.
    let ips = || {
        let path = ".items[*].status.podIP";
        words(&cluster, "pods -l app=hello-world", path)
    };
    let old = ips();
    let elsewhere = format!(
        r#"{{"spec":{{"replicas":1,"template":{{"spec":{{"nodeName":"{}"}}}}}}}}"#,
        NODES[1]
    );
    cluster
        .kubectl(&format!("patch deployment hello-world -p '{elsewhere}'"))
        .unwrap();
    cluster
        .kubectl("rollout status --timeout=180s deployment/hello-world")
        .unwrap();
    for ip in &old {
        let gone = format!("get pods -o wide | grep -F ' {ip} ' || true");
        cluster
            .until(
                "the end of a pod",
                PATIENCE,
                &format!("kubectl {gone}"),
                str::is_empty,
            )
            .unwrap();
    }
    let new = ips();
    assert_eq!(new.len(), 1, "{new:?}");
    let node = NODES[2];
    let address = addresses(&cluster, node)[0].clone();
    // What is saved is some seconds old while things change.
    let saved = format!("docker exec {node} cat /var/lib/twill/twill-proxy");
    cluster
        .until("the endpoint on disk", PATIENCE, &saved, |state| {
            let has = |ip: &String| state.contains(&format!("\"{ip}\""));
            has(&new[0]) && !old.iter().any(has)
        })
        .unwrap();
    cluster
        .shell(&format!("docker pause {}", NODES[0]))
        .unwrap();
    cluster.shell(&format!("docker restart {node}")).unwrap();
    let get = format!(
        "docker exec {} bash -c 'exec 3<>/dev/tcp/{address}/30001; printf \"GET /hostname HTTP/1.0\\r\\n\\r\\n\" >&3; timeout 5 cat <&3' 2>&1 || true",
        NODES[1]
    );
    cluster
        .until("an answer without the API", PATIENCE, &get, |answer| {
            answer.contains("200 OK")
        })
        .unwrap();
    cluster
        .shell(&format!("docker unpause {}", NODES[0]))
        .unwrap();
    all_restarted(&cluster, node);
    reaches(&cluster);
}
