//! Host ports and masquerade, with packets.

use std::net::UdpSocket;
use std::time::Duration;

use cni_plugin::rebuild;
use cni_plugin::record::Records;
use hostnet::nft::Nft;
use hostnet::sysctl::Sysctl;
use hostnet::testkit::{
    Answer, EchoServer, Ns, ask_tcp, ask_udp, connect, require_tool, wait_until,
};
use serde_json::{Value, json};

use crate::runtime::{DUAL, Node, SUBNET};

/// A node that others reach at 192.0.2.1 and 2001:db8::1.
struct Site {
    node: Node,
    outside: Ns,
}

impl Site {
    fn new(subnet: &str) -> Site {
        let node = Node::without_subnet();
        node.set_subnet(subnet);
        let outside = Ns::new("outside");
        connect(&node.host, "uplink", &outside, "eth0");
        node.host.addr("uplink", "192.0.2.1/24");
        node.host.addr("uplink", "2001:db8::1/64");
        outside.addr("eth0", "192.0.2.2/24");
        outside.addr("eth0", "2001:db8::2/64");
        // A cable that was just laid may lose its first packets.
        let server = EchoServer::start(&node.host, "node", "[2001:db8::1]:1");
        wait_until(
            "the cable to carry packets",
            Duration::from_secs(30),
            || ask_udp(&outside, "[2001:db8::1]:1").is_ok(),
        );
        drop(server);
        Site { node, outside }
    }

    fn add(&mut self, id: &str, pod: &Ns, ports: Value) -> Value {
        self.node
            .set_extra(json!({"runtimeConfig": {"portMappings": ports}}));
        self.node.add(id, pod).result()
    }

    fn nft(&self, arguments: &[&str]) -> String {
        require_tool("nft", "nftables");
        self.node.host.sh("nft", arguments)
    }

    /// The lines of the tables that name a container.
    fn rules_of(&self, id: &str) -> Vec<String> {
        let ruleset = self.nft(&["list", "ruleset"]);
        let name = format!("\"{id}/eth0@cbr0");
        let lines = ruleset.lines().filter(|line| line.contains(&name));
        lines.map(|line| line.trim().to_owned()).collect()
    }
}

fn tcp(host: u16, container: u16) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": "tcp"})
}

fn udp(host: u16, container: u16) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": "udp"})
}

fn who(answer: std::io::Result<Answer>) -> (String, String) {
    let answer = answer.unwrap();
    (answer.server, answer.source.ip().to_string())
}

#[test]
fn a_port_is_reached_from_everywhere() {
    let mut site = Site::new(DUAL);
    let (pod, other) = (Ns::new("pod"), Ns::new("other"));
    site.add("c1", &pod, json!([tcp(8080, 80), udp(8053, 80)]));
    site.add("c2", &other, json!([]));
    let _servers = [
        EchoServer::start(&pod, "v4", "10.244.3.2:80"),
        EchoServer::start(&pod, "v6", "[fd00:0:0:3::2]:80"),
    ];
    let host = &site.node.host;
    for (client, at, server, source) in [
        (&site.outside, "192.0.2.1", "v4", "192.0.2.2"),
        (&site.outside, "[2001:db8::1]", "v6", "2001:db8::2"),
        (host, "192.0.2.1", "v4", "192.0.2.1"),
        (host, "[2001:db8::1]", "v6", "2001:db8::1"),
        // What cannot answer back by itself is seen as the node.
        (host, "127.0.0.1", "v4", "10.244.3.1"),
        (&pod, "192.0.2.1", "v4", "10.244.3.1"),
        (&pod, "10.244.3.1", "v4", "10.244.3.1"),
        (&pod, "[2001:db8::1]", "v6", "fd00:0:0:3::1"),
        (&other, "192.0.2.1", "v4", "10.244.3.3"),
        (&other, "10.244.3.1", "v4", "10.244.3.3"),
    ] {
        let expected = (server.to_owned(), source.to_owned());
        let case = format!("{} to {at}", client.label());
        for answer in [
            ask_tcp(client, &format!("{at}:8080")),
            ask_udp(client, &format!("{at}:8053")),
        ] {
            let answer = answer.unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(who(Ok(answer)), expected, "{case}");
        }
    }
    // Only at the node: the same port elsewhere is elsewhere's.
    let _server = EchoServer::start(&site.outside, "outside", "192.0.2.2:8080");
    assert_eq!(who(ask_tcp(&site.node.host, "192.0.2.2:8080")).0, "outside");

    site.node.del("c1", &pod.path());
    assert_eq!(site.rules_of("c1"), Vec::<String>::new());
    ask_tcp(&site.outside, "192.0.2.1:8080").unwrap_err();
    let ruleset = site.nft(&["list", "ruleset"]);
    assert!(
        ruleset.contains("priority -105"),
        "the chains stay\n{ruleset}"
    );
}

