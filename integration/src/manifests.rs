//! What `manifests/` ships, applied as a user would apply it: the daemons run in the lab with
//! these rights and this configuration, and no others.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use serde_json::Value;

use crate::progress::Progress;
use crate::upstream::{self, Module, Program};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// The folder names of what `kubectl apply -k` takes besides the base.
pub const OVERLAYS: [&str; 8] = [
    "dual-stack",
    "flannel-migration",
    "host-gw",
    "iptables",
    "k3s",
    "monitoring",
    "rke2",
    "with-kube-proxy",
];

/// Kinds that a kubelet would act on: the lab runs the binaries itself.
const WORKLOADS: &[&str] = &["DaemonSet"];

/// Every object of the kustomize base, in its order, but for the workloads.
pub fn base() -> Result<Vec<Value>> {
    let mut objects = all()?;
    objects.retain(|object| {
        let kind = object["kind"].as_str().unwrap_or_default();
        !WORKLOADS.contains(&kind)
    });
    Ok(objects)
}

/// The DaemonSet of this name.
pub fn daemon_set(name: &str) -> Result<DaemonSet> {
    let object = all()?
        .into_iter()
        .find(|object| object["kind"] == "DaemonSet" && object["metadata"]["name"] == name)
        .with_context(|| format!("manifests/base has no DaemonSet {name}"))?;
    serde_json::from_value(object).with_context(|| format!("DaemonSet {name}"))
}

/// Every object of an overlay, as kubectl makes it.
pub fn overlay(name: &str) -> Result<Vec<Value>> {
    let programs = [Program::Kubectl];
    let kubectl = upstream::assets(Module::Kubernetes, &programs, Progress::shown())?
        .join(Program::Kubectl.name());
    let rendered = Command::new(&kubectl)
        .args(["kustomize", &format!("{MANIFESTS}/{name}")])
        .output()
        .with_context(|| format!("cannot run {}", kubectl.display()))?;
    ensure!(
        rendered.status.success(),
        "overlay {name}: {}",
        String::from_utf8_lossy(&rendered.stderr)
    );
    let text = String::from_utf8(rendered.stdout)?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("overlay {name}"))
}

/// Every object of a file.
pub fn file(name: &str) -> Result<Vec<Value>> {
    documents(&Path::new(MANIFESTS).join(name))
}

/// Every object of the kustomize base, in its order.
pub fn all() -> Result<Vec<Value>> {
    let kustomization = file("base/kustomization.yaml")?;
    let resources = kustomization
        .iter()
        .filter_map(|document| document["resources"].as_array())
        .flatten();
    let mut objects = Vec::new();
    for resource in resources {
        let name = resource
            .as_str()
            .context("a resource that is no file name")?;
        objects.extend(file(&format!("base/{name}"))?);
    }
    Ok(objects)
}

/// flanneld's configuration file, as the ConfigMap of `objects` holds it.
pub fn net_conf(objects: &[Value]) -> Result<&str> {
    objects
        .iter()
        .find_map(|object| object["data"]["net-conf.json"].as_str())
        .context("manifests/base has no ConfigMap with net-conf.json")
}

/// The address families that a net-conf.json switches on, as metrics call them.
pub fn families(net_conf: &str) -> Result<Vec<&'static str>> {
    let net_conf: Value = serde_json::from_str(net_conf).context("net-conf.json is no JSON")?;
    let is_on = |key: &str, default| net_conf[key].as_bool().unwrap_or(default);
    let families = [
        ("ipv4", is_on("EnableIPv4", true)),
        ("ipv6", is_on("EnableIPv6", false)),
    ];
    Ok(families
        .into_iter()
        .filter_map(|(family, on)| on.then_some(family))
        .collect())
}

fn documents(path: &Path) -> Result<Vec<Value>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_grants_rights_and_configures_the_network() {
        let objects = base().unwrap();
        let has = |kind: &str, name: &str| {
            objects
                .iter()
                .any(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        };
        for name in ["flanneld", "twill-proxy"] {
            assert!(has("ServiceAccount", name), "{name}");
        }
        assert!(!objects.iter().any(|object| object["kind"] == "DaemonSet"));
        let text = net_conf(&objects).unwrap();
        let net_conf: Value = serde_json::from_str(text).unwrap();
        assert_eq!(net_conf["Network"], "10.244.0.0/16");
        assert_eq!(families(text).unwrap(), ["ipv4"]);
    }

    #[test]
    fn the_single_file_is_the_base() {
        let single = file("twill.yaml").unwrap();
        assert!(single == all().unwrap(), "run `make manifests`");
    }
}
