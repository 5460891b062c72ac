//! The RBAC of `manifests/`: the API server's own record of what the daemons ask for. Each right is used and each request has
//! one right, so a verb less or more in the manifests fails here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use integration::control_plane::AUDIT_POLICY;
use integration::traffic::{self, Transport};
use integration::{Daemon, Lab, Node, manifests, wait};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::events::v1::Event;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const LOG: &str = "/var/log/audit.log";
const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// A verb on a kind of object, in one namespace or in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    /// With its API group, and `/` and a part of the object.
    resource: String,
    namespace: Option<String>,
}

impl Right {
    fn covers(&self, request: &Right) -> bool {
        self.verb == request.verb
            && self.resource == request.resource
            && (self.namespace.is_none() || self.namespace == request.namespace)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// What the manifests grant to each account.
fn granted(account: &str) -> BTreeSet<Right> {
    let objects = manifests::all().unwrap();
    let is_bound = |binding: &&Value| {
        text(&binding["kind"]).ends_with("Binding") && binding["subjects"][0]["name"] == account
    };
    let mut rights = BTreeSet::new();
    for binding in objects.iter().filter(is_bound) {
        let namespace = binding["metadata"]["namespace"].as_str();
        let is_role = |object: &&Value| {
            object["kind"] == binding["roleRef"]["kind"]
                && object["metadata"]["name"] == binding["roleRef"]["name"]
                && object["metadata"]["namespace"].as_str() == namespace
        };
        let role = objects.iter().find(is_role).unwrap();
        for rule in role["rules"].as_array().unwrap() {
            assert!(rule["resourceNames"].is_null(), "{rule}");
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        rights.insert(Right {
                            verb,
                            resource: format!("{group}:{resource}"),
                            namespace: namespace.map(str::to_owned),
                        });
                    }
                }
            }
        }
    }
    rights
}

/// What each account has asked for so far, and what it was refused.
fn asked(lab: &Lab) -> Result<BTreeMap<String, BTreeSet<Right>>> {
    let log = std::fs::read_to_string(lab.control_plane().machine.path(LOG))?;
    let mut asked: BTreeMap<String, BTreeSet<Right>> = BTreeMap::new();
    // The last line may be half written.
    for line in log
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
    {
        let entry: Value = serde_json::from_str(line)?;
        let user = text(&entry["user"]["username"]);
        let account = user.rsplit(':').next().unwrap_or_default().to_owned();
        let object = &entry["objectRef"];
        let mut resource = format!(
            "{}:{}",
            text(&object["apiGroup"]),
            object["resource"].as_str().context("no resource")?
        );
        if let Some(part) = object["subresource"].as_str() {
            resource = format!("{resource}/{part}");
        }
        asked.entry(account).or_default().insert(Right {
            verb: text(&entry["verb"]),
            resource,
            namespace: object["namespace"].as_str().map(str::to_owned),
        });
    }
    Ok(asked)
}

/// Waits until an Event has been counted so often.
fn wait_event(lab: &Lab, reason: &str, times: i32) {
    wait::until(&format!("Event {reason}"), wait::PATIENCE, || {
        let events = lab.api().list::<Event>(Some("default"))?;
        let count = |event: &Event| event.series.as_ref().map_or(1, |series| series.count);
        let is_it =
            |event: &Event| event.reason.as_deref() == Some(reason) && count(event) >= times;
        Ok(wait::holds(
            events.iter().any(is_it),
            &format!("{events:?}"),
        ))
    })
    .unwrap();
}

