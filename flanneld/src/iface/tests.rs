use hostnet::netlink::LinkKind;
use regex::Regex;

use super::*;
use crate::fixture::subnet;

/// A node with two cards, the pods' devices, and a default route by the first card.
struct Node {
    links: Vec<Link>,
    addrs: Vec<Addr>,
    routes: Vec<Route>,
}

const ETH0: u32 = 2;
const ETH1: u32 = 3;
const FLANNEL: u32 = 4;
const CNI0: u32 = 5;

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.parse().unwrap(),
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: 1500,
        up: true,
        promisc: false,
        carrier: true,
        operational: true,
        master: None,
        port: None,
        peer: None,
        addr_gen_mode: None,
    }
}

fn addr(link: u32, cidr: &str) -> Addr {
    let mut addr = Addr::new(link, cidr.parse().unwrap());
    addr.scope = match cidr {
        cidr if cidr.starts_with("127.") || cidr.starts_with("::1/") => Scope::HOST,
        cidr if cidr.starts_with("fe80:") => Scope::LINK,
        _ => Scope::GLOBAL,
    };
    addr
}

fn route(dst: &str, gateway: Option<&str>, link: u32) -> Route {
    Route::new(subnet(dst), gateway.map(|g| g.parse().unwrap()), Some(link))
}

fn node() -> Node {
    Node {
        links: vec![
            link(1, "lo"),
            link(ETH0, "eth0"),
            link(ETH1, "eth1"),
            link(FLANNEL, "flannel.1"),
            link(CNI0, "cni0"),
        ],
        addrs: vec![
            addr(1, "127.0.0.1/8"),
            addr(1, "::1/128"),
            addr(ETH0, "192.0.2.1/24"),
            addr(ETH0, "192.0.2.11/24"),
            addr(ETH0, "fe80::1/64"),
            addr(ETH0, "2001:db8::1/64"),
            addr(ETH1, "198.51.100.1/24"),
            addr(FLANNEL, "10.244.1.0/32"),
            addr(CNI0, "10.244.1.1/24"),
        ],
        routes: vec![
            route("0.0.0.0/0", Some("192.0.2.254"), ETH0),
            route("192.0.2.0/24", None, ETH0),
            route("198.51.100.0/24", None, ETH1),
            route("203.0.113.0/24", Some("198.51.100.254"), ETH1),
            route("10.244.3.0/24", Some("10.244.3.0"), FLANNEL),
            route("10.244.1.0/24", None, CNI0),
            route("::/0", Some("2001:db8::ff"), ETH0),
            route("2001:db8::/64", None, ETH0),
        ],
    }
}

fn flags(names: &[&str], patterns: &[&str]) -> IfaceChoice {
    IfaceChoice {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        patterns: patterns.iter().map(|p| Regex::new(p).unwrap()).collect(),
        ..IfaceChoice::default()
    }
}

impl Node {
    fn choose(&self, family: Family, flags: &IfaceChoice) -> Result<Uplink, Box<IfaceError>> {
        self.choose_with(family, flags, ByFamily::default(), ByFamily::default())
    }

    fn choose_with(
        &self,
        family: Family,
        flags: &IfaceChoice,
        node_public: ByFamily<IpAddr>,
        overwrite: ByFamily<IpAddr>,
    ) -> Result<Uplink, Box<IfaceError>> {
        let seen = Seen {
            links: &self.links,
            addrs: &self.addrs,
            routes: &self.routes,
        };
        let wishes = Wishes {
            flags,
            node_public,
            overwrite,
            networks: ByFamily {
                v4: Some(subnet("10.244.0.0/16")),
                v6: Some(subnet("fd00:244::/48")),
            },
            least_mtu: 1350,
        };
        choose(family, seen, &wishes)
    }

    /// The interface and address that are chosen for IPv4.
    fn chosen(&self, flags: &IfaceChoice) -> String {
        let uplink = self.choose(Family::V4, flags).unwrap();
        format!("{} {}", uplink.name, uplink.addr)
    }

