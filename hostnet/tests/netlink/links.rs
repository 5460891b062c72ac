//! Links and their settings.

use hostnet::netlink::LinkKind;
use hostnet::netlink::link::{
    self, AddrGenMode, Bridge, BridgePort, Change, Ipv4Conf, NewLink, NewPeer, Vxlan,
};
use hostnet::vocab::Mac;

use crate::{cable, ip, name, private};

#[test]
fn a_bridge_keeps_its_settings() {
    let (ns, mut rtnl) = private();
    let mac = Mac([0x0a, 0x58, 10, 244, 3, 1]);
    let bridge = Bridge {
        nf_call_iptables: true,
        nf_call_ip6tables: true,
        vlan_filtering: false,
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
    let index = |link| ns.run_in(|| link::index(&name(link))).unwrap();
    assert_eq!((index("cni0"), index("cni1")), (Some(made.index), None));

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
fn a_kind_that_the_kernel_does_not_have_is_named_with_the_module() {
    let (_ns, mut rtnl) = private();
    let none = NewLink::new(name("none0"), LinkKind::Other("twill-none".into()));
    let said = rtnl.apply(link::create(&none)).unwrap_err().to_string();
    assert!(said.contains("`modprobe twill-none` on the node"), "{said}");
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
            locked: true,
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
            isolated: false,
            locked: true,
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
        promisc: Some(true),
        addr_gen_mode: Some(AddrGenMode::None),
        ipv4: vec![
            (Ipv4Conf::RpFilter, 2),
            (Ipv4Conf::ArpNotify, 1),
            (Ipv4Conf::RouteLocalnet, 1),
        ],
    };
    rtnl.apply(link::change(name("d0"), &all)).unwrap();
    let d0 = rtnl.link(name("d0")).unwrap().unwrap();
    assert_eq!(
        (d0.up, d0.mac, d0.mtu, d0.master, d0.promisc),
        (true, Some(mac), 1300, Some(br0.index), true)
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
    assert_eq!(conf("route_localnet").trim(), "1");
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
fn links_are_counted() {
    let (_ns, mut rtnl) = private();
    let lo = rtnl.link(name("lo")).unwrap().unwrap();
    let counters = rtnl.counters().unwrap();
    assert!(
        counters.iter().any(|(index, _)| *index == lo.index),
        "{counters:?}"
    );
}
