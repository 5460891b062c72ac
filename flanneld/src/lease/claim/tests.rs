//! Claims against an API server in memory, that is asked by many nodes at once and as adversely as it may be.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use hyper::{Request, Response};
use kube::client::Body;
use serde_json::Value;
use tokio::sync::Mutex;
use tower::service_fn;

use super::*;

type Meddle = Box<dyn FnMut(&str, &str, &mut BTreeMap<String, Value>) + Send>;

/// Leases and Nodes as an API server keeps them: names are unique, versions count up.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    version: u64,
    requests: usize,
    /// Called before each request: what somebody else does meanwhile.
    meddle: Option<Meddle>,
}

impl Server {
    fn stamp(&mut self, object: &mut Value) {
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = self.version.to_string().into();
        if metadata["uid"].is_null() {
            metadata["uid"] = format!("uid-{:04}", self.version).into();
            metadata["creationTimestamp"] = "2026-11-22T10:00:00Z".into();
        }
    }

    fn serve(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        self.requests += 1;
        let key = path.split('?').next().unwrap_or_default().to_owned();
        if let Some(mut meddle) = self.meddle.take() {
            meddle(method, &key, &mut self.objects);
            self.meddle = Some(meddle);
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match method {
            "GET" if key.ends_with("/leases") => {
                let items: Vec<_> = self
                    .objects
                    .iter()
                    .filter(|(k, _)| k.starts_with(&key))
                    .map(|(_, v)| v.clone())
                    .collect();
                (
                    200,
                    json!({ "metadata": { "resourceVersion": "1" }, "items": items }),
                )
            }
            "GET" => self
                .objects
                .get(&key)
                .map_or_else(|| refuse(404), |object| (200, object.clone())),
            "POST" => {
                let name = body["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                let key = format!("{key}/{name}");
                if self.objects.contains_key(&key) {
                    return refuse(409);
                }
                let mut object = body;
                self.stamp(&mut object);
                self.objects.insert(key, object.clone());
                (201, object)
            }
            "PATCH" => {
                let Some(mut object) = self.objects.get(&key).cloned() else {
                    return refuse(404);
                };
                for field in ["uid", "resourceVersion"] {
                    let wanted = &body["metadata"][field];
                    if !wanted.is_null() && *wanted != object["metadata"][field] {
                        return refuse(409);
                    }
                }
                let set = &object["spec"]["podCIDRs"];
                if set.is_array() && *set != body["spec"]["podCIDRs"] {
                    return refuse(422);
                }
                merge(&mut object, &body);
                self.stamp(&mut object);
                self.objects.insert(key, object.clone());
                (200, object)
            }
            "DELETE" => {
                let Some(object) = self.objects.get(&key) else {
                    return refuse(404);
                };
                for (field, wanted) in body["preconditions"].as_object().into_iter().flatten() {
                    if *wanted != object["metadata"][field] {
                        return refuse(409);
                    }
                }
                self.objects.remove(&key);
                (200, json!({ "kind": "Status", "status": "Success" }))
            }
            _ => refuse(405),
        }
    }

    fn subnets(&self) -> Vec<(Subnet, String)> {
        let leases = self
            .objects
            .iter()
            .filter(|(key, _)| key.contains("/leases/"));
        leases
            .map(|(_, lease)| {
                let name = lease["metadata"]["name"].as_str().unwrap();
                let holder = lease["spec"]["holderIdentity"].as_str().unwrap();
                (
                    crate::lease::parse_lease_name(name).unwrap(),
                    holder.to_owned(),
                )
            })
            .collect()
    }
}

fn refuse(code: u16) -> (u16, Value) {
    (
        code,
        json!({ "kind": "Status", "status": "Failure", "code": code, "reason": if code == 404 { "NotFound" } else { "" }, "message": "" }),
    )
}

/// RFC 7396.
fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, patch) => *object = patch.clone(),
    }
}

#[derive(Clone)]
struct Cluster(Arc<Mutex<Server>>);

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

