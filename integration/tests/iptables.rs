//! Rule for rule: twill-proxy in iptables mode beside the real kube-proxy in its own, on one API server and as
//! one and the same node.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use integration::http;
use integration::lab::Lab;
use integration::machine::root::ASSETS;
use integration::machine::{ADMIN_CONF, Machine};
use integration::upstream::Program;
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const KUBE_PROXY: &str = "kube-proxy";
const TWILL_PROXY: &str = "twill-proxy";

/// What both are told.
const FLAGS: [&str; 4] = [
    "--proxy-mode=iptables",
    "--hostname-override=one",
    "--cluster-cidr=10.244.0.0/16,fd00:244::/48",
    "--conntrack-max-per-core=0",
];

/// More for kube-proxy: these switches are the machine's, not the node's.
const LEAVE_ALONE: [&str; 3] = [
    "--conntrack-min=0",
    "--conntrack-tcp-timeout-established=0",
    "--conntrack-tcp-timeout-close-wait=0",
];

/// So many Services, each of its own kind.
const SERVICES: usize = 40;

/// The `n`th of them: each of its traits changes at another pace, so that they meet in many ways.
fn service(n: usize) -> Value {
    let pick = |pace: usize, of: &[&'static str]| of[n / pace % of.len()];
    let kind = pick(
        1,
        &["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"],
    );
    let protocol = pick(3, &["TCP", "UDP", "SCTP"]);
    let families = [vec!["IPv4"], vec!["IPv6"], vec!["IPv4", "IPv6"]][n / 2 % 3].clone();
    let mut spec = json!({
        "type": kind,
        "ipFamilyPolicy": if families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
        "ipFamilies": families,
        "internalTrafficPolicy": pick(5, &["Cluster", "Cluster", "Local"]),
        "sessionAffinity": pick(7, &["None", "ClientIP"]),
        "ports": [{"port": 80, "targetPort": 8080, "protocol": protocol}],
    });
    if n.is_multiple_of(4) {
        spec["ports"] = json!([
            {"name": "http", "port": 80, "targetPort": 8080, "protocol": protocol},
            {"name": "admin", "port": 81, "targetPort": 8081, "protocol": "TCP"},
        ]);
    }
    if kind != "ClusterIP" {
        spec["externalTrafficPolicy"] = pick(2, &["Cluster", "Local"]).into();
    }
    if n % 5 == 1 {
        spec["externalIPs"] = json!([format!("192.0.2.{n}"), format!("2001:db8::{n:x}")]);
    }
    if kind == "LoadBalancer" && n.is_multiple_of(3) {
        spec["loadBalancerSourceRanges"] =
            json!(["0.0.0.0/0", "203.0.113.0/24", "2001:db8:1::/64"][n % 2..].to_vec());
    }
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": format!("service-{n}"), "namespace": "default"},
        "spec": spec,
    });
    if kind == "LoadBalancer" {
        let ingress = [format!("198.51.100.{n}"), format!("2001:db8:2::{n:x}")];
        service["status"] = json!({"loadBalancer": {"ingress": [
            {"ip": ingress[0]}, {"ip": ingress[1]},
        ]}});
    }
    service
}

/// Its endpoints of a family: none, here, elsewhere, or both.
fn slice(n: usize, family: &str) -> Value {
    let address = |host: usize| match family {
        "IPv4" => format!("10.244.{n}.{host}"),
        _ => format!("fd00:244:0:{n:x}::{host:x}"),
    };
    let endpoint = |host: usize, node: &str| json!({"addresses": [address(host)], "nodeName": node, "conditions": {"ready": true}});
    let (here, there) = (|host| endpoint(host, "one"), |host| endpoint(host, "two"));
    let endpoints = match n % 6 {
        0 => vec![],
        1 => vec![there(9)],
        2 => vec![here(10)],
        _ => vec![here(9), here(10), there(11), there(100)],
    };
    let (http, admin) = match n.is_multiple_of(4) {
        true => ("http", "admin"),
        false => ("", "other"),
    };
    let protocol = ["TCP", "UDP", "SCTP"][n / 3 % 3];
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("service-{n}-{}", family.to_lowercase()),
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": format!("service-{n}")},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [
            {"name": http, "port": 8080, "protocol": protocol},
            {"name": admin, "port": 8081, "protocol": "TCP"},
        ],
    })
}

/// What iptables holds, chain by chain, without counters. In chains that all Services share kube-proxy's order is
/// that of a hash table, but for what stands last.
fn rules(machine: &Machine) -> BTreeMap<String, Vec<String>> {
    const SHARED: [&str; 6] = [
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-PROXY-FIREWALL",
        "KUBE-FIREWALL",
        "KUBE-FW-",
    ];
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        let mut table = String::new();
        for line in machine.run(program).unwrap().lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = format!("{program} {name}");
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap();
                chains.entry(format!("{table} {name}")).or_default();
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let name = rule.split(' ').next().unwrap();
                chains
                    .entry(format!("{table} {name}"))
                    .or_default()
                    .push(line.to_owned());
            }
        }
    }
    for (chain, rules) in &mut chains {
        if SHARED.iter().any(|shared| chain.contains(shared)) && !rules.is_empty() {
            let last = rules.len() - 1;
            let is_last =
                rules[last].contains("must be the last rule") || chain.contains("KUBE-FW-");
            let end = if is_last { last } else { rules.len() };
            rules[..end].sort();
        }
    }
    chains
}

