//! The vxlan backend in the real kernel: shapes, packets, healing, and that a restart changes nothing.

mod common;

use agent::sync::Pass;
use common::{DUAL, TestNode, V4, cluster, introduce, outsider, remove};
use hostnet::{
    testkit::{EchoServer, Snapshot, ask_tcp, ask_udp, require_tool},
    vocab::Family,
};

fn show(ns: &hostnet::testkit::Ns, tool: &str, args: &[&str]) -> Vec<String> {
    require_tool(tool, "iproute2");
    let text = ns.sh(tool, args);
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn the_kernel_shows_what_flannel_would_have_made() {
    let (_underlay, nodes) = cluster(3, V4, &[]);
    let (ns, mac3) = (&nodes[0].ns, nodes[2].ns.link("flannel.1").mac.unwrap());
    let routes = show(ns, "ip", &["route", "show", "dev", "flannel.1"]);
    assert_eq!(
        routes,
        [
            "10.244.2.0/24 via 10.244.2.0 onlink",
            "10.244.3.0/24 via 10.244.3.0 onlink"
        ]
    );
    let neighs = show(ns, "ip", &["neigh", "show", "dev", "flannel.1"]);
    assert!(
        neighs.contains(&format!("10.244.3.0 lladdr {mac3} PERMANENT")),
        "{neighs:?}"
    );
    let fdb = show(ns, "bridge", &["fdb", "show", "dev", "flannel.1"]);
    assert!(
        fdb.contains(&format!("{mac3} dst 192.0.2.3 self permanent")),
        "{fdb:?}"
    );
    let addrs = show(ns, "ip", &["-4", "-o", "addr", "show", "dev", "flannel.1"]);
    assert!(
        addrs[0].contains("inet 10.244.1.0/32 scope global flannel.1"),
        "{addrs:?}"
    );
    let link = show(ns, "ip", &["-d", "link", "show", "flannel.1"]).join(" ");
    for part in [
        "mtu 1450",
        "vxlan id 1 local 192.0.2.1 dev eth0",
        "dstport 8472 nolearning",
    ] {
        assert!(link.contains(part), "{part} in {link}");
    }
    assert_eq!(ns.sysctl("ipv4/ip_forward"), "1");
}

#[test]
fn pods_of_different_nodes_talk_and_see_each_other() {
    let (_underlay, nodes) = cluster(3, DUAL, &["--ip-masq"]);
    for from in &nodes {
        for to in &nodes {
            let (source_v4, source_v6) = (
                format!("10.244.{}.2", from.number),
                format!("fd00:0:0:{}::2", from.number),
            );
            for (address, source) in [(to.pod_v4(), &source_v4), (to.pod_v6(), &source_v6)] {
                for answer in [ask_tcp(&from.pod, &address), ask_udp(&from.pod, &address)] {
                    let answer = answer
                        .unwrap_or_else(|error| panic!("pod{} to {address}: {error}", from.number));
                    assert_eq!(answer.server, format!("pod{}", to.number));
                    assert_eq!(
                        answer.source.ip().to_string(),
                        *source,
                        "the pod's own address is seen"
                    );
                }
            }
        }
        // A node's own packets to a pod elsewhere come from its end of the overlay.
        let other = &nodes[usize::from(from.number) % 3];
        let answer = ask_tcp(&from.ns, &other.pod_v4()).unwrap();
        assert_eq!(
            answer.source.ip().to_string(),
            format!("10.244.{}.0", from.number)
        );
    }
}

#[test]
fn pods_reach_outside_with_their_nodes_address_only_if_asked() {
    for (args, source) in [(&["--ip-masq"][..], Some("192.0.2.1")), (&[], None)] {
        let (underlay, nodes) = cluster(2, V4, args);
        let outside = outsider(&underlay);
        let _server = EchoServer::start(&outside, "outside", "0.0.0.0:8080");
        let seen = ask_tcp(&nodes[0].pod, "192.0.2.200:8080")
            .ok()
            .map(|answer| answer.source.ip().to_string());
        assert_eq!(seen.as_deref(), source, "{args:?}");
    }
}

#[test]
fn a_restart_changes_nothing_in_the_kernel() {
    let (_underlay, mut nodes) = cluster(3, DUAL, &["--ip-masq"]);
    let node = &mut nodes[0];
    let before = Snapshot::of(&node.ns);
    node.is_disturbed();
    // A new process: it believes nothing, and reads its MAC from the annotations.
    let host = node
        .ns
        .run(|| flanneld::host::Host::open(hostnet::sysctl::ROOT.into()))
        .unwrap();
    node.reconciler = flanneld::reconcile::Reconciler::new(host);
    let report = node.pass(Pass::Full);
    assert_eq!(report.ops, []);
    assert_eq!(
        before.changes(&Snapshot::of(&node.ns)),
        Vec::<String>::new()
    );
    assert!(
        node.events.next(false).unwrap().is_none(),
        "not even a netlink message"
    );
}

#[test]
fn the_mac_survives_the_device_and_the_annotation_survives_neither() {
    let (_underlay, mut nodes) = cluster(2, V4, &[]);
    let mac = nodes[0].ns.link("flannel.1").mac;
    nodes[0].ns.sh("ip", &["link", "del", "flannel.1"]);
    nodes[0].pass(Pass::Full);
    assert_eq!(nodes[0].ns.link("flannel.1").mac, mac, "by the annotation");
    nodes[0].object.metadata.annotations = None;
    nodes[0].pass(Pass::Full);
    assert_eq!(nodes[0].ns.link("flannel.1").mac, mac, "by the device");
}

/// Breaks something on node 1, and checks that it is noticed by events, named, mended, and works again.
#[test]
fn whatever_is_taken_away_is_noticed_and_put_back() {
    let (_underlay, mut nodes) = cluster(3, V4, &["--ip-masq"]);
    let whole = Snapshot::of(&nodes[0].ns);
    let mac3 = nodes[2].ns.link("flannel.1").mac.unwrap().to_string();
    for (program, args) in [
        ("ip", "link del flannel.1"),
        ("ip", "link set flannel.1 down"),
        ("ip", "link set flannel.1 mtu 1300"),
        ("ip", "link set flannel.1 address 02:00:00:00:00:99"),
        ("ip", "addr del 10.244.1.0/32 dev flannel.1"),
        ("ip", "addr add 10.244.77.0/32 dev flannel.1"),
        ("ip", "route del 10.244.3.0/24"),
        ("ip", "route replace 10.244.3.0/24 via 192.0.2.254"),
        (
            "ip",
            "route add 10.99.0.0/24 via 10.99.0.0 dev flannel.1 onlink",
        ),
        ("ip", "neigh del 10.244.3.0 dev flannel.1"),
        (
            "ip",
            "neigh replace 10.244.3.0 lladdr 02:00:00:00:00:98 dev flannel.1 nud permanent",
        ),
        (
            "ip",
            "neigh replace 10.244.3.0 lladdr MAC3 dev flannel.1 nud stale",
        ),
        ("bridge", "fdb del MAC3 dev flannel.1 dst 192.0.2.3"),
        (
            "bridge",
            "fdb replace MAC3 dev flannel.1 dst 192.0.2.99 self permanent",
        ),
        (
            "bridge",
            "fdb append 02:00:00:00:00:97 dev flannel.1 dst 192.0.2.3 self permanent",
        ),
        (
            "ip",
            "link set flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 learning",
        ),
        ("sysctl", "-w net.ipv4.ip_forward=0"),
        ("sysctl", "-w net/ipv4/conf/flannel.1/rp_filter=1"),
        ("ip", "link set eth0 mtu 1400"),
        ("ip", "link set eth0 mtu 1500"),
    ] {
        let args = args.replace("MAC3", &mac3);
        let node = &mut nodes[0];
        node.ns.sh(program, &args.split(' ').collect::<Vec<_>>());
        assert!(node.is_disturbed(), "{program} {args}: not noticed");
        let report = node.pass(Pass::Full);
        assert!(!report.ops.is_empty(), "{program} {args}: nothing done");
        // One more look, for what our own changes brought to light (of two entries one is replaced).
        node.pass(Pass::Full);
        if args.contains("eth0") {
            continue;
        }
        assert!(!report.lost.is_empty(), "{program} {args}: not named");
        assert_eq!(
            whole.changes(&Snapshot::of(&node.ns)),
            Vec::<String>::new(),
            "{program} {args}: not as before"
        );
        node.is_disturbed();
        assert_eq!(
            node.pass(Pass::Full).ops,
            [],
            "{program} {args}: it settles"
        );
        let answer = ask_tcp(&nodes[0].pod, &nodes[2].pod_v4());
        assert_eq!(
            answer.unwrap().server,
            "pod3",
            "{program} {args}: no packets"
        );
    }
    // The MTU follows the interface, live.
    assert_eq!(
        whole.changes(&Snapshot::of(&nodes[0].ns)),
        Vec::<String>::new()
    );
}

#[test]
fn rules_that_are_flushed_are_put_back() {
    require_tool("nft", "nftables");
    let (_underlay, mut nodes) = cluster(2, V4, &["--ip-masq"]);
    let node = &mut nodes[0];
    let mut monitor = node.ns.run(hostnet::nft::Monitor::open).unwrap();
    let listed = |node: &TestNode| node.ns.sh("nft", &["list", "table", "ip", "twill-flannel"]);
    let whole = listed(node);
    assert!(whole.contains("masquerade"), "{whole}");
    for command in [
        "flush ruleset",
        "flush table ip twill-flannel",
        "delete table ip twill-flannel",
    ] {
        node.ns.sh("nft", &command.split(' ').collect::<Vec<_>>());
        let change = monitor.next(false).unwrap().expect("a change is told");
        assert!(node.reconciler.is_disturbing(&change), "{command}");
        let report = node.pass(Pass::Full);
        assert!(!report.lost.is_empty(), "{command}: not named");
        assert_eq!(listed(node), whole, "{command}");
        let own = monitor
            .next(false)
            .unwrap()
            .expect("our own change is told, too");
        assert!(!node.reconciler.is_disturbing(&own), "and is known as ours");
    }
}

#[test]
fn a_forward_chain_that_drops_is_opened_for_pods_and_nobody_else() {
    require_tool("iptables-nft", "iptables");
    let (underlay, mut nodes) = cluster(2, DUAL, &[]);
    let outside = outsider(&underlay);
    outside.route("10.77.0.0/16", "192.0.2.1");
    let mut monitor = nodes[0].ns.run(hostnet::nft::Monitor::open).unwrap();
    let before = Snapshot::of(&nodes[0].ns);
    for program in ["iptables-nft", "ip6tables-nft"] {
        nodes[0].ns.sh(
            program,
            &["-A", "FORWARD", "-s", "203.0.113.1", "-j", "ACCEPT"].map(|word| {
                if program == "ip6tables-nft" && word == "203.0.113.1" {
                    "2001:db8:9::1"
                } else {
                    word
                }
            }),
        );
        nodes[0].ns.sh(program, &["-P", "FORWARD", "DROP"]);
    }
    assert!(
        ask_tcp(&nodes[0].pod, &nodes[1].pod_v4()).is_err(),
        "it does drop"
    );
    let gate = |node: &TestNode| node.ns.sh("iptables-nft", &["-S", "FORWARD"]);
    let mut open = |nodes: &mut Vec<TestNode>, when: &str| {
        let change = std::iter::from_fn(|| monitor.next(false).unwrap());
        let changes: Vec<_> = change.collect();
        let told = changes
            .iter()
            .any(|change| nodes[0].reconciler.is_at_the_gate(change));
        assert!(told, "{when}: not noticed");
        nodes[0].pass(Pass::Full);
        // The administrator's own tool understands what was put there, behind what there was.
        let listed = gate(&nodes[0]);
        assert!(listed.starts_with("-P FORWARD DROP\n-A FORWARD -s 203.0.113.1/32 -j ACCEPT\n-A FORWARD -s 10.244.0.0/16"), "{when}: {listed}");
        assert!(
            listed.contains("twill flanneld: to pods"),
            "{when}: {listed}"
        );
        for address in [nodes[1].pod_v4(), nodes[1].pod_v6()] {
            ask_tcp(&nodes[0].pod, &address)
                .unwrap_or_else(|error| panic!("{when}: {address}: {error}"));
            assert_eq!(nodes[0].pass(Pass::Full).ops, [], "{when}: it settles");
        }
        let ours = std::iter::from_fn(|| monitor.next(false).unwrap());
        let ours: Vec<_> = ours.collect();
        assert!(
            !ours
                .iter()
                .any(|change| nodes[0].reconciler.is_at_the_gate(change)),
            "{when}"
        );
    };
    open(&mut nodes, "policy DROP");
    nodes[0].ns.sh("iptables-nft", &["-D", "FORWARD", "2"]);
    open(&mut nodes, "one rule deleted");
    nodes[0].ns.sh("iptables-nft", &["-F", "FORWARD"]);
    nodes[0].ns.sh(
        "iptables-nft",
        &["-A", "FORWARD", "-s", "203.0.113.1", "-j", "ACCEPT"],
    );
    open(&mut nodes, "all rules flushed");
    // Where the policy is no longer in the way, nothing of ours is left.
    for program in ["iptables-nft", "ip6tables-nft"] {
        nodes[0].ns.sh(program, &["-P", "FORWARD", "ACCEPT"]);
    }
    nodes[0].pass(Pass::Full);
    assert_eq!(
        gate(&nodes[0]),
        "-P FORWARD ACCEPT\n-A FORWARD -s 203.0.113.1/32 -j ACCEPT\n"
    );
    for family in ["ip", "ip6"] {
        nodes[0]
            .ns
            .sh("nft", &["delete", "table", family, "filter"]);
    }
    assert_eq!(
        before.changes(&Snapshot::of(&nodes[0].ns)),
        Vec::<String>::new()
    );
}

#[test]
fn flannels_own_rules_make_room_for_ours() {
    require_tool("iptables-nft", "iptables");
    let (_underlay, mut nodes) = cluster(2, DUAL, &["--ip-masq"]);
    let node = &mut nodes[0];
    let whole = Snapshot::of(&node.ns);
    node.ns.sh("nft", &["add", "table", "ip", "flannel-ipv4"]);
    node.ns.sh("nft", &["add", "table", "ip6", "flannel-ipv6"]);
    for line in [
        "iptables-nft -t nat -N FLANNEL-POSTRTG",
        "iptables-nft -t nat -A POSTROUTING -m comment --comment flanneld -j FLANNEL-POSTRTG",
        "iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment flanneld -j MASQUERADE --random-fully",
        "iptables-nft -N FLANNEL-FWD",
        "iptables-nft -A FORWARD -m comment --comment flanneld -j FLANNEL-FWD",
        "iptables-nft -A FORWARD -s 203.0.113.1 -j ACCEPT",
        "ip6tables-nft -N FLANNEL-FWD",
        "iptables-legacy -t nat -N FLANNEL-POSTRTG",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        node.ns.sh(words[0], &words[1..]);
    }
    let host = node
        .ns
        .run(|| flanneld::host::Host::open(hostnet::sysctl::ROOT.into()));
    node.reconciler = flanneld::reconcile::Reconciler::new(host.unwrap());
    node.pass(Pass::Full);
    let rules = node.ns.sh("nft", &["list", "ruleset"]);
    assert!(!rules.to_lowercase().contains("flannel-"), "{rules}");
    assert!(
        rules.contains("203.0.113.1"),
        "what is not flannel's stays: {rules}"
    );
    let legacy = node.ns.run(flanneld::leftovers::legacy_rules);
    assert_eq!(legacy.len(), 1, "{legacy:?}");
    assert!(legacy[0].contains("iptables-legacy -t nat -X FLANNEL-POSTRTG"));
    for (family, table) in [("ip", "nat"), ("ip", "filter"), ("ip6", "filter")] {
        node.ns.sh("nft", &["delete", "table", family, table]);
    }
    assert_eq!(whole.changes(&Snapshot::of(&node.ns)), Vec::<String>::new());
}

#[test]
fn who_else_drops_is_named_with_the_remedy() {
    let (_underlay, mut nodes) = cluster(1, V4, &[]);
    let node = &mut nodes[0];
    assert_eq!(node.pass(Pass::Full).obstacles, []);
    node.ns.sh("iptables-legacy", &["-P", "FORWARD", "DROP"]);
    for words in [
        "add table inet fw",
        "add chain inet fw f { type filter hook forward priority 0; policy drop; }",
    ] {
        node.ns.sh("nft", &[words]);
    }
    let told: Vec<String> = node
        .pass(Pass::Full)
        .obstacles
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    // The remedies do what they say.
    for text in &told {
        for command in text.split('`').skip(1).step_by(2) {
            let words: Vec<&str> = command.split(' ').collect();
            node.ns.sh(words[0], &words[1..]);
        }
    }
    assert!(
        node.ns
            .sh("nft", &["list", "table", "inet", "fw"])
            .contains("ip daddr 10.244.0.0/16 accept")
    );
    assert!(
        node.ns
            .sh("iptables-legacy", &["-S", "FORWARD"])
            .contains("-A FORWARD -s 10.244.0.0/16 -j ACCEPT")
    );
}

#[test]
fn what_pods_and_others_do_is_no_news() {
    let (_underlay, mut nodes) = cluster(2, V4, &[]);
    let node = &mut nodes[0];
    for (program, args) in [
        ("ip", "link add veth9 type veth peer name veth9p"),
        ("ip", "link set veth9 up"),
        ("ip", "link set veth9 master cni0"),
        ("ip", "addr add 10.9.9.9/32 dev cni0"),
        (
            "ip",
            "neigh replace 10.244.1.9 lladdr 02:00:00:00:00:09 dev cni0 nud reachable",
        ),
        ("ip", "route add 10.77.0.0/24 dev cni0"),
        ("ip", "link del veth9"),
    ] {
        node.ns.sh(program, &args.split(' ').collect::<Vec<_>>());
        assert!(!node.is_disturbed(), "{program} {args}");
    }
    ask_tcp(&nodes[0].pod, &nodes[1].pod_v4()).unwrap();
    assert!(!nodes[0].is_disturbed(), "traffic");
}

#[test]
fn one_more_peer_and_one_less_cost_as_much_as_one() {
    let (underlay, mut nodes) = cluster(2, V4, &[]);
    nodes.push(TestNode::new(&underlay, 3, V4, &[]));
    nodes[2].pass(Pass::Full);
    introduce(&mut nodes);
    let ops: Vec<String> = nodes[0]
        .pass(Pass::Dirty)
        .ops
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        ops.len(),
        3,
        "a neighbour, a forwarding entry and a route: {ops:?}"
    );
    assert!(!nodes[0].is_disturbed(), "our own changes are no news");
    assert_eq!(nodes[0].pass(Pass::Full).ops, []);
    remove(&mut nodes, "n3");
    let ops: Vec<String> = nodes[0]
        .pass(Pass::Dirty)
        .ops
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ops.len(), 3, "{ops:?}");
    assert!(!nodes[0].is_disturbed());
    assert_eq!(
        nodes[0].pass(Pass::Full).ops,
        [],
        "the kernel is as believed"
    );
    assert!(!Snapshot::of(&nodes[0].ns).mentions("10.244.3."));
}

