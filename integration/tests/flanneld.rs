//! flanneld with a real API server: what it publishes, what it holds, what it mends, and whom it leaves out.

use std::collections::BTreeMap;

use integration::testing::{NODES, ask, lab, pod};
use integration::traffic::{Stream, Transport};
use integration::{Daemon, Node, wait};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node as NodeObject, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PREFIX: &str = "flannel.alpha.coreos.com";

/// Tests that change or compare what all share wait for each other.
#[expect(
    clippy::disallowed_types,
    reason = "tests are threads, and have no task to own the cluster"
)]
fn in_turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    // A test that failed has told so itself.
    TURN.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn node(name: &str) -> &'static Node {
    lab().node(name).unwrap()
}

fn object(name: &str) -> NodeObject {
    lab().api().get(None, name).unwrap().expect("a Node")
}

fn annotation(name: &str, key: &str) -> Option<String> {
    let key = format!("{PREFIX}/{key}");
    object(name).metadata.annotations?.get(&key).cloned()
}

/// Changes a Node as a user would, by a merge patch.
fn patch(name: &str, patch: Value) {
    let name = name.to_owned();
    let patched = lab().api().call(async move |client| {
        let api = Api::<NodeObject>::all(client);
        api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
    });
    patched.unwrap();
}

/// A Node object as some flanneld would leave it, of which there is no machine.
fn stranger(name: &str, subnet: &str, public_ip: &str, mac: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {
            format!("{PREFIX}/kube-subnet-manager"): "true",
            format!("{PREFIX}/backend-type"): "vxlan",
            format!("{PREFIX}/backend-data"): format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"),
            format!("{PREFIX}/public-ip"): public_ip,
        }},
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
    })
}

/// What a node has of the pod network: addresses, routes, neighbours, forwarding entries and rules of flanneld's.
fn pod_network(node: &Node) -> String {
    let run = |line: &str| node.machine().run(line).unwrap_or_default();
    [
        "ip -d link show flannel.1",
        "ip -4 addr show flannel.1",
        "ip route show dev flannel.1",
        "ip neigh show dev flannel.1 nud permanent",
        "bridge fdb show dev flannel.1",
        "nft -s list table ip twill-flannel",
    ]
    .map(|line| {
        let text = run(line);
        // A device that was made again has another index, and its entries another order.
        let lines = text
            .lines()
            .map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit()));
        let mut lines: Vec<_> = lines.map(str::to_owned).collect();
        if !line.starts_with("nft") {
            lines.sort();
        }
        lines.join("\n")
    })
    .join("\n")
}

fn wait_until(what: &str, node: &Node, mut holds: impl FnMut() -> bool) {
    wait::until(what, wait::PATIENCE, || Ok(wait::holds(holds(), "not yet")))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", node.log(Daemon::Flanneld)));
}

#[test]
fn what_other_nodes_need_to_know_is_published_and_held() {
    let _turn = in_turn();
    for (name, subnet) in NODES
        .iter()
        .zip(["10-244-1-0-24", "10-244-2-0-24", "10-244-3-0-24"])
    {
        let node = node(name);
        let mac = node
            .machine()
            .run("cat /sys/class/net/flannel.1/address")
            .unwrap();
        let data = format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac.trim());
        assert_eq!(annotation(name, "backend-data"), Some(data));
        assert_eq!(annotation(name, "backend-type").as_deref(), Some("vxlan"));
        assert_eq!(annotation(name, "backend-port").as_deref(), Some("8472"));
        assert_eq!(
            annotation(name, "kube-subnet-manager").as_deref(),
            Some("true")
        );
        assert_eq!(annotation(name, "public-ip"), Some(node.ip().to_string()));
        let object = object(name);
        let conditions = object
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        let network = conditions
            .iter()
            .find(|condition| condition.type_ == "NetworkUnavailable");
        let network = network.expect("the condition NetworkUnavailable");
        assert_eq!(
            (network.status.as_str(), network.reason.as_deref()),
            ("False", Some("FlannelIsUp"))
        );

        let lease: Option<Lease> = lab()
            .api()
            .get(Some("kube-system"), &format!("subnet-{subnet}"))
            .unwrap();
        let lease = lease.expect("the subnet's Lease");
        assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some(*name));
        assert_eq!(
            lease.metadata.owner_references.unwrap()[0].uid,
            object.metadata.uid.unwrap()
        );
        assert!(
            node.machine()
                .run("cat /etc/cni/net.d/10-flannel.conflist")
                .unwrap()
                .contains("twill-cni")
        );
    }
}

