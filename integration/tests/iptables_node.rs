//! twill-proxy in iptables mode on a node where something is amiss, and what only this mode has.

use std::net::{IpAddr, SocketAddr};

use integration::lab::Lab;
use integration::objects::{self, Endpoint};
use integration::traffic::{self, Transport};
use integration::{Node, http, wait};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::events::v1::Event;
use nix::sys::signal::Signal;
use serde_json::{from_value, json};

const TWILL_PROXY: &str = "twill-proxy";
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30_080;

fn lab() -> Lab {
    let lab = Lab::builder()
        .node("one", &[])
        .node("two", &[])
        .daemons(&[])
        .up()
        .unwrap();
    let two = lab.node("two").unwrap().machine();
    let argv = ["/opt/twill/lab", "serve", "two", &TARGET.to_string()];
    two.spawn("server", &argv, &[]).unwrap();
    write(&lab, "web", "10.96.0.80", NODE_PORT);
    lab
}

/// A Service whose endpoint is the server.
fn write(lab: &Lab, name: &str, address: &str, node_port: u16) {
    let service: Service = from_value(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "clusterIP": address,
            "ports": [{"port": 80, "targetPort": TARGET, "nodePort": node_port}],
        },
    }))
    .unwrap();
    lab.api().apply(&service).unwrap();
    let server = Endpoint {
        address: lab.node("two").unwrap().ip(),
        node: Some("two".to_owned()),
        pod: None,
    };
    let slice = objects::endpoint_slice(&service, &[server]).unwrap();
    lab.api().apply(&slice).unwrap();
}

fn start(node: &Node, flags: &[&str]) {
    start_by(node, &[], flags);
}

/// By a command in front.
fn start_by(node: &Node, command: &[&str], flags: &[&str]) {
    let own = node.proxy_argv(TWILL_PROXY, "iptables");
    let mut argv = command.to_vec();
    argv.extend(own.iter().map(String::as_str));
    argv.extend(flags);
    node.machine().spawn(TWILL_PROXY, &argv, &[]).unwrap();
}

fn stop(node: &Node, process: &str) {
    node.machine().stop(process, Signal::SIGTERM).unwrap();
}

fn wait_answer(node: &Node, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    wait::until("an answer", wait::PATIENCE, || {
        Ok(traffic::ask(
            node.machine().netns(),
            Transport::Tcp,
            address,
        ))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", node.machine().last_words(TWILL_PROXY)));
}

fn wait_log(node: &Node, wanted: &str) {
    let log = node.machine().log(TWILL_PROXY);
    wait::until(wanted, wait::PATIENCE, || {
        let text = std::fs::read_to_string(&log)?;
        Ok(wait::holds(text.contains(wanted), &text))
    })
    .unwrap();
}

/// The old tables, without counters and times.
fn saved(node: &Node) -> Vec<String> {
    let text = node.machine().run("iptables-legacy-save").unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn node_ports_answer_at_127_0_0_1_unless_told_otherwise() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    start(one, &[]);
    wait_answer(one, "10.96.0.80:80");
    wait_answer(one, &format!("127.0.0.1:{NODE_PORT}"));

    let localhost = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), NODE_PORT);
    stop(one, TWILL_PROXY);
    start(one, &["--iptables-localhost-nodeports=false"]);
    wait::until("a refusal", wait::PATIENCE, || {
        let asked = traffic::ask(one.machine().netns(), Transport::Tcp, localhost);
        Ok(wait::holds(asked.is_err(), "it answers"))
    })
    .unwrap();
    wait_answer(one, &format!("{}:{NODE_PORT}", one.ip()));
}

#[test]
fn a_lock_that_is_held_for_long_is_named_and_rules_stay_until_it_is_free() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    start(one, &["--iptables-variant=legacy"]);
    wait_answer(one, "10.96.0.80:80");
    let before = saved(one);
    let holder = ["flock", "--no-fork", "/run/xtables.lock", "sleep", "600"];
    one.machine().spawn("holder", &holder, &[]).unwrap();
    wait::until("a lock that is held", wait::PATIENCE, || {
        let free = one.machine().run("flock -n /run/xtables.lock true");
        Ok(wait::holds(free.is_err(), "it is free"))
    })
    .unwrap();
    write(&lab, "late", "10.96.0.81", NODE_PORT + 1);
    wait_log(one, "fuser /run/xtables.lock");
    assert_eq!(saved(one), before);
    wait_answer(one, "10.96.0.80:80");
    // It is counted as kube-proxy counts it: the first that failed was one of a change.
    let server = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let metrics = http::get(one.machine().netns(), server, "/metrics").unwrap();
    for kind in ["", "partial_"] {
        let name = format!("kubeproxy_sync_proxy_rules_iptables_{kind}restore_failures_total");
        let failed = format!("{name}{{ip_family=\"IPv4\"}} ");
        assert!(metrics.body.contains(&failed), "{}", metrics.body);
    }
    assert!(!metrics.body.contains("nftables"), "{}", metrics.body);
    stop(one, "holder");
    wait_answer(one, "10.96.0.81:80");
}

