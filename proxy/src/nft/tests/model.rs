//! Properties of every way from one plan to another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use hostnet::nft::{
    Changes, Data, Datum, Expr, Key, Op, Proto, Rule, Table, Verdict as NftVerdict, diff,
    model::replay,
};
use hostnet::vocab::{Family, Subnet};
use proptest::prelude::*;

use super::super::affinity::is_chain;
use super::super::diff::State;
use super::super::layout::{Balancer, GUARD, GUARD_INSIDE, Map};
use crate::plan::{
    At, Change, Endpoint, FamilyDelta, FamilyRuleset, Frontend, Masquerade, NodeRules, PodTraffic,
    PortKey, PortName, Protocol, ServicePort, Verdict, View,
};

const V4: Family = Family::V4;

fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 244, 0, n])
}

fn endpoints(numbers: impl IntoIterator<Item = u8>) -> Arc<[Endpoint]> {
    let endpoint = |n| Endpoint {
        address: address(n),
        port: 80,
        local: n.is_multiple_of(3),
    };
    numbers.into_iter().map(endpoint).collect()
}

fn key(n: u8) -> PortKey {
    let name = PortName::new("ns", &format!("svc-{n}"), "http");
    PortKey {
        name,
        protocol: if n.is_multiple_of(2) {
            Protocol::Tcp
        } else {
            Protocol::Udp
        },
    }
}

/// Service port number `n`, at a cluster IP of its own, and perhaps at a node port and at a load balancer's
/// address with a guard or without.
fn port(n: u8) -> impl Strategy<Value = Arc<ServicePort>> {
    let members = prop::collection::btree_set(0..9_u8, 0..6);
    let masquerade = prop_oneof![
        Just(Masquerade::Always),
        Just(Masquerade::NotPods),
        Just(Masquerade::ThisNode),
    ];
    let affinity = prop_oneof![
        3 => Just(None),
        1 => Just(NonZeroU32::new(10)),
        1 => Just(NonZeroU32::new(20)),
    ];
    let balancer = prop::option::of(prop::collection::btree_set(0..3_u8, 0..3));
    (members, any::<[bool; 2]>(), masquerade, affinity, balancer).prop_map(
        move |(members, [node_port, is_local], masquerade, affinity, balancer)| {
            let cluster = endpoints(members.iter().copied());
            let local: Arc<[_]> = cluster.iter().filter(|e| e.local).copied().collect();
            let of = |list: &[Endpoint], view| match (cluster.is_empty(), list.is_empty()) {
                (true, _) => Verdict::Reject,
                (false, true) => Verdict::Drop,
                (false, false) => Verdict::Balance(view),
            };
            let inside = of(&cluster, View::Cluster);
            let outside = if is_local {
                of(&local, View::Local)
            } else {
                inside
            };
            let external = |at, port, sources| Frontend {
                at,
                port,
                inside,
                outside,
                masquerade,
                sources,
            };
            let mut frontends = vec![Frontend {
                outside: inside,
                masquerade: Masquerade::NotPods,
                ..external(At::ClusterIp(IpAddr::from([10, 96, 0, n])), 443, None)
            }];
            if let Some(ranges) = balancer {
                let range = |n| format!("192.168.{n}.0/24").parse().unwrap();
                let sources: Arc<[Subnet]> = ranges.into_iter().map(range).collect();
                let sources = (!sources.is_empty()).then_some(sources);
                let at = At::LoadBalancer(IpAddr::from([172, 16, 0, n]));
                frontends.push(external(at, 443, sources));
            }
            if node_port {
                let port = 30_000 + u16::from(n / 2);
                frontends.push(external(At::NodePort, port, None));
            }
            let local = if is_local { local } else { Arc::default() };
            Arc::new(ServicePort {
                frontends,
                cluster,
                local,
                affinity,
                ..ServicePort::default()
            })
        },
    )
}

fn rules() -> impl Strategy<Value = FamilyRuleset> {
    let ports = (0..6_u8)
        .map(|n| prop::option::of(port(n)))
        .collect::<Vec<_>>();
    (ports, any::<[bool; 3]>()).prop_map(|(ports, [known, first, second])| {
        let pods = match known {
            true => PodTraffic::From(vec!["10.244.0.0/16".parse().unwrap()]),
            false => PodTraffic::Unknown,
        };
        let addresses = [(first, [192, 168, 1, 1]), (second, [192, 168, 1, 2])];
        let node_ports = addresses
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, a)| a.into())
            .collect();
        let ports = (0..)
            .zip(ports)
            .filter_map(|(n, port)| Some((key(n), port?)))
            .collect();
        FamilyRuleset {
            node: NodeRules {
                pods,
                node_ports,
                ..NodeRules::default()
            },
            ports,
        }
    })
}