/// flanneld claims a subnet whose Lease has outlived its Node, renews it, and complains twice of the same.
fn claim_renew_and_complain(lab: &Lab, node: &Node) {
    let name = "subnet-10-244-1-0-24";
    let long_ago = "2001-02-03T04:05:06.000000Z";
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name, "namespace": "kube-system",
            "labels": {"twill.io/subnet": "10-244-1-0-24"},
        },
        "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 86400, "renewTime": long_ago},
    });
    lab.api().apply(&lease).unwrap();
    node.provide(Daemon::Flanneld, lab.control_plane(), NET_CONF)
        .unwrap();
    node.start(Daemon::Flanneld).unwrap();
    node.wait_ready(Daemon::Flanneld).unwrap();

    node.stop(Daemon::Flanneld, Signal::SIGTERM).unwrap();
    let mut lease = lease;
    lease["spec"] = json!({"renewTime": long_ago});
    lab.api().apply(&lease).unwrap();
    node.start(Daemon::Flanneld).unwrap();
    wait::until("renewed Lease", wait::PATIENCE, || {
        let lease: Option<Lease> = lab.api().get(Some("kube-system"), name)?;
        let spec = lease.and_then(|lease| lease.spec).context("no Lease")?;
        let renewed = spec.renew_time.context("no time")?;
        let is_new = renewed.0.to_string().as_str() > "2002";
        Ok(wait::holds(is_new, &format!("{renewed:?}")))
    })
    .unwrap();
    node.wait_ready(Daemon::Flanneld).unwrap();

    for port in [66_000, 67_000] {
        let wrong = format!(
            r#"{{"Network": "10.244.0.0/16", "Backend": {{"Type": "vxlan", "Port": {port}}}}}"#
        );
        let conf = "/etc/kube-flannel/net-conf.json";
        node.machine()
            .write(&format!("{conf}.new"), &wrong)
            .unwrap();
        node.machine()
            .run(&format!("mv {conf}.new {conf}"))
            .unwrap();
        wait_event(
            lab,
            "InvalidConfiguration",
            if port == 66_000 { 1 } else { 2 },
        );
    }
}

/// twill-proxy complains twice of the same: a health check port is another's each time the Service is made.
fn complain_of_a_port(lab: &Lab, node: &Node) {
    let port = 30_090;
    let argv = ["/opt/twill/lab", "serve", "other", &port.to_string()];
    node.machine().spawn("other", &argv, &[]).unwrap();
    let server = SocketAddr::new(node.ip(), port);
    wait::until("another server", wait::PATIENCE, || {
        Ok(traffic::ask(lab.outside().netns(), Transport::Tcp, server))
    })
    .unwrap();
    node.provide(Daemon::Proxy, lab.control_plane(), NET_CONF)
        .unwrap();
    node.start(Daemon::Proxy).unwrap();
    node.wait_ready(Daemon::Proxy).unwrap();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port,
            "ports": [{"port": 80}],
        },
    });
    for times in [1, 2] {
        lab.api().apply(&service).unwrap();
        wait_event(lab, "FailedToStartServiceHealthcheck", times);
        lab.api().delete::<Service>(Some("default"), "web").unwrap();
    }
}

#[test]
fn each_right_is_used_and_no_other_is_asked_for() {
    // Without streaming lists, as with servers before 1.34: the verb `list` is for them.
    let arguments = [
        format!("--audit-policy-file={AUDIT_POLICY}"),
        format!("--audit-log-path={LOG}"),
        "--feature-gates=WatchList=false".to_owned(),
    ];
    let lab = Lab::builder()
        .node("one", &["10.244.1.0/24".parse().unwrap()])
        .node("two", &[])
        .daemons(&[])
        .api_server(&arguments)
        .up()
        .unwrap();
    let [one, two] = ["one", "two"].map(|name| lab.node(name).unwrap());
    claim_renew_and_complain(&lab, one);
    // One that nobody has given a subnet to.
    two.provide(Daemon::Flanneld, lab.control_plane(), NET_CONF)
        .unwrap();
    two.start(Daemon::Flanneld).unwrap();
    two.wait_ready(Daemon::Flanneld).unwrap();
    complain_of_a_port(&lab, one);

    for daemon in Daemon::ALL {
        let granted = granted(daemon.name());
        assert!(granted.len() > 5, "{granted:?}");
        wait::until("use of each right", wait::PATIENCE, || {
            let asked = asked(&lab)?.remove(daemon.name()).unwrap_or_default();
            for request in &asked {
                let rights = granted.iter().filter(|right| right.covers(request));
                assert_eq!(rights.count(), 1, "{}: {request:?}", daemon.name());
            }
            let unused: Vec<_> = granted
                .iter()
                .filter(|right| !asked.iter().any(|request| right.covers(request)))
                .collect();
            Ok(wait::holds(unused.is_empty(), &format!("{unused:#?}")))
        })
        .unwrap_or_else(|error| panic!("{}: {error:#}", daemon.name()));
    }
}
