//! From what the watch of Nodes tells to what the kernel holds, without an API server between: how long one more peer
//! takes in clusters of any size. Prints its figures; in private network namespaces; needs root.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use agent::{sync::Pass, watch::Delta};
use common::{TestNode, Underlay};
use flanneld::node::NodeObject;
use serde_json::json;

const SIZES: [u16; 4] = [100, 1_000, 2_000, 5_000];
/// Peers that come one by one.
const LATER: u16 = 500;
/// What a kubelet says of a node's images, in bytes: the watch of Nodes carries it.
const IMAGES: usize = 50_000;

const NET_CONF: &str =
    r#"{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}"#;

/// A Node as the watch tells it.
fn peer(index: u16) -> String {
    let [high, low] = index.to_be_bytes();
    json!({
        "metadata": {
            "name": format!("peer-{index}"),
            "uid": format!("uid-{index}"),
            "creationTimestamp": "2026-11-22T10:00:00Z",
            "annotations": {
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data":
                    format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:{high:02x}:{low:02x}\"}}"),
                "flannel.alpha.coreos.com/public-ip": format!("172.31.{high}.{low}"),
            },
        },
        "spec": {"podCIDRs": [format!("10.{high}.{low}.0/24")]},
        "status": {"images": [{"names": ["i".repeat(IMAGES)], "sizeBytes": 1}]},
    })
    .to_string()
}

fn hear(node: &mut TestNode, text: &str) {
    let object: NodeObject = serde_json::from_str(text).unwrap();
    assert!(node.index.node(Delta::Upsert(object)));
}

/// The value that this share of the samples does not exceed, in milliseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1].as_secs_f64() * 1e3
}

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn main() {
    println!(
        "{:>8} {:>14} {:>14} {:>10} {:>10}",
        "peers", "all, ms", "one more: p50", "p99", "max ms"
    );
    for size in SIZES {
        let underlay = Underlay::new();
        let mut node = TestNode::new(&underlay, 1, NET_CONF, &[]);
        node.pass(Pass::Full);
        for index in 0..size {
            hear(&mut node, &peer(index));
        }
        let start = Instant::now();
        assert_eq!(
            node.pass(Pass::Dirty).selection.peers.len(),
            usize::from(size)
        );
        let all = start.elapsed();
        let mut took: Vec<Duration> = (size..size + LATER)
            .map(|index| {
                let text = peer(index);
                let start = Instant::now();
                hear(&mut node, &text);
                let ops = node.pass(Pass::Dirty).ops;
                let took = start.elapsed();
                assert_eq!(ops.len(), 3, "forwarding entry, neighbour, route");
                took
            })
            .collect();
        took.sort();
        println!(
            "{size:>8} {:>14.1} {:>14.3} {:>10.3} {:>10.3}",
            all.as_secs_f64() * 1e3,
            percentile(&took, 50),
            percentile(&took, 99),
            percentile(&took, 100),
        );
    }
}