/// The kernel in memory, and the backend's state beside it.
struct Sim {
    table: Table,
    state: State,
    rules: FamilyRuleset,
}

impl Sim {
    fn start(rules: FamilyRuleset) -> Sim {
        let (changes, state) = State::replace(V4, None, &rules, Some(2));
        Sim {
            table: replay(None, &changes).unwrap().unwrap(),
            state,
            rules,
        }
    }

    /// Goes to new rules by changes; returns the operations.
    fn update(&mut self, rules: FamilyRuleset) -> Vec<Op> {
        let changes = self
            .state
            .update(&FamilyDelta::between(&self.rules, &rules));
        self.table = replay(Some(self.table.clone()), &changes).unwrap().unwrap();
        self.rules = rules;
        changes.ops
    }

    /// Returns the operations.
    fn tick(&mut self) -> Vec<Op> {
        let changes = self.state.tick();
        self.table = replay(Some(self.table.clone()), &changes).unwrap().unwrap();
        changes.ops
    }

    /// Ticks until nothing is left over.
    fn finish(&mut self) {
        self.tick();
        self.tick();
        assert!(!self.state.is_unfinished());
    }

    /// What a new process would change.
    fn after_restart(&self) -> String {
        State::replace(V4, Some(&self.table), &self.rules, Some(2))
            .0
            .to_string()
    }
}

/// The endpoints at which a packet can end that reads the entrances of one table and the rest of another, by
/// entrance (and source, where only some may come in). Panics where one leads nowhere.
fn reachable(entrances: &Table, rest: &Table) -> BTreeMap<(Map, String), Vec<Key>> {
    let mut reachable = BTreeMap::new();
    let is_source = |map: &Map| matches!(map, Map::Sources | Map::SourcesInside);
    let entrances_of = Map::ALL
        .into_iter()
        .filter(|map| map.is_entrance() && !is_source(map));
    for map in entrances_of {
        let set = &entrances.sets[map.name()];
        for (key, element) in &set.elements {
            let Some(Data::Verdict(verdict)) = &element.data else {
                continue;
            };
            let at = set.decl.key.show(key).to_string();
            let frontend = set.decl.key.decode(key).unwrap();
            let guarded = match verdict {
                NftVerdict::Goto(chain) if **chain == *GUARD => Map::Sources,
                NftVerdict::Goto(chain) if **chain == *GUARD_INSIDE => Map::SourcesInside,
                _ => {
                    reachable.insert((map, at), ends(verdict, &frontend, rest));
                    continue;
                }
            };
            let sources = &rest.sets[guarded.name()];
            for (source, element) in &sources.elements {
                let source = sources.decl.key.show(source).to_string();
                if let (true, Some(Data::Verdict(verdict))) =
                    (source.starts_with(&format!("{at} . ")), &element.data)
                {
                    reachable.insert((guarded, source), ends(verdict, &frontend, rest));
                }
            }
        }
    }
    reachable.retain(|_, ends| !ends.is_empty());
    reachable
}

/// Where a verdict sends the packets of a frontend.
fn ends(verdict: &NftVerdict, frontend: &[Datum], table: &Table) -> Vec<Key> {
    let NftVerdict::Goto(chain) = verdict else {
        return Vec::new();
    };
    let rules = &table.chains[chain].rules;
    if let Some(balancer) = Balancer::by_name(chain) {
        assert_eq!(*rules, balancer.chain(V4).rules, "{chain}");
        let target = &table.sets[balancer.map().name()];
        let end = |slot| match target.elements.get(&slot_key(frontend, slot)) {
            Some(element) => match &element.data {
                Some(Data::Value(end)) => end.clone(),
                other => panic!("{other:?}"),
            },
            None => panic!("no slot {slot} for {frontend:?}"),
        };
        return (0..balancer.endpoints).map(end).collect();
    }
    if !is_chain(chain) {
        return Vec::new();
    }
    // Half of a choice's rules ask for clients that are known, the other half pick.
    let (known, picks) = rules.split_at(rules.len() / 2);
    let to =
        |rules: &[Rule]| -> Vec<Key> { rules.iter().map(|rule| sent_to(rule, table)).collect() };
    assert_eq!(to(known), to(picks), "{chain}");
    assert!(matches!(
        picks.last().unwrap().exprs[..],
        [Expr::Verdict(_)]
    ));
    to(picks)
}

/// The endpoint to which the rule's chain sends.
fn sent_to(rule: &Rule, table: &Table) -> Key {
    let Some(Expr::Verdict(NftVerdict::Goto(chain))) = rule.exprs.last() else {
        panic!("{rule:?}");
    };
    let exprs = table.chains[chain]
        .rules
        .iter()
        .flat_map(|rule| &rule.exprs);
    let values: Vec<&[u8]> = exprs
        .filter_map(|expr| match expr {
            Expr::Immediate { value, .. } => Some(&**value),
            _ => None,
        })
        .collect();
    let (address, port): ([u8; 4], [u8; 2]) =
        (values[0].try_into().unwrap(), values[1].try_into().unwrap());
    Key::from((IpAddr::from(address), u16::from_be_bytes(port)))
}

