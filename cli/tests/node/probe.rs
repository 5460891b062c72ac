//! Real packets to the other node, and the usual blockers of the tunnel, each named.

use cli::probe::{Report, peers, probe};
use hostnet::vocab::Family;

use crate::world::{Mode, World, run};

fn probed(world: &World) -> Report {
    let peers = peers(&mut world.kernel()).unwrap();
    Report {
        peers: world.node.run(|| probe(&peers, 2)).unwrap(),
        service: None,
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
