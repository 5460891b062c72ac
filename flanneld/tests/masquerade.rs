//! Whose address a server sees: each row of the masquerade with real packets, in both families.

use std::net::IpAddr;

use flanneld::backend::Own;
use flanneld::config::Masquerade;
use flanneld::iface::Uplink;
use flanneld::masquerade::table;
use hostnet::nft::{Nft, diff};
use hostnet::testkit::{EchoServer, Ns, ask_tcp, ask_udp, connect, require_root, require_tool};
use hostnet::vocab::{Cidr, Family};

/// Who talks to whom, both by the names below, and whose address the server must see.
type Row = (&'static str, &'static str, Seen);

/// Whose address is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The client's own.
    Client,
    /// That of the node, on the server's link.
    Node,
}

/// `pod` is one of this node's, `far` another node's, `near` and `except` are outside, the latter
/// in a network of `NoMasquerade`.
const ROWS: &[Row] = &[
    ("pod", "far", Seen::Client),
    ("far", "pod", Seen::Client),
    ("near", "pod", Seen::Client),
    ("pod", "near", Seen::Node),
    ("far", "near", Seen::Node),
    ("near", "far", Seen::Node),
    ("pod", "except", Seen::Client),
    ("far", "except", Seen::Client),
    ("except", "pod", Seen::Client),
    ("except", "far", Seen::Node),
    ("near", "except", Seen::Client),
];

/// Four hosts around a node that forwards between them.
struct Star {
    node: Ns,
    hosts: Vec<Host>,
}

struct Host {
    name: &'static str,
    ns: Ns,
    addr: IpAddr,
    /// The node's address on its link.
    gateway: IpAddr,
    _server: EchoServer,
}

impl Star {
    fn new(family: Family) -> Star {
        require_root();
        let node = namespace("node");
        let hosts = [
            ("pod", "10.244.1.0/24", "fd00:244:0:1::/64"),
            ("far", "10.244.2.0/24", "fd00:244:0:2::/64"),
            ("near", "192.0.2.0/24", "2001:db8::/64"),
            ("except", "198.51.100.0/24", "2001:db8:1::/64"),
        ]
        .map(|(name, v4, v6)| Host::new(&node, name, of(family, v4, v6)));
        node.forward();
        Star {
            node,
            hosts: hosts.into(),
        }
    }

    fn load(&self, family: Family, how: Masquerade) {
        let own = Own {
            network: of(family, "10.244.0.0/16", "fd00:244::/48")
                .parse()
                .unwrap(),
            subnet: of(family, "10.244.1.0/24", "fd00:244:0:1::/64")
                .parse()
                .unwrap(),
            uplink: Uplink {
                name: "near".parse().unwrap(),
                mtu: 1500,
                addr: of(family, "192.0.2.1/24", "2001:db8::1/64")
                    .parse()
                    .unwrap(),
                public: of(family, "192.0.2.1", "2001:db8::1").parse().unwrap(),
                routes: Vec::new(),
            },
            vtep: hostnet::vocab::Mac::ZERO,
        };
        let except = of(family, "198.51.100.0/24", "2001:db8:1::/64")
            .parse()
            .unwrap();
        let table = table(family, &own, &[except], how);
        let mut nft = self.node.run(Nft::open).unwrap();
        nft.converge(&table).unwrap();
        let again = nft.observe(&table.id).unwrap();
        assert!(diff(again.table.as_ref(), table.clone()).is_empty());
    }

    fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    /// Whose address the server sees.
    fn seen(&self, from: &str, to: &str) -> Seen {
        let (client, server) = (self.host(from), self.host(to));
        let target = format!("{}:8080", bracket(server.addr));
        let [answer, udp] = [ask_tcp, ask_udp].map(|ask| {
            ask(&client.ns, &target).unwrap_or_else(|error| panic!("{from} to {target}: {error}"))
        });
        assert_eq!(answer.server, to);
        assert_eq!(udp.source.ip(), answer.source.ip(), "TCP and UDP alike");
        match answer.source.ip() {
            ip if ip == client.addr => Seen::Client,
            ip if ip == server.gateway => Seen::Node,
            other => panic!("{from} is seen by {to} as {other}"),
        }
    }
}

impl Host {
    fn new(node: &Ns, name: &'static str, link: &str) -> Host {
        let link: Cidr = link.parse().unwrap();
        let subnet = link.subnet();
        let (gateway, addr) = (subnet.nth(1).unwrap(), subnet.nth(9).unwrap());
        let ns = namespace(name);
        connect(node, name, &ns, "eth0");
        node.addr(name, &format!("{gateway}/{}", link.prefix()));
        ns.addr("eth0", &format!("{addr}/{}", link.prefix()));
        let default = of(link.family(), "default", "default6");
        ns.route(default, &gateway.to_string());
        let server = EchoServer::start(&ns, name, &format!("{}:8080", bracket(addr)));
        Host {
            name,
            ns,
            addr,
            gateway,
            _server: server,
        }
    }
}

/// A namespace whose links can be used at once: a router needs its link-local address to look for
/// IPv6 neighbours, and duplicate address detection holds it back for a second.
fn namespace(label: &str) -> Ns {
    let ns = Ns::new(label);
    ns.set_sysctl("ipv6/conf/default/dad_transmits", "0");
    ns
}

fn of<'a>(family: Family, v4: &'a str, v6: &'a str) -> &'a str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn bracket(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

#[test]
fn each_row_shows_the_address_that_it_must() {
    for family in Family::ALL {
        let star = Star::new(family);
        for (from, to, _) in ROWS {
            assert_eq!(star.seen(from, to), Seen::Client, "without the table");
        }
        for fully_random in [true, false] {
            star.load(family, Masquerade { fully_random });
            for (from, to, seen) in ROWS {
                assert_eq!(star.seen(from, to), *seen, "{family}: {from} to {to}");
            }
        }
    }
}

#[test]
fn what_kube_proxy_has_marked_is_left_to_it() {
    require_tool("nft", "nftables");
    let star = Star::new(Family::V4);
    star.load(Family::V4, Masquerade { fully_random: true });
    star.node.sh("nft", &["add", "table", "ip", "other"]);
    let chain = "{ type filter hook prerouting priority -150; }";
    star.node
        .sh("nft", &["add", "chain", "ip", "other", "marking", chain]);
    // Other bits are other people's: only 0x4000 counts.
    let rule = "add rule ip other marking tcp dport 8080 meta mark set";
    let words = |mark| rule.split(' ').chain([mark]).collect::<Vec<_>>();
    star.node.sh("nft", &words("0x8000"));
    let source = |star: &Star| {
        let near = star.host("near");
        let answer = ask_tcp(&star.host("pod").ns, &format!("{}:8080", near.addr)).unwrap();
        answer.source.ip()
    };
    assert_eq!(source(&star), star.host("near").gateway);
    star.node.sh("nft", &words("0xc000"));
    assert_eq!(source(&star), star.host("pod").addr);
}
