//! `twill` on the nodes of a real lab, with real daemons: what it says is what packets do.

use std::process::Output;

use integration::machine::Machine;
use integration::testing::{NODES, ask, lab, pod, service};
use integration::traffic::{self, Transport};
use integration::{Daemon, Node, inspect, wait};
use k8s_openapi::api::core::v1::Node as CoreNode;
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
    the_other_nodes_part_is_told_by_its_daemon();
    a_way_that_begins_at_another_node_is_followed_from_here();
    every_pair_of_nodes_is_probed_and_every_node_examined_from_one();
    the_status_of_a_node_is_what_its_daemons_say();
    what_a_stopped_daemon_does_not_mend_is_named_and_gone_when_it_runs_again();
}

fn the_way_of_a_request_to_a_node_port_is_one_command() {
    let server = pod("told", NODES[2]);
    let service = service("told", NODE_PORT, &[&server]);
    let (ip, name) = (server.ip(), server.name());
    let object = "[Service default/told:tcp]";
    let endpoint = format!(
        "[pod default/{name}, node {}, EndpointSlice default/told-ipv4]",
        NODES[2]
    );
    for node in lab().nodes() {
        let at = node.ip();
        let output = twill(node.machine(), "trace outside svc/default/told:tcp");
        let told = text(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        let mut lines = vec![
            format!("outside → Service default/told:tcp, tcp {at}:{NODE_PORT}"),
            format!(
                "service     NodePort, tcp 80, node port {NODE_PORT}, 1 of 1 endpoints ready   [Service default/told]"
            ),
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
                format!("endpoint    {ip}:8080   {endpoint}"),
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
            lines.extend([
                format!("endpoint    {ip}:8080   {endpoint}"),
                format!(
                    "route       10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink   \
                     [Lease subnet-10-244-3-0-24 of node {}]",
                    NODES[2]
                ),
                "neighbour   10.244.3.0 lladdr ".to_owned(),
                format!(" dst {peer} dev flannel.1"),
                format!("node {} does not answer, so its part is not seen: no pod of flanneld runs there", NODES[2]),
                format!("tunnel      UDP 8472 to {peer}: 172.30.0.0/24 dev eth0"),
            ]);
        }
        assert!(
            !told.contains('≠') && !told.contains("\nnot seen: "),
            "{told}"
        );
        let alone = text(&twill(
            node.machine(),
            "trace outside svc/default/told:tcp --offline",
        ));
        assert!(
            alone.contains(&format!("{ip} . 8080   {object}")),
            "{alone}"
        );
        assert!(!alone.contains("EndpointSlice"), "{alone}");
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

/// From node to node, the far one asked by a command, as `ssh NODE curl URL` would.
fn the_other_nodes_part_is_told_by_its_daemon() {
    let server = pod("asked", NODES[2]);
    let (near, far) = (&lab().nodes()[0], lab().node(NODES[2]).unwrap());
    let veth = inspect::host_veth(far.machine(), server.netns()).unwrap();
    let netns = netns_of_flanneld(far);
    let reach = format!("nsenter --net={netns} curl -sf {{url}}");
    let trace = || {
        let mut command = near.machine().command("/opt/twill/twill");
        command.args([
            "trace",
            "node",
            &server.address().to_string(),
            "--reach",
            &reach,
        ]);
        command.output().unwrap()
    };
    let output = trace();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    for line in [
        format!("there       at node {}", NODES[2]),
        "comes in by flannel.1".to_owned(),
        "route       10.244.3.0/24 dev cni0 proto kernel scope link src 10.244.3.1".to_owned(),
        format!(
            "port        {veth} of cni0   [pod default/{}]",
            server.name()
        ),
    ] {
        assert!(told.contains(&line), "no {line:?} in\n{told}");
    }
    let wall = |line: &str| far.machine().run(line).unwrap();
    wall("nft add table ip wall");
    wall("nft add chain ip wall gate { type filter hook forward priority 0 ; }");
    wall(&format!(
        "nft add rule ip wall gate ip daddr {} drop",
        server.ip()
    ));
    let output = trace();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("✗ chain ip wall gate drops it"), "{told}");
    wall("nft delete table ip wall");
    lab().delete_pod(server).unwrap();
}

/// The network namespace of a node's flanneld, for whoever shares its processes.
fn netns_of_flanneld(node: &Node) -> String {
    let of_node = "for p in $(pidof flanneld); do \
        [ $(readlink /proc/$p/ns/net) = $(readlink /proc/self/ns/net) ] && echo $p; done; true";
    let mut command = node.machine().command("sh");
    let found = command.args(["-c", of_node]).output().unwrap();
    let pid = String::from_utf8(found.stdout).unwrap();
    format!("/proc/{}/ns/net", pid.trim())
}

/// `twill` on a node, with a command that reaches the daemons of all.
fn asking_all(near: &Node, line: &str) -> Output {
    const REACH: &str = "/etc/twill/reach";
    let cases = lab().nodes().iter().map(|node| {
        let netns = netns_of_flanneld(node);
        format!(
            "{}) exec nsenter --net={netns} curl -sSf \"$2\" ;;\n",
            node.name()
        )
    });
    let script = format!("case $1 in\n{}esac\n", cases.collect::<String>());
    near.machine().write(REACH, &script).unwrap();
    let mut command = near.machine().command("/opt/twill/twill");
    command.args(line.split(' '));
    let reach = format!("sh {REACH} {{node}} {{url}}");
    command.args(["--reach", &reach]).output().unwrap()
}

/// All is looked up in the other node's kernel, beside the same objects.
fn a_way_that_begins_at_another_node_is_followed_from_here() {
    let [near, middle, end] = NODES.map(|name| lab().node(name).unwrap());
    let (client, server) = (pod("begins", middle.name()), pod("ends", end.name()));
    let service = service("begun", NODE_PORT, &[&server]);
    let object = "[Service default/begun:tcp]";
    let endpoint = format!(
        "endpoint    {}:8080   [pod default/{}, node {}, EndpointSlice default/begun-ipv4]",
        server.ip(),
        server.name(),
        end.name()
    );
    let veth = inspect::host_veth(middle.machine(), client.netns()).unwrap();
    let from_client = format!("trace pod/default/{} svc/default/begun:tcp", client.name());
    let from_node = format!("trace node/{} svc/default/begun:tcp", middle.name());
    let from_outside = format!("trace outside svc/default/begun:tcp --at {}", middle.name());
    let traced = |line: &str, code: i32, lines: &[String]| {
        let output = asking_all(near, line);
        let told = text(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {told}");
        for line in lines {
            assert!(told.contains(line), "no {line:?} in\n{told}");
        }
        assert!(!told.contains('≠'), "{told}");
    };
    let onward = "there       at node ".to_owned() + end.name();
    traced(
        &from_client,
        0,
        &[
            format!("pod/default/{} → Service default/begun:tcp", client.name()),
            "the inside of a pod is seen by `twill` on its node alone".to_owned(),
            format!("{veth} of cni0   [pod default/{}]", client.name()),
            format!("goto lb-1   {object}"),
            endpoint.clone(),
            format!(
                "route       10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink   [Lease subnet-10-244-3-0-24 of node {}]",
                end.name()
            ),
            onward.clone(),
        ],
    );
    traced(
        &from_node,
        0,
        &[
            format!("a process sends from {}", middle.ip()),
            endpoint.clone(),
            onward,
        ],
    );
    traced(
        &from_outside,
        0,
        &[
            format!("tcp {}:{NODE_PORT}", middle.ip()),
            format!("goto np-1   {object}"),
            endpoint,
        ],
    );
    let on_middle = |line: &str| middle.machine().run(line).unwrap();
    on_middle("nft add table ip wall");
    on_middle("nft add chain ip wall gate { type filter hook forward priority 0 ; }");
    on_middle(&format!(
        "nft add rule ip wall gate ip daddr {} drop",
        server.ip()
    ));
    let drops = "✗ chain ip wall gate drops it".to_owned();
    traced(&from_client, 1, &[drops]);
    on_middle("nft delete table ip wall");

    let pods = asking_all(
        near,
        &format!("pods --at {} {} -o json", middle.name(), client.name()),
    );
    let pods: Value = serde_json::from_slice(&pods.stdout).unwrap();
    assert_eq!(pods[0]["veth"], veth, "{pods}");
    let unknown = asking_all(near, &format!("pods --at {}x", middle.name()));
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        text(&unknown).contains(&format!("is it {}", middle.name())),
        "{}",
        text(&unknown)
    );
    lab().unexpose(&service).unwrap();
    lab().delete_pod(client).unwrap();
    lab().delete_pod(server).unwrap();
}

fn every_pair_of_nodes_is_probed_and_every_node_examined_from_one() {
    let nodes = lab().nodes();
    let (near, far) = (&nodes[0], lab().node(NODES[2]).unwrap());
    let told = |line: &str| {
        let output = asking_all(near, line);
        (output.status.code(), text(&output), output.stdout)
    };

    let (code, text, json) = told("probe --count 2 -o json");
    assert_eq!(code, Some(0), "{text}");
    let matrix: Value = serde_json::from_slice(&json).unwrap();
    let rows = matrix["rows"].as_array().unwrap();
    let own: Vec<_> = rows
        .iter()
        .map(|row| row["node"].as_str().unwrap())
        .collect();
    let names: Vec<_> = nodes.iter().map(Node::name).collect();
    assert_eq!(own, names);
    for row in rows {
        let peers = row["peers"].as_array().unwrap();
        let mut asked: Vec<_> = peers
            .iter()
            .map(|peer| peer["name"].as_str().unwrap())
            .collect();
        asked.push(row["node"].as_str().unwrap());
        asked.sort_unstable();
        assert_eq!(asked, names, "{row}");
        for peer in peers {
            assert_eq!(peer["lostFull"], serde_json::json!([0, 2]), "{row}");
            assert_eq!(peer["mtu"], 1450, "{row}");
        }
        assert!(row["service"]["latency"].as_f64() > Some(0.0), "{row}");
    }

    let on_far = |line: &str| far.machine().run(line).unwrap();
    on_far("nft add table inet wall");
    on_far("nft add chain inet wall gate { type filter hook input priority -200 ; }");
    on_far("nft add rule inet wall gate udp dport 8472 drop");
    on_far("touch /etc/cni/net.d/00-other.conflist");
    let (code, text, _) = told("probe --count 1");
    assert_eq!(code, Some(1), "{text}");
    for node in nodes.iter().filter(|node| node.name() != far.name()) {
        for [from, to] in [[node.name(), far.name()], [far.name(), node.name()]] {
            let line = format!("✗ {from} → {to}: ");
            let found = text.lines().find(|text| text.starts_with(&line));
            let found = found.unwrap_or_else(|| panic!("no {line:?} in\n{text}"));
            assert!(
                found.contains("not through the tunnel: UDP port 8472 is filtered"),
                "{found}"
            );
        }
    }
    assert!(
        !text.contains(&format!("{} → {}", names[0], names[1])),
        "{text}"
    );
    let other = "✗ pods get their network from another CNI configuration";
    assert!(text.contains(other), "{text}");
    assert!(text.contains(&format!("on node: {}", far.name())), "{text}");

    let (code, text, _) = told("doctor --all");
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains(&format!("node {}:\n{other}", far.name())),
        "{text}"
    );
    on_far("rm /etc/cni/net.d/00-other.conflist");
    on_far("nft delete table inet wall");
    let (code, text, _) = told("doctor --all");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("nothing is wrong on 3 of 3 nodes"), "{text}");

    // A machine that was made as a copy of another.
    let copy: CoreNode = serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "copy", "annotations": {"flannel.alpha.coreos.com/public-ip": far.ip()}},
        "spec": {"podCIDRs": ["10.244.3.0/24"], "podCIDR": "10.244.3.0/24"},
    }))
    .unwrap();
    lab().api().apply(&copy).unwrap();
    let (code, text, _) = told("doctor --all");
    lab().api().delete::<CoreNode>(None, "copy").unwrap();
    assert_eq!(code, Some(1), "{text}");
    for evidence in [
        format!(
            "podCIDR 10.244.3.0/24 of Node copy, 10.244.3.0/24 of Node {}",
            far.name()
        ),
        format!(
            "annotation flannel.alpha.coreos.com/public-ip of both Nodes: {}",
            far.ip()
        ),
    ] {
        assert!(text.contains(&evidence), "no {evidence:?} in\n{text}");
    }
    assert!(text.contains("✗ node copy does not answer"), "{text}");
    near.machine()
        .write("/etc/twill/twill-cni", "#!/bin/sh\necho twill-cni 0.0.9\n")
        .unwrap();
    near.machine().run("chmod +x /etc/twill/twill-cni").unwrap();
    let (code, text, _) = told("doctor --cni-bin-dir /etc/twill");
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("versions of Twill differ on this node"),
        "{text}"
    );
    assert!(
        text.contains("twill-cni 0.0.9, twill-proxy 0.1.0"),
        "{text}"
    );
    wait::until("all pairs", wait::PATIENCE, || {
        let (code, text, _) = told("probe --count 1");
        Ok(wait::holds(code == Some(0), &text))
    })
    .unwrap();
}