impl Cluster {
    /// Nodes by name, each with its podCIDRs.
    async fn new(nodes: &[(&str, &[&str])]) -> Self {
        let cluster = Self(Arc::default());
        for (name, cidrs) in nodes {
            cluster.add_node(name, cidrs).await;
        }
        cluster
    }

    async fn add_node(&self, name: &str, cidrs: &[&str]) {
        let spec = if cidrs.is_empty() {
            json!({})
        } else {
            json!({ "podCIDR": cidrs[0], "podCIDRs": cidrs })
        };
        let mut server = self.0.lock().await;
        let mut node = json!({ "metadata": { "name": name }, "spec": spec });
        server.stamp(&mut node);
        server.objects.insert(format!("/api/v1/nodes/{name}"), node);
    }

    async fn lease(&self, subnet: &str, holder: &str, renewed: &str, created: &str) {
        let name = lease_name(subnet.parse().unwrap());
        let mut server = self.0.lock().await;
        let mut lease = json!({
            "metadata": { "name": name },
            "spec": { "holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 86400 },
        });
        server.stamp(&mut lease);
        lease["metadata"]["creationTimestamp"] = created.into();
        server.objects.insert(format!("{LEASES}/{name}"), lease);
    }

    fn node(&self, name: &str) -> Leases {
        let server = Arc::clone(&self.0);
        let service = service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                // Others may come in between any two requests.
                tokio::task::yield_now().await;
                let target = parts
                    .uri
                    .path_and_query()
                    .map_or("", |target| target.as_str());
                let (code, answer) =
                    server
                        .lock()
                        .await
                        .serve(parts.method.as_str(), target, &body);
                tokio::task::yield_now().await;
                let response = Response::builder()
                    .status(code)
                    .body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, kube::Error>(response.unwrap())
            }
        });
        Leases::new(Client::new(service, "default"), "kube-system", name)
    }

    async fn subnets(&self) -> Vec<(Subnet, String)> {
        self.0.lock().await.subnets()
    }

    async fn pod_cidrs(&self, node: &str) -> Value {
        self.0.lock().await.objects[&format!("/api/v1/nodes/{node}")]["spec"]["podCIDRs"].clone()
    }
}

fn conf(text: &str) -> NetConf {
    NetConf::parse(text).unwrap().0
}

fn usual() -> NetConf {
    conf(r#"{"Network": "10.244.0.0/16"}"#)
}

fn v4(held: &ByFamily<Holding>) -> String {
    held.v4.as_ref().unwrap().subnet.to_string()
}

#[tokio::test]
async fn the_assigned_subnet_is_held_by_a_lease_that_the_node_owns() {
    let cluster = Cluster::new(&[("n1", &["10.244.3.0/24"])]).await;
    let held = cluster
        .node("n1")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap();
    assert_eq!(v4(&held), "10.244.3.0/24");
    let server = cluster.0.lock().await;
    let lease = &server.objects[&format!("{LEASES}/subnet-10-244-3-0-24")];
    assert_eq!(
        lease["metadata"]["labels"],
        json!({ "twill.io/subnet": "10-244-3-0-24" })
    );
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-0001" }]);
    assert_eq!(lease["metadata"]["ownerReferences"], owner);
    assert_eq!(lease["spec"]["holderIdentity"], "n1");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 86400);
}

#[tokio::test]
async fn a_restart_changes_nothing_and_asks_little() {
    let cluster = Cluster::new(&[("n1", &[])]).await;
    let first = cluster
        .node("n1")
        .hold(&usual(), &Others::default(), false)
        .await
        .unwrap();
    let before = cluster.0.lock().await.objects.clone();
    let asked = cluster.0.lock().await.requests;
    let second = cluster
        .node("n1")
        .hold(&usual(), &Others::default(), false)
        .await
        .unwrap();
    assert_eq!(first, second);
    let server = cluster.0.lock().await;
    assert_eq!(server.objects, before);
    assert!(
        server.requests - asked <= 4,
        "{} requests",
        server.requests - asked
    );
}

