//! From a kube-proxy that runs to twill-proxy and back, in each mode of both: no connect fails, what is established
//! lives, and of who was there before nothing is left.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::scope;

use integration::Node;
use integration::lab::Lab;
use integration::machine::root::BINARIES;
use integration::objects::{self, Endpoint};
use integration::traffic::{self, Stream, Transport};
use integration::upstream::Program;
use integration::wait;
use k8s_openapi::api::core::v1::Service;
use nix::sys::signal::Signal;
use serde_json::{from_value, json};

const KUBE_PROXY: &str = "kube-proxy";
const TWILL_PROXY: &str = "twill-proxy";
const MODES: [&str; 2] = ["iptables", "nftables"];
/// Where the server listens.
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30_080;
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 80];

/// Nodes `one`, with nothing on it yet, and `two`, with the server of the Service `default/web`.
fn lab() -> Lab {
    let lab = Lab::builder()
        .program(Program::KubeProxy)
        .node("one", &[])
        .node("two", &[])
        .daemons(&[])
        .up()
        .unwrap();
    let two = lab.node("two").unwrap();
    let argv = ["/opt/twill/lab", "serve", "two", &TARGET.to_string()];
    two.machine().spawn("server", &argv, &[]).unwrap();
    let service: Service = from_value(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "clusterIP": CLUSTER_IP.map(|byte| byte.to_string()).join("."),
            "ports": [{"port": 80, "targetPort": TARGET, "nodePort": NODE_PORT}],
        },
    }))
    .unwrap();
    lab.api().apply(&service).unwrap();
    let server = Endpoint {
        address: two.ip(),
        node: Some("two".to_owned()),
        pod: None,
    };
    let slice = objects::endpoint_slice(&service, &[server]).unwrap();
    lab.api().apply(&slice).unwrap();
    lab
}

fn start(node: &Node, program: &str, mode: &str) {
    let argv = node.proxy_argv(program, mode);
    let argv: Vec<_> = argv.iter().map(String::as_str).collect();
    node.machine().spawn(program, &argv, &[]).unwrap();
}

fn stop(node: &Node, program: &str) {
    node.machine().stop(program, Signal::SIGTERM).unwrap();
}

/// Whose rules there are, and of which mode: tables in nf_tables, chains in iptables by how many rules lead to them.
fn present(node: &Node) -> (Vec<String>, usize) {
    let run = |line: &str| node.machine().run(line).unwrap();
    let tables = run("nft list tables");
    let mut tables: Vec<_> = tables
        .lines()
        .filter(|line| line.ends_with("-proxy"))
        .map(str::to_owned)
        .collect();
    tables.sort();
    let chains = ["iptables-nft-save", "ip6tables-nft-save"]
        .map(|program| run(program).matches("KUBE-").count());
    (tables, chains.iter().sum())
}

/// Waits until a node holds what this program in this mode makes, and nothing of another.
fn wait_alone(node: &Node, program: &str, mode: &str) {
    let wanted: Vec<String> = match mode {
        "nftables" => ["ip", "ip6"]
            .map(|family| format!("table {family} {program}"))
            .to_vec(),
        _ => Vec::new(),
    };
    let alone = wait::until("rules of one proxy alone", wait::PATIENCE, || {
        let (tables, chains) = present(node);
        let is_alone = tables == wanted && (chains > 0) == (mode == "iptables");
        Ok(wait::holds(
            is_alone,
            &format!("{tables:?}, KUBE- {chains} times"),
        ))
    });
    if let Err(error) = alone {
        let words = node.machine().last_words(program);
        panic!("{program} {mode}: {error:#}\n{words}");
    }
}

