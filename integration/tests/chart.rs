//! The chart: rendered by helm it is the base, and with the values for it each overlay that it covers.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use integration::manifests;
use integration::progress::Progress;
use integration::upstream::{self, Module, Program, assets};
use serde_json::{Value, json};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/chart");

fn helm(arguments: &[&str]) -> Output {
    let programs = [Program::Helm];
    let helm = assets(Module::Helm, &programs, Progress::shown()).unwrap();
    let home = tempfile::tempdir().unwrap();
    Command::new(helm.join(Program::Helm.name()))
        .args(arguments)
        .env("HOME", home.path())
        .output()
        .unwrap()
}

fn template(values: &[&str]) -> Output {
    let kubernetes = format!("--kube-version={}", upstream::version());
    let mut arguments = vec!["template", "twill", CHART, "--namespace=kube-system"];
    arguments.push(&kubernetes);
    for value in values {
        arguments.extend(["--set", value]);
    }
    helm(&arguments)
}

fn sort_by_name(list: &mut Value) {
    if let Some(list) = list.as_array_mut() {
        list.sort_by_key(|element| element["name"].to_string());
    }
}

/// By kind and name; net-conf.json as what it says.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let named = objects.into_iter().map(|mut object| {
        if let Some(text) = object["data"]["net-conf.json"].as_str() {
            object["data"]["net-conf.json"] = serde_json::from_str(text).unwrap();
        }
        // kubectl puts what an overlay adds first.
        sort_by_name(&mut object["spec"]["template"]["spec"]["volumes"]);
        let pod = &mut object["spec"]["template"]["spec"];
        for container in pod["containers"].as_array_mut().into_iter().flatten() {
            sort_by_name(&mut container["volumeMounts"]);
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let name = [
            text(&object["kind"]),
            text(&metadata["namespace"]),
            text(&metadata["name"]),
        ]
        .join(" ");
        (name, object)
    });
    named.collect()
}

fn rendered(values: &[&str]) -> BTreeMap<String, Value> {
    let output = template(values);
    assert!(output.status.success(), "{values:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    by_name(serde_saphyr::from_multiple(&text).unwrap())
}

#[test]
fn it_has_no_fault_that_helm_knows() {
    let output = helm(&["lint", "--strict", CHART]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn it_is_the_base_and_by_its_values_the_overlays() {
    assert_eq!(rendered(&[]), by_name(manifests::all().unwrap()));
    let overlays: [(&str, &[&str]); 6] = [
        ("dual-stack", &["podCidrv6=fd00:10:244::/56"]),
        ("host-gw", &["flannel.backend=host-gw"]),
        ("iptables", &["proxy.mode=iptables"]),
        ("k3s", &["kubeletConfigDir=/var/lib/rancher/k3s/agent"]),
        ("rke2", &["kubeletConfigDir=/var/lib/rancher/rke2/agent"]),
        ("with-kube-proxy", &["proxy.enabled=false"]),
    ];
    for (overlay, values) in overlays {
        let expected = by_name(manifests::overlay(overlay).unwrap());
        let rendered = rendered(values);
        assert!(rendered.keys().eq(expected.keys()), "{overlay}");
        for (name, object) in rendered {
            assert_eq!(object, expected[&name], "{overlay}: {name}");
        }
    }
}

#[test]
fn flannels_values_mean_what_they_do_there() {
    let values = [
        "podCidr=10.42.0.0/16",
        "flannel.backendPort=4789",
        "flannel.vni=7",
        "flannel.mtu=1400",
        "flannel.directRouting=true",
        "flannel.GBP=true",
        "flannel.image.repository=registry.example/twill",
        "flannel.image.tag=1.2.3",
        "flannel.cniBinDir=/var/lib/rancher/data/cni",
        "flannel.skipCNIConfigInstallation=true",
        "flannel.args={--iface=eth1,-v=3}",
        "imagePullSecrets[0].name=secret",
    ];
    let objects = rendered(&values);
    let find = |name: &str| {
        let mut found = objects.iter().filter(|(key, _)| key.contains(name));
        found.next().unwrap().1
    };
    let conf = &find("ConfigMap")["data"]["net-conf.json"];
    let expected = json!({
        "Network": "10.42.0.0/16",
        "Backend": {
            "Type": "vxlan", "Port": 4789, "VNI": 7, "MTU": 1400, "DirectRouting": true, "GBP": true,
        },
    });
    assert_eq!(conf, &expected);
    let pod = &find("DaemonSet kube-system flanneld")["spec"]["template"]["spec"];
    let flanneld = &pod["containers"][0];
    assert_eq!(flanneld["image"], "registry.example/twill:1.2.3");
    let args = json!(["--kube-subnet-mgr", "--ip-masq", "--iface=eth1", "-v=3"]);
    assert_eq!(flanneld["args"], args);
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "secret"}]));
    let folder = |volume: &&Value| volume["name"] == "cni-bin";
    let volumes = pod["volumes"].as_array().unwrap();
    let folder = volumes.iter().find(folder).unwrap();
    assert_eq!(folder["hostPath"]["path"], "/var/lib/rancher/data/cni");
    let proxy = &find("DaemonSet kube-system twill-proxy")["spec"]["template"]["spec"];
    let cidr = "--cluster-cidr=10.42.0.0/16";
    assert_eq!(proxy["containers"][0]["args"][1], cidr);
}

#[test]
fn wrong_values_are_named() {
    for (value, key) in [
        ("flannel.backend=wireguard", "backend"),
        ("proxy.mode=ipvs", "mode"),
        ("flannel.vxlanPort=1", "vxlanPort"),
    ] {
        let output = template(&[value]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(key), "{said}");
    }
}
