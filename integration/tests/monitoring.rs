//! `manifests/monitoring`, asked by a Prometheus that scrapes the daemons: each panel of the dashboard shows something, and
//! each alert is silent until what it is for has happened.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::{Daemon, Lab, Node, http, manifests, wait};
use k8s_openapi::api::core::v1::Node as NodeObject;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const LISTEN: &str = "127.0.0.1:9090";
const NODE_PORT: u16 = 30_080;

/// The program, which Debian has.
fn prometheus() -> PathBuf {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => std::env::home_dir().unwrap().join(".cache"),
    };
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/prometheus"))
        .arg(cache.join("twill"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// The overlay's object of a kind.
fn object(kind: &str, name: &str) -> Value {
    let objects = manifests::overlay("monitoring").unwrap();
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(is_it).cloned().unwrap()
}

/// Starts Prometheus on a node, with the overlay's rules. It asks as the ServiceMonitor has it ask, more often.
fn start(node: &Node) {
    let machine = node.machine();
    let path = "/usr/local/bin/prometheus";
    std::fs::copy(prometheus(), machine.path(path)).unwrap();
    let job = |name: &str, port: u16| {
        json!({"job_name": name, "static_configs": [
            {"targets": [format!("127.0.0.1:{port}")], "labels": {"node": node.name()}},
        ]})
    };
    let port = |name: &str| -> u16 {
        let service = object("Service", name);
        let port = service["spec"]["ports"][0]["port"].as_u64().unwrap();
        port.try_into().unwrap()
    };
    let jobs = Daemon::ALL.map(|daemon| job(daemon.name(), port(daemon.name())));
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["/etc/rules.yaml"],
        "scrape_configs": jobs,
    });
    let rules = object("PrometheusRule", "twill")["spec"].clone();
    for (path, content) in [("prometheus", config), ("rules", rules)] {
        // JSON is YAML.
        let path = format!("/etc/{path}.yaml");
        machine.write(&path, &content.to_string()).unwrap();
    }
    let listen = format!("--web.listen-address={LISTEN}");
    let argv = [
        path,
        "--config.file=/etc/prometheus.yaml",
        "--storage.tsdb.path=/var/tmp/prometheus",
        &listen,
    ];
    machine.spawn("prometheus", &argv, &[]).unwrap();
}

fn ask(node: &Node, path: &str) -> Result<Value> {
    let server: SocketAddr = LISTEN.parse()?;
    let answer = http::get(node.machine().netns(), server, path)?;
    let answer: Value = serde_json::from_str(&answer.body).context(answer.body)?;
    ensure!(answer["status"] == "success", "{answer}");
    Ok(answer["data"].clone())
}

/// What a query finds now.
fn query(node: &Node, expression: &str) -> Result<Vec<Value>> {
    let mut path = "/api/v1/query?query=".to_owned();
    for byte in expression.bytes() {
        write!(path, "%{byte:02X}")?;
    }
    let found = ask(node, &path).with_context(|| expression.to_owned())?;
    Ok(found["result"].as_array().cloned().unwrap_or_default())
}

/// Waits until a query finds something. Meanwhile `stir` happens again and again.
fn wait_for(node: &Node, what: &str, expression: &str, stir: impl Fn()) {
    wait::until(what, wait::PATIENCE, || {
        stir();
        Ok(query(node, expression).and_then(|found| wait::holds(!found.is_empty(), expression)))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", node.machine().last_words("prometheus")));
}

/// The alerts, by name.
fn alerts() -> Vec<(String, String)> {
    let rules = object("PrometheusRule", "twill")["spec"]["groups"][0]["rules"].clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rules = rules.as_array().unwrap().iter();
    rules
        .map(|rule| (text(&rule["alert"]), text(&rule["expr"])))
        .collect()
}

fn service(lab: &Lab, name: &str) {
    lab.api()
        .apply(&json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"externalIPs": ["192.0.2.80"], "ports": [{"port": 80}]},
        }))
        .unwrap();
}

/// A Service whose endpoints change, as their controller tells.
fn traffic_of_changes(lab: &Lab) {
    lab.api()
        .apply(&json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": NODE_PORT}]},
        }))
        .unwrap();
    let now = k8s_openapi::jiff::Timestamp::now();
    lab.api()
        .apply(&json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "web-1", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": now.to_string()},
            },
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}],
            "endpoints": [{"addresses": ["10.244.1.9"], "conditions": {"ready": true}}],
        }))
        .unwrap();
}

