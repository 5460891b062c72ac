//! What the objects say beside what the kernel has: names come from them, and a place where the two differ is marked.

use cli::objects::{Cluster, Given, Missing, Source};
use cli::report::{Arrival, Trace};
use kube::api::{ApiResource, DynamicObject};
use serde_json::{Value, json};

use crate::B;
use crate::world::{World, run};

/// The objects of [`World`]: what the rules, tunnels and pods of it come from.
fn objects() -> Vec<Value> {
    let node = |name: &str, address: &str, mac: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": {
                "flannel.alpha.coreos.com/public-ip": address,
                "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"),
            }},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        })
    };
    let lease = |name: &str, holder: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {"holderIdentity": holder},
        })
    };
    let pod = |name: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [], "nodeName": "here"},
            "status": {"podIPs": [{"ip": ip}]},
        })
    };
    let service = |name: &str, ip: &str, node_port: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIPs": [ip],
                "ports": [{"port": 80, "protocol": "TCP", "nodePort": node_port}]},
        })
    };
    let slice = |of: &str, endpoints: Value| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{of}-x"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": of}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        })
    };
    let near = json!({"addresses": ["10.244.2.5"], "nodeName": "here", "conditions": {"ready": true},
        "targetRef": {"kind": "Pod", "name": "a"}});
    let far =
        json!({"addresses": ["10.244.3.2"], "nodeName": "there", "conditions": {"ready": true}});
    let unready = json!({"addresses": ["10.244.2.6"], "nodeName": "here", "conditions": {"ready": false},
        "targetRef": {"kind": "Pod", "name": "b"}});
    vec![
        node("here", "172.30.0.12", "0e:00:00:00:02:00"),
        node("there", "172.30.0.13", "0e:00:00:00:03:00"),
        lease("subnet-10-244-2-0-24", "here"),
        lease("subnet-10-244-3-0-24", "there"),
        pod("a", "10.244.2.5"),
        pod("b", "10.244.2.6"),
        service("web", "10.96.0.10", 30080.into()),
        service("far", "10.96.0.11", Value::Null),
        service("none", "10.96.0.12", Value::Null),
        service("both", "10.96.0.13", Value::Null),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "many", "namespace": "default"},
            "spec": {"clusterIPs": ["10.96.0.20"], "ports": [
                {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "admin", "port": 81},
            ]},
        }),
        slice("web", json!([near])),
        slice("far", json!([far])),
        slice("none", json!([unready])),
        slice("both", json!([near, far])),
    ]
}

pub(crate) fn given(objects: &[Value]) -> Given {
    let typed = objects.iter().cloned().map(serde_json::from_value);
    Given(typed.collect::<Result<Vec<DynamicObject>, _>>().unwrap())
}

/// All objects but for one of this kind and name, which is changed or, by `Value::Null`, taken away.
fn but(kind: &str, name: &str, change: impl Fn(&mut Value)) -> Given {
    let mut all = objects();
    let is_it = |object: &Value| object["kind"] == kind && object["metadata"]["name"] == name;
    let found = all.iter_mut().find(|object| is_it(object)).unwrap();
    change(found);
    all.retain(|object| !object.is_null());
    given(&all)
}

const GONE: fn(&mut Value) = |object| *object = Value::Null;

