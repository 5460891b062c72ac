//! A cluster that nobody here wrote: kubelet, containerd and systemd of a kind cluster, and `manifests/twill.yaml` as a
//! user applies it.

use std::process::{Child, Stdio};
use std::time::Duration;

use integration::kind::{Cluster, NODES};
use integration::progress::Progress;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const HELLO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kind/hello.yaml");
const PATIENCE: Duration = Duration::from_secs(120);

/// One connection after another to ADDRESS PORT while /tmp/load is there; then how many were answered, how many not,
/// and the longest that one took, in milliseconds. Each must be answered within 5 s.
const LOAD: &str = r#"
answered=0 lost=0 longest=0
while [ -e /tmp/load ]; do
  start=${EPOCHREALTIME/./}
  if exec 3<>"/dev/tcp/$1/$2" && printf "GET /hostname HTTP/1.0\r\n\r\n" >&3 && read -r -t 5 line <&3 && [[ $line == *200* ]]; then
    answered=$((answered + 1))
  else
    lost=$((lost + 1))
  fi
  exec 3>&-
  took=$(((${EPOCHREALTIME/./} - start) / 1000))
  [ $took -le $longest ] || longest=$took
  sleep 0.02
done
echo "$answered $lost $longest"
"#;

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

/// An unbroken row of connections on a node, or in a pod's network on it.
struct Load {
    name: String,
    child: Child,
}

/// Starts connections from `within` of a node (nothing, or [`POD`]).
fn load(cluster: &Cluster, node: &str, within: &str, address: &str, port: u16) -> Load {
    cluster.on(node, "touch /tmp/load").unwrap();
    cluster
        .shell(&format!(
            "docker exec -i {node} sh -c 'cat >/tmp/load.sh' <<'END'{LOAD}END"
        ))
        .unwrap();
    let child = cluster
        .command(&format!(
            "docker exec {node} sh -c '{within} bash /tmp/load.sh {address} {port}'"
        ))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Load {
        name: format!("{address}:{port} from {node} {within}"),
        child,
    }
}

/// Ends the connections; none was lost.
fn all_answered(cluster: &Cluster, loads: Vec<Load>) {
    for node in NODES {
        cluster.on(node, "rm -f /tmp/load").unwrap();
    }
    for load in loads {
        let output = load.child.wait_with_output().unwrap();
        let counted = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers: Vec<u64> = counted
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            numbers.len() == 3 && numbers[0] > 0 && numbers[1] == 0,
            "{}: answered, lost, longest: {counted}{said}",
            load.name
        );
        eprintln!(
            "  {}: {} answered, longest {} ms",
            load.name, numbers[0], numbers[2]
        );
    }
}

/// What enters the network of the client pod on a node.
const POD: &str = r#"nsenter -t $(crictl inspect -o go-template --template "{{.info.pid}}" $(crictl ps -q --name client)) -n"#;

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

fn address(cluster: &Cluster, node: &str) -> String {
    let query = "-o jsonpath='{.status.addresses[0].address}'";
    cluster
        .kubectl(&format!("get node {node} {query}"))
        .unwrap()
}

fn cluster_ip(cluster: &Cluster) -> String {
    cluster
        .kubectl("get service hello-world-service -o jsonpath='{.spec.clusterIP}'")
        .unwrap()
}

fn look(cluster: &Cluster) -> Vec<String> {
    NODES.map(|node| cluster.on(node, LOOK).unwrap()).to_vec()
}

/// The connections that must not break: a node port by another node, a cluster IP by a node and by a pod, a host port.
fn connects(cluster: &Cluster) -> Vec<Load> {
    let ip = cluster_ip(cluster);
    let other = address(cluster, NODES[2]);
    vec![
        load(cluster, NODES[0], "", &other, 30001),
        load(cluster, NODES[1], "", &ip, 4000),
        load(cluster, NODES[2], POD, &ip, 4000),
        load(cluster, NODES[1], POD, &other, 18080),
    ]
}

