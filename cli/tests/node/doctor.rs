//! What the doctor finds, and what it does not.

use cli::doctor::claims::{Claim, Claims};
use cli::doctor::{Findings, Host, Severity, examine};
use cli::objects::Cluster;
use hostnet::vocab::Family;
use serde_json::{Value, json};

use crate::objects::given;
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
        "ip address flush dev flannel.1",
        "10.244.2.0/32 is missing on flannel.1",
        "ip address add 10.244.2.0/32 dev flannel.1",
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

/// With what else a node has.
fn sound() -> World {
    let world = World::new();
    for line in [
        "nft add table ip twill-flannel",
        "nft add chain ip twill-flannel postrouting { type nat hook postrouting priority 100 ; }",
        "sysctl -q -w net/ipv4/conf/flannel.1/rp_filter=2",
        "nft add table ip filter",
        "nft add table ip nat",
    ] {
        run(&world.node, line);
    }
    world
}

#[test]
fn the_doctor_finds_nothing_in_a_sound_node_and_each_illness_alone() {
    let mut wrong = Vec::new();
    for (broken, what, remedy) in [&("true", "", "")].into_iter().chain(ILLS) {
        let world = sound();
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
        ..Host::default()
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

/// The objects of nodes `here` and `there`, which are not in conflict.
fn of_nodes() -> Vec<Value> {
    let node = |name: &str, n: u8| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": {
                "flannel.alpha.coreos.com/public-ip": format!("172.30.0.1{n}"),
                "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"0e:00:00:00:0{n}:00\"}}"),
            }},
            "spec": {"podCIDRs": [format!("10.244.{n}.0/24")]},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("172.30.0.1{n}")}]},
        })
    };
    let lease = |n: u8, holder: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": format!("subnet-10-244-{n}-0-24"), "namespace": "kube-system",
                "labels": {"twill.io/subnet": format!("10-244-{n}-0-24")}},
            "spec": {"holderIdentity": holder},
        })
    };
    vec![
        node("here", 2),
        node("there", 3),
        lease(2, "here"),
        lease(3, "there"),
    ]
}

