//! Addresses and routes.

use hostnet::netlink::addr::{self, Scope};
use hostnet::netlink::route::{self, Filter, RouteKind};
use hostnet::netlink::{AbsentOk, Addr, Route};
use hostnet::vocab::{Family, Subnet};

use crate::{cable, cidr, ip, private, subnet};

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
