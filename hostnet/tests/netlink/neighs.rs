//! Neighbours and forwarding entries.

use hostnet::netlink::link::{self, NewLink, Vxlan};
use hostnet::netlink::neigh::{self, NeighState};
use hostnet::netlink::{FdbEntry, LinkKind, Neigh};
use hostnet::vocab::Mac;

use crate::{cable, ip, name, private};

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
    let at_port = FdbEntry {
        port: Some(4789),
        ..moved
    };
    rtnl.apply(neigh::fdb_replace(&at_port)).unwrap();
    assert_eq!(rtnl.fdb(Some(device)).unwrap(), [at_port]);
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
