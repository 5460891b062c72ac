//! What `manifests/` has for a cluster: each overlay is the base but for what it is there for, pods have no more rights than
//! they need, and an API server takes all of it.

use std::collections::BTreeMap;
use std::process::Command;

use integration::workload::Container;
use integration::{Daemon, Lab, manifests, programs};
use serde_json::Value;

/// `Kind namespace/name` of each object.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let named = objects.into_iter().map(|object| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let names = [
            text(&object["kind"]),
            text(&metadata["namespace"]),
            text(&metadata["name"]),
        ];
        (names.join(" "), object)
    });
    named.collect()
}

/// What is in one of the two alone, a line each: where, and what.
fn differences(before: &Value, after: &Value, at: &str, found: &mut Vec<String>) {
    let children = |value: &Value| -> Option<BTreeMap<String, Value>> {
        match value {
            Value::Object(fields) => Some(fields.clone().into_iter().collect()),
            // By name where elements have one, as an API server merges them.
            Value::Array(elements) => {
                let named = elements.iter().enumerate().map(|(index, element)| {
                    let name = element["name"].as_str();
                    let key = name.map_or_else(|| index.to_string(), str::to_owned);
                    (key, element.clone())
                });
                Some(named.collect())
            }
            _ => None,
        }
    };
    if before == after {
        return;
    }
    let (Some(old), Some(new)) = (children(before), children(after)) else {
        for (sign, value) in [('-', before), ('+', after)] {
            if !value.is_null() {
                found.push(format!("{sign} {at}: {value}"));
            }
        }
        return;
    };
    let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let of = |map: &BTreeMap<String, Value>| map.get(key).cloned().unwrap_or_default();
        differences(&of(&old), &of(&new), &format!("{at}/{key}"), found);
    }
}

/// What an overlay changes.
fn changes(overlay: &str) -> Vec<String> {
    let base = by_name(manifests::all().unwrap());
    let rendered = by_name(manifests::overlay(overlay).unwrap());
    let mut found = Vec::new();
    for name in base.keys().filter(|name| !rendered.contains_key(*name)) {
        found.push(format!("- {name}"));
    }
    for (name, object) in &rendered {
        let before = base.get(name).unwrap_or(&Value::Null);
        differences(before, object, name, &mut found);
    }
    found
}

#[test]
fn without_a_proxy_of_ours_all_else_is_the_same() {
    let left_out = [
        "- ClusterRole  twill:twill-proxy",
        "- ClusterRole  twill:twill-proxy:events",
        "- ClusterRoleBinding  twill:twill-proxy",
        "- ClusterRoleBinding  twill:twill-proxy:events",
        "- DaemonSet kube-system twill-proxy",
        "- ServiceAccount kube-system twill-proxy",
    ];
    assert_eq!(changes("with-kube-proxy"), left_out);
}

#[test]
fn iptables_come_in_an_image_of_their_own() {
    let pod = "DaemonSet kube-system twill-proxy/spec/template/spec";
    let version = env!("CARGO_PKG_VERSION");
    let expected = [
        format!("+ {pod}/containers/twill-proxy/args/2: \"--proxy-mode=iptables\""),
        format!("- {pod}/containers/twill-proxy/image: \"twill:{version}\""),
        format!("+ {pod}/containers/twill-proxy/image: \"twill:{version}-iptables\""),
        format!(
            "+ {pod}/containers/twill-proxy/volumeMounts/xtables-lock: {{\"mountPath\":\"/run/xtables.lock\",\"name\":\"xtables-lock\"}}"
        ),
        format!(
            "+ {pod}/volumes/xtables-lock: {{\"hostPath\":{{\"path\":\"/run/xtables.lock\",\"type\":\"FileOrCreate\"}},\"name\":\"xtables-lock\"}}"
        ),
    ];
    assert_eq!(changes("iptables"), expected);
}

/// The daemons look there under the name that the file has.
#[test]
fn kubelets_of_k3s_and_rke2_have_their_kubeconfig_elsewhere() {
    for name in ["k3s", "rke2"] {
        let path = |daemon: &str| {
            format!(
                "DaemonSet kube-system {daemon}/spec/template/spec/volumes/kubernetes/hostPath/path"
            )
        };
        let expected: Vec<String> = ["flanneld", "twill-proxy"]
            .into_iter()
            .flat_map(|daemon| {
                [
                    format!("- {}: \"/etc/kubernetes\"", path(daemon)),
                    format!("+ {}: \"/var/lib/rancher/{name}/agent\"", path(daemon)),
                ]
            })
            .collect();
        assert_eq!(changes(name), expected);
    }
}

#[test]
fn a_migration_goes_by_the_label_of_a_node() {
    let selected = ["flanneld", "twill-proxy"].map(|name| {
        format!(
            "+ DaemonSet kube-system {name}/spec/template/spec/nodeSelector/twill.io/network: \"twill\""
        )
    });
    assert_eq!(changes("flannel-migration"), selected);
}

#[test]
fn monitors_reach_what_answers_to_the_node_alone_otherwise() {
    let found = changes("monitoring");
    let (added, changed): (Vec<_>, Vec<_>) = found
        .iter()
        .partition(|line| !line.contains("/spec/template/"));
    let daemons = "+ DaemonSet kube-system";
    let args = "spec/template/spec/containers";
    let expected = [
        format!("{daemons} flanneld/{args}/flanneld/args/3: \"--metrics-ip=0.0.0.0\""),
        format!(
            "{daemons} twill-proxy/{args}/twill-proxy/args/2: \"--metrics-bind-address=0.0.0.0:10249\""
        ),
    ];
    assert_eq!(changed, expected.iter().collect::<Vec<_>>());
    let names = added.iter().map(|line| line.split(':').next().unwrap());
    let expected = [
        "+ ConfigMap kube-system twill-dashboard",
        "+ PrometheusRule kube-system twill",
        "+ Service kube-system flanneld",
        "+ Service kube-system twill-proxy",
        "+ ServiceMonitor kube-system twill",
    ];
    assert_eq!(names.collect::<Vec<_>>(), expected);
}