fn slot_key(frontend: &[Datum], slot: u32) -> Key {
    match frontend.to_vec().as_slice() {
        [addr, proto, port] => Key::from((addr.clone(), proto.clone(), port.clone(), slot)),
        [proto, port] => Key::from((proto.clone(), port.clone(), slot)),
        other => panic!("no frontend: {other:?}"),
    }
}

proptest! {
    #[test]
    fn a_restart_changes_nothing(steps in prop::collection::vec(rules(), 1..5)) {
        let mut sim = Sim::start(FamilyRuleset::default());
        for rules in steps {
            sim.update(rules);
            sim.finish();
            prop_assert_eq!(sim.after_restart(), "");
        }
    }

    #[test]
    fn changes_lead_to_the_table_that_a_fresh_start_would_make_but_for_the_slots(
        steps in prop::collection::vec(rules(), 1..4)
    ) {
        let mut sim = Sim::start(FamilyRuleset::default());
        for rules in steps {
            sim.update(rules);
        }
        sim.finish();
        let fresh = Sim::start(sim.rules.clone());
        prop_assert_eq!(&sim.table.chains, &fresh.table.chains);
        for (name, set) in &fresh.table.sets {
            let keys = |set: &hostnet::nft::Set| set.elements.keys().cloned().collect::<Vec<_>>();
            prop_assert_eq!(keys(&sim.table.sets[name]), keys(set));
        }
        let sorted = |table: &Table| {
            let mut all = reachable(table, table);
            all.values_mut().for_each(|ends| ends.sort());
            all
        };
        prop_assert_eq!(sorted(&sim.table), sorted(&fresh.table));
    }

    #[test]
    fn every_endpoint_has_one_slot_and_every_slot_an_endpoint(steps in prop::collection::vec(rules(), 1..5)) {
        let mut sim = Sim::start(FamilyRuleset::default());
        for rules in steps {
            sim.update(rules);
            for (at, mut ends) in reachable(&sim.table, &sim.table) {
                let slots = ends.len();
                ends.sort();
                ends.dedup();
                prop_assert_eq!(ends.len(), slots, "{:?}", at);
            }
        }
    }

    #[test]
    fn a_packet_that_meets_a_commit_halfway_ends_at_an_endpoint_of_before_or_after(
        steps in prop::collection::vec((rules(), any::<bool>()), 1..6)
    ) {
        let mut sim = Sim::start(FamilyRuleset::default());
        for (rules, finish) in steps {
            let before = sim.table.clone();
            sim.update(rules);
            let halfway = reachable(&before, &sim.table);
            let old = reachable(&before, &before);
            let new = reachable(&sim.table, &sim.table);
            // All frontends of a port with affinity share its chain, those that have just gone too.
            let shared: Vec<Key> = (sim.rules.ports.values())
                .filter(|port| port.affinity.is_some())
                .flat_map(|port| port.cluster.iter().chain(port.local.iter()))
                .map(|endpoint| Key::from((endpoint.address, endpoint.port)))
                .collect();
            for (at, ends) in halfway {
                // The frontend may have got one view for all, or one for those inside, or a guard.
                let frontend = at.1.split(" . ").take(3).collect::<Vec<_>>().join(" . ");
                let allowed = |end: &Key| [&old, &new].into_iter().flatten().any(|(to, ends)| {
                    to.1.starts_with(&frontend) && ends.contains(end)
                }) || shared.contains(end);
                prop_assert!(ends.iter().all(allowed), "{:?}: {:?}", at, ends);
            }
            if finish {
                let before = sim.table.clone();
                sim.finish();
                // Who reads what leads somewhere now, finds it there after the cleaning.
                prop_assert_eq!(reachable(&before, &sim.table), new);
            }
        }
    }

    /// So that a long list can be sent in parts.
    #[test]
    fn every_beginning_of_a_list_of_changes_is_right_by_itself(a in rules(), b in rules(), repair in any::<bool>()) {
        let mut sim = Sim::start(a.clone());
        let changes = match repair {
            true => State::replace(V4, Some(&sim.table), &b, Some(2)).0,
            false => sim.state.update(&FamilyDelta::between(&a, &b)),
        };
        let mut table = sim.table;
        for op in changes.ops {
            let changes = Changes { table: changes.table.clone(), ops: vec![op] };
            table = replay(Some(table), &changes).unwrap().unwrap();
            reachable(&table, &table);
        }
    }

    #[test]
    fn a_repair_leads_from_any_plan_to_any_other(a in rules(), b in rules()) {
        let old = Sim::start(a);
        let (changes, state) = State::replace(V4, Some(&old.table), &b, Some(2));
        let table = replay(Some(old.table), &changes).unwrap().unwrap();
        let mut sim = Sim { table, state, rules: b };
        reachable(&sim.table, &sim.table);
        sim.finish();
        prop_assert_eq!(sim.after_restart(), "");
    }
}

