//! A cluster that nobody here wrote: kubelet, containerd and systemd of a kind cluster, and `manifests/` as a user applies
//! them. `smoke` is an installation's whole way, `events` what happens to nodes and pods afterwards, `migration` the way
//! from flannel and kube-proxy, `overlays` and `release` other ways of installing.

use std::time::{Duration, Instant};

use integration::kind::{Cluster, NODES};
use integration::progress::Progress;

mod command;
mod events;
mod load;
mod migration;
mod overlays;
mod release;
mod smoke;
mod units;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const KIND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kind");
const PATIENCE: Duration = Duration::from_secs(180);

/// What of a node belongs to a network: links, routes, rules, tables, switches, files.
const LOOK: &str = r#"
ip -o link | sed "s/^[0-9]*: \([^:@]*\).*/link \1/" | sort
ip route | sed "s/^/route /"; ip -6 route | grep -v ^fe80 | sed "s/^/route /"
ip rule | sed "s/^/rule /"
nft list tables
sysctl -a 2>/dev/null | grep -E "^net\.(ipv4|ipv6)\.(ip_forward|conf\.(all|default|eth0)\.)|^net\.bridge" | grep -v -E "stable_secret|mtu"
find /etc/cni /opt/cni /var/lib/cni /run/flannel /var/lib/twill -type f -o -type l 2>/dev/null | sort
"#;

/// What an uninstall leaves: switches, which others may rely on by then.
const STAYS: [&str; 3] = [
    "net.ipv4.ip_forward",
    ".forwarding =",
    "net.ipv4.conf.all.accept_redirects",
];

/// The folder of the static binaries: those of `make dist`, or others that `make smoke` names.
fn binaries() -> String {
    let shipped = || format!("{ROOT}/target/x86_64-unknown-linux-gnu/dist");
    std::env::var("TWILL_BINARIES").unwrap_or_else(|_| shipped())
}

/// A cluster of one of the configurations, with the image on its nodes.
fn new_cluster(config: &str) -> Cluster {
    let images = std::env::var("TWILL_IMAGES").unwrap_or_else(|_| format!("{ROOT}/target/images"));
    let image = format!("{images}/twill.tar");
    assert!(
        std::path::Path::new(&image).is_file(),
        "{image} is missing: make it with `make images`"
    );
    let cluster = Cluster::create(config, Progress::shown()).unwrap_or_else(|e| panic!("{e:#}"));
    cluster.load(&image).unwrap();
    cluster
}

/// Applies `manifests`, as `kubectl apply` is told them, and hello-world once all is Ready.
fn install(cluster: &Cluster, manifests: &str) {
    let start = Instant::now();
    cluster.kubectl(&format!("apply {manifests}")).unwrap();
    nodes_ready(cluster);
    eprintln!(
        "  from `kubectl apply` to all nodes Ready: {:.1} s",
        start.elapsed().as_secs_f64()
    );
    hello(cluster);
}

/// hello-world, and a client on each node.
fn hello(cluster: &Cluster) {
    pods_ready(cluster, "kube-system");
    cluster
        .kubectl(&format!("apply -f {KIND}/hello.yaml"))
        .unwrap();
    cluster
        .kubectl("rollout status --timeout=180s deployment/hello-world daemonset/client")
        .unwrap_or_else(|error| panic!("{error:#}\n{}", diagnosis(cluster)));
    pods_ready(cluster, "default");
    runtime_has_no_complaint(cluster);
}

/// containerd reads the CNI configuration when it is there, and not before.
fn runtime_has_no_complaint(cluster: &Cluster) {
    for node in NODES {
        let complaints = "journalctl -u containerd | grep 'failed to reload cni' || true";
        assert_eq!(cluster.on(node, complaints).unwrap(), "", "{node}");
    }
}

fn nodes_ready(cluster: &Cluster) {
    cluster
        .until(
            "all nodes Ready",
            PATIENCE,
            "kubectl get nodes --no-headers",
            |nodes| {
                nodes.lines().count() == 3 && nodes.lines().all(|node| node.contains(" Ready "))
            },
        )
        .unwrap();
}

fn pods_ready(cluster: &Cluster, namespace: &str) {
    let question = format!(
        "kubectl get pods -n {namespace} --no-headers -o custom-columns=P:.metadata.name,R:'.status.conditions[?(@.type==\"Ready\")].status',D:.metadata.deletionTimestamp"
    );
    cluster
        .until(
            &format!("all pods of {namespace} Ready"),
            PATIENCE,
            &question,
            |pods| {
                !pods.is_empty()
                    && pods
                        .lines()
                        .all(|pod| pod.contains(" True ") && pod.contains("<none>"))
            },
        )
        .unwrap_or_else(|error| {
            panic!("{error:#}\n{}", diagnosis(cluster));
        });
}