/// The one change of an overlay of the network's configuration, as JSON.
fn net_conf(overlay: &str) -> Value {
    let objects = manifests::overlay(overlay).unwrap();
    serde_json::from_str(manifests::net_conf(&objects).unwrap()).unwrap()
}

#[test]
fn networks_differ_in_their_configuration_alone() {
    let network = "ConfigMap kube-system kube-flannel-cfg/data/net-conf.json";
    let found = changes("host-gw");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|line| line.contains(network)), "{found:?}");
    assert_eq!(
        net_conf("host-gw"),
        serde_json::json!({"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}})
    );

    // twill-proxy is told of the second network too.
    let found = changes("dual-stack");
    assert_eq!(found.len(), 4, "{found:?}");
    let second = net_conf("dual-stack")["IPv6Network"]
        .as_str()
        .unwrap()
        .to_owned();
    let told = format!("--cluster-cidr=10.244.0.0/16,{second}\"");
    assert!(
        found
            .iter()
            .any(|line| line.starts_with('+') && line.ends_with(&told)),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .all(|line| line.contains(network) || line.contains("twill-proxy/args/1")),
        "{found:?}"
    );
}

/// All that can be applied, under the names of their files and folders.
fn everything() -> Vec<(String, Vec<Value>)> {
    let mut all = vec![("base".to_owned(), manifests::all().unwrap())];
    for overlay in manifests::OVERLAYS {
        all.push((overlay.to_owned(), manifests::overlay(overlay).unwrap()));
    }
    for file in ["uninstall.yaml", "flannel-migration/back.yaml"] {
        all.push((file.to_owned(), manifests::file(file).unwrap()));
    }
    all
}

#[test]
fn pods_have_no_more_rights_than_they_need() {
    let version = env!("CARGO_PKG_VERSION");
    for (from, objects) in everything() {
        let pods = objects
            .iter()
            .filter(|object| object["kind"] == "DaemonSet")
            .map(|object| &object["spec"]["template"]["spec"]);
        for pod in pods {
            let profile = &pod["securityContext"]["seccompProfile"]["type"];
            assert_eq!(profile, "RuntimeDefault", "{from}");
            assert_eq!(pod["priorityClassName"], "system-node-critical", "{from}");
            let kinds = ["initContainers", "containers"];
            let containers = kinds
                .iter()
                .flat_map(|kind| pod[kind].as_array().into_iter().flatten());
            for container in containers {
                let rights = &container["securityContext"];
                let what = format!("{from}: {}: {rights}", container["name"]);
                assert_eq!(rights["readOnlyRootFilesystem"], true, "{what}");
                assert_eq!(rights["allowPrivilegeEscalation"], false, "{what}");
                assert_eq!(rights["privileged"], Value::Null, "{what}");
                let drop = serde_json::json!(["ALL"]);
                assert_eq!(rights["capabilities"]["drop"], drop, "{what}");
                let more = rights["capabilities"]["add"]
                    .as_array()
                    .into_iter()
                    .flatten();
                for capability in more {
                    assert!(
                        ["NET_ADMIN", "NET_RAW"].contains(&capability.as_str().unwrap()),
                        "{what}"
                    );
                }
                let image = container["image"].as_str().unwrap();
                let ours = image
                    .strip_suffix("-iptables")
                    .unwrap_or(image)
                    .strip_prefix("twill:");
                assert_eq!(ours, Some(version), "{what}");
                assert_eq!(container["imagePullPolicy"], "IfNotPresent", "{what}");
            }
        }
    }
}

#[test]
fn an_api_server_takes_all_of_them() {
    let lab = Lab::builder().node("one", &[]).daemons(&[]).up().unwrap();
    for (from, objects) in everything() {
        for object in objects {
            // Kinds of the Prometheus operator are none of an API server without it.
            if object["apiVersion"] == "monitoring.coreos.com/v1" {
                continue;
            }
            // An unknown field is an error of server-side apply.
            if let Err(error) = lab.api().apply(&object) {
                panic!("{from}: {error:#}");
            }
        }
    }
}

#[test]
fn units_take_their_arguments_and_have_the_rights_of_pods() {
    let binaries = programs::binaries().unwrap();
    for daemon in Daemon::ALL {
        let name = daemon.name();
        let path = format!(
            "{}/../manifests/systemd/{name}.service",
            env!("CARGO_MANIFEST_DIR")
        );
        let unit = std::fs::read_to_string(path).unwrap();
        let value = |key: &str| {
            let mut values = unit.lines().filter_map(|line| line.strip_prefix(key));
            values.next().unwrap_or_else(|| panic!("{name}: {key}"))
        };
        let mut command = value("ExecStart=").split(' ');
        let program = command.next().unwrap().rsplit('/').next();
        assert_eq!(program, Some(name));
        // An argument that is unknown is an error before the version is told.
        let told = Command::new(binaries.join(name))
            .args(command)
            .arg("--version")
            .output()
            .unwrap();
        assert!(told.status.success(), "{told:?}");
        let rights = value("CapabilityBoundingSet=").to_lowercase();
        let rights = rights.replace("cap_", "+").replace(' ', ",");
        assert_eq!(
            format!("-all,{rights}"),
            Container::of(name).unwrap().capabilities
        );
    }
}
