//! Real packets through real rules: who answers, whom the server sees, and that nothing is lost on the way from
//! one plan to the next.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hostnet::nft::Monitor;
use hostnet::testkit::{Ns, ask_tcp, ask_tcp_from, wait_for};
use hostnet::vocab::Family;

use super::super::NftBackend;
use super::world::{NODE_PORT, Service, World, ask};
use crate::backend::{Applied, Backend};
use crate::plan::{Delta, Endpoint, PortKey, PortName, Protocol, Ruleset};

fn for_both_families(check: impl Fn(World)) {
    for family in Family::ALL {
        check(World::new(family));
    }
}

/// Who asks where, and which source the server shall see.
fn expectations(world: &World) -> Vec<(&Ns, String, std::net::IpAddr)> {
    let bridge = world.at("pods.1");
    vec![
        // From outside the pod network, a cluster IP is masqueraded; a node port always is.
        (&world.client, world.vip(), bridge),
        (&world.client, world.node_port(), bridge),
        (&world.node, world.vip(), bridge),
        (&world.node, world.node_port(), bridge),
        // A pod is seen as itself.
        (&world.c, world.vip(), world.at("pods.13")),
        (&world.c, world.node_port(), bridge),
    ]
}

/// Each of [`expectations`], by both protocols, of a Service that has `a` and `b`.
pub(crate) fn all_as_expected(world: &World) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (ns, target, source) in expectations(world) {
            let what = format!("{} → {target}/{protocol}", ns.label());
            let answer = ask(protocol, ns, &target).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(["a", "b"].contains(&&*answer.server), "{what}: {answer:?}");
            assert_eq!(answer.source.ip(), source, "{what}");
        }
    }
}

#[test]
fn everyone_reaches_a_service_and_the_right_source_is_seen() {
    for_both_families(|world| {
        let endpoints = [world.endpoint(11), world.endpoint(12)];
        let mut backend = world.backend();
        backend
            .replace(&world.plan([Service::tcp(endpoints), Service::udp(endpoints)]))
            .unwrap();
        all_as_expected(&world);
    });
}

/// Pod `a`, which is the only endpoint, reaches itself and sees the bridge.
pub(crate) fn a_reaches_itself(world: &World) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for target in [world.vip(), world.node_port()] {
            let answer = ask(protocol, &world.a, &target).unwrap();
            assert_eq!(answer.server, "a");
            assert_eq!(answer.source.ip(), world.at("pods.1"), "masqueraded");
        }
    }
}

#[test]
fn an_endpoint_reaches_itself_through_its_service() {
    for_both_families(|world| {
        let mut backend = world.backend();
        let a = [world.endpoint(11)];
        backend
            .replace(&world.plan([Service::tcp(a), Service::udp(a)]))
            .unwrap();
        a_reaches_itself(&world);
    });
}

#[test]
fn connections_spread_evenly() {
    let world = World::new(Family::V4);
    let endpoints = [world.endpoint(11), world.endpoint(12)];
    let mut backend = world.backend();
    backend
        .replace(&world.plan([Service::tcp(endpoints)]))
        .unwrap();
    let mut counts = BTreeMap::<String, u32>::new();
    for _ in 0..400 {
        *counts
            .entry(ask_tcp(&world.client, &world.vip()).unwrap().server)
            .or_default() += 1;
    }
    // Six standard deviations around one half: chance fails this once in half a billion runs.
    assert!(
        counts.values().all(|n| (140..=260).contains(n)),
        "{counts:?}"
    );
    assert_eq!(counts.len(), 2);
}

/// Many addresses of the client.
pub(crate) fn clients(world: &World) -> Vec<IpAddr> {
    let length = match world.family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    let clients: Vec<IpAddr> = (101..133)
        .map(|n| world.at(&format!("outside.{n}")))
        .collect();
    for client in &clients {
        world.client.addr("eth0", &format!("{client}/{length}"));
    }
    clients
}

/// The servers that these clients reach, each at both addresses of the service, twice: one and the same.
pub(crate) fn choices(world: &World, clients: &[IpAddr]) -> Vec<String> {
    clients
        .iter()
        .map(|client| {
            let mut servers: Vec<String> = [world.vip(), world.node_port()]
                .iter()
                .cycle()
                .take(4)
                .map(|target| {
                    let answer = ask_tcp_from(&world.client, Some(*client), target);
                    answer
                        .unwrap_or_else(|e| panic!("{client} → {target}: {e}"))
                        .server
                })
                .collect();
            servers.dedup();
            assert_eq!(servers.len(), 1, "{client} changed its server");
            servers.remove(0)
        })
        .collect()
}

