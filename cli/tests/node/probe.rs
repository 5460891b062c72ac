//! Real packets to the other node, and the usual blockers of the tunnel, each named.

use cli::kernel::Kernel;
use cli::probe::{Report, peers, probe, twice};
use hostnet::testkit::{BadCard, Ns, connect};
use hostnet::vocab::Family;

use crate::world::{Mode, World, run};

fn probed(world: &World) -> Report {
    let peers = peers(&mut world.kernel()).unwrap();
    Report {
        peers: world.node.run(|| probe(&peers, 2)).unwrap(),
        service: None,
        twice: world.node.run(|| twice(&mut world.kernel())).unwrap(),
    }
}

#[test]
fn a_sound_tunnel_carries_what_its_device_is_set_to() {
    for family in Family::ALL {
        let world = World::of(family, Mode::Nft);
        let report = probed(&world);
        assert!(report.is_well(), "{report}");
        let [one] = &report.peers[..] else {
            panic!("{report}");
        };
        let device = world.say("flannel.1");
        assert_eq!(one.subnet, world.say("10.244.3.0/24"));
        assert_eq!(
            (one.lost_small, one.lost_full),
            ([0, 2], [0, 2]),
            "{report}"
        );
        assert_eq!(one.mtu, usize::try_from(world.node.link(&device).mtu).ok());
        assert!(one.latency.is_some_and(|ms| ms > 0.0));
    }
}

#[test]
fn what_blocks_the_tunnel_is_named_with_the_remedy() {
    let wall = "nft add table inet wall";
    let gate = "nft add chain inet wall gate { type filter hook input priority -200 ; }";
    for (what, broken, problem, remedy) in [
        (
            "UDP is filtered",
            &[
                wall,
                gate,
                "nft add rule inet wall gate udp dport 8472 drop",
            ][..],
            "172.30.0.13 answers, but not through the tunnel: UDP port 8472 is filtered",
            "let UDP 8472 pass",
        ),
        (
            "the other device is gone",
            &["ip link del flannel.1"],
            "or its flannel.1 is not there",
            "twill doctor",
        ),
        (
            "the node is gone",
            &["ip link set eth0 down"],
            "the node 172.30.0.13 does not answer, with or without the tunnel",
            "is it up?",
        ),
        (
            "large packets are dropped",
            &[
                wall,
                gate,
                "nft add rule inet wall gate udp dport 8472 udp length > 1258 drop",
            ],
            // Beside the headers of UDP, VXLAN and Ethernet.
            "(up to 1228 bytes do)",
            "set Backend.MTU in net-conf.json to 1228",
        ),
    ] {
        let world = World::new();
        for line in broken {
            run(&world.peer, line);
        }
        let report = probed(&world);
        let text = report.to_string();
        assert!(!report.is_well(), "{what}: {text}");
        assert!(
            text.contains(problem) && text.contains(remedy),
            "{what}: {text}"
        );
    }
}

#[test]
fn an_address_that_another_machine_has_too_is_named_with_its_mac() {
    let world = World::new();
    assert_eq!(probed(&world).twice, []);
    world.peer.addr("eth0", "172.30.0.12/24");
    let report = probed(&world);
    let [one] = &report.twice[..] else {
        panic!("{report}");
    };
    let mac = world.peer.link("eth0").mac.unwrap();
    assert_eq!(
        (one.address.to_string().as_str(), one.mac),
        ("172.30.0.12", mac)
    );
    assert!(!report.is_well());
    let line = format!("✗ 172.30.0.12 is another machine's too: {mac} on eth0");
    assert!(report.to_string().contains(&line), "{report}");
}

/// Two nodes with a card between them that does not compute the checksums of packets in packets.
fn over_a_bad_card() -> ([Ns; 2], BadCard, Ns) {
    let [near, far, card] = ["near", "far", "card"].map(Ns::new);
    for (ns, port, own, other) in [(&near, "to-near", 12, 13), (&far, "to-far", 13, 12)] {
        connect(ns, "eth0", &card, port);
        ns.addr("eth0", &format!("172.30.0.{own}/24"));
        // The outer checksum is one that no card computes wrong.
        for line in [
            format!(
                "ip link add flannel.1 address 0e:00:00:00:{own}:00 type vxlan id 1 dstport 8472 local 172.30.0.{own} dev eth0 \
                 nolearning noudpcsum"
            ),
            "ip link set flannel.1 up".to_owned(),
            format!("ip address add 10.244.{own}.0/32 dev flannel.1"),
            format!(
                "ip neighbour add 10.244.{other}.0 lladdr 0e:00:00:00:{other}:00 dev flannel.1 nud permanent"
            ),
            format!("bridge fdb add 0e:00:00:00:{other}:00 dst 172.30.0.{other} dev flannel.1"),
            format!("ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"),
        ] {
            run(ns, &line);
        }
    }
    let bad = BadCard::start(&card, "to-near", "to-far");
    ([near, far], bad, card)
}

#[test]
fn a_card_that_computes_checksums_wrong_is_told_from_a_firewall() {
    let ([near, far], _bad, _card) = over_a_bad_card();
    let probed = || {
        let mut kernel = Kernel::of(near.ns().clone(), "/nowhere".as_ref()).unwrap();
        let peers = peers(&mut kernel).unwrap();
        near.run(|| probe(&peers, 2)).unwrap().remove(0)
    };
    let told = probed();
    assert_eq!(
        (told.lost_small, told.lost_full),
        ([0, 2], [0, 2]),
        "{told:?}"
    );
    let (problem, remedy) = (told.problem.unwrap(), told.remedy.unwrap());
    assert!(problem.contains("checksum offload"), "{problem}");
    assert!(
        remedy.contains("`ethtool --offload flannel.1 tx-checksum-ip-generic off`"),
        "{remedy}"
    );
    // Who refuses without a word has no broken card, as far as can be told.
    run(&far, "nft add table inet wall");
    run(
        &far,
        "nft add chain inet wall gate { type filter hook input priority 0 ; }",
    );
    run(
        &far,
        "nft add rule inet wall gate iifname flannel.1 meta l4proto udp drop",
    );
    let told = probed();
    assert_eq!(told.problem, None, "{told:?}");
}
