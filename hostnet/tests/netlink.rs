//! Route netlink against the real kernel, in private namespaces.

use std::net::IpAddr;

use hostnet::netlink::addr::{self, Scope};
use hostnet::netlink::link::{
    self, AddrGenMode, Bridge, BridgePort, Change, Ipv4Conf, NewLink, NewPeer, Vxlan,
};
use hostnet::netlink::neigh::{self, NeighState};
use hostnet::netlink::route::{self, Filter, RouteKind};
use hostnet::netlink::{
    AbsentOk, Addr, Event, FdbEntry, Link, LinkKind, Monitor, Neigh, Object, Route, Rtnl,
};
use hostnet::netns::NetNs;
use hostnet::vocab::{Cidr, Family, IfName, Mac, Subnet};

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn private() -> (NetNs, Rtnl) {
    let ns = NetNs::new_anonymous().unwrap();
    let rtnl = Rtnl::open_in(&ns).unwrap();
    (ns, rtnl)
}

/// Makes a link that is up and has carrier: a veth whose peer is here too, and up.
fn cable(rtnl: &mut Rtnl, text: &str) -> Link {
    let peer_name = name(&format!("{text}-far"));
    let peer = NewPeer {
        name: peer_name.clone(),
        mac: None,
        mtu: None,
        ns: None,
    };
    rtnl.apply(link::create(&NewLink {
        up: true,
        ..NewLink::veth(name(text), peer)
    }))
    .unwrap();
    rtnl.apply(link::change(
        &peer_name,
        &Change {
            up: Some(true),
            ..Change::default()
        },
    ))
    .unwrap();
    rtnl.link(name(text)).unwrap().unwrap()
}

#[test]
fn a_bridge_keeps_its_settings() {
    let (_ns, mut rtnl) = private();
    let mac = Mac([0x0a, 0x58, 10, 244, 3, 1]);
    let bridge = Bridge {
        nf_call_iptables: true,
        nf_call_ip6tables: true,
    };
    let new = NewLink {
        mac: Some(mac),
        mtu: Some(1450),
        up: true,
        ..NewLink::new(name("cni0"), LinkKind::Bridge(bridge))
    };
    rtnl.apply(link::create(&new)).unwrap();
    let made = rtnl.link(name("cni0")).unwrap().unwrap();
    assert_eq!(made.kind, LinkKind::Bridge(bridge));
    assert_eq!((made.mac, made.mtu, made.up), (Some(mac), 1450, true));

    rtnl.apply(link::set_bridge(made.index, &Bridge::default()))
        .unwrap();
    let changed = rtnl.link(made.index).unwrap().unwrap();
    assert_eq!(changed.kind, LinkKind::Bridge(Bridge::default()));

    let again = rtnl.apply(link::create(&new)).unwrap_err();
    assert!(again.is_exists());
    assert!(
        again.to_string().starts_with("cannot create bridge cni0"),
        "{again}"
    );
}

#[test]
fn a_veth_is_made_straight_into_the_other_namespace() {
    let (_host_ns, mut host) = private();
    let (pod_ns, mut pod) = private();
    host.apply(link::create(&NewLink {
        up: true,
        ..NewLink::new(name("cni0"), LinkKind::Bridge(Bridge::default()))
    }))
    .unwrap();
    let bridge = host.link(name("cni0")).unwrap().unwrap();

    let pod_mac = Mac([0x02, 0, 0, 0, 0, 1]);
    let peer = NewPeer {
        mac: Some(pod_mac),
        mtu: Some(1400),
        ..NewPeer::new(name("eth0"), pod_ns.clone())
    };
    let new = NewLink {
        up: true,
        mtu: Some(1400),
        master: Some(bridge.index),
        ..NewLink::veth(name("veth1"), peer)
    };
    host.apply(link::create(&new)).unwrap();
    host.apply(link::set_port(
        name("veth1"),
        BridgePort {
            hairpin: true,
            isolated: false,
        },
    ))
    .unwrap();

    let eth0 = pod.link(name("eth0")).unwrap().unwrap();
    assert_eq!((eth0.mac, eth0.mtu, eth0.up), (Some(pod_mac), 1400, false));
    let veth = host.link(name("veth1")).unwrap().unwrap();
    assert_eq!(veth.kind, LinkKind::Veth);
    assert_eq!(
        (veth.master, veth.mtu, veth.up),
        (Some(bridge.index), 1400, true)
    );
    assert_eq!(
        veth.port,
        Some(BridgePort {
            hairpin: true,
            isolated: false
        })
    );

    // Which host veth belongs to which pod can be read back.
    let peer = veth.peer.unwrap();
    assert_eq!(peer.index, eth0.index);
    assert_eq!(peer.netns_id, host.netns_id(&pod_ns).unwrap());
    assert!(peer.netns_id.is_some());
    let (stranger, _) = private();
    assert_eq!(host.netns_id(&stranger).unwrap(), None);

    assert_eq!(host.ports(bridge.index).unwrap(), vec![veth.clone()]);
    let bridges = host
        .links_of_kind(&LinkKind::Bridge(Bridge::default()))
        .unwrap();
    assert_eq!(
        bridges.iter().map(|b| b.index).collect::<Vec<_>>(),
        [bridge.index]
    );

    assert!(!veth.carrier);
    pod.apply(link::change(
        eth0.index,
        &Change {
            up: Some(true),
            ..Change::default()
        },
    ))
    .unwrap();
    assert!(host.link(veth.index).unwrap().unwrap().carrier);

    host.apply(link::delete(veth.index)).unwrap();
    assert_eq!(pod.link(name("eth0")).unwrap(), None);
}