#[test]
fn what_others_take_away_at_the_api_comes_back() {
    let _turn = in_turn();
    let name = NODES[0];
    let data = annotation(name, "backend-data").unwrap();
    patch(
        name,
        json!({"metadata": {"annotations": {format!("{PREFIX}/backend-data"): null, format!("{PREFIX}/public-ip"): null}}}),
    );
    wait_until("annotations", node(name), || {
        annotation(name, "public-ip").is_some()
    });
    assert_eq!(
        annotation(name, "backend-data"),
        Some(data),
        "the VTEP keeps its MAC"
    );

    let (namespace, lease) = (Some("kube-system"), "subnet-10-244-1-0-24");
    let uid = |lease: Option<Lease>| lease.and_then(|lease| lease.metadata.uid);
    let before = uid(lab().api().get(namespace, lease).unwrap());
    lab().api().delete::<Lease>(namespace, lease).unwrap();
    wait_until("Lease", node(name), || {
        uid(lab().api().get(namespace, lease).unwrap()).is_some_and(|uid| Some(uid) != before)
    });
}

#[test]
fn whatever_is_broken_in_the_kernel_is_mended_under_a_stream() {
    let _turn = in_turn();
    let (near, far) = (pod("healing", NODES[0]), pod("healing", NODES[1]));
    let victim = node(NODES[0]);
    let peer_mac = node(NODES[1])
        .machine()
        .run("cat /sys/class/net/flannel.1/address")
        .unwrap();
    let peer_mac = peer_mac.trim();
    let mut stream = Stream::start(near.netns(), Transport::Tcp, far.address()).unwrap();
    stream.wait_for(10, wait::PATIENCE).unwrap();
    let whole = pod_network(victim);
    assert!(whole.contains(peer_mac), "{whole}");
    for line in [
        "ip link del flannel.1",
        "ip link set flannel.1 down",
        "ip link set flannel.1 mtu 1300",
        "ip addr del 10.244.1.0/32 dev flannel.1",
        "ip route del 10.244.2.0/24",
        "ip route replace 10.244.2.0/24 via 172.30.0.1",
        "ip neigh del 10.244.2.0 dev flannel.1",
        &format!(
            "bridge fdb del {peer_mac} dev flannel.1 dst {}",
            node(NODES[1]).ip()
        ),
        "nft delete table ip twill-flannel",
        "nft flush table ip twill-flannel",
    ] {
        victim.machine().run(line).unwrap();
        wait::until(line, wait::PATIENCE, || {
            let now = pod_network(victim);
            Ok(wait::holds(
                now == whole,
                &format!("it is\n{now}\nand shall be\n{whole}"),
            ))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", victim.log(Daemon::Flanneld)));
        stream
            .wait_for(10, wait::PATIENCE)
            .unwrap_or_else(|error| panic!("{line}: {error:#}"));
    }
    stream.finish().unwrap();
    lab().delete_pod(near).unwrap();
    lab().delete_pod(far).unwrap();
}

#[test]
fn nodes_come_and_go_and_bad_ones_are_left_out() {
    let _turn = in_turn();
    let route = |victim: &Node, subnet: &str| {
        victim
            .machine()
            .run(&format!("ip route show {subnet}"))
            .unwrap()
    };
    let joined = stranger(
        "z-joins",
        "10.244.40.0/24",
        "172.30.0.140",
        "02:00:00:00:40:40",
    );
    lab().api().apply(&joined).unwrap();
    // Ages are told in seconds, within which all of this happens: a Lease makes its claim the older one for certain.
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": "subnet-10-244-40-0-24",
            "namespace": "kube-system",
            "labels": {"twill.io/subnet": "10-244-40-0-24"},
        },
        "spec": {"holderIdentity": "z-joins", "leaseDurationSeconds": 86400},
    });
    lab().api().apply(&lease).unwrap();
    for victim in lab().nodes() {
        wait_until("a route to the new node", victim, || {
            route(victim, "10.244.40.0/24").contains("via 10.244.40.0 dev flannel.1 onlink")
        });
    }
    // Who is older is told by seconds: what comes next is to be younger.
    let birth = object("z-joins").metadata.creation_timestamp.unwrap().0;
    wait::until("the next second", wait::PATIENCE, || {
        let past = Timestamp::now().as_second() > birth.as_second();
        Ok(wait::holds(past, "it is the same second"))
    })
    .unwrap();
    let victim = node(NODES[0]);
    let whole = pod_network(victim);
    let (address, mac) = ("172.30.0.141", "02:00:00:00:41:41");
    for (subnet, address, mac, reason) in [
        ("10.244.1.0/24", address, mac, "overlaps ours"),
        (
            "10.244.2.0/24",
            address,
            mac,
            "of node k8s-node-1, whose claim is older",
        ),
        ("172.30.0.0/24", address, mac, "is not inside the network"),
        (
            "10.244.41.0/24",
            "172.30.0.11",
            mac,
            "its address 172.30.0.11 is our own",
        ),
        (
            "10.244.41.0/24",
            address,
            "01:00:5e:00:00:01",
            "is not unicast",
        ),
        (
            "10.244.41.0/24",
            address,
            "02:00:00:00:40:40",
            "is that of node z-joins, whose claim is older",
        ),
    ] {
        lab()
            .api()
            .apply(&stranger("a-hostile", subnet, address, mac))
            .unwrap();
        wait_until(reason, victim, || {
            let log = victim.log(Daemon::Flanneld);
            log.lines()
                .any(|line| line.contains("node=a-hostile") && line.contains(reason))
        });
        assert!(
            victim
                .metrics(Daemon::Flanneld)
                .unwrap()
                .contains("flanneld_skipped_peers{reason=")
        );
        assert_eq!(pod_network(victim), whole, "{reason}");
        lab().api().delete::<NodeObject>(None, "a-hostile").unwrap();
    }
    lab().api().delete::<NodeObject>(None, "z-joins").unwrap();
    lab()
        .api()
        .delete::<Lease>(Some("kube-system"), "subnet-10-244-40-0-24")
        .unwrap();
    for victim in lab().nodes() {
        wait_until("no trace of the node that left", victim, || {
            route(victim, "10.244.40.0/24").is_empty()
                && !pod_network(victim).contains("02:00:00:00:40:40")
        });
    }
}