#[test]
fn a_client_stays_with_its_endpoint() {
    for_both_families(|world| {
        let clients = clients(&world);
        let (a, b) = (world.endpoint(11), world.endpoint(12));
        let plan =
            |endpoints: &[Endpoint]| world.plan([Service::tcp(endpoints.to_vec()).affinity(100)]);
        let mut backend = world.backend();
        backend.replace(&plan(&[a, b])).unwrap();
        let first = choices(&world, &clients);
        // All at one: chance does that once in two billion runs.
        assert!(
            first.contains(&"a".into()) && first.contains(&"b".into()),
            "{first:?}"
        );

        // A restart finds everything as it is; what others flushed of the rules comes back without the choices lost.
        let mut backend = world.backend();
        assert_eq!(backend.replace(&plan(&[a, b])).unwrap(), Applied::default());
        assert_eq!(choices(&world, &clients), first);

        // Those of `a` move to `b` when `a` goes. Those of `b` stay, also when `a` is back.
        let step = |backend: &mut NftBackend, old: &[Endpoint], new: &[Endpoint]| {
            backend
                .update(&Delta::between(&plan(old), &plan(new)))
                .unwrap();
        };
        step(&mut backend, &[a, b], &[b]);
        assert!(choices(&world, &clients).iter().all(|server| server == "b"));
        backend.tick().unwrap();
        backend.tick().unwrap();
        step(&mut backend, &[b], &[a, b]);
        assert!(choices(&world, &clients).iter().all(|server| server == "b"));

        // What `nft` lists, it loads again; and there is nothing left when the service is gone.
        let listing = world.node.sh("nft", &["list", "ruleset"]);
        let copy = Ns::new("copy");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(listing.as_bytes()).unwrap();
        copy.sh("nft", &["-f", file.path().to_str().unwrap()]);
        let mut again = copy.run(NftBackend::open).unwrap();
        assert_eq!(again.replace(&plan(&[a, b])).unwrap(), Applied::default());
        backend
            .update(&Delta::between(&plan(&[a, b]), &world.plan([])))
            .unwrap();
        backend.tick().unwrap();
        assert!(!backend.tick().unwrap().unfinished);
        let fresh = Ns::new("fresh");
        fresh
            .run(NftBackend::open)
            .unwrap()
            .replace(&world.plan([]))
            .unwrap();
        let listing = world.node.sh("nft", &["list", "ruleset"]);
        assert_eq!(listing, fresh.sh("nft", &["list", "ruleset"]));
    });
}

#[test]
fn a_choice_is_forgotten_after_its_time() {
    let world = World::new(Family::V4);
    let endpoints = [world.endpoint(11), world.endpoint(12)];
    let plan = world.plan([Service::tcp(endpoints).affinity(1)]);
    world.backend().replace(&plan).unwrap();
    let ask = || ask_tcp(&world.client, &world.vip()).unwrap().server;
    let first = ask();
    // Each time it is forgotten, and chosen anew, it is another one half of the time.
    let forgotten = || {
        let sets = world.node.sh("nft", &["list", "sets", "ip"]);
        (!sets.contains("192.168.1.100")).then_some(())
    };
    wait_for("another choice", Duration::from_secs(60), || {
        wait_for("a forgotten choice", Duration::from_secs(10), forgotten);
        (ask() != first).then_some(())
    });
}

#[test]
fn without_endpoints_everyone_is_refused_at_once() {
    for_both_families(|world| {
        let mut backend = world.backend();
        backend
            .replace(&world.plan([Service::tcp([]), Service::udp([])]))
            .unwrap();
        for (ns, target, _) in expectations(&world) {
            let error = ask(Protocol::Tcp, ns, &target).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionRefused,
                "{} → {target}",
                ns.label()
            );
        }
        // A local sender of UDP is told by the send itself.
        for ns in [&world.client, &world.c] {
            let error = ask(Protocol::Udp, ns, &world.vip()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{}", ns.label());
        }
        let error = ask(Protocol::Udp, &world.node, &world.vip()).unwrap_err();
        let refused = [ErrorKind::PermissionDenied, ErrorKind::ConnectionRefused];
        assert!(refused.contains(&error.kind()), "{error}");
    });
}