#[test]
fn what_objects_claim_twice_is_told_at_each_node_that_claims_it() {
    const PUBLIC: &str = "/metadata/annotations/flannel.alpha.coreos.com~1public-ip";
    let overwritten = "flannel.alpha.coreos.com/public-ip-overwrite";
    /// What is changed, at which nodes it is told, the evidence and the remedy.
    type Row<'a> = (fn(&mut [Value]), &'a [&'a str], &'a str, &'a str);
    let rows: &[Row<'_>] = &[
        (|_| {}, &[], "", ""),
        (
            |all| all[1]["spec"]["podCIDRs"] = json!(["10.244.2.128/25"]),
            &["here", "there"],
            "podCIDR 10.244.2.0/24 of Node here, 10.244.2.128/25 of Node there",
            "delete the Node object of the younger one",
        ),
        (
            |all| *all[1].pointer_mut(PUBLIC).unwrap() = "172.30.0.12".into(),
            &["here", "there"],
            "public-ip of both Nodes: 172.30.0.12",
            "public-ip-overwrite",
        ),
        (
            |all| {
                let data = json!("{\"VNI\":1,\"VtepMAC\":\"0e:00:00:00:02:00\"}");
                all[1]["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"] = data;
            },
            &["here", "there"],
            "backend-data of both Nodes: 0e:00:00:00:02:00",
            "ip link del flannel.1",
        ),
        (
            |all| all[2]["spec"]["holderIdentity"] = "gone".into(),
            &["here"],
            "Lease subnet-10-244-2-0-24 of 10.244.2.0/24: holder \"gone\"",
            "kubectl -n kube-system delete lease subnet-10-244-2-0-24",
        ),
        // Another's Lease, whatever it is called.
        (
            |all| {
                all[2]["spec"]["holderIdentity"] = "gone".into();
                all[2]["metadata"]["labels"] = json!({});
            },
            &[],
            "",
            "",
        ),
    ];
    for (change, nodes, evidence, remedy) in rows {
        let mut all = of_nodes();
        change(&mut all);
        let claims = Claims::of(&mut Cluster::of(given(&all)));
        let mut told = Vec::new();
        for place in claims.places() {
            for finding in claims.conflicts_of(&place) {
                assert_eq!(finding.severity, Severity::Error);
                assert!(finding.evidence.contains(evidence), "{finding}");
                assert!(finding.remedy.contains(remedy), "{finding}");
                told.push(place.to_string());
            }
        }
        assert_eq!(told, *nodes, "{evidence}");
    }
    // Who is told to be at another's address, and is not.
    let mut all = of_nodes();
    all[1]["metadata"]["annotations"][overwritten] = "172.30.0.12".into();
    let claims = Claims::of(&mut Cluster::of(given(&all)));
    let here = claims.at(&["172.30.0.12".parse().unwrap()]).unwrap();
    assert_eq!(claims.conflicts_of(here).count(), 1);
    // Where nothing is seen, nothing is said.
    let claims = Claims::of(&mut Cluster::default());
    assert!(claims.places().is_empty());
}

#[test]
fn a_node_that_has_something_else_than_its_objects_say_is_told_so() {
    let world = sound();
    let claims = Claims::of(&mut Cluster::of(given(&of_nodes())));
    let here = claims.at(&["172.30.0.12".parse().unwrap()]).unwrap();
    let true_one = claims.of_node(here).unwrap();
    let subnet = |text: &str| Claim {
        subnets: vec![text.parse().unwrap()],
        ..true_one.clone()
    };
    let vtep = Claim {
        vteps: vec!["0e:00:00:00:02:77".parse().unwrap()],
        ..true_one.clone()
    };
    for (claim, broken, evidence) in [
        (true_one.clone(), "true", ""),
        // Before flanneld has published anything.
        (Claim::default(), "true", ""),
        // The other family's is none of this one.
        (subnet("fd00::/64"), "true", ""),
        (
            subnet("10.244.9.0/24"),
            "true",
            "subnet.env has 10.244.2.0/24, podCIDRs of the Node 10.244.9.0/24",
        ),
        (
            vtep,
            "true",
            "VtepMAC 0e:00:00:00:02:77 in the Node's annotation backend-data; flannel.1 has 0e:00:00:00:02:00",
        ),
        (
            true_one.clone(),
            "ip link del flannel.1",
            "VtepMAC 0e:00:00:00:02:00 in the Node's annotation backend-data; there is no such device",
        ),
    ] {
        run(&world.node, broken);
        let host = Host {
            claim: Some(claim),
            ..Host::default()
        };
        let found = examine(&mut world.kernel(), &networks(Family::V4), &host).unwrap();
        match (&found[..], evidence) {
            ([], "") => {}
            ([one], _) if !evidence.is_empty() => {
                assert_eq!(one.severity, Severity::Error);
                assert!(one.evidence.contains(evidence), "{one}");
                assert!(one.remedy.contains("flanneld"), "{one}");
            }
            _ => panic!("{evidence}: {}", Findings(&found)),
        }
    }
}

#[test]
fn an_address_that_two_pods_have_is_told_with_both() {
    let world = sound();
    let record = |name: &str| world.records.path().join(format!("{name}-eth0.json"));
    let text = std::fs::read_to_string(record("b")).unwrap();
    let text = text.replace("default/b", "default/c");
    let twice = text.replace("10.244.2.6", "10.244.2.5");
    #[expect(clippy::disallowed_methods, reason = "read after it is written")]
    std::fs::write(
        record("c"),
        twice.replace(r#""containerId":"b""#, r#""containerId":"c""#),
    )
    .unwrap();
    let found = examine(&mut world.kernel(), &networks(Family::V4), &Host::default()).unwrap();
    let [one] = &found[..] else {
        panic!("{}", Findings(&found));
    };
    assert_eq!(one.what, "2 pods have the address 10.244.2.5");
    assert_eq!(one.evidence, "default/a by vetha, default/c by vethb");
}

#[test]
fn versions_that_differ_on_a_node_are_a_warning() {
    let world = sound();
    let versions = [("flanneld", "0.1.0"), ("twill-cni", "0.0.9")];
    let host = Host {
        versions: versions.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        ..Host::default()
    };
    let found = examine(&mut world.kernel(), &networks(Family::V4), &host).unwrap();
    let [one] = &found[..] else {
        panic!("{}", Findings(&found));
    };
    assert_eq!(one.severity, Severity::Warning);
    assert_eq!(one.evidence, "flanneld 0.1.0, twill-cni 0.0.9");
}