/// Runs `switch` while connects go to the cluster IP from the node, and to its node port from outside.
/// None of them may fail, and nothing of what is established may be lost.
fn under_connects(lab: &Lab, what: &str, switch: impl FnOnce()) {
    let one = lab.node("one").unwrap();
    let targets = [
        (one.machine(), SocketAddr::from((CLUSTER_IP, 80))),
        (lab.outside(), SocketAddr::new(one.ip(), NODE_PORT)),
    ];
    let mut streams = targets.map(|(from, target)| {
        wait::until("an answer", wait::PATIENCE, || {
            Ok(traffic::ask(from.netns(), Transport::Tcp, target))
        })
        .unwrap();
        Stream::start(from.netns(), Transport::Tcp, target).unwrap()
    });
    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed: Vec<String> = scope(|threads| {
        let askers = targets.map(|(from, target)| {
            let (is_over, asked) = (&is_over, &asked);
            threads.spawn(move || {
                let mut failed = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    if let Err(error) = traffic::ask(from.netns(), Transport::Tcp, target) {
                        failed.push(format!("{target}: {error:#}"));
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                failed
            })
        });
        let switched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            switch();
            // What comes after the switch counts as well.
            let before = asked.load(Ordering::Relaxed);
            wait::until("more connects", wait::PATIENCE, || {
                let more = asked.load(Ordering::Relaxed) >= before + 50;
                Ok(wait::holds(more, "too few"))
            })
            .unwrap();
        }));
        is_over.store(true, Ordering::Relaxed);
        let failed = askers.into_iter().flat_map(|asker| asker.join().unwrap());
        let failed = failed.collect();
        if let Err(panic) = switched {
            std::panic::resume_unwind(panic);
        }
        failed
    });
    let asked = asked.into_inner();
    assert!(failed.is_empty(), "{what}: of {asked}: {failed:#?}");
    for stream in &mut streams {
        stream.wait_for(20, wait::PATIENCE).unwrap();
    }
    for stream in streams {
        let report = stream.finish().unwrap();
        assert_eq!(report.lost, [0; 0], "{what}: of {}", report.sent);
    }
}

/// A kube-proxy that runs is replaced by twill-proxy, and comes back.
fn there_and_back(theirs: &str, ours: &str) {
    let lab = lab();
    let one = lab.node("one").unwrap();
    one.machine()
        .run("sysctl -q -w net.ipv4.ip_forward=1")
        .unwrap();
    start(one, KUBE_PROXY, theirs);
    wait_alone(one, KUBE_PROXY, theirs);
    under_connects(
        &lab,
        &format!("kube-proxy {theirs} to twill-proxy {ours}"),
        || {
            stop(one, KUBE_PROXY);
            start(one, TWILL_PROXY, ours);
            wait_alone(one, TWILL_PROXY, ours);
        },
    );
    let back = || {
        stop(one, TWILL_PROXY);
        start(one, KUBE_PROXY, theirs);
        let is_serving = wait::until("kube-proxy's rules", wait::PATIENCE, || {
            let ready = node_is_served(one);
            Ok(wait::holds(ready, "not yet"))
        });
        is_serving.unwrap();
        // What is ours of the mode that we had goes by hand: kube-proxy does not know of it.
        if (ours, theirs) != ("iptables", "iptables") {
            let cleanup = format!("{BINARIES}/{TWILL_PROXY} --cleanup --proxy-mode={ours}");
            one.machine().run(&cleanup).unwrap();
        }
        wait_alone(one, KUBE_PROXY, theirs);
    };
    // A kube-proxy in mode nftables removes chains of iptables before its own rules are in.
    if (ours, theirs) == ("iptables", "nftables") {
        back();
    } else {
        let what = format!("twill-proxy {ours} to kube-proxy {theirs}");
        under_connects(&lab, &what, back);
    }
}

/// Whether kube-proxy has made its rules, as it says itself. It makes those of each family apart.
fn node_is_served(node: &Node) -> bool {
    let server = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let metrics = integration::http::get(node.machine().netns(), server, "/metrics");
    metrics.is_ok_and(|answer| {
        let lines = answer.body.lines();
        let mut counts = lines.filter_map(|line| {
            let made = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}";
            line.strip_prefix(made)?.trim().parse::<f64>().ok()
        });
        counts.any(|at| at > 0.0)
    })
}

#[test]
fn from_kube_proxy_in_mode_iptables_and_back() {
    for ours in MODES {
        there_and_back("iptables", ours);
    }
}

#[test]
fn from_kube_proxy_in_mode_nftables_and_back() {
    for ours in MODES {
        there_and_back("nftables", ours);
    }
}