#[test]
fn metrics_tell_of_peers_and_version() {
    let _turn = in_turn();
    let text = node(NODES[2]).metrics(Daemon::Flanneld).unwrap();
    for line in [
        "flanneld_build_info{version=\"",
        "flanneld_peers{family=\"ipv4\"}",
        "flanneld_sync_duration_seconds_count",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn packets_to_other_nodes_are_counted_and_those_that_are_lost_named() {
    let _turn = in_turn();
    let (near, far) = (node(NODES[1]), node(NODES[2]));
    near.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
    near.start_with(Daemon::Flanneld, &["--probe-interval=1"])
        .unwrap();
    // None before it serves.
    let number = |name: &str| -> Option<f64> {
        let text = near.metrics(Daemon::Flanneld).ok()?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value?.parse().ok()
    };
    let until = |what: &str, name: &str, is_so: fn(f64) -> bool| {
        let look = || {
            let number = number(name);
            Ok(wait::holds(
                number.is_some_and(is_so),
                &format!("{name} {number:?}"),
            ))
        };
        wait::until(what, wait::PATIENCE, look).unwrap();
    };
    until("packets to both nodes", "flanneld_probes_total", |sent| {
        sent >= 8.0
    });
    until(
        "answers",
        "flanneld_probe_duration_seconds_count",
        |count| count >= 2.0,
    );
    assert_eq!(number("flanneld_unwell_peers"), Some(0.0));
    for line in [
        "nft add table inet wall",
        "nft add chain inet wall gate { type filter hook input priority -200 ; }",
        "nft add rule inet wall gate udp dport 8472 drop",
    ] {
        far.machine().run(line).unwrap();
    }
    until("a peer that is unwell", "flanneld_unwell_peers", |count| {
        count == 1.0
    });
    assert!(number("flanneld_probes_lost_total") >= Some(2.0));
    far.machine().run("nft delete table inet wall").unwrap();
    until("its recovery", "flanneld_unwell_peers", |count| {
        count == 0.0
    });
    let log = std::fs::read_to_string(near.machine().log(Daemon::Flanneld.name())).unwrap();
    for said in [
        "but not through the tunnel: UDP port 8472 is filtered",
        "packets get there and back again",
    ] {
        assert!(log.contains(said), "no {said:?}");
    }
    near.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
    near.start(Daemon::Flanneld).unwrap();
}

#[test]
fn a_start_that_cannot_work_says_why_in_one_line() {
    let node = node(NODES[2]);
    for (arguments, words) in [
        (
            &["--healthz-port=0", "--metrics-port=8082"][..],
            &["--metrics-port", "127.0.0.1:8082", "use"][..],
        ),
        (
            &["--etcd-endpoints=http://127.0.0.1:2379"],
            &["--etcd-endpoints", "Lease"],
        ),
        (
            &["--net-config-path=/nowhere.json"],
            &["/nowhere.json", "--net-config-path"],
        ),
        (
            &[
                "--kube-api-url=172.30.0.2:6443",
                "--healthz-port=0",
                "--metrics-port=0",
            ],
            &["172.30.0.2:6443", "https://"],
        ),
    ] {
        let line = format!(
            "env NODE_NAME={} /opt/twill/flanneld {}; echo status $?",
            node.name(),
            arguments.join(" ")
        );
        let line = line.replace("/opt/twill", integration::machine::root::BINARIES);
        let output = node
            .machine()
            .command("sh")
            .args(["-c", &format!("{line} 2>&1")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("status 1"), "{text}");
        let complaint = text
            .lines()
            .find(|line| line.contains("ERROR"))
            .unwrap_or_else(|| panic!("no word: {text}"));
        for word in words {
            assert!(complaint.contains(word), "{word} in {complaint}");
        }
    }
}

/// The authority of another cluster.
const OTHER_CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBljCCATugAwIBAgIUDTFSw8pUnXNb/Aorg93h66y7TsYwCgYIKoZIzj0EAwIw
HzEdMBsGA1UEAwwUYW5vdGhlciBjbHVzdGVyJ3MgQ0EwIBcNMjYxMTI4MjIxNTM1
WhgPMjEyNjExMDQyMjE1MzVaMB8xHTAbBgNVBAMMFGFub3RoZXIgY2x1c3Rlcidz
IENBMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE9tBpVZQ3+4I5Qm6NeZr+SuYm
bWh9NP44KFkzm15uDjcEhV0nrPLKIVFWWLA6rrPgYgYTiKeUpB9vwOYmNaiRHKNT
MFEwHQYDVR0OBBYEFKwNS6nwvSJ9cVPiQyaIoHYkTwtDMB8GA1UdIwQYMBaAFKwN
S6nwvSJ9cVPiQyaIoHYkTwtDMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwID
SQAwRgIhAP/NWXaRp4PIiD0YW/uaHEy8XkHKv1TIhoaeJuL0YoBsAiEAyFu7SX2f
052wZK8UyQVfgkLCQif0Dj42O+HZcOxNDaA=
-----END CERTIFICATE-----
";

/// A ServiceAccount that may do nothing, and its token.
fn powerless() -> String {
    let (namespace, name) = ("kube-system", "powerless");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace}});
    lab().api().apply(&account).unwrap();
    let answer = lab().api().call(async move |client| {
        let api = Api::<ServiceAccount>::namespaced(client, namespace);
        let request = TokenRequest::default();
        api.create_token_request(name, &PostParams::default(), &request)
            .await
    });
    answer.unwrap().status.unwrap().token
}