#[test]
fn a_vxlan_device_keeps_its_settings() {
    let (_ns, mut rtnl) = private();
    let uplink = cable(&mut rtnl, "uplink");
    for (text, local, learning, gbp) in [
        ("flannel.1", "192.0.2.1", false, false),
        ("flannel.2", "192.0.2.1", true, true),
        ("flannel-v6.3", "2001:db8::1", false, false),
    ] {
        let vni = text.rsplit('.').next().unwrap().parse().unwrap();
        let vxlan = Vxlan {
            vni,
            port: 8472 + vni as u16,
            local: Some(ip(local)),
            device: Some(uplink.index),
            learning,
            gbp,
        };
        rtnl.apply(link::create(&NewLink::new(
            name(text),
            LinkKind::Vxlan(vxlan),
        )))
        .unwrap();
        let made = rtnl.link(name(text)).unwrap().unwrap();
        assert_eq!(made.kind, LinkKind::Vxlan(vxlan));
    }
}

#[test]
fn a_links_changes_are_read_back() {
    let (ns, mut rtnl) = private();
    let bridge = Bridge::default();
    rtnl.apply(link::create(&NewLink::new(
        name("br0"),
        LinkKind::Bridge(bridge),
    )))
    .unwrap();
    let peer = NewPeer {
        name: name("d1"),
        mac: None,
        mtu: None,
        ns: None,
    };
    rtnl.apply(link::create(&NewLink::veth(name("d0"), peer)))
        .unwrap();
    let br0 = rtnl.link(name("br0")).unwrap().unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let all = Change {
        up: Some(true),
        mac: Some(mac),
        mtu: Some(1300),
        master: Some(br0.index),
        addr_gen_mode: Some(AddrGenMode::None),
        ipv4: vec![(Ipv4Conf::RpFilter, 2), (Ipv4Conf::ArpNotify, 1)],
    };
    rtnl.apply(link::change(name("d0"), &all)).unwrap();
    let d0 = rtnl.link(name("d0")).unwrap().unwrap();
    assert_eq!(
        (d0.up, d0.mac, d0.mtu, d0.master),
        (true, Some(mac), 1300, Some(br0.index))
    );
    assert_eq!(d0.addr_gen_mode, Some(AddrGenMode::None));
    let conf = |key: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/d0/{key}");
        ns.run_in(|| std::fs::read_to_string(path).unwrap())
            .unwrap()
    };
    assert_eq!(
        (conf("rp_filter").trim(), conf("arp_notify").trim()),
        ("2", "1")
    );
    assert!(
        rtnl.addrs(Some(d0.index)).unwrap().is_empty(),
        "no link-local address by itself"
    );

    let down = Change {
        up: Some(false),
        master: Some(0),
        ipv4: vec![(Ipv4Conf::RpFilter, 0)],
        ..Change::default()
    };
    rtnl.apply(link::change(d0.index, &down)).unwrap();
    let d0 = rtnl.link(d0.index).unwrap().unwrap();
    assert_eq!((d0.up, d0.master), (false, None));
    assert_eq!(conf("rp_filter").trim(), "0");
}