fn the_status_of_a_node_is_what_its_daemons_say() {
    let node = lab().node(NODES[1]).unwrap();
    // Of this node alone; another is asked as is said, or told to be unseen.
    let output = twill(node.machine(), "status -o json --offline");
    let told = text(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| told[0][name].clone();
    assert_eq!(of("flanneld")["programmed"], 2, "{told}");
    assert!(of("proxy")["programmed"].as_u64() > Some(0), "{told}");
    assert_eq!(
        (&of("flanneld")["ready"], &of("proxy")["ready"]),
        (&true.into(), &true.into())
    );

    let output = twill(node.machine(), "status --wait 0");
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("10.244.2.0/24  vxlan"), "{told}");
    assert!(told.contains("1 of 3 nodes are well"), "{told}");
    // The lab has no kubelets: nothing runs as a pod, and nobody could forward to it.
    let unseen = format!(
        "✗ {}: flanneld: no answer: no pod of flanneld runs there",
        NODES[2]
    );
    assert!(told.contains(&unseen), "{told}");

    node.stop(Daemon::Proxy, Signal::SIGTERM).unwrap();
    let output = twill(node.machine(), "status --offline");
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output);
    assert!(
        told.contains("twill-proxy: no answer: port 10249: Connection refused"),
        "{told}"
    );
    node.start(Daemon::Proxy).unwrap();
    let output = twill(node.machine(), "status --offline --wait 60");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
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