#[test]
fn what_a_node_that_left_while_we_were_down_had_is_removed() {
    let (_underlay, mut nodes) = cluster(3, V4, &[]);
    remove(&mut nodes, "n3");
    let host = nodes[0]
        .ns
        .run(|| flanneld::host::Host::open(hostnet::sysctl::ROOT.into()))
        .unwrap();
    nodes[0].reconciler = flanneld::reconcile::Reconciler::new(host);
    nodes[0].pass(Pass::Full);
    let after = Snapshot::of(&nodes[0].ns);
    assert!(
        !after.mentions("10.244.3.")
            && !after.mentions("192.0.2.3")
            && after.mentions("10.244.2.0"),
        "{after}"
    );
}

#[test]
fn what_was_known_in_an_earlier_life_takes_nothing_away() {
    let (_underlay, mut nodes) = cluster(3, V4, &[]);
    let node = &mut nodes[0];
    let live = std::mem::replace(
        &mut node.index,
        flanneld::index::Index::new("n1", node.config.annotations.clone()),
    );
    // Kept when n3 had not come yet, and n2 was elsewhere.
    let mut n2 = live.other("n2").unwrap().clone();
    n2.published.public.v4 = Some("192.0.2.99".to_owned());
    let keys = node.config.annotations.clone();
    let own = node.object.clone();
    node.index = flanneld::index::Index::recalled("n1", keys, own, vec![n2]);
    let open = || flanneld::host::Host::open(hostnet::sysctl::ROOT.into());
    let before = Snapshot::of(&node.ns);
    node.reconciler = flanneld::reconcile::Reconciler::new(node.ns.run(open).unwrap());
    assert_eq!(node.pass(Pass::Full).ops, []);
    assert_eq!(node.pass(Pass::Dirty).ops, []);
    // What is missing it knows how to make.
    node.ns.sh("ip", &["route", "del", "10.244.2.0/24"]);
    assert!(node.is_disturbed());
    assert_eq!(node.pass(Pass::Full).ops.len(), 1);
    assert_eq!(
        before.changes(&Snapshot::of(&node.ns)),
        Vec::<String>::new()
    );
    // The API server has the last word.
    node.index = live;
    remove(&mut nodes, "n3");
    let ops = nodes[0].pass(Pass::Dirty).ops;
    assert_eq!(ops.len(), 3, "n3 has left: {ops:?}");
    assert_eq!(nodes[0].pass(Pass::Full).ops, []);
}

