//! What a cluster goes through while it lives, with a real API server and packets in both families: other backends, wrong
//! configurations, daemons that are killed, an API server that is away, firewalls, cables.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::Instant;

use integration::sandbox::{PodName, Sandbox};
use integration::testing::{ask, event};
use integration::traffic::{self, Stream, Transport};
use integration::{Daemon, Lab, Node, Pod, PodSpec, wait};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node as NodeObject;
use nix::sys::signal::Signal;
use serde_json::json;

const CONF: &str = "/etc/kube-flannel/net-conf.json";

fn conf(backend: &str) -> String {
    format!(
        r#"{{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48", "Backend": {backend}}}"#
    )
}

/// Three nodes with both families and a pod each, shared by the tests, which take turns.
#[expect(
    clippy::disallowed_types,
    reason = "tests are threads, and have no task to own the cluster"
)]
fn cluster() -> (
    std::sync::MutexGuard<'static, ()>,
    &'static Lab,
    &'static [Pod],
) {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    static CLUSTER: OnceLock<(Lab, Vec<Pod>)> = OnceLock::new();
    // A test that failed has told so itself.
    let turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (lab, pods) = CLUSTER.get_or_init(|| {
        let mut builder = Lab::builder()
            .daemons(&[Daemon::Flanneld])
            .net_conf(&conf(r#"{"Type": "vxlan"}"#));
        for n in 1..=3 {
            let subnets = [format!("10.244.{n}.0/24"), format!("fd00:244:0:{n}::/64")];
            builder = builder.node(
                &format!("node-{n}"),
                &subnets.map(|text| text.parse().unwrap()),
            );
        }
        let lab = builder.up().unwrap_or_else(|error| panic!("{error:#}"));
        let pod =
            |node: &Node| lab.run_pod(PodSpec::new(&format!("pod-{}", node.name()), node.name()));
        let pods = lab.nodes().iter().map(|node| pod(node).unwrap()).collect();
        all_know_each_other(&lab);
        (lab, pods)
    });
    (turn, lab, pods)
}

fn all_know_each_other(lab: &Lab) {
    for node in lab.nodes() {
        node.wait_ready(Daemon::Flanneld).unwrap();
        node.wait_peers(&["ipv4", "ipv6"], 2).unwrap();
    }
}

fn addresses(pod: &Pod) -> impl Iterator<Item = SocketAddr> {
    pod.ips().iter().map(|ip| SocketAddr::from((*ip, 8080)))
}

/// Every pod asks every other one, in both families and by both transports.
fn all_talk(pods: &[Pod]) {
    for from in pods {
        for to in pods.iter().filter(|to| to.name() != from.name()) {
            assert_eq!(to.ips().len(), 2, "{:?}", to.ips());
            for address in addresses(to) {
                for transport in Transport::ALL {
                    let answer = ask(from.name(), from.netns(), transport, address);
                    assert_eq!(answer.server, to.name());
                    assert!(from.ips().contains(&answer.client), "{answer}");
                }
            }
        }
    }
}

/// Streams from the first pod to the second, in both families and by both transports.
fn streams(pods: &[Pod]) -> Vec<Stream> {
    addresses(&pods[1])
        .flat_map(|to| Transport::ALL.map(|transport| (to, transport)))
        .map(|(to, transport)| Stream::start(pods[0].netns(), transport, to).unwrap())
        .collect()
}

fn flow(streams: &mut [Stream], when: &str) {
    for stream in streams {
        let flowing = stream.wait_for(50, wait::PATIENCE);
        flowing.unwrap_or_else(|error| panic!("{when}: {error:#}"));
    }
}

fn nothing_was_lost(streams: Vec<Stream>, when: &str) {
    for stream in streams {
        let report = stream.finish().unwrap();
        assert!(report.lost.is_empty(), "{when}: {report:?}");
    }
}

/// Replaces net-conf.json as a whole.
fn configure(node: &Node, text: &str) {
    let machine = node.machine();
    machine.write(&format!("{CONF}.new"), text).unwrap();
    machine.run(&format!("mv {CONF}.new {CONF}")).unwrap();
}

/// The value of a metric.
fn counted(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let mut values = values.map(|value| value.trim().parse().unwrap());
    values.next().unwrap_or_else(|| panic!("{name}: {metrics}"))
}

/// Runs a command on a node that harms it, and waits until its state is `whole` again.
fn harm_is_mended(node: &Node, harm: &str, whole: &str, state: impl Fn() -> String) {
    node.machine().run(harm).unwrap();
    let start = Instant::now();
    let mut now = String::new();
    wait::until(harm, wait::PATIENCE, || {
        now = state();
        Ok(wait::holds(now == whole, "it is not as it was"))
    })
    .unwrap_or_else(|error| {
        let log = node.log(Daemon::Flanneld);
        panic!("{error:#}\n{now}\nis not\n{whole}\n{log}")
    });
    eprintln!("{harm}: mended after {:.0?}", start.elapsed());
}

fn wait_until(what: &str, node: &Node, mut holds: impl FnMut() -> bool) {
    wait::until(what, wait::PATIENCE, || Ok(wait::holds(holds(), "not yet")))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", node.log(Daemon::Flanneld)));
}

/// The devices of flanneld's.
fn devices(node: &Node) -> BTreeSet<String> {
    let links = node.machine().run("ip -o link show type vxlan").unwrap();
    let name = |line: &str| {
        line.split(": ")
            .nth(1)?
            .split('@')
            .next()
            .map(str::to_owned)
    };
    links.lines().filter_map(name).collect()
}

#[test]
fn every_backend_in_turn_without_a_lost_packet() {
    let (_turn, lab, pods) = cluster();
    for (backend, left) in [
        (
            r#"{"Type": "vxlan", "DirectRouting": true}"#,
            &["flannel.1", "flannel-v6.1"][..],
        ),
        (
            r#"{"Type": "vxlan", "Port": 4789}"#,
            &["flannel.1", "flannel-v6.1"],
        ),
        (r#"{"Type": "host-gw"}"#, &[]),
        (
            r#"{"Type": "vxlan", "VNI": 7, "MTU": 1400}"#,
            &["flannel.7", "flannel-v6.7"],
        ),
        (r#"{"Type": "vxlan"}"#, &["flannel.1", "flannel-v6.1"]),
    ] {
        let mut streams = streams(pods);
        for node in lab.nodes() {
            let followed = node.log(Daemon::Flanneld).matches("following it").count();
            configure(node, &conf(backend));
            wait_until("the change", node, || {
                node.log(Daemon::Flanneld).matches("following it").count() > followed
            });
            flow(&mut streams, &format!("{backend} on {}", node.name()));
        }
        for node in lab.nodes() {
            let left: BTreeSet<String> = left.iter().map(|&name| name.to_owned()).collect();
            wait_until("no device of the old backend", node, || {
                devices(node) == left
            });
            let network = |name: &str| node.machine().run(name).unwrap();
            let env = network("cat /run/flannel/subnet.env");
            let mtu = match backend {
                _ if backend.contains("1400") => "FLANNEL_MTU=1330\n",
                _ if backend.contains("host-gw") => "FLANNEL_MTU=1500\n",
                _ => "FLANNEL_MTU=1430\n",
            };
            assert!(env.contains(mtu), "{backend}: {env}");
        }
        all_know_each_other(lab);
        nothing_was_lost(streams, backend);
        all_talk(pods);
    }
    let told = event(lab, "node-1", "MtuChanged");
    assert!(told.contains("until they are started anew"), "{told}");
}

#[test]
fn a_wrong_configuration_changes_nothing_and_is_told() {
    let (_turn, lab, pods) = cluster();
    let node = &lab.nodes()[0];
    let before = devices(node);
    configure(node, &conf(r#"{"Type": "vxlan", "Port": 66000}"#));
    wait_until("metric", node, || {
        node.metrics(Daemon::Flanneld)
            .unwrap()
            .contains("flanneld_config_valid 0")
    });
    assert_eq!(devices(node), before);
    let told = event(lab, node.name(), "InvalidConfiguration");
    assert!(told.contains("Backend.Port: 66000"), "{told}");
    all_talk(pods);
    configure(node, &conf(r#"{"Type": "vxlan"}"#));
    wait_until("metric", node, || {
        node.metrics(Daemon::Flanneld)
            .unwrap()
            .contains("flanneld_config_valid 1")
    });
}

#[test]
fn a_node_that_starts_while_the_api_server_is_away_has_its_network() {
    let (_turn, lab, pods) = cluster();
    let node = &lab.nodes()[1];
    let machine = node.machine();
    let whole = devices(node);
    let snapshot = "/var/lib/twill/flanneld.json";
    node.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
    machine.run(&format!("rm {snapshot}")).unwrap();
    node.start(Daemon::Flanneld).unwrap();
    wait_until("snapshot", node, || machine.path(snapshot).exists());
    node.stop(Daemon::Flanneld, Signal::SIGKILL).unwrap();
    // As after a reboot: nothing is left but the disk.
    for line in [
        "ip link del flannel.1",
        "ip link del flannel-v6.1",
        "nft delete table ip twill-flannel",
        "rm -r /run/flannel",
        "sysctl -w net.ipv4.ip_forward=0",
    ] {
        machine.run(line).unwrap();
    }
    let start = Instant::now();
    node.start_with(
        Daemon::Flanneld,
        &["--kube-api-url=https://172.30.0.99:6443"],
    )
    .unwrap();
    wait_until("devices", node, || devices(node) == whole);
    wait_until("subnet.env", node, || {
        machine.path("/run/flannel/subnet.env").exists()
    });
    eprintln!(
        "the network is back {:.0?} after the start",
        start.elapsed()
    );
    all_talk(pods);
    // Others cannot know of us, and we may know of others wrongly: that is not ready.
    let ready =
        integration::http::get(machine.netns(), ([127, 0, 0, 1], 8081).into(), "/readyz").unwrap();
    assert_eq!(ready.status, 503, "{}", ready.body);
    node.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
    // What cannot be trusted is not used, and the log says why.
    machine.run(&format!("truncate -s -1 {snapshot}")).unwrap();
    node.start_with(
        Daemon::Flanneld,
        &["--kube-api-url=https://172.30.0.99:6443"],
    )
    .unwrap();
    wait_until("a word", node, || {
        node.log(Daemon::Flanneld)
            .contains("it is damaged: its checksum does not fit")
    });
    node.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
    node.start(Daemon::Flanneld).unwrap();
    all_know_each_other(lab);
    all_talk(pods);
}

#[test]
fn killed_again_and_again_during_changes_without_a_lost_packet() {
    let (_turn, lab, pods) = cluster();
    let mut streams = streams(pods);
    for round in 0..8 {
        let stranger = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "stranger", "annotations": {
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:99:{round:02x}\"}}"),
                "flannel.alpha.coreos.com/public-ip": format!("172.30.0.{}", 140 + round),
            }},
            "spec": {"podCIDR": "10.244.99.0/24", "podCIDRs": ["10.244.99.0/24"]},
        });
        lab.api().apply(&stranger).unwrap();
        for node in &lab.nodes()[..2] {
            node.stop(Daemon::Flanneld, Signal::SIGKILL).unwrap();
            node.start(Daemon::Flanneld).unwrap();
        }
        flow(&mut streams, &format!("round {round}"));
        lab.api().delete::<NodeObject>(None, "stranger").unwrap();
    }
    all_know_each_other(lab);
    nothing_was_lost(streams, "kill -9");
    for node in lab.nodes() {
        wait_until("no trace of the stranger", node, || {
            !node
                .machine()
                .run("ip route show")
                .unwrap()
                .contains("10.244.99.0")
                && !node
                    .machine()
                    .run("bridge fdb show dev flannel.1")
                    .unwrap()
                    .contains("02:00:00:00:99")
        });
    }
}

#[test]
fn what_is_not_a_route_is_mended_too() {
    let (_turn, lab, pods) = cluster();
    let node = &lab.nodes()[0];
    let machine = node.machine();
    let env = machine.run("cat /run/flannel/subnet.env").unwrap();
    let conflist = "/etc/cni/net.d/10-flannel.conflist";
    let list = machine.run(&format!("cat {conflist}")).unwrap();
    for (line, look, whole) in [
        (
            "rm /run/flannel/subnet.env",
            "cat /run/flannel/subnet.env",
            &*env,
        ),
        (
            "sed -i s/244/99/ /run/flannel/subnet.env",
            "cat /run/flannel/subnet.env",
            &*env,
        ),
        (
            &*format!("rm {conflist}"),
            &*format!("cat {conflist}"),
            &*list,
        ),
        (
            "sysctl -w net.ipv4.ip_forward=0",
            "cat /proc/sys/net/ipv4/ip_forward",
            "1\n",
        ),
        (
            "sysctl -w net.ipv6.conf.all.forwarding=0",
            "cat /proc/sys/net/ipv6/conf/all/forwarding",
            "1\n",
        ),
        (
            "sysctl -w net/ipv4/conf/flannel.1/rp_filter=1",
            "cat /proc/sys/net/ipv4/conf/flannel.1/rp_filter",
            "2\n",
        ),
    ] {
        machine.run(line).unwrap();
        let start = Instant::now();
        wait_until(line, node, || {
            machine.run(look).is_ok_and(|now| now == *whole)
        });
        eprintln!("{line}: mended after {:.0?}", start.elapsed());
    }
    // The interface goes and comes: its routes are its own, ours are back as it is.
    let routes = |node: &Node| node.machine().run("ip route show dev flannel.1").unwrap();
    let whole = routes(node);
    machine
        .run("sysctl -w net.ipv6.conf.eth0.keep_addr_on_down=1")
        .unwrap();
    let defaults = ["-4", "-6"].map(|family| {
        let route = machine.run(&format!("ip {family} route show default"));
        (family, route.unwrap())
    });
    machine.run("ip link set eth0 down").unwrap();
    machine.run("ip link set eth0 up").unwrap();
    for (family, route) in defaults {
        machine
            .run(&format!("ip {family} route replace {route}"))
            .unwrap();
    }
    wait_until("routes", node, || routes(node) == whole);
    wait::until("packets", wait::PATIENCE, || {
        Ok(traffic::ask(pods[0].netns(), Transport::Tcp, pods[1].address()).map(drop))
    })
    .unwrap();
}

#[test]
fn a_firewall_that_drops_what_is_forwarded_is_opened_for_pods() {
    let (_turn, lab, pods) = cluster();
    let machine = lab.nodes()[0].machine();
    let mut streams = streams(pods);
    for program in ["iptables-nft", "ip6tables-nft"] {
        machine.run(&format!("{program} -P FORWARD DROP")).unwrap();
    }
    // Some may be lost before the rules are there, and TCP sends them again; then all flow.
    flow(&mut streams, "policy DROP");
    all_talk(pods);
    machine.run("iptables-nft -F FORWARD").unwrap();
    flow(&mut streams, "flushed");
    for line in [
        "nft add table inet hard",
        "nft add chain inet hard f { type filter hook forward priority 5 ; policy drop ; }",
        "nft add rule inet hard f accept",
    ] {
        machine.run(line).unwrap();
    }
    drop(streams);
    for program in ["iptables-nft", "ip6tables-nft"] {
        machine
            .run(&format!("{program} -P FORWARD ACCEPT"))
            .unwrap();
    }
    wait_until("nothing of ours in the chain", &lab.nodes()[0], || {
        machine.run("iptables-nft -S FORWARD").unwrap() == "-P FORWARD ACCEPT\n"
    });
    let told = event(lab, "node-1", "ForwardingBlocked");
    assert!(told.contains("nft add rule inet hard f ip"), "{told}");
    machine.run("nft delete table inet hard").unwrap();
}

/// Four nodes in a network that has room for three.
#[test]
fn conflicts_and_an_exhausted_network_are_events_that_name_the_remedy() {
    let builder = (1..=4).fold(Lab::builder(), |builder, n| {
        builder.node(&format!("node-{n}"), &[])
    });
    let net_conf = r#"{"Network": "10.199.0.0/24", "SubnetLen": 26}"#;
    let lab = builder.daemons(&[]).net_conf(net_conf).up().unwrap();
    let start = |node: &Node| {
        node.provide(Daemon::Flanneld, lab.control_plane(), net_conf)
            .unwrap();
        node.start(Daemon::Flanneld).unwrap();
    };
    let (last, first) = lab.nodes().split_last().unwrap();
    for node in first {
        start(node);
        node.wait_ready(Daemon::Flanneld).unwrap();
    }
    start(last);
    let told = event(&lab, last.name(), "NetworkExhausted");
    assert!(
        told.contains("no free subnet is left in 10.199.0.0/24"),
        "{told}"
    );

    // A node leaves, and the one that waited gets its subnet. (No garbage collector runs here.)
    let gone = &first[0];
    gone.stop(Daemon::Flanneld, Signal::SIGKILL).unwrap();
    let lease = |node: &str| {
        let leases: Vec<Lease> = lab.api().list(Some("kube-system")).unwrap();
        let holder = |lease: &Lease| lease.spec.as_ref()?.holder_identity.clone();
        let held = leases
            .into_iter()
            .find(|lease| holder(lease).as_deref() == Some(node));
        held.unwrap().metadata.name.unwrap()
    };
    let name = lease(gone.name());
    lab.api().delete::<NodeObject>(None, gone.name()).unwrap();
    lab.api()
        .delete::<Lease>(Some("kube-system"), &name)
        .unwrap();
    last.wait_ready(Daemon::Flanneld).unwrap();
    assert_eq!(lease(last.name()), name);

    // One node's subnet is claimed by another while it is away.
    let (victim, rival) = (&first[1], &first[2]);
    victim.stop(Daemon::Flanneld, Signal::SIGKILL).unwrap();
    let name = lease(victim.name());
    let stolen = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"holderIdentity": rival.name()},
    });
    rival.stop(Daemon::Flanneld, Signal::SIGKILL).unwrap();
    lab.api().apply(&stolen).unwrap();
    victim.start(Daemon::Flanneld).unwrap();
    for node in [victim, rival] {
        let told = event(&lab, node.name(), "SubnetConflict");
        for word in [victim.name(), rival.name(), "delete the Node object"] {
            assert!(told.contains(word), "{word} in {told}");
        }
    }
}

/// What a machine's network and our files on it are, as a person sees them.
fn everything(node: &Node) -> String {
    let run = |line: &str| node.machine().run(line).unwrap();
    let mut links: Vec<String> = run("ip -o link show")
        .lines()
        .map(|line| line.split(": ").nth(1).unwrap().to_owned())
        .collect();
    links.sort();
    let rest = [
        "ip route show",
        "ip -6 route show",
        "nft list ruleset",
        "find /run/flannel /var/lib/twill /etc/cni/net.d -type f",
    ];
    rest.map(run).join("\n") + &links.join(" ")
}

#[test]
fn cleanup_takes_away_all_that_is_ours_and_nothing_else() {
    let net_conf = conf(r#"{"Type": "vxlan", "DirectRouting": true}"#);
    let builder = (1..=2).fold(Lab::builder(), |builder, n| {
        let subnets = [format!("10.244.{n}.0/24"), format!("fd00:244:0:{n}::/64")];
        builder.node(
            &format!("node-{n}"),
            &subnets.map(|text| text.parse().unwrap()),
        )
    });
    let lab = builder.daemons(&[]).net_conf(&net_conf).up().unwrap();
    let node = &lab.nodes()[0];
    let machine = node.machine();
    for line in [
        "mkdir -p /run/flannel /var/lib/twill /etc/cni/net.d",
        "iptables-nft -P FORWARD DROP",
        "ip6tables-nft -P FORWARD DROP",
        "nft add table ip mine",
        "ip route add 10.77.0.0/16 via 172.30.0.1",
    ] {
        machine.run(line).unwrap();
    }
    let before = everything(node);
    for node in lab.nodes() {
        node.provide(Daemon::Flanneld, lab.control_plane(), &net_conf)
            .unwrap();
        node.start(Daemon::Flanneld).unwrap();
    }
    for node in lab.nodes() {
        node.wait_peers(&["ipv4", "ipv6"], 1).unwrap();
    }
    wait_until("snapshot", node, || {
        machine.path("/var/lib/twill/flanneld.json").exists()
    });
    let cleanup = |arguments: &str| {
        let program = format!(
            "{}/flanneld cleanup {arguments}",
            integration::machine::root::BINARIES
        );
        machine.run(&program)
    };
    let refused = format!("{:#}", cleanup("").unwrap_err());
    assert!(
        refused.contains("flanneld still runs on this node"),
        "{refused}"
    );
    node.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
    // Not while it runs: a file that is being replaced comes and goes under `find`.
    let whole = everything(node);
    assert_ne!(whole, before);
    cleanup("--dry-run").unwrap();
    assert_eq!(everything(node), whole, "--dry-run");
    cleanup("").unwrap();
    assert_eq!(everything(node), before);
    cleanup("").unwrap();
    // Another's configuration of the same name is not ours.
    let conflist = "/etc/cni/net.d/10-flannel.conflist";
    machine
        .write(conflist, r#"{"plugins": [{"type": "flannel"}]}"#)
        .unwrap();
    cleanup("").unwrap();
    assert!(machine.path(conflist).exists());
}

#[test]
fn a_cluster_of_ipv6_alone() {
    let net_conf = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:244::/48"}"#;
    let builder = (1..=2).fold(Lab::builder(), |builder, n| {
        builder.node(
            &format!("node-{n}"),
            &[format!("fd00:244:0:{n}::/64").parse().unwrap()],
        )
    });
    let lab = builder
        .daemons(&[Daemon::Flanneld])
        .net_conf(net_conf)
        .up()
        .unwrap();
    let pods: Vec<Pod> = (lab.nodes().iter())
        .map(|node| lab.run_pod(PodSpec::new(node.name(), node.name())).unwrap())
        .collect();
    for node in lab.nodes() {
        // Nothing of what is done here may need IPv4.
        node.wait_peers(&["ipv6"], 1).unwrap();
        assert_eq!(devices(node), ["flannel-v6.1".to_owned()].into());
        let object: NodeObject = lab.api().get(None, node.name()).unwrap().unwrap();
        let mut said: Vec<String> = object.metadata.annotations.unwrap().into_keys().collect();
        said.retain(|key| key.starts_with("flannel") && !key.ends_with("/backend-port"));
        let keys = [
            "backend-type",
            "backend-v6-data",
            "kube-subnet-manager",
            "public-ipv6",
        ];
        assert_eq!(
            said,
            keys.map(|key| format!("flannel.alpha.coreos.com/{key}")),
            "as flannel's nodes"
        );
    }
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        assert!(matches!(to.ips(), [IpAddr::V6(_)]), "{:?}", to.ips());
        for transport in Transport::ALL {
            let answer = ask(from.name(), from.netns(), transport, to.address());
            assert_eq!(
                (answer.server, answer.client),
                (to.name().to_owned(), from.ip())
            );
        }
    }
}

#[test]
fn what_the_plugin_made_for_pods_is_mended_too() {
    let (_turn, lab, pods) = cluster();
    let node = &lab.nodes()[0];
    let machine = node.machine();
    // A host port, as a runtime would have asked for it.
    let find = "find /var/lib/cni/twill -name *.json";
    let record = machine.run(find).unwrap().trim().to_owned();
    let text = machine.run(&format!("cat {record}")).unwrap();
    let mut written: serde_json::Value = serde_json::from_str(&text).unwrap();
    written["ports"] = json!([{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}]);
    machine.write(&record, &written.to_string()).unwrap();
    let veth = written["veth"].as_str().unwrap().to_owned();
    let host_port = SocketAddr::from((node.ip(), 18080));
    let state = || {
        let run = |line: &str| machine.run(line).unwrap_or_default();
        let bridge = run("ip -o addr show dev cni0");
        let mut addrs: Vec<&str> = bridge
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3))
            .collect();
        addrs.sort_unstable();
        let is_up = |device: &str| run(&format!("ip -o link show dev {device}")).contains(",UP");
        let port = run(&format!("bridge -d link show dev {veth}"));
        let table = run("nft -s list table ip twill-cni");
        format!(
            "{addrs:?} {} {} {} {} {table}",
            is_up("cni0"),
            is_up(&veth),
            port.contains("master cni0"),
            port.contains("hairpin on")
        )
    };
    // The first harm: there is no table yet.
    machine.run("nft add table ip twill-cni").unwrap();
    wait_until("host port", node, || {
        traffic::ask(lab.outside().netns(), Transport::Tcp, host_port).is_ok()
    });
    let whole = state();
    assert!(
        whole.contains("18080") && whole.contains("true true true true"),
        "{whole}"
    );
    for line in [
        "nft flush ruleset",
        "nft delete table ip twill-cni",
        "ip addr del 10.244.1.1/24 dev cni0",
        "ip link set cni0 down",
        "ip link del cni0",
        &format!("ip link set {veth} down"),
        &format!("ip link set {veth} nomaster"),
        &format!("bridge link set dev {veth} hairpin off"),
    ] {
        harm_is_mended(node, line, &whole, state);
        let answer = ask("outside", lab.outside().netns(), Transport::Tcp, host_port);
        assert_eq!(answer.server, pods[0].name(), "{line}");
    }
    let metrics = node.metrics(Daemon::Flanneld).unwrap();
    assert!(
        counted(&metrics, "flanneld_repairs_total{object=\"pods\"}") > 0.0,
        "{metrics}"
    );
    machine.write(&record, &text).unwrap();
}