#[test]
fn under_policy_local_outside_sees_local_endpoints_only_and_is_seen() {
    let world = World::new(Family::V4);
    // Pods answer clients outside themselves.
    world.client.route("10.244.0.0/24", "192.168.1.1");
    let (a, b) = (world.endpoint(11), world.endpoint(12));
    let mut backend = world.backend();
    let service = Service::tcp([b]).local([a]);
    backend.replace(&world.plan([service.clone()])).unwrap();

    let outside = ask_tcp(&world.client, &world.node_port()).unwrap();
    assert_eq!(
        (&*outside.server, outside.source.ip()),
        ("a", world.at("outside.100"))
    );
    let node = ask_tcp(&world.node, &world.node_port()).unwrap();
    assert_eq!((&*node.server, node.source.ip()), ("b", world.at("pods.1")));
    let pod = ask_tcp(&world.c, &world.node_port()).unwrap();
    assert_eq!((&*pod.server, pod.source.ip()), ("b", world.at("pods.13")));

    // None on this node: silence for those outside, and no difference for those inside.
    let old = world.plan([service]);
    let new = world.plan([Service::tcp([b]).local([])]);
    backend.update(&Delta::between(&old, &new)).unwrap();
    let error = ask_tcp(&world.client, &world.node_port()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(ask_tcp(&world.c, &world.node_port()).unwrap().server, "b");
}

#[test]
fn node_ports_answer_at_the_nodes_addresses_and_not_at_loopback() {
    let world = World::new(Family::V4);
    let mut backend = world.backend();
    let mut plan = world.plan([Service::tcp([world.endpoint(11)])]);
    backend.replace(&plan).unwrap();
    let refused = |ns: &Ns, address: &str| {
        let error = ask_tcp(ns, &format!("{address}:{NODE_PORT}")).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "{address}: {error}"
        );
    };
    refused(&world.node, "127.0.0.1");
    // An address of the node that is not among those for node ports.
    refused(&world.c, "10.244.0.1");

    // It comes among them, without another change.
    let old = plan.clone();
    plan.v4.node.node_ports.insert(world.at("pods.1"));
    let done = backend.update(&Delta::between(&old, &plan)).unwrap();
    assert_eq!(done.ops, 1);
    assert_eq!(
        ask_tcp(&world.c, &format!("10.244.0.1:{NODE_PORT}"))
            .unwrap()
            .server,
        "a"
    );
}

#[test]
fn a_deleted_service_leaves_nothing() {
    let world = World::new(Family::V4);
    let endpoints = [world.endpoint(11), world.endpoint(12)];
    let mut backend = world.backend();
    let (empty, full) = (world.plan([]), world.plan([Service::tcp(endpoints)]));
    backend.replace(&empty).unwrap();
    let before = world.node.sh("nft", &["list", "ruleset"]);

    backend.update(&Delta::between(&empty, &full)).unwrap();
    ask_tcp(&world.client, &world.vip()).unwrap();
    assert!(
        backend
            .update(&Delta::between(&full, &empty))
            .unwrap()
            .unfinished
    );
    assert!(backend.tick().unwrap().unfinished);
    assert!(!backend.tick().unwrap().unfinished);
    assert_eq!(world.node.sh("nft", &["list", "ruleset"]), before);
}

/// Connects from outside and from a pod without a pause while `change` runs, and gives the errors.
fn failures_during(world: &World, change: impl FnOnce(&AtomicUsize)) -> Vec<String> {
    let (stop, connects) = (AtomicBool::new(false), AtomicUsize::new(0));
    let run = |ns: &Ns, target: String| {
        let mut errors = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            match ask_tcp(ns, &target) {
                Ok(_) => drop(connects.fetch_add(1, Ordering::Relaxed)),
                Err(error) => errors.push(format!("{} → {target}: {error}", ns.label())),
            }
        }
        errors
    };
    std::thread::scope(|scope| {
        let streams = [
            scope.spawn(|| run(&world.client, world.vip())),
            scope.spawn(|| run(&world.client, world.node_port())),
            scope.spawn(|| run(&world.c, world.vip())),
        ];
        change(&connects);
        stop.store(true, Ordering::Relaxed);
        streams
            .into_iter()
            .flat_map(|stream| stream.join().unwrap())
            .collect()
    })
}