#[test]
fn what_nft_lists_can_be_loaded_again() {
    let mut site = Site::new(&DUAL.replace("IPMASQ=true", "IPMASQ=false"));
    let pod = Ns::new("pod");
    site.node.set_extra(json!({"masqAll": true, "runtimeConfig": {"portMappings": [
        tcp(8080, 80), udp(53, 53), {"hostPort": 7, "containerPort": 7, "protocol": "sctp", "hostIP": "127.0.0.1"}
    ]}}));
    site.node.add("c1", &pod).result();
    let listed = site.nft(&["list", "ruleset"]);
    for text in [
        "sctp . 7 comment \"c1/eth0@cbr0 default/x\" : 10.244.3.2 . 7",
        "type nat hook postrouting priority srcnat - 2",
        "10.244.3.2 . 10.244.0.0/16",
        "iifname @bridges ip daddr 127.0.0.0/8 drop",
    ] {
        assert!(listed.contains(text), "{text}\n{listed}");
    }
    site.node.put("saved", &listed);
    let elsewhere = Ns::new("elsewhere");
    elsewhere.sh("nft", &["-f", site.node.path("saved").to_str().unwrap()]);
    assert_eq!(elsewhere.sh("nft", &["list", "ruleset"]), listed);
}

#[test]
fn a_port_at_one_address() {
    let mut site = Site::new(SUBNET);
    site.node.host.addr("uplink", "192.0.2.9/24");
    let pod = Ns::new("pod");
    let at = |ip: &str, port: u16| json!({"hostPort": 8080, "containerPort": port, "protocol": "tcp", "hostIP": ip});
    site.add(
        "c1",
        &pod,
        json!([at("127.0.0.1", 80), at("192.0.2.9", 81), at("", 82)]),
    );
    let _servers = [
        EchoServer::start(&pod, "loopback", "10.244.3.2:80"),
        EchoServer::start(&pod, "nine", "10.244.3.2:81"),
        EchoServer::start(&pod, "all", "10.244.3.2:82"),
    ];
    let host = &site.node.host;
    assert_eq!(who(ask_tcp(host, "127.0.0.1:8080")).0, "loopback");
    assert_eq!(who(ask_tcp(&site.outside, "192.0.2.9:8080")).0, "nine");
    assert_eq!(who(ask_tcp(&site.outside, "192.0.2.1:8080")).0, "all");
    site.node.del("c1", "");
    let addr = |result: Value| {
        let cidr = result["ips"][0]["address"].as_str().unwrap().to_owned();
        cidr.split('/').next().unwrap().to_owned()
    };
    let addr = addr(site.add("c2", &Ns::new("next"), json!([at("127.0.0.1", 80)])));
    assert_eq!(addr, "10.244.3.3");
    ask_tcp(&site.outside, "192.0.2.1:8080").unwrap_err();
}

#[test]
fn a_port_that_another_pod_has() {
    let mut site = Site::new(SUBNET);
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    site.add("c1", &a, json!([tcp(8080, 80)]));
    let before = site.nft(&["list", "ruleset"]);
    let snapshot = site.node.snapshot();
    for ports in [
        json!([tcp(9090, 90), tcp(8080, 81)]),
        json!([{"hostPort": 8080, "containerPort": 81, "hostIP": "192.0.2.1"}]),
    ] {
        site.node
            .set_extra(json!({"runtimeConfig": {"portMappings": ports}}));
        let (code, msg) = site.node.add("c2", &b).error();
        assert_eq!(code, 11);
        assert!(
            msg.contains("8080/tcp, which pod default/x (container c1) has"),
            "{msg}"
        );
        assert_eq!(site.nft(&["list", "ruleset"]), before);
        assert_eq!(
            snapshot.changes(&site.node.snapshot()),
            Vec::<String>::new()
        );
        assert_eq!(site.node.kept(), ["10.244.3.2", "c1-eth0.json"]);
    }
    // Another protocol is another port; and what is given up is free.
    site.add("c2", &b, json!([udp(8080, 80)]));
    site.node.del("c2", "");
    site.node.del("c1", "");
    site.add("c2", &b, json!([tcp(8080, 80)]));
}

