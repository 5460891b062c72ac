//! Changes as they are told.

use hostnet::netlink::addr;
use hostnet::netlink::link::{self, NewLink, Vxlan};
use hostnet::netlink::neigh;
use hostnet::netlink::route;
use hostnet::netlink::{Addr, Event, FdbEntry, LinkKind, Monitor, Neigh, Object, Route};
use hostnet::vocab::Mac;

use crate::{cable, cidr, ip, name, private, subnet};

/// All events that are there; multicasts are delivered within the call that caused them.
fn told(monitor: &mut Monitor) -> Vec<Event> {
    std::iter::from_fn(|| monitor.next(false).unwrap()).collect()
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
    let lost = std::iter::from_fn(|| monitor.next(false).transpose())
        .any(|event| event.is_err_and(|error| error.is_overrun()));
    assert!(lost, "100,000 events do not fit");
    // And it goes on.
    rtnl.apply(neigh::replace(&Neigh::permanent(link, at, mac(7))))
        .unwrap();
    assert!(!told(&mut monitor).is_empty());
}