#[test]
fn a_device_of_other_settings_and_leftovers_make_room() {
    let (_underlay, mut nodes) = cluster(2, V4, &[]);
    // As an older configuration would have left it: another port, and another VNI.
    nodes[0].ns.sh("ip", &["link", "del", "flannel.1"]);
    nodes[0].ns.sh(
        "ip",
        &[
            "link",
            "add",
            "flannel.1",
            "type",
            "vxlan",
            "id",
            "1",
            "dstport",
            "4789",
            "dev",
            "eth0",
        ],
    );
    nodes[0].ns.sh(
        "ip",
        &[
            "link",
            "add",
            "flannel.7",
            "type",
            "vxlan",
            "id",
            "7",
            "dstport",
            "8472",
            "dev",
            "eth0",
        ],
    );
    nodes[0].pass(Pass::Full);
    assert!(nodes[0].ns.find_link("flannel.7").is_none());
    assert_eq!(
        ask_tcp(&nodes[0].pod, &nodes[1].pod_v4()).unwrap().server,
        "pod2"
    );
}

#[test]
fn a_moved_underlay_address_is_followed() {
    let (_underlay, mut nodes) = cluster(2, V4, &[]);
    let node = &mut nodes[0];
    // With the last address of its network goes the default route.
    node.ns
        .sh("ip", &["addr", "del", "192.0.2.1/24", "dev", "eth0"]);
    node.ns.addr("eth0", "192.0.2.101/24");
    node.ns.route("default", "192.0.2.254");
    assert!(node.is_disturbed());
    let ops = node.pass(Pass::Full).ops;
    assert_eq!(
        ops.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["ip link set flannel.1 type vxlan id 1 dev eth0 local 192.0.2.101 nolearning"],
        "nothing is lost on the way"
    );
    introduce(&mut nodes);
    nodes[1].pass(Pass::Dirty);
    assert_eq!(
        nodes[0]
            .reconciler
            .own()
            .get(Family::V4)
            .unwrap()
            .uplink
            .public
            .to_string(),
        "192.0.2.101"
    );
    assert_eq!(
        ask_tcp(&nodes[1].pod, &nodes[0].pod_v4()).unwrap().server,
        "pod1"
    );
}