#[test]
fn of_many_at_once_one_gets_the_port() {
    let mut site = Site::new(SUBNET);
    site.node
        .set_extra(json!({"runtimeConfig": {"portMappings": [tcp(8080, 80)]}}));
    let pods: Vec<Ns> = (0..8).map(|n| Ns::new(&format!("pod{n}"))).collect();
    let calls: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(n, pod)| site.node.start("ADD", &format!("c{n}"), &pod.path()))
        .collect();
    let replies: Vec<_> = calls.into_iter().map(crate::runtime::finish).collect();
    assert_eq!(
        replies.iter().filter(|reply| reply.ok).count(),
        1,
        "{replies:#?}"
    );
    assert_eq!(site.node.ports().len(), 1);
    assert_eq!(site.node.reserved().len(), 1);
    assert_eq!(site.node.kept().len(), 2);
}

#[test]
fn pods_do_not_reach_what_listens_on_the_nodes_127_0_0_1() {
    require_tool("ip", "iproute2");
    let mut site = Site::new(SUBNET);
    let pod = Ns::new("pod");
    site.add("c1", &pod, json!([tcp(8080, 80)]));
    assert_eq!(site.node.host.sysctl("ipv4/conf/cni0/route_localnet"), "1");
    let own = site.node.host.run(|| UdpSocket::bind("127.0.0.1:9999"));
    let own = own.unwrap();
    own.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // A pod that may do as it likes in its own namespace.
    pod.set_sysctl("ipv4/conf/eth0/route_localnet", "1");
    pod.sh(
        "ip",
        &[
            "route",
            "del",
            "local",
            "127.0.0.0/8",
            "dev",
            "lo",
            "table",
            "local",
        ],
    );
    pod.sh(
        "ip",
        &[
            "route",
            "del",
            "local",
            "127.0.0.1",
            "dev",
            "lo",
            "table",
            "local",
        ],
    );
    pod.sh("ip", &["route", "add", "127.0.0.0/8", "via", "10.244.3.1"]);
    let sender = pod.run(|| UdpSocket::bind("10.244.3.2:0")).unwrap();
    sender.send_to(b"guarded", "127.0.0.1:9999").unwrap();
    // It is the guard that stops it: without, the next one arrives, and the first did not.
    site.nft(&["flush", "chain", "ip", "twill-cni", "guard"]);
    sender.send_to(b"unguarded", "127.0.0.1:9999").unwrap();
    let mut buffer = [0; 64];
    let length = own.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"unguarded");
}

#[test]
fn without_snat_and_with_masquerade_for_all() {
    let mut site = Site::new(SUBNET);
    let pod = Ns::new("pod");
    let ports = json!([tcp(8080, 80)]);
    site.node
        .set_extra(json!({"snat": false, "runtimeConfig": {"portMappings": ports}}));
    site.node.add("c1", &pod).result();
    let server = EchoServer::start(&pod, "pod", "10.244.3.2:80");
    assert_eq!(who(ask_tcp(&site.outside, "192.0.2.1:8080")).1, "192.0.2.2");
    ask_tcp(&site.node.host, "127.0.0.1:8080").unwrap_err();
    assert_eq!(site.node.host.sysctl("ipv4/conf/cni0/route_localnet"), "0");
    site.node.del("c1", "");
    drop(server);

    let pod = Ns::new("pod");
    site.node
        .set_extra(json!({"masqAll": true, "runtimeConfig": {"portMappings": ports}}));
    site.node.add("c2", &pod).result();
    let _server = EchoServer::start(&pod, "pod", "10.244.3.3:80");
    assert_eq!(
        who(ask_tcp(&site.outside, "192.0.2.1:8080")).1,
        "10.244.3.1"
    );
    // Only what comes by the host port.
    assert_eq!(
        who(ask_tcp(&site.node.host, "10.244.3.3:80")).1,
        "10.244.3.1"
    );
}

/// A client that goes on from one and the same port, and who answers it.
struct Talker(UdpSocket);

impl Talker {
    fn new(ns: &Ns, to: &str) -> Talker {
        let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect(to).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        Talker(socket)
    }

    fn ask(&self) -> String {
        let mut buffer = [0; 256];
        // A datagram to a port that is not open is an error of the next call.
        let _ = self.0.send(b"who\n");
        let length = self.0.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        text.split(' ').next().unwrap().to_owned()
    }
}