#[tokio::test]
async fn nodes_that_pick_at_once_never_collide_and_ask_a_bounded_number_of_times() {
    let names: Vec<String> = (0..60).map(|n| format!("node-{n}")).collect();
    let nodes: Vec<(&str, &[&str])> = names.iter().map(|name| (name.as_str(), &[][..])).collect();
    let cluster = Cluster::new(&nodes).await;
    let others = Others {
        subnets: names
            .iter()
            .map(|name| (name.as_str().into(), ByFamily::default()))
            .collect(),
    };
    let claims = names.iter().map(|name| {
        let (node, others) = (cluster.node(name), others.clone());
        async move { node.hold(&usual(), &others, false).await.unwrap() }
    });
    let held: Vec<String> = futures::future::join_all(claims)
        .await
        .iter()
        .map(v4)
        .collect();
    assert_eq!(
        held.iter().collect::<HashSet<_>>().len(),
        names.len(),
        "{held:?}"
    );
    for (name, subnet) in names.iter().zip(&held) {
        assert_eq!(cluster.pod_cidrs(name).await, json!([subnet]));
    }
    let requests = cluster.0.lock().await.requests;
    assert!(
        requests <= names.len() * 10,
        "{requests} requests for {} nodes",
        names.len()
    );
    assert_eq!(
        cluster.subnets().await.len(),
        names.len(),
        "no claim is left over"
    );
}