#[test]
fn addresses_round_trip() {
    let (_ns, mut rtnl) = private();
    let d0 = cable(&mut rtnl, "d0");
    for text in ["10.244.3.1/24", "10.244.9.0/32", "fd00:0:0:3::1/64"] {
        let wanted = Addr::new(d0.index, cidr(text));
        rtnl.apply(addr::add(&wanted)).unwrap();
        assert!(
            rtnl.addrs(Some(d0.index)).unwrap().contains(&wanted),
            "{text}"
        );
        assert!(rtnl.apply(addr::add(&wanted)).unwrap_err().is_exists());
        rtnl.apply(addr::replace(&wanted)).unwrap();
        rtnl.apply(addr::delete(&wanted)).unwrap();
        assert!(!rtnl.addrs(None).unwrap().contains(&wanted), "{text}");
        let gone = rtnl.apply(addr::delete(&wanted)).unwrap_err();
        assert!(gone.is_absent(), "{gone:?}");
        assert!(
            gone.to_string()
                .starts_with(&format!("cannot delete address {text} dev #")),
            "{gone}"
        );
    }
    let quiet = Addr {
        noprefixroute: true,
        scope: Scope::LINK,
        ..Addr::new(d0.index, cidr("10.1.0.1/16"))
    };
    rtnl.apply(addr::add(&quiet)).unwrap();
    assert!(rtnl.addrs(Some(d0.index)).unwrap().contains(&quiet));
    assert!(
        rtnl.routes(Filter {
            link: Some(d0.index),
            table: Some(254),
            family: Some(Family::V4),
            ..Filter::default()
        })
        .unwrap()
        .is_empty()
    );
}

#[test]
fn routes_round_trip() {
    let (_ns, mut rtnl) = private();
    let d0 = cable(&mut rtnl, "d0");
    let d1 = cable(&mut rtnl, "d1");
    for text in [
        "10.244.3.0/32",
        "192.0.2.1/24",
        "2001:db8::1/64",
        "fd00::/128",
    ] {
        rtnl.apply(addr::add(&Addr::new(d0.index, cidr(text))))
            .unwrap();
    }
    let wanted = [
        Route::onlink(subnet("10.244.1.0/24"), ip("10.244.1.0"), d0.index),
        Route::new(
            subnet("10.244.2.0/24"),
            Some(ip("192.0.2.9")),
            Some(d0.index),
        ),
        Route::new(subnet("198.51.100.0/24"), None, Some(d1.index)),
        Route::new(
            Subnet::any(Family::V4),
            Some(ip("192.0.2.254")),
            Some(d0.index),
        ),
        Route {
            src: Some(ip("192.0.2.1")),
            mtu: Some(1400),
            advmss: Some(1300),
            metric: 7,
            ..Route::new(subnet("10.9.0.0/16"), None, Some(d0.index))
        },
        Route {
            table: 1000,
            protocol: 84,
            ..Route::new(subnet("10.8.0.0/16"), None, Some(d0.index))
        },
        Route {
            kind: RouteKind::Blackhole,
            scope: Scope::GLOBAL,
            ..Route::new(subnet("10.7.0.0/16"), None, None)
        },
        // A next hop of the other family (RFC 5549).
        Route::new(
            subnet("10.6.0.0/16"),
            Some(ip("2001:db8::9")),
            Some(d0.index),
        ),
        Route::onlink(subnet("fd00:0:0:1::/64"), ip("fd00:0:0:1::"), d0.index),
        Route::new(subnet("fd00::/16"), Some(ip("2001:db8::9")), Some(d0.index)),
    ];
    for route in &wanted {
        rtnl.apply(route::add(route)).unwrap();
        assert!(
            rtnl.apply(route::add(route)).unwrap_err().is_exists(),
            "{route}"
        );
        rtnl.apply(route::replace(route)).unwrap();
    }
    let all = rtnl.routes(Filter::default()).unwrap();
    for route in &wanted {
        assert!(all.contains(route), "{route:?}\nnot in {all:#?}");
    }
    let by_link = rtnl
        .routes(Filter {
            link: Some(d1.index),
            protocol: Some(route::PROTOCOL_BOOT),
            ..Filter::default()
        })
        .unwrap();
    assert_eq!(by_link, [wanted[2].clone()]);
    let by_table = rtnl
        .routes(Filter {
            table: Some(1000),
            ..Filter::default()
        })
        .unwrap();
    assert_eq!(by_table, [wanted[5].clone()]);
    assert!(
        rtnl.routes(Filter {
            table: Some(4711),
            ..Filter::default()
        })
        .unwrap()
        .is_empty()
    );

    let found = rtnl.route_to(ip("10.244.1.77")).unwrap().unwrap();
    assert_eq!(
        (found.gateway, found.link),
        (Some(ip("10.244.1.0")), Some(d0.index))
    );
    for route in &wanted {
        rtnl.apply(route::delete(route)).unwrap();
        assert!(
            rtnl.apply(route::delete(route)).unwrap_err().is_absent(),
            "{route}"
        );
        rtnl.apply(route::delete(route)).absent_ok().unwrap();
    }
    assert_eq!(rtnl.route_to(ip("203.0.113.1")).unwrap(), None);
}

