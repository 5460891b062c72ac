//! The test kit itself.

use std::time::Duration;

use hostnet::netns::NetNs;
use hostnet::testkit::{
    EchoServer, Ns, Snapshot, ask_tcp, ask_tcp_from, ask_udp, connect, join_bridge, wait_until,
};

#[test]
fn two_namespaces_on_a_bridge_tell_each_other_apart() {
    let (host, a, b) = (Ns::new("host"), Ns::new("a"), Ns::new("b"));
    host.bridge("br0");
    join_bridge(&host, "br0", "port-a", &a, "eth0");
    join_bridge(&host, "br0", "port-b", &b, "eth0");
    a.addr("eth0", "192.0.2.1/24");
    a.addr("eth0", "192.0.2.11/24");
    a.addr("eth0", "2001:db8::1/64");
    b.addr("eth0", "192.0.2.2/24");
    b.addr("eth0", "2001:db8::2/64");
    let server = EchoServer::start(&b, "b", "[::]:8080");
    for (address, source) in [
        ("192.0.2.2:8080", "192.0.2.1"),
        ("[2001:db8::2]:8080", "2001:db8::1"),
    ] {
        for answer in [ask_tcp(&a, address).unwrap(), ask_udp(&a, address).unwrap()] {
            assert_eq!(answer.server, "b");
            assert_eq!(answer.source.ip().to_string(), source);
        }
    }
    let answer = ask_tcp_from(&a, Some("192.0.2.11".parse().unwrap()), "192.0.2.2:8080").unwrap();
    assert_eq!(answer.source.ip().to_string(), "192.0.2.11");
    drop(server);
    ask_tcp(&a, "192.0.2.2:8080").unwrap_err();
    ask_udp(&a, "192.0.2.2:8080").unwrap_err();
}

#[test]
fn a_router_between_two_namespaces() {
    let (a, router, b) = (Ns::new("a"), Ns::new("router"), Ns::new("b"));
    connect(&a, "eth0", &router, "a");
    connect(&router, "b", &b, "eth0");
    a.addr("eth0", "192.0.2.2/24");
    router.addr("a", "192.0.2.1/24");
    router.addr("b", "198.51.100.1/24");
    b.addr("eth0", "198.51.100.2/24");
    a.route("default", "192.0.2.1");
    b.route("192.0.2.0/24", "198.51.100.1");
    router.forward();
    let _server = EchoServer::start(&b, "b", "198.51.100.2:53");
    assert_eq!(
        ask_udp(&a, "198.51.100.2:53")
            .unwrap()
            .source
            .ip()
            .to_string(),
        "192.0.2.2"
    );
}

#[test]
fn a_snapshot_shows_what_changed() {
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    connect(&a, "eth0", &b, "eth0");
    let before = Snapshot::of(&a);
    a.addr("eth0", "192.0.2.1/24");
    a.route("10.0.0.0/8", "192.0.2.9");
    let changes = before.changes(&Snapshot::of(&a));
    assert_eq!(
        changes,
        [
            "+ addr eth0 192.0.2.1/24",
            "+ route 10.0.0.0/8 via 192.0.2.9 dev eth0 proto 3 scope 0 metric 0",
            "+ route 192.0.2.0/24 dev eth0 src 192.0.2.1 proto 2 scope 253 metric 0",
        ]
    );
    a.sh("ip", &["-4", "addr", "flush", "dev", "eth0"]);
    assert_eq!(before.changes(&Snapshot::of(&a)), Vec::<String>::new());
}

#[test]
fn a_namespace_goes_with_its_handle_and_its_panic() {
    let pod = Ns::new("pod");
    let host = Ns::new("host");
    let result = std::panic::catch_unwind(|| {
        let doomed = Ns::new("doomed");
        connect(&host, "veth1", &doomed, "eth0");
        panic!("test failed");
    });
    assert!(result.is_err());
    // The kernel takes a dead namespace's links down in its own time.
    wait_until(
        "the veth of a dead namespace to go",
        Duration::from_secs(10),
        || host.find_link("veth1").is_none(),
    );
    assert_eq!(NetNs::open(pod.path()).unwrap().id(), pod.ns().id());
}

#[test]
#[should_panic(expected = "waited 20ms for the moon")]
fn waiting_has_an_end_and_a_name() {
    wait_until("the moon", Duration::from_millis(20), || false);
}

#[test]
#[should_panic(expected = "apt-get install unobtainium")]
fn a_missing_tool_is_named_with_its_package() {
    hostnet::testkit::require_tool("no-such-program", "unobtainium");
}
