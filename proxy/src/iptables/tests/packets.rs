//! Real packets through these chains: what `nft`'s own tests of packets show of its maps. Who may go where is in the
//! table of both.

use hostnet::testkit::require_tool;
use hostnet::vocab::Family;

use crate::backend::Backend;
use crate::iptables::{IptablesBackend, Options, Variant};
use crate::nft::tests::packets::{a_reaches_itself, all_as_expected, choices, clients};
use crate::nft::tests::world::{Service, World};
use crate::plan::{Delta, Endpoint, Ruleset};

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
        all_as_expected(&world);
    });
}

#[test]
fn an_endpoint_reaches_itself_through_its_service() {
    for_each(|world, mut chains| {
        let a = [world.endpoint(11)];
        chains.replace(&world, &world.plan([Service::tcp(a), Service::udp(a)]));
        a_reaches_itself(&world);
    });
}

#[test]
fn a_client_stays_with_its_endpoint() {
    for_each(|world, mut chains| {
        let clients = clients(&world);
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