#[test]
fn deleting_a_route_leaves_its_neighbours_alone() {
    let (_ns, mut rtnl) = private();
    let d0 = cable(&mut rtnl, "d0");
    let d1 = cable(&mut rtnl, "d1");
    let ours = Route {
        protocol: 84,
        ..Route::new(subnet("10.5.0.0/16"), None, Some(d0.index))
    };
    let foreign = Route {
        metric: 50,
        ..Route::new(subnet("10.5.0.0/16"), None, Some(d1.index))
    };
    rtnl.apply(route::add(&foreign)).unwrap();
    assert!(rtnl.apply(route::delete(&ours)).unwrap_err().is_absent());
    rtnl.apply(route::add(&ours)).unwrap();
    rtnl.apply(route::delete(&ours)).unwrap();
    let left = rtnl
        .routes(Filter {
            protocol: Some(route::PROTOCOL_BOOT),
            ..Filter::default()
        })
        .unwrap();
    assert_eq!(left, [foreign]);
}

#[test]
fn neighbours_and_forwarding_entries_round_trip() {
    let (_ns, mut rtnl) = private();
    let uplink = cable(&mut rtnl, "uplink");
    let vxlan = Vxlan {
        vni: 1,
        port: 8472,
        local: Some(ip("192.0.2.1")),
        device: Some(uplink.index),
        learning: false,
        gbp: false,
    };
    rtnl.apply(link::create(&NewLink {
        up: true,
        ..NewLink::new(name("flannel.1"), LinkKind::Vxlan(vxlan))
    }))
    .unwrap();
    let device = rtnl.link(name("flannel.1")).unwrap().unwrap().index;

    let mac = Mac([0x9e, 0, 0, 0, 0, 1]);
    for addr in ["10.244.1.0", "fd00:0:0:1::"] {
        let neigh = Neigh::permanent(device, ip(addr), mac);
        rtnl.apply(neigh::replace(&neigh)).unwrap();
        rtnl.apply(neigh::replace(&neigh)).unwrap();
        assert!(rtnl.neighs(Some(device)).unwrap().contains(&neigh));
        let moved = Neigh::permanent(device, ip(addr), Mac([0x9e, 0, 0, 0, 0, 2]));
        rtnl.apply(neigh::replace(&moved)).unwrap();
        let listed = rtnl.neighs(Some(device)).unwrap();
        assert!(listed.contains(&moved) && !listed.contains(&neigh));
        assert!(
            rtnl.neighs(Some(uplink.index))
                .unwrap()
                .iter()
                .all(|n| n.link == uplink.index)
        );
        rtnl.apply(neigh::delete(&moved)).unwrap();
        assert!(rtnl.apply(neigh::delete(&moved)).unwrap_err().is_absent());
    }
    let entry = FdbEntry::vxlan(device, mac, ip("192.0.2.7"));
    rtnl.apply(neigh::fdb_replace(&entry)).unwrap();
    assert_eq!(rtnl.fdb(Some(device)).unwrap(), [entry]);
    let moved = FdbEntry::vxlan(device, mac, ip("192.0.2.8"));
    rtnl.apply(neigh::fdb_replace(&moved)).unwrap();
    assert_eq!(rtnl.fdb(Some(device)).unwrap(), [moved]);
    let flood = FdbEntry::vxlan(device, Mac::ZERO, ip("192.0.2.7"));
    rtnl.apply(neigh::fdb_append(&flood)).unwrap();
    rtnl.apply(neigh::fdb_append(&FdbEntry {
        dst: Some(ip("192.0.2.8")),
        ..flood
    }))
    .unwrap();
    assert_eq!(rtnl.fdb(Some(device)).unwrap().len(), 3);
    rtnl.apply(neigh::fdb_delete(&flood)).unwrap();
    rtnl.apply(neigh::fdb_delete(&moved)).unwrap();
    let left = rtnl.fdb(Some(device)).unwrap();
    assert_eq!(
        left.iter().map(|e| (e.dst, e.state)).collect::<Vec<_>>(),
        [(Some(ip("192.0.2.8")), NeighState::Permanent)]
    );
    assert!(
        rtnl.apply(neigh::fdb_delete(&moved))
            .unwrap_err()
            .is_absent()
    );
}