/// A runtime that loses its memory never calls DEL.
#[test]
fn what_a_runtime_forgets_is_taken_down_at_the_next_look() {
    let (_turn, lab, pods) = cluster();
    let node = &lab.nodes()[0];
    let machine = node.machine();
    let list = |what: &str| machine.run(what).unwrap();
    let records = "find /var/lib/cni/twill -name *.json";
    let reserved = "find /var/lib/cni/networks/cbr0 -name *[.:]*";
    let devices = "ls /sys/class/net";
    let before = [records, reserved, devices].map(list);
    let cables = || list("ip -o link show type veth").lines().count();
    let before_it = cables();

    let name = PodName {
        namespace: "default".into(),
        name: "ghost".into(),
        uid: "ghost".into(),
    };
    let mut ghost = Sandbox::new(machine, name).unwrap();
    ghost.attach(Some(10_000_000)).unwrap();
    let path = ghost.path();
    let with_it = [records, reserved].map(list);
    // A look leaves an attachment alone whose container is there.
    let look_again = || {
        node.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
        node.start(Daemon::Flanneld).unwrap();
        all_know_each_other(lab);
    };
    look_again();
    assert_eq!([records, reserved].map(list), with_it);
    drop(ghost);
    let netns = path.file_name().unwrap().to_str().unwrap();
    machine.run(&format!("ip netns del {netns}")).unwrap();
    wait_until("the end of the cable", node, || cables() == before_it);
    look_again();
    wait_until("what was before", node, || {
        [records, reserved, devices].map(list) == before
    });
    let log = node.log(Daemon::Flanneld);
    assert!(
        log.contains("the container is gone") && log.contains("default/ghost"),
        "{log}"
    );
    all_talk(pods);
}

