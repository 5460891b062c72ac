//! What `manifests/` ships, applied as a user would apply it: the daemons run in the lab with
//! these rights and this configuration, and no others.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base");

/// Kinds that a kubelet would act on: the lab runs the binaries itself.
const WORKLOADS: &[&str] = &["DaemonSet"];

/// Every object of the kustomize base, in its order, but for the workloads.
pub fn base() -> Result<Vec<Value>> {
    let kustomization = documents(&Path::new(BASE).join("kustomization.yaml"))?;
    let resources = kustomization
        .iter()
        .filter_map(|document| document["resources"].as_array())
        .flatten();
    let mut objects = Vec::new();
    for resource in resources {
        let file = resource
            .as_str()
            .context("a resource that is no file name")?;
        objects.extend(documents(&Path::new(BASE).join(file))?);
    }
    objects.retain(|object| {
        let kind = object["kind"].as_str().unwrap_or_default();
        !WORKLOADS.contains(&kind)
    });
    Ok(objects)
}

/// flanneld's configuration file, as the ConfigMap of `objects` holds it.
pub fn net_conf(objects: &[Value]) -> Result<&str> {
    objects
        .iter()
        .find_map(|object| object["data"]["net-conf.json"].as_str())
        .context("manifests/base has no ConfigMap with net-conf.json")
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
        let net_conf: Value = serde_json::from_str(net_conf(&objects).unwrap()).unwrap();
        assert_eq!(net_conf["Network"], "10.244.0.0/16");
    }
}