/// How many rules there are in each table, as a proxy tells, and what rules have counted.
fn told(machine: &Machine) -> Vec<String> {
    let server = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let answer = http::get(machine.netns(), server, "/metrics");
    let metrics = answer.map(|answer| answer.body).unwrap_or_default();
    let mut told: Vec<_> = (metrics.lines())
        .filter(|line| {
            line.starts_with("kubeproxy_sync_proxy_rules_iptables_total{")
                || line.starts_with("kubeproxy_iptables_")
        })
        .map(str::to_owned)
        .collect();
    told.sort();
    told
}

/// Lines that only one of the two has.
fn difference(ours: &Machine, theirs: &Machine) -> String {
    let mut text = String::new();
    let (we, they) = (told(ours), told(theirs));
    if we.len() != 6 || we != they {
        text.push_str(&format!("metrics\n  ours   {we:#?}\n  theirs {they:#?}\n"));
    }
    let (ours, theirs) = (rules(ours), rules(theirs));
    for chain in ours
        .keys()
        .chain(theirs.keys().filter(|chain| !ours.contains_key(*chain)))
    {
        let (a, b) = (ours.get(chain), theirs.get(chain));
        if a != b {
            text.push_str(&format!("{chain}\n  ours   {a:#?}\n  theirs {b:#?}\n"));
        }
    }
    text
}

/// A Service of more endpoints than rules are commented for, as so many slices.
fn large() -> (Value, Vec<Value>) {
    const SLICES: usize = 11;
    const OF_EACH: usize = 100;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "large", "namespace": "default"},
        "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
    });
    let slice = |n: usize| {
        let endpoint = |host| json!({"addresses": [format!("10.244.{}.{host}", 100 + n)], "conditions": {"ready": true}});
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("large-{n}"),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "large"},
            },
            "addressType": "IPv4",
            "endpoints": (1..=OF_EACH).map(endpoint).collect::<Vec<_>>(),
            "ports": [{"port": 8080, "protocol": "TCP"}],
        })
    };
    (service, (0..SLICES).map(slice).collect())
}

fn start(lab: &Lab) -> (&Machine, &Machine) {
    let ours = lab.node("one").unwrap().machine();
    let theirs = lab.node("two").unwrap().machine();
    start_theirs(theirs);
    let kubeconfig = format!("--kubeconfig={ADMIN_CONF}");
    let mut argv = vec!["/opt/twill/twill-proxy", &kubeconfig];
    argv.extend(FLAGS);
    argv.push("--conntrack-min=0");
    ours.spawn(TWILL_PROXY, &argv, &[]).unwrap();
    (ours, theirs)
}

fn start_theirs(theirs: &Machine) {
    let kubeconfig = format!("--kubeconfig={ADMIN_CONF}");
    let program = format!("{ASSETS}/{KUBE_PROXY}");
    let mut argv = vec![program.as_str(), &kubeconfig];
    argv.extend(FLAGS.iter().chain(&LEAVE_ALONE));
    theirs.spawn(KUBE_PROXY, &argv, &[]).unwrap();
}

#[track_caller]
fn wait_equal(ours: &Machine, theirs: &Machine) {
    let equal = wait::until("equal rules", wait::PATIENCE, || {
        let difference = difference(ours, theirs);
        let is_there = rules(ours).len() > 2 * SERVICES && difference.is_empty();
        Ok(wait::holds(is_there, &difference))
    });
    if let Err(error) = equal {
        panic!(
            "{error:#}\n{}\n{}",
            ours.last_words(TWILL_PROXY),
            theirs.last_words(KUBE_PROXY)
        );
    }
}

#[test]
fn the_rules_are_kube_proxys() {
    let lab = Lab::builder()
        .program(Program::KubeProxy)
        .node("one", &[])
        .node("two", &[])
        .daemons(&[])
        .up()
        .unwrap();
    for n in 0..SERVICES {
        lab.api().apply(&service(n)).unwrap();
        for family in ["IPv4", "IPv6"] {
            lab.api().apply(&slice(n, family)).unwrap();
        }
    }
    let (ours, theirs) = start(&lab);
    wait_equal(ours, theirs);

    // And after changes, which neither writes in full.
    for n in 0..SERVICES {
        lab.api().apply(&slice((n + 7) % SERVICES, "IPv4")).unwrap();
        if n.is_multiple_of(9) {
            let mut gone = slice(n, "IPv6");
            gone["endpoints"] = json!([]);
            lab.api().apply(&gone).unwrap();
        }
    }
    wait_equal(ours, theirs);

    // What somebody flushes or deletes comes back by itself: the kernel tells of it.
    for line in [
        "iptables-nft -t nat -F",
        "ip6tables-nft -t filter -F KUBE-FORWARD",
        "iptables-nft -D FORWARD 1",
    ] {
        ours.run(line).unwrap();
        wait_equal(ours, theirs);
    }

    // A large cluster's rules go without comments: kube-proxy's where it writes them anew.
    let (service, slices) = large();
    for object in slices.iter().chain([&service]) {
        lab.api().apply(object).unwrap();
    }
    theirs.stop(KUBE_PROXY, Signal::SIGTERM).unwrap();
    start_theirs(theirs);
    wait_equal(ours, theirs);
    let rules = rules(ours);
    let commented = |rule: &&String| rule.contains("--comment");
    let of_endpoints = rules
        .iter()
        .filter(|(chain, _)| chain.starts_with("iptables-nft-save nat KUBE-SEP-"));
    assert_eq!(
        of_endpoints
            .flat_map(|(_, rules)| rules)
            .filter(commented)
            .count(),
        0
    );
}
