//! twill-proxy in iptables mode on a node where something is amiss, and what only this mode has.

use std::net::{IpAddr, SocketAddr};

use integration::lab::Lab;
use integration::objects::{self, Endpoint};
use integration::traffic::{self, Transport};
use integration::{Node, wait};
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
    // It says of itself that it is old, and does everything else.
    let script = "#!/bin/sh\n\
        [ \"$1\" = --version ] && exec echo iptables-restore v1.4.21\n\
        exec /usr/sbin/iptables-legacy-restore \"$@\"\n";
    let old = "/run/old/iptables-legacy-restore";
    one.machine().write(old, script).unwrap();
    one.machine().run(&format!("chmod +x {old}")).unwrap();
    let path = "PATH=/run/old:/usr/sbin:/usr/bin:/sbin:/bin";
    start_by(one, &["/usr/bin/env", path], &legacy);
    wait_log(
        one,
        "is too old, it says `iptables-restore v1.4.21`: --wait and --random-fully came with 1.6.2; install iptables",
    );
    assert_eq!(saved(one), before);
    wait_answer(one, "10.96.0.80:80");
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