fn diagnosis(cluster: &Cluster) -> String {
    [
        "kubectl get pods -A -o wide",
        "kubectl get events -A --sort-by=.lastTimestamp | tail -n 30",
        "for set in flanneld twill-proxy; do kubectl logs -n kube-system -l app.kubernetes.io/component=$set --all-containers --prefix --tail=15; done",
    ]
    .map(|line| cluster.shell(line).unwrap_or_else(|error| format!("{error:#}")))
    .join("\n")
}

/// The words that `kubectl get` prints of an object.
fn words(cluster: &Cluster, object: &str, path: &str) -> Vec<String> {
    let text = cluster
        .kubectl(&format!("get {object} -o jsonpath='{{{path}}}'"))
        .unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

/// A node's addresses, one of each family.
fn addresses(cluster: &Cluster, node: &str) -> Vec<String> {
    let path = r#".status.addresses[?(@.type=="InternalIP")].address"#;
    words(cluster, &format!("node {node}"), path)
}

/// A Service's addresses, one of each family.
fn cluster_ips(cluster: &Cluster, service: &str) -> Vec<String> {
    words(
        cluster,
        &format!("service {service}"),
        ".spec.clusterIPs[*]",
    )
}

fn look(cluster: &Cluster) -> Vec<String> {
    NODES.map(|node| cluster.on(node, LOOK).unwrap()).to_vec()
}

fn rolled_out(cluster: &Cluster) {
    for set in ["flanneld", "twill-proxy"] {
        cluster
            .kubectl(&format!(
                "rollout status -n kube-system --timeout=180s daemonset/{set}"
            ))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", diagnosis(cluster)));
    }
}

/// SEED's example, in a cluster with a scheduler: by node port on every node, by address and by name from a pod, and
/// a host port that containerd asks for; by each family that the cluster has.
fn reaches(cluster: &Cluster) {
    for node in NODES {
        for address in addresses(cluster, node) {
            for port in [30001, 18080] {
                let get = format!(
                    "exec 3<>/dev/tcp/{address}/{port}; printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' >&3; timeout 5 cat <&3"
                );
                let answer = cluster
                    .shell(&get)
                    .unwrap_or_else(|error| panic!("{error:#}\n{}", diagnosis(cluster)));
                assert!(answer.contains("200 OK"), "{node}:{port}: {answer}");
            }
        }
    }
    let service = "hello-world-service";
    let clients = words(cluster, "pods -l app=client", ".items[*].metadata.name");
    assert_eq!(clients.len(), 3);
    for client in clients {
        let name = format!("{service}.default.svc.cluster.local");
        for target in cluster_ips(cluster, service).into_iter().chain([name]) {
            let target = match target.contains(':') {
                true => format!("[{target}]:4000"),
                false => format!("{target}:4000"),
            };
            cluster
                .kubectl(&format!(
                    "exec {client} -- /agnhost connect --timeout=5s {target}"
                ))
                .unwrap_or_else(|error| {
                    panic!("{client} to {target}: {error:#}\n{}", diagnosis(cluster))
                });
        }
    }
}

/// Takes everything away again as `manifests/uninstall.yaml` says; the nodes are as they were `before`.
fn leaves_nothing(cluster: &Cluster, manifests: &str, before: &[String]) {
    cluster
        .kubectl(&format!("delete -f {KIND}/hello.yaml"))
        .unwrap();
    cluster
        .kubectl("scale -n kube-system deployment/coredns --replicas=0")
        .unwrap();
    cluster
        .kubectl("wait -n kube-system --for=delete pod -l k8s-app=kube-dns --timeout=60s")
        .unwrap();
    cluster
        .kubectl("wait --for=delete pod --all --timeout=60s")
        .unwrap();
    cluster.kubectl(&format!("delete {manifests}")).unwrap();
    let gone = "wait -n kube-system --for=delete pod -l app.kubernetes.io/name=twill --timeout=60s";
    cluster.kubectl(gone).unwrap();
    let uninstall = format!("-f {ROOT}/manifests/uninstall.yaml");
    cluster.kubectl(&format!("apply {uninstall}")).unwrap();
    cluster
        .kubectl("rollout status -n kube-system --timeout=60s daemonset/twill-uninstall")
        .unwrap_or_else(|error| {
            let logs = cluster.kubectl("logs -n kube-system -l app.kubernetes.io/component=uninstall --all-containers --prefix");
            panic!("{error:#}\n{logs:?}\n{}", diagnosis(cluster))
        });
    cluster.kubectl(&format!("delete {uninstall}")).unwrap();
    cluster.kubectl(gone).unwrap();

    for (node, (before, after)) in NODES.iter().zip(before.iter().zip(look(cluster))) {
        let without = |lines: &str, others: &str| -> Vec<String> {
            lines
                .lines()
                .filter(|line| !others.lines().any(|other| other == *line))
                .filter(|line| !STAYS.iter().any(|known| line.contains(known)))
                .map(str::to_owned)
                .collect()
        };
        let (left, gone) = (without(&after, before), without(before, &after));
        assert!(
            left.is_empty() && gone.is_empty(),
            "{node}: left {left:#?}, gone {gone:#?}"
        );
    }
}
