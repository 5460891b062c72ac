//! `twill` on the nodes of a real lab, with real daemons: what it says is what packets do.

use std::process::Output;

use integration::machine::Machine;
use integration::testing::{NODES, ask, lab, pod, service};
use integration::traffic::{self, Transport};
use integration::{Daemon, inspect, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

const NODE_PORT: u16 = 30_701;

fn twill(machine: &Machine, line: &str) -> Output {
    let mut command = machine.command("/opt/twill/twill");
    command.args(line.split_whitespace());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

/// One after another: the second breaks what the first looks at.
#[test]
fn what_twill_says_of_a_node_is_so() {
    the_way_of_a_request_to_a_node_port_is_one_command();
    what_a_stopped_daemon_does_not_mend_is_named_and_gone_when_it_runs_again();
}

fn the_way_of_a_request_to_a_node_port_is_one_command() {
    let server = pod("told", NODES[2]);
    let service = service("told", NODE_PORT, &[&server]);
    let (ip, name) = (server.ip(), server.name());
    let object = "[Service default/told:tcp]";
    for node in lab().nodes() {
        let at = node.ip();
        let output = twill(node.machine(), "trace outside svc/default/told:tcp");
        let told = text(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        let mut lines = vec![
            format!("outside → Service default/told:tcp, tcp {at}:{NODE_PORT}"),
            format!(
                "rules       ip twill-proxy nodeports: tcp . {NODE_PORT} : goto np-1   {object}"
            ),
            format!("nodeport-endpoints: tcp . {NODE_PORT} . 0 : {ip} . 8080   {object}"),
            format!(
                "masquerade  198.51.100.1 becomes this node's address (ip twill-proxy masq-always)   {object}"
            ),
        ];
        if node.name() == NODES[2] {
            let veth = inspect::host_veth(node.machine(), server.netns()).unwrap();
            lines.extend([
                format!("endpoint    {ip}:8080   [pod default/{name}"),
                "route       10.244.3.0/24 dev cni0 proto kernel scope link src 10.244.3.1"
                    .to_owned(),
                format!("port        {veth} of cni0   [pod default/{name}]"),
                format!("pod         eth0 tcp {ip}:8080   [pod default/{name}]"),
            ]);
            let whose = twill(node.machine(), &format!("pods {veth} -o json"));
            let whose: Value = serde_json::from_slice(&whose.stdout).unwrap();
            assert_eq!(whose[0]["pod"], format!("default/{name}"), "{whose}");
        } else {
            let peer = lab().node(NODES[2]).unwrap().ip();
            // The API server, where there is a kubeconfig, knows whose it is; the kernel alone does not.
            let whose = match node.machine().path("/etc/kubernetes/admin.conf").exists() {
                true => format!(
                    "pod default/{name}, node {}, EndpointSlice default/told-ipv4",
                    NODES[2]
                ),
                false => "an endpoint of Service default/told:tcp".to_owned(),
            };
            lines.extend([
                format!("endpoint    {ip}:8080   [{whose}]"),
                "route       10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink".to_owned(),
                "neighbour   10.244.3.0 lladdr ".to_owned(),
                format!(" dst {peer} dev flannel.1"),
                format!("tunnel      UDP 8472 to {peer}: 172.30.0.0/24 dev eth0"),
            ]);
        }
        for line in lines {
            assert!(
                told.contains(&line),
                "{}: no {line:?} in\n{told}",
                node.name()
            );
        }
        let door = (at, NODE_PORT).into();
        ask("outside", lab().outside().netns(), Transport::Tcp, door);
    }
    let near = twill(lab().nodes()[0].machine(), "trace outside svc/default/tlod");
    assert_eq!(near.status.code(), Some(2));
    assert!(
        text(&near).contains("is it default/told?"),
        "{}",
        text(&near)
    );
    lab().unexpose(&service).unwrap();
    lab().delete_pod(server).unwrap();
}

fn what_a_stopped_daemon_does_not_mend_is_named_and_gone_when_it_runs_again() {
    let server = pod("broken", NODES[2]);
    let node = lab().node(NODES[1]).unwrap();
    let address = server.address();
    let line = format!("trace node {address}");
    let arrives = || traffic::ask(node.machine().netns(), Transport::Tcp, address).is_ok();
    wait::until("an answer", wait::PATIENCE, || {
        Ok(wait::holds(arrives(), "none"))
    })
    .unwrap();
    assert_eq!(twill(node.machine(), &line).status.code(), Some(0));
    let examined = twill(node.machine(), "doctor");
    assert_eq!(examined.status.code(), Some(0), "{}", text(&examined));

    node.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
    node.machine().run("ip route del 10.244.3.0/24").unwrap();
    let output = twill(node.machine(), &line);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("✗ the route to 10.244.3.0/24 is missing"),
        "{told}"
    );
    assert!(told.contains("remedy: flanneld mends this"), "{told}");
    assert!(!arrives());

    node.start(Daemon::Flanneld).unwrap();
    wait::until("the route", wait::PATIENCE, || {
        let output = twill(node.machine(), &line);
        Ok(wait::holds(output.status.success(), &text(&output)))
    })
    .unwrap();
    assert!(arrives());
    lab().delete_pod(server).unwrap();
}