    /// Why nothing is chosen for IPv4, without the candidates.
    fn refused(&self, flags: &IfaceChoice) -> String {
        let error = self.choose(Family::V4, flags).unwrap_err().to_string();
        let (why, candidates) = error.rsplit_once("; ").unwrap();
        assert_eq!(
            candidates,
            "choose by --iface one of eth0 (192.0.2.1/24), eth0 (192.0.2.11/24), eth1 (198.51.100.1/24)"
        );
        let start = "no interface for IPv4 to other nodes: ";
        why.strip_prefix(start).unwrap().to_owned()
    }
}

#[test]
fn the_default_route_decides_if_nothing_is_asked_for() {
    let uplink = node().choose(Family::V4, &flags(&[], &[])).unwrap();
    assert_eq!((&*uplink.name, uplink.mtu), ("eth0", 1500));
    assert_eq!(uplink.addr.to_string(), "192.0.2.1/24");
    assert_eq!(uplink.public.to_string(), "192.0.2.1");
    let uplink = node().choose(Family::V6, &flags(&[], &[])).unwrap();
    assert_eq!(uplink.addr.to_string(), "2001:db8::1/64");
}

#[test]
fn the_default_route_of_the_least_metric_and_its_source_count() {
    let mut node = node();
    node.routes[0].metric = 100;
    node.routes[0].src = Some("192.0.2.11".parse().unwrap());
    node.routes.push(Route {
        metric: 200,
        ..route("0.0.0.0/0", Some("198.51.100.254"), ETH1)
    });
    assert_eq!(node.chosen(&flags(&[], &[])), "eth0 192.0.2.11/24");
    node.routes[0].metric = 300;
    assert_eq!(node.chosen(&flags(&[], &[])), "eth1 198.51.100.1/24");
    // A default route of another table is somebody's own matter.
    node.routes.retain(|route| route.metric != 200);
    node.routes[0].table = 100;
    assert_eq!(
        node.refused(&flags(&[], &[])),
        "the default route: there is none"
    );
}

#[test]
fn names_addresses_and_patterns_are_asked_in_order() {
    let node = node();
    for (names, patterns, expected) in [
        (&["eth1"][..], &[][..], "eth1 198.51.100.1/24"),
        (&["192.0.2.11"], &[], "eth0 192.0.2.11/24"),
        (&["eth9", "lo", "eth1", "eth0"], &[], "eth1 198.51.100.1/24"),
        (&["eth1"], &["eth0"], "eth1 198.51.100.1/24"),
        (&["eth9"], &["^eth[01]$"], "eth0 192.0.2.1/24"),
        (&[], &[r"^198\."], "eth1 198.51.100.1/24"),
        (&[], &["^wlan", r"\.11$"], "eth0 192.0.2.11/24"),
    ] {
        assert_eq!(node.chosen(&flags(names, patterns)), expected);
    }
}

#[test]
fn an_address_of_the_other_family_names_the_link() {
    for choice in [flags(&["192.0.2.11"], &[]), flags(&[], &[r"^192\."])] {
        let uplink = node().choose(Family::V6, &choice).unwrap();
        assert_eq!(uplink.addr.to_string(), "2001:db8::1/64");
    }
    assert_eq!(
        node().chosen(&flags(&["2001:db8::1"], &[])),
        "eth0 192.0.2.1/24"
    );
}

#[test]
fn an_address_to_reach_decides_by_its_route() {
    let reach = |to: &str| {
        node().chosen(&IfaceChoice {
            can_reach: Some(to.parse().unwrap()),
            ..IfaceChoice::default()
        })
    };
    assert_eq!(reach("203.0.113.7"), "eth1 198.51.100.1/24");
    assert_eq!(reach("8.8.8.8"), "eth0 192.0.2.1/24");
    // Of the other family it says nothing.
    assert_eq!(reach("2001:db8::7"), "eth0 192.0.2.1/24");
}