#[test]
fn without_the_program_rules_stay_and_the_remedy_is_named() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let legacy = ["--iptables-variant=legacy"];
    start(one, &legacy);
    wait_answer(one, "10.96.0.80:80");
    let before = saved(one);
    stop(one, TWILL_PROXY);
    start_by(one, &["/usr/bin/env", "PATH=/nowhere"], &legacy);
    wait_log(
        one,
        "is not there: install iptables 1.8 or newer, or use mode nftables",
    );
    assert_eq!(saved(one), before);
    wait_answer(one, "10.96.0.80:80");
}

#[test]
fn with_a_program_that_is_too_old_rules_stay_and_the_remedy_is_named() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let legacy = ["--iptables-variant=legacy"];
    start(one, &legacy);
    wait_answer(one, "10.96.0.80:80");
    let before = saved(one);
    stop(one, TWILL_PROXY);
    write(&lab, "late", "10.96.0.81", NODE_PORT + 1);
    // One that tells its release, and one from before that could be asked: it complains, and reads its input.
    let dated = ["echo iptables-restore v1.6.1", "iptables-restore v1.6.1"];
    let undated = [
        "echo iptables-restore: unrecognized option \\'--version\\' >&2",
        "iptables-restore: unrecognized option '--version'",
    ];
    for [answer, said] in [dated, undated] {
        // It does everything else.
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then {answer}; exec cat; fi\n\
             exec /usr/sbin/iptables-legacy-restore \"$@\"\n"
        );
        let old = "/run/old/iptables-legacy-restore";
        one.machine().write(old, &script).unwrap();
        one.machine().run(&format!("chmod +x {old}")).unwrap();
        let path = "PATH=/run/old:/usr/sbin:/usr/bin:/sbin:/bin";
        start_by(one, &["/usr/bin/env", path], &legacy);
        let wanted = format!(
            "is too old, it says `{said}`: --wait and --random-fully came with 1.6.2; install iptables"
        );
        wait_log(one, &wanted);
        assert_eq!(saved(one), before);
        wait_answer(one, "10.96.0.80:80");
        stop(one, TWILL_PROXY);
    }
}

#[test]
fn what_listens_at_127_0_0_1_is_for_this_node_alone() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let local = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), TARGET);
    let argv = ["/opt/twill/lab", "serve", "local", &TARGET.to_string()];
    one.machine().spawn("server", &argv, &[]).unwrap();
    wait_answer(one, &local.to_string());
    // A neighbour that sends to 127.0.0.1 by way of the node: with `route_localnet` alone it gets an answer.
    let neighbour = lab.node("two").unwrap().machine();
    let localnet = "sysctl -q -w net.ipv4.conf.all.route_localnet=1";
    let through = format!("ip route add 127.0.0.1 via {}", one.ip());
    for line in [localnet, "ip address del 127.0.0.1/8 dev lo", &through] {
        neighbour.run(line).unwrap();
    }
    one.machine().run(localnet).unwrap();
    let ask = || traffic::ask(neighbour.netns(), Transport::Tcp, local);
    let asked = wait::until("an answer to the neighbour", wait::PATIENCE, || Ok(ask())).unwrap();
    assert_eq!(asked.server, "local");
    start(one, &[]);
    wait_answer(one, &format!("127.0.0.1:{NODE_PORT}"));
    assert!(ask().is_err(), "the neighbour still gets an answer");
    wait_answer(one, &local.to_string());
}