#[test]
fn udp_flows_follow_the_pod_that_has_the_port() {
    let mut site = Site::new(SUBNET);
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    let _node = EchoServer::start(&site.node.host, "node", "192.0.2.1:8053");
    let talker = Talker::new(&site.outside, "192.0.2.1:8053");
    assert_eq!(talker.ask(), "node");
    // Stale at ADD: the flow is known, without translation.
    site.add("c1", &a, json!([udp(8053, 53)]));
    let _a = EchoServer::start(&a, "a", "10.244.3.2:53");
    assert_eq!(talker.ask(), "a");
    // Stale at DEL: it leads to a pod that is gone.
    site.node.del("c1", "");
    assert_eq!(talker.ask(), "node");
    site.add("c2", &b, json!([udp(8053, 53)]));
    let _b = EchoServer::start(&b, "b", "10.244.3.3:53");
    assert_eq!(talker.ask(), "b");
    // What only passes through the node to that port elsewhere is left alone.
    site.node.del("c2", "");
}

#[test]
fn what_pods_send_outside_is_masqueraded_where_flanneld_does_not() {
    let site = Site::new(&SUBNET.replace("IPMASQ=true", "IPMASQ=false"));
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    site.node.add("a", &a).result();
    site.node.add("b", &b).result();
    let _servers = [
        EchoServer::start(&site.outside, "outside", "192.0.2.2:80"),
        EchoServer::start(&b, "b", "10.244.3.3:80"),
    ];
    // The way back to a pod is not known outside.
    assert_eq!(
        who(ask_tcp(&a, "192.0.2.2:80")),
        ("outside".to_owned(), "192.0.2.1".to_owned())
    );
    assert_eq!(who(ask_tcp(&a, "10.244.3.3:80")).1, "10.244.3.2");
    site.node.del("a", "");
    assert_eq!(site.rules_of("a"), Vec::<String>::new());
    assert_eq!(site.rules_of("b").len(), 2);
    assert_eq!(
        who(ask_tcp(&b, "192.0.2.2:80")).1,
        "192.0.2.1",
        "the other pod keeps its rules"
    );
}

#[test]
fn what_is_flushed_is_rebuilt_from_the_records() {
    let mut site = Site::new(DUAL);
    let (pod, other) = (Ns::new("pod"), Ns::new("other"));
    site.add("c1", &pod, json!([tcp(8080, 80)]));
    let rates = json!({"egressRate": 8_000_000, "egressBurst": 800_000, "ingressRate": 8_000_000, "ingressBurst": 800_000});
    site.node
        .set_extra(json!({"runtimeConfig": {"bandwidth": rates}}));
    site.node.add("c2", &other).result();
    let _server = EchoServer::start(&pod, "v4", "10.244.3.2:80");
    let host = &site.node.host;
    let (ruleset, links) = (site.nft(&["list", "ruleset"]), site.node.snapshot());
    let records = Records::new(&site.node.path("twill"));
    let mend = || {
        let mut nft = host.run(Nft::open).unwrap();
        let mut rtnl = host.rtnl();
        host.run(|| rebuild::mend(&mut rtnl, &mut nft, &Sysctl::default(), &records))
            .unwrap()
    };
    assert_eq!(mend(), Vec::<String>::new(), "nothing to do");

    type Harm<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let harms: [Harm; 6] = [
        (
            "flushed rules",
            Box::new(|| {
                site.nft(&["flush", "ruleset"]);
            }),
        ),
        (
            "an element",
            Box::new(|| {
                site.nft(&["flush", "map", "ip", "twill-cni", "hostports"]);
            }),
        ),
        (
            "a chain",
            Box::new(|| {
                site.nft(&["flush", "chain", "ip", "twill-cni", "postrouting"]);
            }),
        ),
        (
            "the bridge",
            Box::new(|| {
                host.sh("ip", &["link", "del", "cni0"]);
            }),
        ),
        (
            "an address",
            Box::new(|| {
                host.sh("ip", &["addr", "flush", "dev", "cni0"]);
            }),
        ),
        ("down", Box::new(|| host.set_down("cni0"))),
    ];
    for (name, harm) in &harms {
        harm();
        assert!(!mend().is_empty(), "{name}");
        assert_eq!(site.nft(&["list", "ruleset"]), ruleset, "{name}");
        assert_eq!(
            links.changes(&site.node.snapshot()),
            Vec::<String>::new(),
            "{name}"
        );
        assert_eq!(mend(), Vec::<String>::new(), "{name}");
        wait_until("the port to answer", Duration::from_secs(20), || {
            ask_tcp(&site.outside, "192.0.2.1:8080").is_ok()
        });
    }
    // Bandwidth.
    let ifb = host
        .rtnl()
        .links()
        .unwrap()
        .into_iter()
        .find(|link| link.name.as_str().starts_with("bwp"));
    let name = ifb.unwrap().name.to_string();
    host.sh("ip", &["link", "del", &name]);
    assert!(!mend().is_empty());
    assert!(host.find_link(&name).is_some());
    assert_eq!(mend(), Vec::<String>::new());
}