#[test]
fn no_connect_fails_while_a_service_shrinks_and_grows() {
    let world = World::new(Family::V4);
    let (a, b) = (world.endpoint(11), world.endpoint(12));
    let plans: Vec<Ruleset> = [vec![a, b], vec![b], vec![a, b], vec![a]]
        .into_iter()
        .map(|endpoints| world.plan([Service::tcp(endpoints)]))
        .collect();
    let mut backend = world.backend();
    backend.replace(&plans[0]).unwrap();

    let errors = failures_during(&world, |connects| {
        let mut steps = plans.iter().cycle().zip(plans.iter().cycle().skip(1));
        // Until there were enough connects for chance to have met a change.
        for step in 0.. {
            let (old, new) = steps.next().unwrap();
            backend.update(&Delta::between(old, new)).unwrap();
            if step % 3 == 0 {
                backend.tick().unwrap();
            }
            if connects.load(Ordering::Relaxed) > 2_000 && step > 500 {
                break;
            }
        }
    });
    assert_eq!(errors, [] as [&str; 0]);
}

#[test]
fn no_connect_fails_over_a_restart_and_the_restart_changes_nothing() {
    let world = World::new(Family::V4);
    let plan = world.plan([Service::tcp([world.endpoint(11), world.endpoint(12)])]);
    world.backend().replace(&plan).unwrap();
    let listing = world.node.sh("nft", &["list", "ruleset"]);
    let errors = failures_during(&world, |connects| {
        while connects.load(Ordering::Relaxed) < 500 {
            let done = world.backend().replace(&plan).unwrap();
            assert_eq!(done, Applied::default());
        }
    });
    assert_eq!(errors, [] as [&str; 0]);
    assert_eq!(world.node.sh("nft", &["list", "ruleset"]), listing);
}

#[test]
fn what_others_change_is_mended_and_told() {
    let world = World::new(Family::V4);
    let plan = world.plan([Service::tcp([world.endpoint(11)])]);
    let mut backend = world.backend();
    backend.replace(&plan).unwrap();
    assert!(backend.is_untouched());
    let listing = world.node.sh("nft", &["list", "ruleset"]);
    let mut monitor = world.node.run(Monitor::open).unwrap();
    let next = |monitor: &mut Monitor| {
        wait_for("a change", Duration::from_secs(5), || {
            monitor.next(false).unwrap()
        })
    };

    for foreign in [
        &["flush", "ruleset"][..],
        &["flush", "map", "ip", "twill-proxy", "vips"],
        &["flush", "chain", "ip", "twill-proxy", "lb-1"],
        &[
            "add",
            "element",
            "ip",
            "twill-proxy",
            "nodeport-ips",
            "{ 192.168.1.77 }",
        ],
    ] {
        world.node.sh("nft", foreign);
        let change = next(&mut monitor);
        assert!(backend.is_disturbed_by(&change), "{foreign:?}");
        assert!(!backend.is_untouched(), "{foreign:?}");
        backend.replace(&plan).unwrap();
        let own = next(&mut monitor);
        assert!(!backend.is_disturbed_by(&own), "{foreign:?}");
        while monitor.next(false).unwrap().is_some() {}
        backend.tick().unwrap();
        backend.tick().unwrap();
        while monitor.next(false).unwrap().is_some() {}
        assert!(backend.is_untouched(), "{foreign:?}");
        assert_eq!(
            world.node.sh("nft", &["list", "ruleset"]),
            listing,
            "{foreign:?}"
        );
    }

    world.node.sh("nft", &["add", "table", "ip", "foreign"]);
    let change = next(&mut monitor);
    assert!(!backend.is_disturbed_by(&change));
}

#[test]
fn an_update_is_refused_until_a_full_pass_was_made() {
    let world = World::new(Family::V4);
    let plan = world.plan([Service::tcp([world.endpoint(11)])]);
    let delta = Delta::between(&world.plan([]), &plan);
    let mut backend = world.backend();
    backend.update(&delta).unwrap_err();

    backend.replace(&world.plan([])).unwrap();
    world
        .node
        .sh("nft", &["delete", "table", "ip", "twill-proxy"]);
    let error = backend.update(&delta).unwrap_err();
    assert!(error.to_string().contains("IPv4"), "{error}");
    backend.update(&delta).unwrap_err();

    backend.replace(&plan).unwrap();
    assert_eq!(ask_tcp(&world.client, &world.vip()).unwrap().server, "a");
}

