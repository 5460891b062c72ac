//! What the doctor finds, and what it does not.

use cli::doctor::{Findings, Host, examine};
use hostnet::vocab::Family;

use crate::world::{World, networks, run};

/// What is broken, and what the doctor says: parts of what is wrong with its evidence, and of the remedy.
const ILLS: &[(&str, &str, &str)] = &[
    (
        "sysctl -q -w net.ipv4.ip_forward=0",
        "net.ipv4.ip_forward = 0",
        "net.ipv4.ip_forward=1",
    ),
    (
        "sysctl -q -w net/ipv4/conf/flannel.1/rp_filter=1",
        "rp_filter is strict",
        "rp_filter=2",
    ),
    (
        "ip link set cni0 down",
        "cni0 is down",
        "ip link set cni0 up",
    ),
    (
        "ip address flush dev cni0",
        "10.244.2.1/24 is missing",
        "ip address add 10.244.2.1/24 dev cni0",
    ),
    (
        "ip link set flannel.1 down",
        "flannel.1 is down",
        "ip link set flannel.1 up",
    ),
    (
        "ip neighbour del 10.244.3.0 dev flannel.1",
        "no neighbour 10.244.3.0",
        "flanneld",
    ),
    (
        "bridge fdb del 0e:00:00:00:03:00 dev flannel.1",
        "no forwarding entry for 0e:00:00:00:03:00",
        "flanneld",
    ),
    (
        "nft delete table ip twill-flannel",
        "table ip twill-flannel is not there",
        "flanneld",
    ),
    (
        "nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }",
        "chain ip filter FORWARD has policy drop",
        "nft add rule ip filter FORWARD ip saddr 10.244.0.0/16 accept",
    ),
    (
        "nft add chain ip nat KUBE-SERVICES",
        "1 chains of table ip nat",
        "kube-proxy --cleanup",
    ),
    (
        "ip link set vetha down",
        "pod default/a is cut off",
        "twill trace",
    ),
    ("ip link del vethb", "pod default/b is cut off", "made anew"),
];

#[test]
fn the_doctor_finds_nothing_in_a_sound_node_and_each_illness_alone() {
    let mut wrong = Vec::new();
    for (broken, what, remedy) in [&("true", "", "")].into_iter().chain(ILLS) {
        let world = World::new();
        // What else a node has.
        run(&world.node, "nft add table ip twill-flannel");
        run(
            &world.node,
            "nft add chain ip twill-flannel postrouting { type nat hook postrouting priority 100 ; }",
        );
        run(
            &world.node,
            "sysctl -q -w net/ipv4/conf/flannel.1/rp_filter=2",
        );
        run(&world.node, "nft add table ip filter");
        run(&world.node, "nft add table ip nat");
        run(&world.node, broken);
        let mut kernel = world.kernel();
        let host = Host {
            conflists: vec!["10-flannel.conflist".to_owned()],
            ..Host::default()
        };
        let found = examine(&mut kernel, &networks(Family::V4), &host).unwrap();
        let is_right = match &found[..] {
            [] => what.is_empty(),
            [one] => {
                !what.is_empty()
                    && format!("{} {}", one.what, one.evidence).contains(what)
                    && one.remedy.contains(remedy)
            }
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{broken}:\n{}", Findings(&found)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_the_daemons_would_mend_is_mended() {
    let world = World::new();
    for broken in [
        "sysctl -q -w net.ipv4.ip_forward=0",
        "sysctl -q -w net/ipv4/conf/flannel.1/rp_filter=1",
        "ip link set flannel.1 down",
        "ip address flush dev cni0",
    ] {
        run(&world.node, broken);
    }
    let look = || {
        let host = Host::default();
        examine(&mut world.kernel(), &networks(Family::V4), &host).unwrap()
    };
    let mut done = Vec::new();
    for fix in look().into_iter().filter_map(|finding| finding.fix) {
        world.node.run(|| fix.apply()).unwrap();
        done.push(fix.to_string());
    }
    done.sort();
    assert_eq!(
        done,
        [
            "ip address add 10.244.2.1/24 dev cni0",
            "ip link set flannel.1 up",
            "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2",
            "sysctl -w net/ipv4/ip_forward=1",
        ]
    );
    let left = look();
    assert!(
        left.iter().all(|finding| finding.fix.is_none()),
        "{left:#?}"
    );
    assert!(world.node.link("flannel.1").up);
    // A bridge that is down has to be up before its address is looked at.
    run(&world.node, "ip link set cni0 down");
    let fix = look().into_iter().find_map(|finding| finding.fix).unwrap();
    assert_eq!(fix.to_string(), "ip link set cni0 up");
    world.node.run(|| fix.apply()).unwrap();
    assert!(world.node.link("cni0").up);
}

#[test]
fn the_doctor_knows_other_software_by_name() {
    let world = World::new();
    let mut kernel = world.kernel();
    let host = Host {
        conflists: vec![
            "05-cilium.conflist".to_owned(),
            "10-flannel.conflist".to_owned(),
        ],
        processes: ["kube-proxy".to_owned(), "firewalld".to_owned()].into(),
        legacy_drops: vec![Family::V4],
    };
    let found = examine(&mut kernel, &networks(Family::V4), &host).unwrap();
    for evidence in [
        "05-cilium.conflist comes before 10-flannel.conflist",
        "a process is called kube-proxy",
        "a process is called firewalld",
        "FORWARD of iptables-legacy has policy DROP",
    ] {
        assert!(
            found.iter().any(|f| f.evidence == evidence),
            "{evidence}: {found:#?}"
        );
    }
    // In iptables mode kube-proxy's chains are twill-proxy's own.
    run(&world.node, "nft delete table ip twill-proxy");
    run(&world.node, "nft add table ip nat");
    run(&world.node, "nft add chain ip nat KUBE-SERVICES");
    run(&world.node, "nft add rule ip nat KUBE-SERVICES counter");
    let mut kernel = world.kernel();
    let found = examine(&mut kernel, &networks(Family::V4), &Host::default()).unwrap();
    let is_of_services = |word: &str| found.iter().any(|f| f.what.contains(word));
    assert!(
        !is_of_services("twill-proxy") && !is_of_services("kube-proxy"),
        "{found:#?}"
    );
    let none = examine(&mut kernel, &[], &Host::default()).unwrap();
    assert!(none[0].what.contains("flanneld has not told"), "{none:#?}");
}