#[test]
fn many_requests_have_each_their_own_outcome() {
    let (_ns, mut rtnl) = private();
    let d0 = cable(&mut rtnl, "d0");
    let route = |n: u32| {
        Route::new(
            Subnet::host(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()),
            None,
            Some(d0.index),
        )
    };
    // Each third is a second addition of the one before it.
    let requests: Vec<_> = (0..1000u32)
        .map(|n| route::add(&route(if n % 3 == 2 { n - 1 } else { n })))
        .collect();
    let outcomes = rtnl.apply_all(&requests);
    assert_eq!(outcomes.len(), 1000);
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(()) => assert_ne!(n % 3, 2),
            Err(error) => {
                assert!(n % 3 == 2 && error.is_exists(), "{n}: {error:?}");
                assert!(
                    error
                        .to_string()
                        .contains(&route(n as u32 - 1).dst.to_string())
                );
            }
        }
    }
    let listed = rtnl
        .routes(Filter {
            link: Some(d0.index),
            protocol: Some(route::PROTOCOL_BOOT),
            ..Filter::default()
        })
        .unwrap();
    assert_eq!(listed.len(), 667);
    // Every request of a call may fail: the answers still fit.
    let outcomes = rtnl.apply_all(&requests);
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.as_ref().is_err_and(|e| e.is_exists()))
    );
}

#[test]
fn dumps_are_whole_while_the_tables_change() {
    let (ns, mut rtnl) = private();
    let d0 = cable(&mut rtnl, "d0");
    let stable: Vec<_> = (0..200u8)
        .map(|n| Route::new(Subnet::host([10, 0, n, 1].into()), None, Some(d0.index)))
        .collect();
    for outcome in rtnl.apply_all(&stable.iter().map(route::add).collect::<Vec<_>>()) {
        outcome.unwrap();
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rtnl = Rtnl::open_in(&ns).unwrap();
            let extra = Route::new(subnet("10.1.0.0/16"), None, Some(d0.index));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                rtnl.apply_all(&[route::add(&extra), route::delete(&extra)]);
            }
        });
        for _ in 0..50 {
            match rtnl.routes(Filter {
                protocol: Some(route::PROTOCOL_BOOT),
                family: Some(Family::V4),
                ..Filter::default()
            }) {
                Ok(listed) => assert!(stable.iter().all(|route| listed.contains(route))),
                // A dump that is never left alone is an error, not a wrong list.
                Err(error) => assert!(error.to_string().contains("attempts"), "{error}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
    });
}

#[test]
fn refusals_carry_the_kernels_sentence() {
    let (_ns, mut rtnl) = private();
    let d0 = cable(&mut rtnl, "d0");
    let error = rtnl
        .apply(link::change(
            d0.index,
            &Change {
                mtu: Some(20),
                mac: Some(Mac([1, 0, 0, 0, 0, 1])),
                ..Change::default()
            },
        ))
        .unwrap_err();
    assert!(
        error.to_string().starts_with(&format!(
            "cannot set link #{} MAC 01:00:00:00:00:01",
            d0.index
        )),
        "{error}"
    );
    let unreachable = Route::new(subnet("10.1.0.0/16"), Some(ip("192.0.2.1")), Some(d0.index));
    let error = rtnl.apply(route::add(&unreachable)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot add route 10.1.0.0/16 via 192.0.2.1 dev #{} (Nexthop has invalid gateway)",
            d0.index
        )
    );
    let error = rtnl.apply(link::delete(name("nosuch"))).unwrap_err();
    assert!(error.is_absent());
    assert_eq!(error.to_string(), "cannot delete link nosuch");
    assert_eq!(rtnl.link(name("nosuch")).unwrap(), None);
    assert_eq!(rtnl.link(4711).unwrap(), None);
}