#[tokio::test(start_paused = true)]
async fn of_overlapping_claims_never_both_are_held() {
    // Nodes of two configurations, whose subnets have different lengths: names alone do not keep them apart.
    let fine = conf(r#"{"Network": "10.244.0.0/20", "SubnetLen": 24, "SubnetMin": "10.244.0.0"}"#);
    let coarse =
        conf(r#"{"Network": "10.244.0.0/20", "SubnetLen": 23, "SubnetMin": "10.244.0.0"}"#);
    let names: Vec<String> = (0..10).map(|n| format!("node-{n}")).collect();
    let nodes: Vec<(&str, &[&str])> = names.iter().map(|name| (name.as_str(), &[][..])).collect();
    let cluster = Cluster::new(&nodes).await;
    let claims = names.iter().enumerate().map(|(n, name)| {
        let (node, conf) = (cluster.node(name), if n % 2 == 0 { &fine } else { &coarse });
        async move { node.hold(conf, &Others::default(), false).await }
    });
    let held: Vec<Subnet> = futures::future::join_all(claims)
        .await
        .into_iter()
        .flatten()
        .map(|held| held.v4.unwrap().subnet)
        .collect();
    assert!(held.len() >= 2, "some succeed: {held:?}");
    for (n, a) in held.iter().enumerate() {
        assert!(held[n + 1..].iter().all(|b| !a.overlaps(*b)), "{held:?}");
    }
}

#[tokio::test]
async fn another_nodes_subnet_is_a_clash_that_names_both() {
    let cluster = Cluster::new(&[("n1", &["10.244.3.0/24"]), ("n2", &["10.244.3.0/24"])]).await;
    cluster
        .node("n1")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap();
    let error = cluster
        .node("n2")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap_err()
        .to_string();
    for part in [
        "10.244.3.0/24",
        "Node n2",
        "Node n1",
        "subnet-10-244-3-0-24",
        "delete the Node object",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_overlap_is_a_clash_too_and_leaves_no_claim() {
    let cluster = Cluster::new(&[("n1", &["10.244.2.0/23"]), ("n2", &["10.244.3.0/24"])]).await;
    cluster
        .node("n1")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap();
    let error = cluster
        .node("n2")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Clash { holder, .. } if holder == "n1"),
        "{error}"
    );
    assert_eq!(
        cluster.subnets().await,
        [("10.244.2.0/23".parse().unwrap(), "n1".to_owned())]
    );
}

#[tokio::test]
async fn both_families_are_held_or_neither() {
    let dual =
        conf(r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#);
    let cluster = Cluster::new(&[
        ("n1", &["10.244.1.0/24", "fd00:0:0:1::/64"]),
        ("n2", &["10.244.2.0/24", "fd00:0:0:1::/64"]),
    ])
    .await;
    let held = cluster
        .node("n1")
        .hold(&dual, &Others::default(), true)
        .await
        .unwrap();
    assert!(held.v4.is_some() && held.v6.is_some());
    cluster
        .node("n2")
        .hold(&dual, &Others::default(), true)
        .await
        .unwrap_err();
    assert!(
        cluster
            .subnets()
            .await
            .iter()
            .all(|(_, holder)| holder == "n1"),
        "n2 keeps nothing"
    );
    cluster.add_node("n3", &["10.244.3.0/24"]).await;
    let error = cluster
        .node("n3")
        .hold(&dual, &Others::default(), true)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("IPv6") && error.contains("n3"), "{error}");
}

#[tokio::test]
async fn a_controller_manager_that_is_faster_is_followed() {
    let cluster = Cluster::new(&[("n1", &[])]).await;
    let mut done = false;
    cluster.0.lock().await.meddle = Some(Box::new(move |method, key, objects| {
        if method == "PATCH" && key == "/api/v1/nodes/n1" && !done {
            done = true;
            let node = objects.get_mut(key).unwrap();
            node["spec"] = json!({ "podCIDR": "10.244.77.0/24", "podCIDRs": ["10.244.77.0/24"] });
            node["metadata"]["resourceVersion"] = "9999".into();
        }
    }));
    let held = cluster
        .node("n1")
        .hold(&usual(), &Others::default(), false)
        .await
        .unwrap();
    assert_eq!(v4(&held), "10.244.77.0/24");
    assert_eq!(
        cluster.subnets().await.len(),
        1,
        "what was picked before is given back"
    );
}

#[tokio::test]
async fn allocate_says_whether_to_wait() {
    let never = conf(r#"{"Network": "10.244.0.0/16", "Allocate": "never"}"#);
    let cluster = Cluster::new(&[("n1", &[]), ("n2", &["10.244.2.0/24"])]).await;
    let given: Subnet = "10.244.2.0/24".parse().unwrap();
    let others = Others {
        subnets: vec![(
            "n2".into(),
            ByFamily {
                v4: Some(given),
                v6: None,
            },
        )],
    };
    let error = cluster
        .node("n1")
        .hold(&never, &others, false)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unassigned { .. }));
    let error = cluster
        .node("n1")
        .hold(&usual(), &others, true)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Unassigned { .. }),
        "n2's subnet has no Lease: somebody else gave it"
    );
    cluster
        .node("n1")
        .hold(&usual(), &others, false)
        .await
        .unwrap();

    let cluster = Cluster::new(&[("n1", &[]), ("n2", &["10.244.2.0/24"])]).await;
    cluster
        .node("n2")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap();
    let held = cluster
        .node("n1")
        .hold(&usual(), &others, true)
        .await
        .unwrap();
    assert_ne!(v4(&held), "10.244.2.0/24");
}

#[tokio::test]
async fn a_full_network_is_told() {
    let small = conf(r#"{"Network": "10.244.0.0/22", "SubnetLen": 24}"#);
    let cluster = Cluster::new(&[("n1", &[]), ("n2", &[]), ("n3", &[]), ("n4", &[])]).await;
    for name in ["n1", "n2", "n3"] {
        cluster
            .node(name)
            .hold(&small, &Others::default(), false)
            .await
            .unwrap();
    }
    let error = cluster
        .node("n4")
        .hold(&small, &Others::default(), false)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no free subnet is left in 10.244.0.0/22"),
        "{error}"
    );
}