/// CRC-32C (RFC 9260, appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// The first packet of an SCTP association: an IPv4 header and an INIT chunk.
fn sctp_init(from: [u8; 4], to: [u8; 4], port: u16) -> Vec<u8> {
    let mut sctp = Vec::new();
    sctp.extend(40_000u16.to_be_bytes());
    sctp.extend(port.to_be_bytes());
    sctp.extend([0; 8]);
    // INIT, of 20 bytes: a tag, a window, a stream each way, a first number.
    sctp.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9]);
    let crc = crc32c(&sctp).to_le_bytes();
    sctp[8..12].copy_from_slice(&crc);
    // The kernel fills in the header's checksum.
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 132, 0, 0];
    packet.extend(from);
    packet.extend(to);
    packet.extend(sctp);
    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet
}

/// The running kernel may have no SCTP sockets: packets are made and looked at by hand.
#[test]
fn sctp_packets_arrive() {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
        setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;

    let mut site = Site::new(SUBNET);
    let pod = Ns::new("pod");
    let port = json!({"hostPort": 7000, "containerPort": 70, "protocol": "sctp"});
    site.add("c1", &pod, json!([port]));
    let raw = |family, protocol| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
    let inside = pod
        .run(|| raw(AddressFamily::Packet, SockProtocol::EthAll))
        .unwrap();
    let patience = nix::sys::time::TimeVal::new(20, 0);
    setsockopt(&inside, sockopt::ReceiveTimeout, &patience).unwrap();
    let outside = site
        .outside
        .run(|| raw(AddressFamily::Inet, SockProtocol::Raw))
        .unwrap();
    let packet = sctp_init([192, 0, 2, 2], [192, 0, 2, 1], 7000);
    let to = SockaddrIn::new(192, 0, 2, 1, 0);
    sendto(outside.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    let mut frame = [0; 2048];
    let sctp = loop {
        let length = recv(inside.as_raw_fd(), &mut frame, MsgFlags::empty()).unwrap();
        let ip = &frame[14..length.max(14)];
        if ip.first() == Some(&0x45) && ip[9] == 132 {
            break ip.to_vec();
        }
    };
    assert_eq!(sctp[12..16], [192, 0, 2, 2], "the source is seen");
    assert_eq!(sctp[16..20], [10, 244, 3, 2]);
    assert_eq!(sctp[22..24], 70u16.to_be_bytes());
    let mut translated = sctp[20..].to_vec();
    let told: [u8; 4] = translated[8..12].try_into().unwrap();
    translated[8..12].fill(0);
    assert_eq!(
        told,
        crc32c(&translated).to_le_bytes(),
        "the checksum is right"
    );
}

#[test]
fn check_notices_what_rules_are_missing() {
    let ports = json!([tcp(8080, 80)]);
    type Harm = (&'static str, fn(&Site));
    let harms: [Harm; 5] = [
        (
            "missing: add element ip twill-cni hostports { tcp . 8080",
            |site| {
                site.nft(&["flush", "map", "ip", "twill-cni", "hostports"]);
            },
        ),
        (
            "missing: add element ip twill-cni hairpin { 10.244.3.",
            |site| {
                site.nft(&["flush", "set", "ip", "twill-cni", "hairpin"]);
            },
        ),
        ("missing: add rule ip twill-cni guard", |site| {
            site.nft(&["flush", "chain", "ip", "twill-cni", "guard"]);
        }),
        ("the table ip twill-cni is gone", |site| {
            site.nft(&["flush", "ruleset"]);
        }),
        ("ipv4/conf/cni0/route_localnet is off", |site| {
            site.node
                .host
                .set_sysctl("ipv4/conf/cni0/route_localnet", "0");
        }),
    ];
    let mut site = Site::new(SUBNET);
    let pod = Ns::new("pod");
    for (text, harm) in harms {
        let result = site.add("c1", &pod, ports.clone());
        site.node
            .set_extra(json!({"prevResult": result, "runtimeConfig": {"portMappings": ports}}));
        let reply = site.node.call("CHECK", "c1", &pod.path());
        assert!(reply.ok, "{:#}", reply.json);
        harm(&site);
        let (code, msg) = site.node.call("CHECK", "c1", &pod.path()).error();
        assert_eq!(code, 101);
        assert!(msg.contains(text), "{text}: {msg}");
        site.node.del("c1", "");
    }
}