#[test]
fn cleanup_removes_ours_and_nothing_else() {
    let world = World::new(Family::V4);
    world.node.sh("nft", &["add", "table", "ip", "foreign"]);
    let mut backend = world.backend();
    backend
        .replace(&world.plan([Service::tcp([world.endpoint(11)])]))
        .unwrap();
    assert_eq!(backend.cleanup().unwrap().ops, 2);
    assert_eq!(backend.cleanup().unwrap().ops, 0);
    assert_eq!(
        world.node.sh("nft", &["list", "tables"]),
        "table ip foreign\n"
    );
}

/// A plan with one Service of this many more.
fn enlarged(small: &Ruleset, more: u16) -> Ruleset {
    let mut large = small.clone();
    for n in 1..=more {
        let (key, port) = small.v4.ports.iter().next().unwrap();
        let mut port = (**port).clone();
        port.frontends.truncate(1);
        port.frontends[0].port = 10_000 + n;
        let name = PortName::new("many", &format!("service-{n}"), "");
        large.v4.ports.insert(
            PortKey {
                name,
                ..key.clone()
            },
            port.into(),
        );
    }
    large
}

#[test]
fn a_load_in_parts_is_whole() {
    let world = World::new(Family::V4);
    let small = world.plan([Service::tcp([world.endpoint(11)])]);
    let large = enlarged(&small, 8_000);
    let mut backend = world.backend();
    assert!(backend.replace(&large).unwrap().ops > 24_000);
    assert_eq!(world.backend().replace(&large).unwrap(), Applied::default());
    assert_eq!(ask_tcp(&world.client, &world.vip()).unwrap().server, "a");

    let errors = failures_during(&world, |_| {
        backend.update(&Delta::between(&large, &small)).unwrap();
        backend.update(&Delta::between(&small, &large)).unwrap();
        backend.update(&Delta::between(&large, &small)).unwrap();
        backend.tick().unwrap();
        backend.tick().unwrap();
    });
    assert_eq!(errors, [] as [&str; 0]);
    assert_eq!(world.backend().replace(&small).unwrap(), Applied::default());
}

#[test]
fn maps_get_more_room_before_they_are_full() {
    let world = World::new(Family::V4);
    let small = world.plan([Service::tcp([world.endpoint(11), world.endpoint(12)])]);
    let large = enlarged(&small, 2_000);
    let size = |map: &str| {
        let listing = (world.node).sh("nft", &["list", "map", "ip", "twill-proxy", map]);
        let size = listing
            .lines()
            .find_map(|line| line.trim().strip_prefix("size "));
        size.map(|size| size.parse().unwrap())
    };
    let mut backend = world.backend();
    backend.replace(&small).unwrap();
    assert_eq!((size("vips"), size("endpoints")), (Some(512), Some(512)));
    let errors = failures_during(&world, |_| {
        backend.update(&Delta::between(&small, &large)).unwrap();
    });
    assert!(backend.is_untouched());
    assert_eq!(errors, [] as [&str; 0]);
    assert_eq!(
        (size("vips"), size("endpoints")),
        (Some(4_096), Some(8_192))
    );
    assert_eq!(size("nodeports"), Some(512));

    // One process leaves the room as another has made it, and goes on from there.
    let mut backend = world.backend();
    assert_eq!(backend.replace(&small).unwrap().ops, 2_000);
    backend.replace(&enlarged(&small, 6_000)).unwrap();
    assert_eq!(
        (size("vips"), size("endpoints")),
        (Some(16_384), Some(32_768))
    );

    // Maps that grow by themselves do so.
    let without = (world.node.sh("nft", &["list", "ruleset"]))
        .lines()
        .filter(|line| !line.trim().starts_with("size "))
        .fold(String::from("flush ruleset\n"), |text, line| {
            text + line + "\n"
        });
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(without.as_bytes()).unwrap();
    world.node.sh("nft", &["-f", file.path().to_str().unwrap()]);
    let mut backend = world.backend();
    backend.replace(&small).unwrap();
    backend.update(&Delta::between(&small, &large)).unwrap();
    assert_eq!((size("vips"), size("endpoints")), (None, None));
    assert_eq!(world.backend().replace(&large).unwrap().ops, 0);
}