#[tokio::test]
async fn only_an_expired_lease_of_a_node_that_is_gone_is_swept() {
    const LONG_AGO: &str = "2020-01-01T00:00:00.000000Z";
    let far = "2099-01-01T00:00:00.000000Z";
    let cluster = Cluster::new(&[("n1", &["10.244.1.0/24"]), ("alive", &[])]).await;
    let try_hold = || async {
        cluster
            .node("n1")
            .hold(&usual(), &Others::default(), true)
            .await
    };
    cluster.lease("10.244.1.0/24", "gone", far, LONG_AGO).await;
    assert!(
        matches!(try_hold().await.unwrap_err(), Error::Clash { .. }),
        "not expired"
    );
    cluster
        .lease("10.244.1.0/24", "alive", LONG_AGO, LONG_AGO)
        .await;
    assert!(
        matches!(try_hold().await.unwrap_err(), Error::Clash { .. }),
        "its Node is there"
    );
    cluster
        .lease("10.244.1.0/24", "gone", LONG_AGO, LONG_AGO)
        .await;
    assert_eq!(v4(&try_hold().await.unwrap()), "10.244.1.0/24");
}

#[tokio::test]
async fn a_lease_without_a_holder_is_a_reservation() {
    const LONG_AGO: &str = "2020-01-01T00:00:00.000000Z";
    let conf = conf(r#"{"Network": "10.244.0.0/24", "SubnetLen": 26, "Allocate": "always"}"#);
    let cluster = Cluster::new(&[("n1", &[]), ("n2", &["10.244.0.64/26"])]).await;
    for subnet in ["10.244.0.64/26", "10.244.0.192/26"] {
        cluster.lease(subnet, "", LONG_AGO, LONG_AGO).await;
    }
    let hold = async |node: &str| {
        cluster
            .node(node)
            .hold(&conf, &Others::default(), true)
            .await
    };
    assert_eq!(
        v4(&hold("n1").await.unwrap()),
        "10.244.0.128/26",
        "never picked"
    );
    let error = hold("n2").await.unwrap_err().to_string();
    for part in [
        "10.244.0.64/26",
        "Node n2",
        "subnet-10-244-0-64-26 names no holder",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[tokio::test]
async fn a_node_that_was_made_again_gets_its_lease_back_under_its_new_uid() {
    let cluster = Cluster::new(&[("n1", &["10.244.1.0/24"])]).await;
    cluster
        .node("n1")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap();
    cluster.add_node("n1", &["10.244.1.0/24"]).await;
    let held = cluster
        .node("n1")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap();
    let uid = cluster.0.lock().await.objects["/api/v1/nodes/n1"]["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(held.v4.unwrap().owner, Some(uid));
}

#[tokio::test]
async fn renewing_moves_the_end_and_tells_when_the_lease_is_gone() {
    let cluster = Cluster::new(&[("n1", &["10.244.1.0/24"])]).await;
    let node = cluster.node("n1");
    let held = node.hold(&usual(), &Others::default(), true).await.unwrap();
    let hour = Duration::from_secs(3600);
    let in_a_day = renew_in(&held, hour);
    assert!(
        in_a_day > 22 * hour && in_a_day <= 23 * hour,
        "{in_a_day:?}"
    );
    let holding = held.v4.unwrap();
    let owner = Owner {
        name: "n1".into(),
        uid: "uid-0001".into(),
    };
    let renewed = node.renew(&holding, &owner).await.unwrap().unwrap();
    assert!(renewed.expires >= holding.expires && renewed.age == holding.age);
    cluster
        .0
        .lock()
        .await
        .objects
        .retain(|key, _| !key.contains("leases"));
    assert_eq!(node.renew(&holding, &owner).await.unwrap(), None);
}

#[tokio::test]
async fn wrong_assignments_are_told_with_the_remedy() {
    let cluster = Cluster::new(&[("n1", &["10.99.1.0/24"])]).await;
    let error = cluster
        .node("n1")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("10.99.1.0/24") && error.contains("--cluster-cidr"),
        "{error}"
    );
    let error = cluster
        .node("n9")
        .hold(&usual(), &Others::default(), true)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no Node n9") && error.contains("NODE_NAME"),
        "{error}"
    );
}
