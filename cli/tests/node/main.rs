//! `trace` on a real kernel: a node with two pods, a peer behind a tunnel and a client outside. The verdict is compared
//! with a real connection, and each hop that is broken is named, alone, with its remedy.

mod cost;
mod docs;
mod doctor;
mod far;
mod faults;
mod objects;
mod probe;
mod services;
mod six;
mod top;
mod world;

use cli::pods::{PodTable, pods};
use cli::report::Arrival;
use hostnet::testkit::ask_tcp;
use hostnet::vocab::Family;

use world::{Mode, World, run};

const B: &str = "pod/default/b";

#[test]
fn what_is_said_to_arrive_arrives() {
    for (family, mode) in [
        (Family::V4, Mode::Nft),
        (Family::V6, Mode::Nft),
        (Family::V4, Mode::Iptables),
        (Family::V6, Mode::Iptables),
        (Family::V4, Mode::Legacy),
        (Family::V6, Mode::Legacy),
    ] {
        all_of_it_arrives(&World::of(family, mode));
    }
}

fn all_of_it_arrives(world: &World) {
    for (from, to, address) in [
        ("outside", "svc/default/web", "172.30.0.12:30080"),
        ("outside", "svc/default/both", "10.96.0.13:80"),
        ("node", "svc/default/web", "10.96.0.10:80"),
        ("node", "svc/default/far", "10.96.0.11:80"),
        (B, "svc/default/web", "10.96.0.10:80"),
        (B, "svc/default/far", "10.96.0.11:80"),
        (B, "svc/default/stays", "10.96.0.15:80"),
        (B, "pod/default/a:8080", "10.244.2.5:8080"),
        (B, "10.244.3.2:8080", "10.244.3.2:8080"),
        ("pod/default/a", "svc/default/guarded", "10.96.0.14:80"),
        ("pod/default/a", "svc/default/web", "10.96.0.10:80"),
        ("outside", "pod/default/a:8080", "10.244.2.5:8080"),
    ] {
        let told = world.trace(from, to);
        assert_eq!(told.arrives, Arrival::Yes, "{told}");
        // Bridge netfilter is the host's module: without it, pods of one bridge do not see their Service's answer.
        let answer = ask_tcp(world.sender(from), &world.say(address));
        assert!(answer.is_ok(), "{from} {to}: {answer:?}\n{told}");
    }
}

#[test]
fn what_the_old_tables_drop_is_named_with_the_command_that_shows_it() {
    for family in [Family::V4, Family::V6] {
        let world = World::of(family, Mode::Nft);
        let program = match family {
            Family::V4 => "iptables-legacy",
            Family::V6 => "ip6tables-legacy",
        };
        let pod = world.say("10.244.2.5");
        run(
            &world.node,
            &format!("{program} -A FORWARD -d {pod} -j DROP"),
        );
        let told = world.trace("outside", "svc/default/web");
        let text = told.to_string();
        let [(_, fault)] = told.faults()[..] else {
            panic!("{text}");
        };
        assert!(
            fault
                .cause
                .contains("filter (iptables-legacy) FORWARD drops it"),
            "{text}"
        );
        let shown = format!("`{program} -t filter -nvL FORWARD --line-numbers`");
        assert!(fault.remedy.contains(&shown), "{text}");
        run(
            &world.node,
            &format!("{program} -D FORWARD -d {pod} -j DROP"),
        );
        run(&world.node, &format!("{program} -P FORWARD DROP"));
        let told = world.trace("outside", "svc/default/web");
        let remedy = &told.faults()[0].1.remedy;
        assert!(
            remedy.contains(&format!("`{program} -t filter -A FORWARD -d")),
            "{told}"
        );
        // Both tables are asked: what one accepts the other may drop.
        run(&world.node, &format!("{program} -P FORWARD ACCEPT"));
        assert_eq!(
            world.trace("outside", "svc/default/web").arrives,
            Arrival::Yes
        );
    }
}

#[test]
fn endpoints_have_their_chances_and_the_reason_for_masquerade() {
    let world = World::new();
    for service in ["both", "stays"] {
        let told = world.trace(B, &format!("svc/default/{service}"));
        let chances: Vec<Option<f64>> = (told.hops.iter())
            .filter(|hop| hop.stage == "endpoint")
            .map(|hop| hop.chance)
            .collect();
        assert_eq!(chances, [Some(0.5), Some(0.5)], "{told}");
    }
    let told = world.trace("pod/default/a", "svc/default/web").to_string();
    assert!(told.contains("an endpoint that meets itself"), "{told}");
    let told = world.trace("outside", "svc/default/web").to_string();
    assert!(told.contains("masq-always"), "{told}");
}

#[test]
fn one_of_two_endpoints_that_is_lost_is_told_with_its_chance() {
    let world = World::new();
    run(&world.node, "ip route del 10.244.3.0/24");
    let told = world.trace(B, "svc/default/both");
    assert_eq!(told.arrives, Arrival::Sometimes, "{told}");
    assert_eq!(told.faults().len(), 1, "{told}");
    // The peer is there all the while.
    assert!(ask_tcp(&world.peer, "10.244.3.2:8080").is_ok());
}

#[test]
fn a_veth_leads_to_its_pod_and_a_pod_to_its_veth() {
    let world = World::new();
    run(&world.node, "bridge link set dev vethb isolated on");
    assert!(ask_tcp(&world.outside, "10.244.2.5:8080").is_ok());
    let list = |which: Option<&str>| pods(&mut world.kernel(), which);
    let names = |which| {
        let found = list(Some(which)).unwrap();
        found.into_iter().map(|pod| pod.pod).collect::<Vec<_>>()
    };
    for which in ["vetha", "default/a", "a", "10.244.2.5"] {
        assert_eq!(names(which), ["default/a"], "{which}");
    }
    let all = list(None).unwrap();
    assert_eq!(all.len(), 2);
    assert!(all[0].sent[0] > 0 && all[0].received[1] > 0, "{all:?}");
    assert_eq!(
        (all[1].state.as_str(), &all[1].settings[..]),
        ("up", &["isolated", "no hairpin"][..])
    );
    let table = PodTable(&all).to_string();
    assert_eq!(table.lines().count(), 3, "{table}");
    run(&world.node, "ip link set vetha down");
    assert_eq!(list(Some("a")).unwrap()[0].state, "down");
    let error = list(Some("vethc")).unwrap_err().to_string();
    assert!(error.contains("is it vetha or vethb"), "{error}");
}