#[test]
fn shaping_that_is_taken_away_comes_back_from_the_records() {
    let (_turn, lab, _) = cluster();
    let node = &lab.nodes()[0];
    let machine = node.machine();
    let limited = PodSpec::new("limited", node.name()).bandwidth(8_000_000);
    let pod = lab.run_pod(limited).unwrap();
    let files = machine.run("find /var/lib/cni/twill -name *.json").unwrap();
    let record = files
        .lines()
        .map(|file| machine.run(&format!("cat {file}")).unwrap())
        .map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap())
        .find(|record| record["ifb"].is_string())
        .expect("the record of a limited pod");
    let [veth, ifb] = ["veth", "ifb"].map(|key| record[key].as_str().unwrap().to_owned());
    // Without numbers that the kernel gives out anew.
    let state = || {
        let run = |line: &str| machine.run(line).unwrap_or_default();
        let buckets = [&veth, &ifb].map(|dev| {
            let all = run(&format!("tc qdisc show dev {dev}"));
            let mut lines: Vec<String> = all
                .lines()
                .map(|line| {
                    let mut words = line.split(' ').collect::<Vec<_>>();
                    words.remove(2);
                    words.join(" ")
                })
                .collect();
            lines.sort();
            lines
        });
        let filter = run(&format!("tc filter show dev {veth} ingress"));
        let redirected = filter.contains(&format!("Redirect to device {ifb}"));
        let is_up = run(&format!("ip -o link show dev {ifb}")).contains(",UP");
        format!("{buckets:?} redirected {redirected} up {is_up}")
    };
    let whole = state();
    let has_all = whole.matches("tbf").count() == 2 && whole.ends_with("redirected true up true");
    assert!(
        has_all && whole.matches("rate 8Mbit").count() == 2,
        "{whole}"
    );
    for line in [
        &format!("tc qdisc del dev {veth} root"),
        &format!("tc qdisc del dev {veth} ingress"),
        &format!("tc filter del dev {veth} ingress"),
        &format!("tc qdisc del dev {ifb} root"),
        &format!("ip link set {ifb} down"),
        &format!("ip link del {ifb}"),
    ] {
        harm_is_mended(node, line, &whole, state);
    }
    lab.delete_pod(pod).unwrap();
}