#[test]
fn without_an_interface_the_kernel_stays_and_the_candidates_are_named() {
    let (_underlay, mut nodes) = cluster(2, V4, &[]);
    nodes[0].ns.sh("ip", &["route", "del", "default"]);
    assert!(nodes[0].is_disturbed());
    let before = Snapshot::of(&nodes[0].ns);
    let error = nodes[0].try_pass(Pass::Full).unwrap_err().to_string();
    assert!(
        error.contains("--iface") && error.contains("eth0 (192.0.2.1/24)"),
        "{error}"
    );
    assert_eq!(
        before.changes(&Snapshot::of(&nodes[0].ns)),
        Vec::<String>::new()
    );
    nodes[0].ns.route("default", "192.0.2.254");
    assert!(nodes[0].is_disturbed(), "the way out is news");
    assert_eq!(nodes[0].pass(Pass::Full).ops, []);
}

#[test]
fn an_address_that_an_older_node_has_is_not_published() {
    let (underlay, mut nodes) = cluster(2, V4, &[]);
    nodes.push(TestNode::new(&underlay, 3, V4, &["--public-ip=192.0.2.2"]));
    introduce(&mut nodes);
    let error = nodes[2].try_pass(Pass::Full).unwrap_err().to_string();
    for word in ["192.0.2.2", "Node n2", "--public-ip", "192.0.2.3/24"] {
        assert!(error.contains(word), "{word} in {error}");
    }
    assert!(
        nodes[2].ns.find_link("flannel.1").is_none(),
        "nothing is touched"
    );
    // What is on our own interface is ours, whatever an older node says.
    let mut liar = nodes[1].object.clone();
    let annotations = liar.metadata.annotations.as_mut().unwrap();
    annotations.insert(
        "flannel.alpha.coreos.com/public-ip".into(),
        "192.0.2.3".into(),
    );
    liar.metadata.name = Some("liar".into());
    liar.metadata.uid = Some("uid0".into());
    nodes[2].config = std::sync::Arc::new(common::config(3, V4, &[]));
    nodes[2].index.node(agent::watch::Delta::Upsert(liar));
    nodes[2].pass(Pass::Full);
}

