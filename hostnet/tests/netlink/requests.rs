//! Many requests, changing tables, refusals.

use hostnet::netlink::link::{self, Change};
use hostnet::netlink::route::{self, Filter};
use hostnet::netlink::{Route, Rtnl};
use hostnet::vocab::{Family, Mac, Subnet};

use crate::{cable, ip, name, private, subnet};

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