/// A service with a cluster IP and these endpoints, alone in the plan.
fn one_service(numbers: impl IntoIterator<Item = u8>) -> FamilyRuleset {
    let cluster = endpoints(numbers);
    let verdict = match cluster.is_empty() {
        true => Verdict::Reject,
        false => Verdict::Balance(View::Cluster),
    };
    let frontend = Frontend {
        at: At::ClusterIp(IpAddr::from([10, 96, 0, 10])),
        port: 53,
        inside: verdict,
        outside: verdict,
        masquerade: Masquerade::NotPods,
        sources: None,
    };
    let port = ServicePort {
        frontends: vec![frontend],
        cluster,
        ..ServicePort::default()
    };
    let key = PortKey {
        name: PortName::new("kube-system", "kube-dns", "dns"),
        protocol: Protocol::Udp,
    };
    FamilyRuleset {
        node: NodeRules::default(),
        ports: [(key, Arc::new(port))].into(),
    }
}

fn text(ops: &[Op]) -> Vec<String> {
    let table = super::super::layout::Layout::new(V4).table;
    ops.iter()
        .flat_map(|op| {
            op.display(&table)
                .to_string()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn one_endpoint_less_costs_one_slot_and_the_way_to_it() {
    let mut sim = Sim::start(one_service(1..=5));
    sim.update(one_service([1, 2, 3, 4, 5, 6]));
    sim.finish();
    let ops = sim.update(one_service([1, 3, 4, 5, 6]));
    assert_eq!(
        text(&ops),
        [
            "add chain ip twill-proxy lb-5",
            "flush chain ip twill-proxy lb-5",
            "add rule ip twill-proxy lb-5 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 5 map @endpoints",
            "add rule ip twill-proxy lb-5 goto refuse",
            "delete element ip twill-proxy endpoints { 10.96.0.10 . udp . 53 . 1 }",
            "add element ip twill-proxy endpoints { 10.96.0.10 . udp . 53 . 1 comment \"kube-system/kube-dns:dns\" : 10.244.0.6 . 80 }",
            "delete element ip twill-proxy vips { 10.96.0.10 . udp . 53 }",
            "add element ip twill-proxy vips { 10.96.0.10 . udp . 53 comment \"kube-system/kube-dns:dns\" : goto lb-5 }",
        ]
    );
    assert_eq!(sim.tick(), [], "it is there for a whole tick");
    assert_eq!(
        text(&sim.tick()),
        [
            "delete element ip twill-proxy endpoints { 10.96.0.10 . udp . 53 . 5 }",
            "delete chain ip twill-proxy lb-6",
        ]
    );
}

#[test]
fn an_endpoint_that_another_replaces_costs_one_element() {
    let mut sim = Sim::start(one_service([1, 2, 4]));
    let ops = sim.update(one_service([1, 2, 5]));
    assert_eq!(ops.len(), 1, "{:?}", text(&ops));
    assert!(!sim.state.is_unfinished());
}

#[test]
fn a_service_that_loses_its_last_endpoint_is_refused_at_once() {
    let mut sim = Sim::start(one_service([1]));
    let ops = sim.update(one_service([]));
    assert_eq!(
        text(&ops).last().unwrap(),
        "add element ip twill-proxy vips { 10.96.0.10 . udp . 53 comment \"kube-system/kube-dns:dns\" : goto refuse }"
    );
}

#[test]
fn a_deleted_service_leaves_no_element() {
    let mut sim = Sim::start(one_service([1, 3]));
    sim.update(FamilyRuleset::default());
    let vip = Key::from((IpAddr::from([10, 96, 0, 10]), Proto::UDP, 53_u16));
    assert!(!sim.table.sets["vips"].elements.contains_key(&vip));
    sim.finish();
    assert!(sim.table.sets.values().all(|set| set.elements.is_empty()));
    let fresh = Sim::start(FamilyRuleset::default()).table;
    assert!(diff(Some(&sim.table), fresh).is_empty());
}

#[test]
fn a_change_of_nothing_is_no_operation() {
    let rules = one_service([1, 2]);
    let mut sim = Sim::start(rules.clone());
    let (key, port) = rules.ports.iter().next().unwrap();
    let again = Change {
        key: key.clone(),
        before: Some(port.clone()),
        after: Some(port.clone()),
    };
    let changes = sim.state.update(&FamilyDelta {
        node: None,
        ports: vec![again],
    });
    assert!(changes.is_empty(), "{changes}");
}