#[test]
fn twill_yaml_makes_a_kind_cluster_work_and_leaves_it_as_it_was() {
    let image = format!("{ROOT}/target/images/twill.tar");
    assert!(
        std::path::Path::new(&image).is_file(),
        "{image} is missing: make it with `make images`"
    );
    let cluster = Cluster::create(Progress::shown()).unwrap_or_else(|error| panic!("{error:#}"));
    cluster.load(&image).unwrap();
    let before = look(&cluster);

    cluster
        .kubectl(&format!("apply -f {ROOT}/manifests/twill.yaml"))
        .unwrap();
    pods_ready(&cluster, "kube-system");
    nodes_ready(&cluster);
    cluster.kubectl(&format!("apply -f {HELLO}")).unwrap();
    cluster
        .kubectl("rollout status --timeout=120s deployment/hello-world daemonset/client")
        .unwrap();
    pods_ready(&cluster, "default");
    reaches(&cluster);

    let loads = connects(&cluster);
    cluster
        .kubectl("rollout restart -n kube-system daemonset/flanneld daemonset/twill-proxy")
        .unwrap();
    rolled_out(&cluster);
    all_answered(&cluster, loads);

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
    all_answered(&cluster, loads);
    reaches(&cluster);

    uninstall(&cluster);
    for (node, (before, after)) in NODES.iter().zip(before.iter().zip(look(&cluster))) {
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
/// a host port that containerd asks for.
fn reaches(cluster: &Cluster) {
    for node in NODES {
        let address = address(cluster, node);
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
    let ip = cluster_ip(cluster);
    let clients = cluster.kubectl("get pods -l app=client -o name").unwrap();
    assert_eq!(clients.lines().count(), 3);
    for client in clients.lines() {
        for target in [
            format!("{ip}:4000"),
            "hello-world-service.default.svc.cluster.local:4000".to_owned(),
        ] {
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

/// The same binaries under the name of the next version.
fn upgrade_image(cluster: &Cluster) -> &'static str {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("next.tar");
    let made = std::process::Command::new(format!("{ROOT}/manifests/image/build"))
        .arg(format!("{ROOT}/target/x86_64-unknown-linux-gnu/dist"))
        .arg("0.1.0-next")
        .arg(&tar)
        .status()
        .unwrap();
    assert!(made.success());
    cluster.load(tar.to_str().unwrap()).unwrap();
    "twill:0.1.0-next"
}

fn uninstall(cluster: &Cluster) {
    cluster.kubectl(&format!("delete -f {HELLO}")).unwrap();
    cluster
        .kubectl("scale -n kube-system deployment/coredns --replicas=0")
        .unwrap();
    cluster
        .kubectl("wait -n kube-system --for=delete pod -l k8s-app=kube-dns --timeout=60s")
        .unwrap();
    cluster
        .kubectl("wait --for=delete pod --all --timeout=60s")
        .unwrap();
    cluster
        .kubectl(&format!("delete -f {ROOT}/manifests/twill.yaml"))
        .unwrap();
    cluster
        .kubectl(
            "wait -n kube-system --for=delete pod -l app.kubernetes.io/name=twill --timeout=60s",
        )
        .unwrap();
    for node in NODES {
        cluster
            .shell(&format!(
                "sed 's|NODE|{node}|' {ROOT}/manifests/uninstall.yaml | kubectl apply -f -"
            ))
            .unwrap();
    }
    cluster
        .kubectl("wait -n kube-system --for=condition=complete job -l app.kubernetes.io/component=uninstall --timeout=60s")
        .unwrap_or_else(|error| {
            let logs = cluster.kubectl("logs -n kube-system -l app.kubernetes.io/component=uninstall --all-containers --prefix");
            panic!("{error:#}\n{logs:?}\n{}", diagnosis(cluster))
        });
    cluster
        .kubectl("delete job -n kube-system -l app.kubernetes.io/component=uninstall")
        .unwrap();
}