/// Lets the powerless do what flanneld may.
fn empower() {
    for (kind, role) in [
        ("ClusterRoleBinding", "ClusterRole"),
        ("RoleBinding", "Role"),
    ] {
        let mut metadata = json!({"name": "powerless"});
        if kind == "RoleBinding" {
            metadata["namespace"] = "kube-system".into();
        }
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "twill:flanneld"},
            "subjects": [{"kind": "ServiceAccount", "name": "powerless", "namespace": "kube-system"}],
        });
        lab().api().apply(&binding).unwrap();
    }
}

#[test]
fn what_the_api_server_refuses_is_told_apart_and_heals_without_a_restart() {
    let _turn = in_turn();
    let node = node(NODES[2]);
    let whole = pod_network(node);
    let file = "/var/lib/twill/api.conf";
    let admin: Value = serde_json::from_str(
        &node
            .machine()
            .run("cat /etc/kubernetes/admin.conf")
            .unwrap(),
    )
    .unwrap();
    let write = |config: &Value| node.machine().write(file, &config.to_string()).unwrap();
    let start = |further: &[&str], words: &[&str]| {
        node.stop(Daemon::Flanneld, nix::sys::signal::Signal::SIGTERM)
            .unwrap();
        let known = node.log(Daemon::Flanneld).len();
        node.start_with(Daemon::Flanneld, further).unwrap();
        wait_until(&format!("{words:?}"), node, || {
            let log = node.log(Daemon::Flanneld);
            log[known..]
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        });
        assert_eq!(pod_network(node), whole, "{words:?}: the kernel stays");
    };
    let other = format!("--kubeconfig-file={file}");
    let mut config = admin.clone();

    let ca = data_encoding::BASE64.encode(OTHER_CA.as_bytes());
    config["clusters"][0]["cluster"]["certificate-authority-data"] = ca.into();
    write(&config);
    start(&[&other], &["certificate is not trusted"]);
    // The file is put right: it is followed.
    write(&admin);
    node.wait_ready(Daemon::Flanneld).unwrap();

    config = admin.clone();
    config["users"][0]["user"]["token"] = "nobodys".into();
    write(&config);
    start(&[&other], &["does not accept our token", "ServiceAccount"]);

    config["users"][0]["user"]["token"] = powerless().into();
    write(&config);
    start(
        &[&other],
        &["missing permission", "cannot", "nodes", "RBAC"],
    );
    empower();
    node.wait_ready(Daemon::Flanneld).unwrap();

    start(&["--node-name=nobody"], &["no Node nobody", "NODE_NAME"]);
    node.stop(Daemon::Flanneld, nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    node.start(Daemon::Flanneld).unwrap();
    node.wait_ready(Daemon::Flanneld).unwrap();
    assert_eq!(pod_network(node), whole);
}

#[test]
fn pods_keep_talking_while_the_api_server_is_away() {
    let _turn = in_turn();
    let (near, far) = (pod("apiless", NODES[1]), pod("apiless", NODES[2]));
    let victim = node(NODES[1]);
    let answer = ask("a pod", near.netns(), Transport::Tcp, far.address());
    assert_eq!(answer.server, far.name());
    // The daemon restarts without an API server: what it had programmed stays.
    let whole = pod_network(victim);
    victim
        .stop(Daemon::Flanneld, nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    victim
        .start_with(
            Daemon::Flanneld,
            &["--kube-api-url=https://172.30.0.99:6443"],
        )
        .unwrap();
    wait_until("a word about the server", victim, || {
        victim.log(Daemon::Flanneld).contains("cannot be reached")
    });
    assert_eq!(pod_network(victim), whole);
    ask("a pod", near.netns(), Transport::Tcp, far.address());
    victim
        .stop(Daemon::Flanneld, nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    assert_eq!(pod_network(victim), whole, "SIGTERM takes nothing away");
    victim.start(Daemon::Flanneld).unwrap();
    victim.wait_ready(Daemon::Flanneld).unwrap();
    lab().delete_pod(near).unwrap();
    lab().delete_pod(far).unwrap();
}

#[test]
fn it_runs_with_the_rights_and_files_of_its_manifest() {
    let keeper = node(NODES[0]).machine().keeper();
    let pid = keeper.running("k8s-master/flanneld").unwrap();
    let read = |file: &str| {
        let path = keeper.path(format!("/proc/{pid}/{file}"));
        std::fs::read_to_string(path).unwrap()
    };
    let status = read("status");
    // capability.h: CAP_NET_ADMIN is bit 12, CAP_NET_RAW bit 13.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(
            status.contains(&format!("{set}:\t0000000000003000")),
            "{status}"
        );
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let mounts = read("mounts");
    // Of mounts at one place the last is seen.
    let seen: BTreeMap<&str, &str> = mounts
        .lines()
        .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, at, _, options, ..] => (at, options),
            _ => panic!("{line}"),
        })
        .collect();
    let of_the_runtime = |at: &str| at.starts_with("/dev") || at == "/sys" || at == "/proc";
    let writable: Vec<&str> = seen
        .into_iter()
        .filter(|(at, options)| options.starts_with("rw") && !of_the_runtime(at))
        .map(|(at, _)| at)
        .collect();
    let expected = [
        "/etc/cni/net.d",
        "/host/proc/sys/net",
        "/run/flannel",
        "/var/lib/cni",
        "/var/lib/twill",
    ];
    assert_eq!(writable, expected, "{mounts}");
}