#[test]
fn what_cannot_work_is_refused_with_the_candidates() {
    let mut node = node();
    node.links.push(link(6, "eth2"));
    node.links.push(Link {
        up: false,
        ..link(7, "eth3")
    });
    node.links.push(Link {
        mtu: 1300,
        ..link(8, "eth4")
    });
    node.addrs.push(addr(6, "fe80::2/64"));
    let only = |name: &str| node.refused(&flags(&[name], &[]));
    assert_eq!(only("eth9"), "--iface=eth9: there is no such interface");
    assert_eq!(only("192.0.2.9"), "--iface=192.0.2.9: no interface has it");
    assert_eq!(
        only("lo"),
        "--iface=lo: the loopback interface reaches no other node"
    );
    assert_eq!(
        only("127.0.0.1"),
        "--iface=127.0.0.1: the loopback interface reaches no other node"
    );
    assert_eq!(
        only("eth2"),
        "--iface=eth2: eth2 has no such address of global scope"
    );
    assert_eq!(
        only("flannel.1"),
        "--iface=flannel.1: flannel.1 belongs to the pods' network"
    );
    assert_eq!(
        only("10.244.1.1"),
        "--iface=10.244.1.1: cni0 belongs to the pods' network"
    );
    assert_eq!(
        node.refused(&flags(&["eth9"], &["^wlan"])),
        "--iface=eth9: there is no such interface; --iface-regex=^wlan: no interface has a name or address that matches"
    );
}

#[test]
fn a_link_that_is_down_or_too_small_or_among_the_pods_is_refused() {
    let refused = |change: fn(&mut Node)| {
        let mut node = node();
        change(&mut node);
        let error = node.choose(Family::V4, &flags(&["eth0"], &[])).unwrap_err();
        error.unfit[0].1.to_string()
    };
    assert_eq!(refused(|node| node.links[1].up = false), "eth0 is down");
    assert_eq!(
        refused(|node| node.links[1].mtu = 1300),
        "its MTU is 1300, less than the 1350 that the backend needs"
    );
    assert_eq!(
        refused(|node| node.addrs[2] = addr(ETH0, "10.244.7.1/24")),
        "its address 10.244.7.1 is inside the pods' network 10.244.0.0/16: give Network in net-conf.json a range that neither nodes nor Services have"
    );
    let mut bare = node();
    bare.addrs.clear();
    let error = bare.choose(Family::V4, &flags(&["eth0"], &[])).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("; no interface has a global IPv4 address"),
        "{error}"
    );
}

#[test]
fn the_address_to_publish_can_be_another() {
    let v4 = |text: &str| ByFamily {
        v4: Some(text.parse().unwrap()),
        v6: None,
    };
    let mut flags = IfaceChoice::default();
    let public = |flags: &IfaceChoice, node_public, overwrite| {
        let uplink = node()
            .choose_with(Family::V4, flags, node_public, overwrite)
            .unwrap();
        format!("{} {} {}", uplink.name, uplink.addr, uplink.public)
    };
    // The annotation's address is that of an interface, or only to be published.
    assert_eq!(
        public(&flags, v4("198.51.100.1"), ByFamily::default()),
        "eth1 198.51.100.1/24 198.51.100.1"
    );
    assert_eq!(
        public(&flags, v4("203.0.113.1"), ByFamily::default()),
        "eth0 192.0.2.1/24 203.0.113.1"
    );
    flags.public = vec!["203.0.113.2".parse().unwrap()];
    assert_eq!(
        public(&flags, v4("198.51.100.1"), ByFamily::default()),
        "eth1 198.51.100.1/24 203.0.113.2"
    );
    assert_eq!(
        public(&flags, v4("198.51.100.1"), v4("203.0.113.3")),
        "eth1 198.51.100.1/24 203.0.113.3"
    );
}

#[test]
fn what_needs_no_router_is_direct() {
    let mut node = node();
    node.routes
        .push(route("192.0.2.128/25", Some("192.0.2.2"), ETH0));
    // Our own routes say nothing about the underlay.
    node.routes.push(Route {
        protocol: names::ROUTE_PROTOCOL,
        ..route("192.0.2.4/32", Some("192.0.2.4"), ETH0)
    });
    let uplink = node.choose(Family::V4, &flags(&[], &[])).unwrap();
    let direct = |addr: &str| uplink.is_direct(addr.parse().unwrap());
    assert!(direct("192.0.2.2"));
    assert!(direct("192.0.2.4"));
    assert!(!direct("192.0.2.129"), "a longer prefix goes by a router");
    assert!(!direct("198.51.100.2"), "another interface's link");
    assert!(!direct("203.0.113.1"), "behind the default gateway");
}