#[test]
fn addresses_of_node_ports_follow_the_configuration_file() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    one.machine()
        .run("ip address add 192.0.2.1/32 dev lo")
        .unwrap();
    let config = |addresses: &str| {
        let yaml = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
             kind: KubeProxyConfiguration\n\
             mode: iptables\n\
             nodePortAddresses: [{addresses}]\n"
        );
        one.machine().write("/etc/twill/proxy.yaml", &yaml).unwrap();
    };
    let answers = |address: &str, wanted: bool| {
        let at: SocketAddr = format!("{address}:{NODE_PORT}").parse().unwrap();
        wait::until("node ports where they shall be", wait::PATIENCE, || {
            let asked = traffic::ask(one.machine().netns(), Transport::Tcp, at);
            Ok(wait::holds(
                asked.is_ok() == wanted,
                &format!("{at}: {asked:?}"),
            ))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", one.machine().last_words(TWILL_PROXY)));
    };
    config("");
    start(one, &["--config=/etc/twill/proxy.yaml"]);
    let own = one.ip().to_string();
    for address in [&*own, "192.0.2.1", "127.0.0.1"] {
        answers(address, true);
    }
    config("192.0.2.0/24");
    answers(&own, false);
    answers("192.0.2.1", true);
    answers("127.0.0.1", false);
    config("127.0.0.0/8");
    answers("127.0.0.1", true);
    answers("192.0.2.1", false);
    // An address that comes later.
    config("203.0.113.0/24");
    answers("127.0.0.1", false);
    one.machine()
        .run("ip address add 203.0.113.1/32 dev lo")
        .unwrap();
    answers("203.0.113.1", true);
    config("");
    answers(&own, true);
}

#[test]
fn another_variant_leaves_nothing_in_the_tables_of_the_one_before() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let chains = |variant: &str| {
        let save = |program| {
            one.machine()
                .run(&format!("{program}-{variant}-save"))
                .unwrap()
        };
        let texts = ["iptables", "ip6tables"].map(save);
        texts.concat().matches("KUBE-").count()
    };
    let mut other = "nft";
    for variant in ["legacy", "nft", "legacy"] {
        start(one, &[&format!("--iptables-variant={variant}")]);
        wait_log(one, "rules are in line with all Services");
        wait::until("the tables of one variant", wait::PATIENCE, || {
            let is_alone = chains(variant) > 0 && chains(other) == 0;
            Ok(wait::holds(is_alone, "both have chains"))
        })
        .unwrap();
        wait_answer(one, "10.96.0.80:80");
        stop(one, TWILL_PROXY);
        other = variant;
    }
}

#[test]
fn in_the_old_tables_what_others_flush_comes_back_with_the_next_period() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let flags = ["--iptables-variant=legacy", "--iptables-sync-period=1s"];
    start(one, &flags);
    wait_answer(one, "10.96.0.80:80");
    let before = saved(one);
    for line in [
        "iptables-legacy -t nat -F",
        "iptables-legacy -t nat -F KUBE-SERVICES",
        "iptables-legacy -D FORWARD 1",
    ] {
        one.machine().run(line).unwrap();
        wait::until(line, wait::PATIENCE, || {
            Ok(wait::holds(saved(one) == before, "it is not as it was"))
        })
        .unwrap();
    }
    wait_answer(one, "10.96.0.80:80");
}

#[test]
fn a_variant_that_is_not_the_kubelets_is_named_in_the_log_and_on_the_node() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let kubelet = "iptables-nft -t mangle -N KUBE-KUBELET-CANARY";
    one.machine().run(kubelet).unwrap();
    start(one, &["--iptables-variant=legacy"]);
    wait_log(one, "the kubelet and others use the other iptables");
    wait::until("an Event", wait::PATIENCE, || {
        let events = lab.api().list::<Event>(Some("default"))?;
        let told = events.iter().any(|event| {
            event.reason.as_deref() == Some("IptablesVariantMismatch")
                && (event.note.as_deref()).is_some_and(|note| note.ends_with("or set it to nft"))
        });
        Ok(wait::holds(told, &format!("{events:?}")))
    })
    .unwrap();
    wait_answer(one, "10.96.0.80:80");
}

#[test]
fn chains_in_the_old_tables_are_named_where_no_program_can_remove_them() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    start(one, &["--iptables-variant=legacy"]);
    wait_answer(one, "10.96.0.80:80");
    stop(one, TWILL_PROXY);
    let before = saved(one);
    let argv = [
        "/usr/bin/env",
        "PATH=/nowhere",
        "/opt/twill/twill-proxy",
        "--cleanup",
    ];
    one.machine().spawn(TWILL_PROXY, &argv, &[]).unwrap();
    wait_log(
        one,
        "in the old tables of iptables, and still in force: install iptables there",
    );
    assert_eq!(saved(one), before);
    one.machine()
        .run("/opt/twill/twill-proxy --cleanup")
        .unwrap();
    let left = saved(one);
    assert!(!left.iter().any(|line| line.contains("KUBE-")), "{left:#?}");
}
