//! Properties of the plan: it depends on the objects, not on the way that led to them.

use agent::watch::{Delta, Key};
use proptest::prelude::*;

use crate::fixtures;
use crate::index::objects::{
    Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceSpec,
};
use crate::index::{Index, Update};
use crate::plan::{self, Planner};

/// A step in the life of a cluster. Few names, so that steps meet.
#[derive(Clone, Debug)]
enum Step {
    SetService(Service),
    RemoveService(Key),
    SetSlice(EndpointSlice),
    RemoveSlice(Key),
}

impl Step {
    fn update(self) -> Update {
        match self {
            Self::SetService(object) => Update::Service(Delta::Upsert(object)),
            Self::RemoveService(key) => Update::Service(Delta::Remove(key)),
            Self::SetSlice(object) => Update::Slice(Delta::Upsert(object)),
            Self::RemoveSlice(key) => Update::Slice(Delta::Remove(key)),
        }
    }

    /// Which object it is about.
    fn about(&self) -> (bool, Key) {
        match self {
            Self::SetService(object) => (true, Key::of(object)),
            Self::RemoveService(key) => (true, key.clone()),
            Self::SetSlice(object) => (false, Key::of(object)),
            Self::RemoveSlice(key) => (false, key.clone()),
        }
    }
}

fn key(name: &str) -> Key {
    Key {
        namespace: "ns".into(),
        name: name.into(),
    }
}

fn service() -> impl Strategy<Value = Service> {
    let name = prop::sample::select(vec!["a", "b", "a-b"]);
    let policy = prop::sample::select(vec![None, Some("Local".to_owned())]);
    // Addresses and node ports of which there are fewer than Services: they are claimed twice.
    (
        name,
        1u8..3,
        prop::option::of(30_000i32..30_002),
        policy.clone(),
        policy,
        0i64..3,
    )
        .prop_map(|(name, ip, node_port, internal, external, age)| {
            let mut object = Service {
                spec: ServiceSpec {
                    cluster_ips: vec![format!("10.96.0.{ip}"), format!("fd00::{ip}")],
                    ports: ["", "x"]
                        .into_iter()
                        .zip([80, 81])
                        .map(|(name, port)| ServicePort {
                            name: Some(name.into()),
                            port,
                            node_port: node_port.map(|n| n + port),
                            ..ServicePort::default()
                        })
                        .collect(),
                    internal_traffic_policy: internal,
                    external_traffic_policy: external,
                    ..ServiceSpec::default()
                },
                ..Service::default()
            };
            object.metadata.name = Some(name.into());
            object.metadata.namespace = Some("ns".into());
            object.metadata.creation_timestamp = Some(
                serde_json::from_value(format!("2026-01-0{}T00:00:00Z", age + 1).into()).unwrap(),
            );
            object
        })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoint = (
        1u8..4,
        any::<[Option<bool>; 3]>(),
        prop::sample::select(vec!["k8s-node-1", "k8s-node-2"]),
    )
        .prop_map(|(n, [ready, serving, terminating], node)| {
            let mut endpoint = Endpoint {
                addresses: vec![format!("10.244.0.{n}")],
                node_name: Some(node.into()),
                ..Endpoint::default()
            };
            endpoint.conditions.ready = ready;
            endpoint.conditions.serving = serving;
            endpoint.conditions.terminating = terminating;
            endpoint
        });
    let name = prop::sample::select(vec!["s1", "s2", "s3"]);
    let of = prop::sample::select(vec!["a", "b", "a-b"]);
    (name, of, prop::collection::vec(endpoint, 0..4)).prop_map(|(name, of, endpoints)| {
        let mut object = EndpointSlice {
            address_type: "IPv4".into(),
            endpoints,
            ports: vec![EndpointPort {
                port: Some(8080),
                ..EndpointPort::default()
            }],
            ..EndpointSlice::default()
        };
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("ns".into());
        object.metadata.labels = Some([("kubernetes.io/service-name".into(), of.into())].into());
        object
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => service().prop_map(Step::SetService),
        1 => prop::sample::select(vec!["a", "b", "a-b"]).prop_map(|n| Step::RemoveService(key(n))),
        4 => slice().prop_map(Step::SetSlice),
        1 => prop::sample::select(vec!["s1", "s2", "s3"]).prop_map(|n| Step::RemoveSlice(key(n))),
    ]
}

fn index() -> Index {
    Index::new("k8s-node-2")
}

proptest! {
    /// However the steps are grouped into updates, each delta leads from the last plan to the next, and
    /// the last plan is the one that is made from nothing.
    #[test]
    fn step_by_step_is_the_same_as_from_nothing(
        steps in prop::collection::vec((step(), any::<bool>()), 0..40),
    ) {
        let settings = fixtures::cluster_cidr("10.244.0.0/16");
        let (mut index, mut planner) = (index(), Planner::new(settings.clone()));
        let mut model = plan::Ruleset::default();
        for (step, plan_now) in &steps {
            index.update(step.clone().update());
            if *plan_now {
                let dirty = index.take_dirty();
                let delta = planner.update(&index, &dirty);
                prop_assert_eq!(&delta, &plan::Delta::between(&model, planner.ruleset()));
                model.apply(&delta);
                prop_assert_eq!(&model, planner.ruleset());
            }
        }
        let dirty = index.take_dirty();
        planner.update(&index, &dirty);

        // From nothing: the last word on each object, in the order of their names.
        let last: std::collections::BTreeMap<_, _> =
            steps.into_iter().map(|(step, _)| (step.about(), step)).collect();
        let mut fresh = self::index();
        last.into_values().for_each(|step| fresh.update(step.update()));
        let scratch = fixtures::plan(&mut fresh, &settings);
        prop_assert_eq!(planner.ruleset(), &scratch);
        no_place_twice(&scratch)?;
    }

    /// Objects may come in any order.
    #[test]
    fn order_does_not_matter(
        objects in prop::collection::vec(step(), 0..12)
            .prop_map(|steps| steps.into_iter().map(|s| (s.about(), s)).collect::<std::collections::BTreeMap<_, _>>())
            .prop_map(|last| last.into_values().collect::<Vec<_>>()),
        seed in any::<prop::sample::Index>(),
    ) {
        let settings = fixtures::cluster_cidr("10.244.0.0/16");
        let fold = |steps: &[Step]| {
            let mut index = index();
            steps.iter().cloned().for_each(|step| index.update(step.update()));
            fixtures::plan(&mut index, &settings)
        };
        let mut turned = objects.clone();
        if !turned.is_empty() {
            let by = seed.index(turned.len());
            turned.rotate_left(by);
            turned[by..].reverse();
        }
        prop_assert_eq!(fold(&objects), fold(&turned));
    }
}

/// What the type promises: no two service ports share a frontend, and a balanced view has endpoints.
fn no_place_twice(ruleset: &plan::Ruleset) -> Result<(), TestCaseError> {
    for family in [&ruleset.v4, &ruleset.v6] {
        let mut seen = std::collections::HashSet::new();
        for (key, port) in &family.ports {
            prop_assert!(!port.frontends.is_empty(), "{key} has no frontend");
            for frontend in &port.frontends {
                prop_assert!(
                    seen.insert((frontend.at, key.protocol, frontend.port)),
                    "{key}: {frontend} is there twice"
                );
                for verdict in [frontend.inside, frontend.outside] {
                    if let plan::Verdict::Balance(view) = verdict {
                        prop_assert!(
                            !port.endpoints(view).is_empty(),
                            "{key}: {frontend} without endpoints"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}