/// A Node whose subnet is one that it cannot have.
fn hostile(lab: &Lab) {
    let of = |name: &str| format!("flannel.alpha.coreos.com/{name}");
    lab.api()
        .apply(&json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "hostile", "annotations": {
                of("kube-subnet-manager"): "true",
                of("backend-type"): "vxlan",
                of("backend-data"): r#"{"VNI":1,"VtepMAC":"02:00:00:00:41:41"}"#,
                of("public-ip"): "172.30.0.141",
            }},
            "spec": {"podCIDR": "192.0.2.0/24", "podCIDRs": ["192.0.2.0/24"]},
        }))
        .unwrap();
}

#[test]
fn panels_show_something_and_alerts_tell_of_what_they_are_for() {
    let lab = Lab::builder()
        .node("one", &["10.244.1.0/24".parse().unwrap()])
        .node("two", &["10.244.2.0/24".parse().unwrap()])
        .up()
        .unwrap();
    let one = lab.node("one").unwrap();
    start(one);
    wait_for(one, "both daemons", r#"count(up == 1) == 2"#, || {});
    let alerts = alerts();
    assert_eq!(alerts.len(), 8);
    let expression = |name: &str| -> &str {
        let alert = alerts.iter().find(|(alert, _)| alert == name);
        &alert.with_context(|| name.to_owned()).unwrap().1
    };
    for (name, expression) in &alerts {
        let found = query(one, expression).unwrap();
        assert!(found.is_empty(), "{name}: {found:?}");
    }
    let fires = |name: &str, stir: &dyn Fn()| wait_for(one, name, expression(name), stir);

    hostile(&lab);
    fires("TwillNodeLeftOut", &|| {});
    let harm = |lines: &[&str]| {
        for line in lines {
            one.machine().run(line).unwrap();
        }
    };
    harm(&[
        "ip route del 10.244.2.0/24",
        "nft delete table ip twill-proxy",
    ]);
    fires("TwillChangedByOthers", &|| {});
    for repairs in ["flanneld_repairs_total", "twill_proxy_repairs_total"] {
        let counted = format!("increase({repairs}[15m]) > 0");
        wait_for(one, repairs, &counted, || {});
    }
    for name in ["first", "second"] {
        service(&lab, name);
    }
    fires("TwillServicesClash", &|| {});

    let dashboard = object("ConfigMap", "twill-dashboard")["data"]["dashboard.json"].clone();
    let dashboard: Value = serde_json::from_str(dashboard.as_str().unwrap()).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap().replace("$node", ".*");
            let title = panel["title"].as_str().unwrap();
            wait_for(one, title, &expression, || traffic_of_changes(&lab));
        }
    }

    one.machine().write("/etc/kube-flannel/new", "{").unwrap();
    harm(&["mv /etc/kube-flannel/new /etc/kube-flannel/net-conf.json"]);
    fires("TwillConfigurationInvalid", &|| {});
    // It is renewed an hour before: nothing that a test can wait for.
    let ends = "flanneld_lease_expiry_timestamp_seconds - time() < ";
    assert!(expression("TwillSubnetEndsSoon").starts_with(ends));
    let later = format!("{ends}{}", 25 * 3600);
    assert!(!query(one, &later).unwrap().is_empty());
    // A Node that is gone: its proxy calls itself unhealthy.
    lab.api().delete::<NodeObject>(None, "one").unwrap();
    let health = SocketAddr::from(([127, 0, 0, 1], 10_256));
    fires("TwillServicesNotProgrammed", &|| {
        let answer = http::get(one.machine().netns(), health, "/healthz");
        assert_ne!(answer.unwrap().status, 0);
    });
    // The uplink loses its address.
    harm(&["ip -4 addr flush dev eth0", "ip -6 addr flush dev eth0"]);
    fires("TwillNetworkNotAsDesired", &|| {});
    one.stop(Daemon::Proxy, Signal::SIGKILL).unwrap();
    fires("TwillDaemonDown", &|| {});

    let rules = ask(one, "/api/v1/rules").unwrap();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}