#[test]
fn what_was_harmed_unseen_in_a_flood_of_events_is_mended() {
    let (_turn, lab, pods) = cluster();
    let node = &lab.nodes()[0];
    let machine = node.machine();
    let route = || machine.run("ip route show 10.244.2.0/24").unwrap();
    let whole = route();
    assert!(whole.contains("flannel.1"), "{whole}");
    let pid = machine
        .keeper()
        .running(&format!("{}/flanneld", node.name()))
        .unwrap();
    machine.run(&format!("kill -STOP {pid}")).unwrap();
    // The kernel keeps what it has to tell until there is no room, and then tells nothing more until it is read.
    let flood = |verb: &str| {
        let lines: String = (0..2000)
            .map(|n| format!("route {verb} blackhole 198.18.{}.{}/32\n", n / 250, n % 250))
            .collect();
        machine.write("/run/flood", &lines).unwrap();
        machine.run("ip -batch /run/flood").unwrap();
    };
    // proc_net_netlink: of a socket the protocol (0: rtnetlink), who it is, groups, and, ninth, what it lost.
    let has_lost = || {
        let sockets = machine.run("cat /proc/net/netlink").unwrap();
        sockets.lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1] == "0" && fields[3] != "00000000" && fields[8] != "0"
        })
    };
    assert!(!has_lost());
    wait::until("an overrun", wait::PATIENCE, || {
        flood("add");
        flood("del");
        Ok(wait::holds(has_lost(), "the kernel keeps it all"))
    })
    .unwrap();
    machine.run("ip route del 10.244.2.0/24").unwrap();
    machine.run(&format!("kill -CONT {pid}")).unwrap();
    let start = Instant::now();
    wait_until("route", node, || route() == whole);
    eprintln!("mended after {:.0?}", start.elapsed());
    let metrics = node.metrics(Daemon::Flanneld).unwrap();
    assert!(
        counted(&metrics, "flanneld_netlink_errors_total{object=\"events\"}") > 0.0,
        "{metrics}"
    );
    all_talk(pods);
}