/// All events that are there; multicasts are delivered within the call that caused them.
fn told(monitor: &mut Monitor) -> Vec<Event> {
    std::iter::from_fn(|| monitor.next_event().unwrap()).collect()
}

#[test]
fn changes_are_told_as_what_lists_give() {
    let (ns, mut rtnl) = private();
    let mut monitor = ns.run_in(Monitor::open).unwrap().unwrap();
    let vxlan = Vxlan {
        vni: 1,
        port: 8472,
        local: None,
        device: None,
        learning: false,
        gbp: false,
    };
    rtnl.apply(link::create(&NewLink {
        up: true,
        ..NewLink::new(name("flannel.1"), LinkKind::Vxlan(vxlan))
    }))
    .unwrap();
    let made = rtnl.link(name("flannel.1")).unwrap().unwrap();
    let index = made.index;
    let link_told = told(&mut monitor)
        .into_iter()
        .rfind(|event| matches!(event.object, Object::Link(_)));
    let Some(Event {
        object: Object::Link(link_told),
        gone: false,
    }) = link_told
    else {
        panic!("the link is told")
    };
    assert_eq!((link_told.index, link_told.kind), (index, made.kind));

    let addr = Addr::new(index, cidr("10.244.1.0/32"));
    let neigh = Neigh::permanent(index, ip("10.244.3.0"), Mac([2, 0, 0, 0, 0, 3]));
    let fdb = FdbEntry::vxlan(index, Mac([2, 0, 0, 0, 0, 3]), ip("192.0.2.3"));
    let route = Route::onlink(subnet("10.244.3.0/24"), ip("10.244.3.0"), index);
    let objects = [
        Object::Addr(addr),
        Object::Neigh(neigh),
        Object::Fdb(fdb),
        Object::Route(route.clone()),
    ];
    for request in [
        addr::add(&addr),
        neigh::replace(&neigh),
        neigh::fdb_replace(&fdb),
        route::replace(&route),
    ] {
        rtnl.apply(request).unwrap();
    }
    let events = told(&mut monitor);
    for object in &objects {
        let event = Event {
            object: object.clone(),
            gone: false,
        };
        assert!(events.contains(&event), "{event:?} in {events:?}");
    }
    // What is as it was tells nobody.
    rtnl.apply(neigh::replace(&neigh)).unwrap();
    rtnl.apply(neigh::fdb_replace(&fdb)).unwrap();
    rtnl.apply(route::replace(&route)).unwrap();
    assert_eq!(told(&mut monitor), []);

    rtnl.apply(link::delete(index)).unwrap();
    let events = told(&mut monitor);
    assert!(
        events.iter().any(|event| event.gone
            && matches!(&event.object, Object::Link(link) if link.index == index)),
        "{events:?}"
    );
}

#[test]
fn lost_events_are_told_as_lost() {
    let (ns, mut rtnl) = private();
    let mut monitor = ns.run_in(Monitor::open).unwrap().unwrap();
    let link = cable(&mut rtnl, "eth0").index;
    let mac = |n: u32| {
        Mac::local_from(
            (0x0200_0000_0000 + u64::from(n)).to_be_bytes()[2..]
                .try_into()
                .unwrap(),
        )
    };
    let at = ip("192.0.2.1");
    for round in 0..1000 {
        let requests: Vec<_> = (0..100)
            .map(|n| neigh::replace(&Neigh::permanent(link, at, mac(round * 100 + n))))
            .collect();
        assert!(rtnl.apply_all(&requests).iter().all(Result::is_ok));
    }
    let lost = std::iter::from_fn(|| monitor.next_event().transpose())
        .any(|event| event.is_err_and(|error| error.is_overrun()));
    assert!(lost, "100,000 events do not fit");
    // And it goes on.
    rtnl.apply(neigh::replace(&Neigh::permanent(link, at, mac(7))))
        .unwrap();
    assert!(!told(&mut monitor).is_empty());
}