#[test]
fn a_hostile_node_is_left_out_and_harms_nobody() {
    let (_underlay, mut nodes) = cluster(3, V4, &[]);
    let good = Snapshot::of(&nodes[0].ns);
    for (what, subnet, ip) in [
        ("ours", "10.244.1.0/24", "192.0.2.66"),
        ("another's", "10.244.3.0/24", "192.0.2.66"),
        ("everything", "0.0.0.0/0", "192.0.2.66"),
        ("the underlay", "192.0.2.0/24", "192.0.2.66"),
        ("our address", "10.244.66.0/24", "192.0.2.1"),
    ] {
        let mut evil = nodes[2].object.clone();
        evil.metadata.name = Some("a-evil".into());
        // Younger than the others, whose Nodes have no age here and rank by name: so it must not win by its name.
        evil.metadata.creation_timestamp =
            serde_json::from_value(serde_json::json!("2026-11-22T10:00:00Z")).unwrap();
        evil.spec.pod_cidrs = vec![subnet.into()];
        let annotations = evil.metadata.annotations.as_mut().unwrap();
        annotations.insert("flannel.alpha.coreos.com/public-ip".into(), ip.into());
        let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:66:66"}"#;
        annotations.insert("flannel.alpha.coreos.com/backend-data".into(), data.into());
        nodes[0].index.node(agent::watch::Delta::Upsert(evil));
        let report = nodes[0].pass(Pass::Dirty);
        assert_eq!(report.selection.skipped.len(), 1, "{what}");
        assert_eq!(
            good.changes(&Snapshot::of(&nodes[0].ns)),
            Vec::<String>::new(),
            "{what}"
        );
    }
}
