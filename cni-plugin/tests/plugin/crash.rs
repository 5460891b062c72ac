//! The plugin killed at whatever moment: DEL then takes away all there is, and ADD succeeds.

use std::time::{Duration, Instant};

use hostnet::testkit::Ns;

use crate::runtime::Node;

/// Kills a call after a time and says whether it was still at work.
fn kill_after(node: &Node, verb: &str, netns: &str, time: Duration) -> bool {
    let mut child = node.start(verb, "c1", netns);
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
    let at_work = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    at_work
}

/// One whole call's time, for the sweep to cover.
fn time_of(node: &Node, verb: &str, netns: &str) -> Duration {
    let start = Instant::now();
    let reply = node.call(verb, "c1", netns);
    assert!(reply.ok, "{:#}", reply.json);
    start.elapsed()
}

const POINTS: u32 = 40;

#[test]
fn killed_during_add_or_del() {
    let node = Node::new();
    let keeper = Ns::new("keeper");
    node.add("keeper", &keeper).result();
    let (before, kept) = (node.snapshot(), node.kept());
    let pod = Ns::new("pod");
    let netns = pod.path();
    let (add, del) = (time_of(&node, "ADD", &netns), time_of(&node, "DEL", &netns));
    let mut interrupted = 0;
    for point in 0..POINTS {
        interrupted += u32::from(kill_after(&node, "ADD", &netns, add * point / POINTS));
        node.del("c1", &netns);
        assert_eq!(node.kept(), kept, "point {point}");
        assert_eq!(
            before.changes(&node.snapshot()),
            Vec::<String>::new(),
            "point {point}"
        );

        node.add("c1", &pod).result();
        interrupted += u32::from(kill_after(&node, "DEL", &netns, del * point / POINTS));
        node.del("c1", &netns);
        assert_eq!(node.kept(), kept, "point {point}");
        assert_eq!(
            before.changes(&node.snapshot()),
            Vec::<String>::new(),
            "point {point}"
        );
    }
    assert!(
        interrupted > POINTS / 2,
        "only {interrupted} calls were interrupted"
    );
}
