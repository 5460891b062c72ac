//! One cluster with upstream's flannel on one node and Twill on the other: what a migration, node by
//! node, goes through.

use std::net::SocketAddr;

use integration::testing::ask;
use integration::traffic::{Stream, Transport};
use integration::{Daemon, Lab, Node, Pod, PodSpec, wait};
use nix::sys::signal::Signal;

const TWILL: &str = "twill";
const FLANNEL: &str = "flannel";

/// Both nodes with their daemons, and a pod on each.
fn lab(net_conf: &str) -> (Lab, [Pod; 2]) {
    let mut builder = Lab::builder().daemons(&[]).net_conf(net_conf);
    for (name, subnet) in [(TWILL, "10.244.1.0/24"), (FLANNEL, "10.244.2.0/24")] {
        builder = builder.node(name, &[subnet.parse().unwrap()]);
    }
    let lab = builder.up().unwrap();
    lab.node(FLANNEL).unwrap().start_flannel(net_conf).unwrap();
    start(&lab, TWILL, net_conf);
    let pods = [TWILL, FLANNEL].map(|node| lab.run_pod(PodSpec::new(node, node)).unwrap());
    (lab, pods)
}

fn start(lab: &Lab, node: &str, net_conf: &str) {
    let node = lab.node(node).unwrap();
    node.provide(Daemon::Flanneld, lab.control_plane(), net_conf)
        .unwrap();
    node.start(Daemon::Flanneld).unwrap();
    node.wait_ready(Daemon::Flanneld).unwrap();
    node.wait_peers(&["ipv4"], 1).unwrap();
}

/// Each pod asks the other until flannel, too, has programmed the way; then once more by each
/// transport: who answered, and whom he saw.
fn talk(pods: &[Pod; 2]) {
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        wait::until("a way to the other node", wait::PATIENCE, || {
            let asked =
                integration::traffic::ask(from.netns(), Transport::Tcp, to.address()).map(drop);
            Ok(asked)
        })
        .unwrap();
        for transport in Transport::ALL {
            let answer = ask(from.name(), from.netns(), transport, to.address());
            assert_eq!(answer.server, to.name());
            assert_eq!(answer.client, from.ip(), "{transport} {answer}");
        }
    }
}

/// A node reaches the other's pod.
fn from_node(node: &Node, pod: &Pod) {
    let netns = node.machine().netns();
    let answer = ask(node.name(), netns, Transport::Tcp, pod.address());
    assert_eq!(answer.server, pod.name());
}

fn both_ways(net_conf: &str) {
    let (lab, pods) = lab(net_conf);
    talk(&pods);
    from_node(lab.node(TWILL).unwrap(), &pods[1]);
    from_node(lab.node(FLANNEL).unwrap(), &pods[0]);
    migrate(&lab, &pods, net_conf);
}

/// flannel's node becomes one of Twill's while its pod talks with the other, and then a pod that
/// is new talks with an old one.
fn migrate(lab: &Lab, pods: &[Pod; 2], net_conf: &str) {
    let node = lab.node(FLANNEL).unwrap();
    let routes = |node: &Node| node.machine().run("ip route show 10.244.0.0/16").unwrap();
    let before = [routes(lab.node(TWILL).unwrap()), routes(node)];
    let streams = Transport::ALL.map(|transport| {
        let there = Stream::start(pods[0].netns(), transport, pods[1].address());
        let back = Stream::start(pods[1].netns(), transport, pods[0].address());
        [there.unwrap(), back.unwrap()]
    });
    let mut streams = streams.into_iter().flatten().collect::<Vec<_>>();
    let mut flow = |when: &str| {
        for stream in &mut streams {
            let flowing = stream.wait_for(100, wait::PATIENCE);
            flowing.unwrap_or_else(|error| panic!("{when}: {error:#}"));
        }
    };
    flow("before");
    node.machine().stop(FLANNEL, Signal::SIGTERM).unwrap();
    flow("while no daemon runs");
    start(lab, FLANNEL, net_conf);
    flow("after Twill has started");
    for stream in streams {
        let report = stream.finish().unwrap();
        assert!(report.lost.is_empty(), "{report:?}");
    }
    let after = [routes(lab.node(TWILL).unwrap()), routes(node)];
    assert_eq!(after, before, "the same ways, each once");
    let late = lab.run_pod(PodSpec::new("late", FLANNEL)).unwrap();
    let there: SocketAddr = pods[0].address();
    assert_eq!(
        ask("late", late.netns(), Transport::Tcp, there).client,
        late.ip()
    );
}

#[test]
fn vxlan_goes_both_ways_and_a_node_migrates_under_streams() {
    both_ways(
        r#"{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#,
    );
}

#[test]
fn host_gw_goes_both_ways_and_a_node_migrates_under_streams() {
    both_ways(
        r#"{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "host-gw"}}"#,
    );
}