#[test]
fn each_place_names_its_object() {
    let world = World::new();
    for (from, to, said) in [
        (
            "outside",
            "svc/default/web",
            &[
                "service     NodePort, tcp 80, node port 30080, 1 of 1 endpoints ready   [Service default/web]",
                "endpoint    10.244.2.5:8080   [pod default/a, node here, EndpointSlice default/web-x]",
            ][..],
        ),
        (
            "node/here",
            "svc/default/far",
            &[
                "endpoint    10.244.3.2:8080   [node there, EndpointSlice default/far-x]",
                "onlink   [Lease subnet-10-244-3-0-24 of node there]",
                "tunnel      UDP 8472 to 172.30.0.13: 172.30.0.0/24 dev eth0 proto kernel scope link src 172.30.0.12   [node there]",
            ],
        ),
        (B, "pod/default/a:8080", &["[pod default/a]"]),
        // The Service of an address.
        (
            B,
            "10.96.0.10:80",
            &["[Service default/web]", "EndpointSlice default/web-x"],
        ),
    ] {
        let told = world
            .trace_with(&mut Cluster::of(given(&objects())), from, to)
            .unwrap();
        assert_eq!(told.arrives, Arrival::Yes, "{told}");
        assert!(
            told.differences().is_empty() && told.notes.is_empty(),
            "{told}"
        );
        let text = told.to_string();
        for line in said {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }
}

#[test]
fn where_the_kernel_has_something_else_it_is_marked_with_the_remedy() {
    let world = World::new();
    let mac = "flannel.alpha.coreos.com/backend-data";
    let ip = "flannel.alpha.coreos.com/public-ip";
    let web = "svc/default/web";
    let far = "svc/default/far";
    let rows: Vec<(&str, Given, &str, [&str; 3])> = vec![
        (
            "another Service",
            but("Service", "web", |s| {
                s["spec"]["clusterIPs"] = json!(["10.96.0.99"])
            }),
            "10.96.0.10:80",
            ["service", "neither the address 10.96.0.10", "twill-proxy"],
        ),
        (
            "a deleted Service",
            but("Service", "web", GONE),
            "10.96.0.10:80",
            ["service", "has no Service default/web", "twill-proxy"],
        ),
        (
            "an earlier endpoint",
            but("EndpointSlice", "both-x", |s| {
                s["endpoints"] = json!([s["endpoints"][0]])
            }),
            "svc/default/both",
            [
                "endpoint",
                "no EndpointSlice of Service default/both has 10.244.3.2:8080",
                "twill-proxy",
            ],
        ),
        (
            "a new endpoint",
            but("EndpointSlice", "web-x", |s| {
                let new = json!({"addresses": ["10.244.3.2"], "conditions": {"ready": true}});
                s["endpoints"].as_array_mut().unwrap().push(new);
            }),
            web,
            [
                "service",
                "10.244.3.2:8080 is ready, by EndpointSlice default/web-x, and the rules do not have it",
                "twill-proxy",
            ],
        ),
        (
            "an endpoint that is not ready",
            but("EndpointSlice", "web-x", |s| {
                s["endpoints"][0]["conditions"]["ready"] = false.into()
            }),
            web,
            [
                "endpoint",
                "by EndpointSlice default/web-x it is not ready",
                "twill-proxy",
            ],
        ),
        (
            "a deleted pod",
            but("Pod", "a", GONE),
            web,
            ["pod", "the API server has no pod default/a", "crictl"],
        ),
        (
            "a pod elsewhere",
            but("Pod", "a", |p| {
                p["status"]["podIPs"][0]["ip"] = "10.244.9.9".into()
            }),
            web,
            [
                "pod",
                "has pod default/a at 10.244.9.9",
                "kubectl -n default delete pod a",
            ],
        ),
    ];
    for (what, given, to, [stage, cause, remedy]) in rows {
        let told = world.trace_with(&mut Cluster::of(given), B, to).unwrap();
        assert_eq!(told.arrives, Arrival::Yes, "{what}: {told}");
        named_alone(what, &told, &told.differences(), [stage, cause, remedy]);
    }
    let stops: Vec<(&str, Given, &str, [&str; 3])> = vec![
        (
            "a MAC that is nobody's",
            but("Node", "there", |n| {
                n["metadata"]["annotations"][mac] =
                    r#"{"VNI":1,"VtepMAC":"0e:00:00:00:03:77"}"#.into();
            }),
            far,
            [
                "neighbour",
                "node there publishes 0e:00:00:00:03:77",
                "flanneld",
            ],
        ),
        (
            "a node that moved",
            but("Node", "there", |n| {
                n["metadata"]["annotations"][ip] = "172.30.0.77".into()
            }),
            far,
            ["fdb", "node there is at 172.30.0.77", "flanneld"],
        ),
        (
            "not ready",
            given(&objects()),
            "svc/default/none",
            [
                "rules",
                "no endpoint that is ready: default/b not ready",
                "service-name=none",
            ],
        ),
        (
            "a selector that finds nothing",
            but("EndpointSlice", "none-x", GONE),
            "svc/default/none",
            ["rules", "its selector finds no pod", "service-name=none"],
        ),
        (
            "rules without the endpoints there are",
            but("EndpointSlice", "none-x", |s| {
                s["endpoints"][0]["conditions"]["ready"] = true.into()
            }),
            "svc/default/none",
            [
                "rules",
                "the rules have no endpoint, though EndpointSlices have",
                "twill-proxy",
            ],
        ),
    ];
    for (what, given, to, [stage, cause, remedy]) in stops {
        let told = world.trace_with(&mut Cluster::of(given), B, to).unwrap();
        assert_eq!(told.arrives, Arrival::No, "{what}: {told}");
        named_alone(what, &told, &told.faults(), [stage, cause, remedy]);
    }
    run(&world.node, "ip route del 10.244.3.0/24");
    let without = but("Lease", "subnet-10-244-3-0-24", GONE);
    let told = world.trace_with(&mut Cluster::of(without), B, far).unwrap();
    let said = ["route", "no node holds that subnet", "has left the cluster"];
    named_alone("a node that left", &told, &told.faults(), said);
}

fn named_alone(
    what: &str,
    told: &Trace,
    found: &[(&str, &cli::report::Fault)],
    [stage, cause, remedy]: [&str; 3],
) {
    let is_named = match found {
        [(at, fault)] => {
            *at == stage && fault.cause.contains(cause) && fault.remedy.contains(remedy)
        }
        _ => false,
    };
    assert!(is_named, "{what}: {told}");
}

#[test]
fn names_that_are_not_there_or_not_clear_bring_what_is_meant() {
    let world = World::new();
    for (from, to, said) in [
        (
            B,
            "svc/default/wbe",
            "Service default/wbe is not known; is it default/web",
        ),
        (
            B,
            "svc/default/many",
            "say which: svc/default/many:80, svc/default/many:53 --udp, svc/default/many:81",
        ),
        (
            B,
            "pod/default/aa:80",
            "pod default/aa is not known; is it default/a",
        ),
        (B, "node/theer:80", "node theer is not known; is it there"),
        ("node/there", "svc/default/web", "there is another node"),
    ] {
        let mut cluster = Cluster::of(given(&objects()));
        let error = world.trace_with(&mut cluster, from, to).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

/// An API server that lets nobody see anything of one kind.
struct Denied(Given, &'static str);

impl Denied {
    fn check(
        &self,
        verb: &'static str,
        kind: &ApiResource,
        namespace: Option<&str>,
    ) -> Result<(), Missing> {
        if kind.plural == self.1 {
            return Err(Missing::Forbidden {
                verb,
                resource: kind.plural.clone(),
                namespace: namespace.map(str::to_owned),
            });
        }
        Ok(())
    }
}

impl Source for Denied {
    fn get(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<DynamicObject>, Missing> {
        self.check("get", kind, namespace)?;
        self.0.get(kind, namespace, name)
    }

    fn list(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        label: Option<(&str, &str)>,
    ) -> Result<Vec<DynamicObject>, Missing> {
        self.check("list", kind, namespace)?;
        self.0.list(kind, namespace, label)
    }
}

#[test]
fn without_a_right_the_verb_and_resource_are_told_and_the_rest_is_shown() {
    let world = World::new();
    for (kind, note) in [
        ("services", "no right to get services in namespace default"),
        (
            "endpointslices",
            "no right to list endpointslices in namespace default",
        ),
        ("leases", "no right to get leases in namespace kube-system"),
        ("nodes", "no right to get nodes"),
    ] {
        let mut cluster = Cluster::of(Denied(given(&objects()), kind));
        let told = world
            .trace_with(&mut cluster, B, "svc/default/both")
            .unwrap();
        assert_eq!(told.arrives, Arrival::Yes, "{told}");
        let [one] = &told.notes[..] else {
            panic!("{kind}: {told}");
        };
        assert!(one.starts_with(note), "{told}");
        assert!(
            told.to_string().contains(&format!("not seen: {note}")),
            "{told}"
        );
    }
}
