//! The way through another node: it is asked for its part, from its own kernel, and what is broken there is named here.

use std::path::PathBuf;

use cli::far;
use cli::kernel::Kernel;
use cli::objects::Cluster;
use cli::onward::{self, ByCommand, Place, Reach};
use cli::report::{Arrival, Trace};
use cli::trace::{PodNetwork, Question, trace};
use hostnet::nft::Proto;
use hostnet::testkit::ask_tcp;
use hostnet::vocab::Family;

use crate::world::{World, run};

/// Asks the world's node, as its daemon would answer.
struct Direct<'a> {
    world: &'a World,
    subnet_file: PathBuf,
}

impl<'a> Direct<'a> {
    fn new(world: &'a World) -> Direct<'a> {
        let subnet_file = world.records.path().join("subnet.env");
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        #[expect(clippy::disallowed_methods, reason = "read after it is written")]
        std::fs::write(&subnet_file, text).unwrap();
        Direct { world, subnet_file }
    }
}

impl Reach for Direct<'_> {
    fn get(&self, node: &Place, port: u16, target: &str) -> Result<String, String> {
        assert_eq!(
            (node.to_string().as_str(), port),
            ("172.30.0.12", onward::PORT)
        );
        let files = far::Files {
            records: self.world.records.path().to_owned(),
            subnet_file: self.subnet_file.clone(),
            cni_conf_dir: self.world.records.path().to_owned(),
            cni_bin_dir: self.world.records.path().to_owned(),
        };
        let answer = || far::reply(target, &files);
        match self.world.node.run(answer).unwrap() {
            (200, body) => Ok(body),
            (status, body) => Err(format!("{status}: {body}")),
        }
    }
}

/// From the peer to pod `a` of the node.
fn from_peer(world: &World, reach: &dyn Reach) -> Trace {
    let question = Question {
        from: "node".parse().unwrap(),
        to: "10.244.2.5:8080".parse().unwrap(),
        proto: Proto::TCP,
        family: Family::V4,
        sees_pods: true,
    };
    let network = PodNetwork {
        network: "10.244.0.0/16".parse().unwrap(),
        own: "10.244.3.0/24".parse().unwrap(),
    };
    let empty = tempfile::tempdir().unwrap();
    let mut kernel = Kernel::of(world.peer.ns().clone(), empty.path()).unwrap();
    let near = trace(&mut kernel, &mut Cluster::default(), &[network], &question).unwrap();
    onward::follow(reach, Proto::TCP, near)
}

#[test]
fn what_is_broken_at_the_other_node_is_named_here() {
    for (broken, [stage, cause, remedy]) in [
        ("true", ["", "", ""]),
        (
            "sysctl -q -w net.ipv4.ip_forward=0",
            ["forward", "does not forward", "net.ipv4.ip_forward=1"],
        ),
        (
            "nft add chain inet wall gate { type filter hook forward priority 0 ; policy drop ; }",
            [
                "forward",
                "chain inet wall gate drops it: policy drop",
                "nft add rule inet wall gate",
            ],
        ),
        (
            "ip route del 10.244.3.0/24",
            [
                "back",
                "no answer comes back: the route to 10.244.3.0/24 is missing",
                "flanneld",
            ],
        ),
        (
            "ip link set cni0 down",
            ["route", "cni0 is down", "ip link set cni0 up"],
        ),
        (
            "ip link set vetha down",
            ["port", "vetha is down", "ip link set vetha up"],
        ),
        (
            "ip link del vetha",
            ["port", "vetha is gone", "delete the pod"],
        ),
    ] {
        let world = World::new();
        run(&world.node, "nft add table inet wall");
        run(&world.node, broken);
        let told = from_peer(&world, &Direct::new(&world));
        let text = told.to_string();
        let answer = ask_tcp(&world.peer, "10.244.2.5:8080");
        assert!(text.contains("there       at node 172.30.0.12"), "{text}");
        if stage.is_empty() {
            assert_eq!(told.arrives, Arrival::Yes, "{text}");
            assert!(text.contains("10.244.3.0 comes in by flannel.1"), "{text}");
            assert!(
                text.contains("port        vetha of cni0   [pod default/a]"),
                "{text}"
            );
            assert!(answer.is_ok(), "{answer:?}");
            continue;
        }
        assert_eq!(told.arrives, Arrival::No, "{text}");
        let [(at, fault)] = &told.faults()[..] else {
            panic!("{broken}: {text}");
        };
        assert!(
            *at == stage && fault.cause.contains(cause) && fault.remedy.contains(remedy),
            "{broken}: {text}"
        );
        assert!(answer.is_err(), "{broken}: {answer:?}");
    }
}

#[test]
fn of_a_node_that_does_not_answer_the_rest_is_shown_and_what_is_missing_is_said() {
    let world = World::new();
    for (command, said) in [
        (
            "false {node}",
            "node 172.30.0.12 does not answer, so its part is not seen: false: exit status: 1",
        ),
        ("no-such-program", "no-such-program: No such file"),
        (
            "echo {address} {url}",
            r#""172.30.0.12 http://127.0.0.1:8082/trace?from=10.244.3.0&to=10.244.2.5:8080&proto=6", which is no trace"#,
        ),
    ] {
        let told = from_peer(&world, &ByCommand(command.to_owned()));
        let text = told.to_string();
        assert!(text.contains(said), "{text}");
        assert!(
            text.contains("tunnel      UDP 8472 to 172.30.0.12"),
            "{text}"
        );
        assert_eq!(told.arrives, Arrival::Yes, "{text}");
    }
}
