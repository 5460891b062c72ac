//! Real packets through these chains: what `nft`'s own tests of packets show of its maps. Who may go where is in the
//! table of both.

use std::net::IpAddr;

use hostnet::testkit::require_tool;
use hostnet::vocab::Family;

use crate::backend::Backend;
use crate::iptables::{IptablesBackend, Options, Variant};
use crate::nft::tests::packets::{choices, expectations};
use crate::nft::tests::world::{Service, World, ask};
use crate::plan::{Delta, Endpoint, Protocol, Ruleset};

/// In the node of a world.
struct Chains(IptablesBackend);

impl Chains {
    fn new(variant: Variant) -> Chains {
        require_tool("iptables-nft-restore", "iptables");
        require_tool("iptables-legacy-restore", "iptables");
        Chains(IptablesBackend::new(Options::default(), variant))
    }

    fn replace(&mut self, world: &World, plan: &Ruleset) {
        world.node.run(|| self.0.replace(plan)).unwrap();
    }
}

fn for_each(check: impl Fn(World, Chains)) {
    for family in Family::ALL {
        for variant in [Variant::Nft, Variant::Legacy] {
            check(World::new(family), Chains::new(variant));
        }
    }
}

#[test]
fn everyone_reaches_a_service_and_the_right_source_is_seen() {
    for_each(|world, mut chains| {
        let endpoints = [world.endpoint(11), world.endpoint(12)];
        let plan = world.plan([Service::tcp(endpoints), Service::udp(endpoints)]);
        chains.replace(&world, &plan);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (ns, target, source) in expectations(&world) {
                let what = format!("{} → {target}/{protocol}", ns.label());
                let answer = ask(protocol, ns, &target).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(["a", "b"].contains(&&*answer.server), "{what}: {answer:?}");
                assert_eq!(answer.source.ip(), source, "{what}");
            }
        }
    });
}

#[test]
fn an_endpoint_reaches_itself_through_its_service() {
    for_each(|world, mut chains| {
        let a = [world.endpoint(11)];
        chains.replace(&world, &world.plan([Service::tcp(a), Service::udp(a)]));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for target in [world.vip(), world.node_port()] {
                let answer = ask(protocol, &world.a, &target).unwrap();
                assert_eq!(answer.server, "a");
                assert_eq!(answer.source.ip(), world.at("pods.1"), "masqueraded");
            }
        }
    });
}

#[test]
fn a_client_stays_with_its_endpoint() {
    for_each(|world, mut chains| {
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
        let (a, b) = (world.endpoint(11), world.endpoint(12));
        let plan =
            |endpoints: &[Endpoint]| world.plan([Service::tcp(endpoints.to_vec()).affinity(100)]);
        chains.replace(&world, &plan(&[a, b]));
        let first = choices(&world, &clients);
        // All at one: chance does that once in two billion runs.
        assert!(
            first.contains(&"a".into()) && first.contains(&"b".into()),
            "{first:?}"
        );
        // A restart loses no choice.
        let mut chains = Chains::new(chains.0.variant());
        chains.replace(&world, &plan(&[a, b]));
        assert_eq!(choices(&world, &clients), first);
        // Those of `a` move to `b` when `a` goes.
        let delta = Delta::between(&plan(&[a, b]), &plan(&[b]));
        world.node.run(|| chains.0.update(&delta)).unwrap();
        assert!(choices(&world, &clients).iter().all(|server| server == "b"));
    });
}
