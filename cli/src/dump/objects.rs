//! The objects of a dump: of each kind the fields that are named here, and no others. What a field holds that is not named
//! can then be as secret as it likes.

use hostnet::vocab::names;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Resource as _;
use kube::api::{ApiResource, DynamicObject};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::typed;
use crate::objects::{Given, Missing, Source, resource};

/// A kind, and which parts of it are kept.
#[derive(Clone, Copy, Debug)]
struct Kind {
    api: fn() -> ApiResource,
    /// As paths; `*` is each item of a list.
    kept: &'static [&'static str],
}

/// Annotations that are kept: flannel's, Twill's and those that proxies go by.
const ANNOTATIONS: [&str; 4] = [
    "flannel.alpha.coreos.com/",
    "twill.io/",
    "service.kubernetes.io/",
    "endpoints.kubernetes.io/",
];

/// What is in a dump.
const KINDS: [Kind; 6] = [
    Kind {
        api: || ApiResource::erase::<Node>(&()),
        kept: &[
            "spec.podCIDR",
            "spec.podCIDRs",
            "spec.unschedulable",
            "spec.taints",
            "status.addresses",
            "status.conditions",
            "status.nodeInfo",
        ],
    },
    Kind {
        api: || ApiResource::erase::<Service>(&()),
        kept: &["spec", "status"],
    },
    Kind {
        api: || ApiResource::erase::<EndpointSlice>(&()),
        kept: &["addressType", "endpoints", "ports"],
    },
    Kind {
        api: || ApiResource::erase::<ServiceCIDR>(&()),
        kept: &["spec", "status"],
    },
    Kind {
        api: || ApiResource::erase::<Lease>(&()),
        kept: &["spec"],
    },
    Kind {
        api: || ApiResource::erase::<Pod>(&()),
        kept: &[
            "spec.nodeName",
            "spec.hostNetwork",
            "spec.containers.*.name",
            "spec.containers.*.image",
            "spec.containers.*.ports",
            "status.phase",
            "status.hostIP",
            "status.podIP",
            "status.podIPs",
            "status.startTime",
            "status.conditions",
        ],
    },
];

/// What of its metadata each has.
const METADATA: [&str; 8] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
];

/// Objects, and of which kinds they are all that there are.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    given: Given,
    kinds: Vec<String>,
}

impl Objects {
    /// Asks for all that is kept, and notes what cannot be seen.
    pub fn take(source: &mut dyn Source, missing: &mut Vec<String>) -> Objects {
        let mut objects = Objects::default();
        for kind in KINDS {
            let api = (kind.api)();
            match source.list(&api, None, None) {
                Ok(found) => {
                    objects.kinds.push(api.kind.clone());
                    let own = found.into_iter().filter(|object| is_wanted(&api, object));
                    let own = own.map(|object| typed(object, &api));
                    let own = own.filter_map(|object| kind.reduced(object));
                    objects.given.0.extend(own);
                }
                Err(error) => missing.push(error.to_string()),
            }
        }
        objects
    }

    /// From the file of a dump.
    ///
    /// # Errors
    /// It is no list of objects.
    pub fn parse(text: &[u8]) -> anyhow::Result<Objects> {
        let list: Value = serde_json::from_slice(text)?;
        Ok(Objects {
            kinds: serde_json::from_value(list["kinds"].clone())?,
            given: Given(serde_json::from_value(list["items"].clone())?),
        })
    }
}

/// Others' Leases tell who leads what.
fn is_wanted(api: &ApiResource, object: &DynamicObject) -> bool {
    let labels = object.metadata.labels.as_ref();
    api.kind != Lease::kind(&()) || labels.is_some_and(|l| l.contains_key(names::LABEL_SUBNET))
}

/// A list as kubectl writes it, with the kinds that were asked for.
impl Serialize for Objects {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({"apiVersion": "v1", "kind": "List", "kinds": self.kinds, "items": self.given.0})
            .serialize(serializer)
    }
}

impl Source for Objects {
    fn get(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<DynamicObject>, Missing> {
        self.has(kind)?;
        self.given.get(kind, namespace, name)
    }

    fn list(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        label: Option<(&str, &str)>,
    ) -> Result<Vec<DynamicObject>, Missing> {
        self.has(kind)?;
        self.given.list(kind, namespace, label)
    }
}

impl Objects {
    fn has(&self, kind: &ApiResource) -> Result<(), Missing> {
        match self.kinds.contains(&kind.kind) {
            true => Ok(()),
            false => Err(Missing::NotDumped {
                resource: resource(kind),
            }),
        }
    }
}

impl Kind {
    /// The object by what is kept of it.
    fn reduced(&self, object: DynamicObject) -> Option<DynamicObject> {
        let whole = serde_json::to_value(object).ok()?;
        let mut kept = json!({"apiVersion": whole["apiVersion"], "kind": whole["kind"]});
        let metadata = METADATA.map(|field| format!("metadata.{field}"));
        for path in metadata
            .iter()
            .map(String::as_str)
            .chain(self.kept.iter().copied())
        {
            let parts: Vec<&str> = path.split('.').collect();
            copy(&whole, &mut kept, &parts);
        }
        if let Some(annotations) = whole["metadata"]["annotations"].as_object() {
            let own = annotations
                .iter()
                .filter(|(key, _)| ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)));
            let own: Map<String, Value> = own
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            kept["metadata"]["annotations"] = own.into();
        }
        serde_json::from_value(kept).ok()
    }
}

/// Copies what is at a path, if anything is.
fn copy(from: &Value, to: &mut Value, path: &[&str]) {
    let Some((field, rest)) = path.split_first() else {
        *to = from.clone();
        return;
    };
    match (*field, from) {
        ("*", Value::Array(items)) => {
            if !to.is_array() {
                *to = vec![json!({}); items.len()].into();
            }
            for (item, to) in items.iter().zip(to.as_array_mut().into_iter().flatten()) {
                copy(item, to, rest);
            }
        }
        (field, Value::Object(fields)) => {
            if let Some(value) = fields.get(field) {
                if !to.is_object() {
                    *to = json!({});
                }
                copy(value, &mut to[field], rest);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_left_out() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}, "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "hush", "service.kubernetes.io/topology-mode": "Auto",
            }, "managedFields": [{"manager": "hush"}]},
            "spec": {
                "nodeName": "here", "containers": [
                    {"name": "a", "image": "i", "args": ["hush"], "command": ["hush"], "ports": [{"containerPort": 80}],
                        "env": [{"name": "TOKEN", "value": "hush"}]},
                    {"name": "b", "envFrom": [{"secretRef": {"name": "hush"}}]},
                ],
                "volumes": [{"name": "v", "secret": {"secretName": "hush"}}], "serviceAccountName": "hush",
            },
            "status": {"podIP": "10.244.1.2", "message": "hush", "containerStatuses": [{"imageID": "hush"}]},
        });
        let kind = KINDS
            .iter()
            .find(|kind| (kind.api)().kind == "Pod")
            .unwrap();
        let kept = kind.reduced(serde_json::from_value(pod).unwrap()).unwrap();
        assert_eq!(
            serde_json::to_value(kept).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"},
                    "annotations": {"service.kubernetes.io/topology-mode": "Auto"}},
                "spec": {"nodeName": "here", "containers": [
                    {"name": "a", "image": "i", "ports": [{"containerPort": 80}]}, {"name": "b"},
                ]},
                "status": {"podIP": "10.244.1.2"},
            })
        );
    }

    #[test]
    fn of_secrets_nothing_is_asked() {
        let kinds = KINDS.map(|kind| (kind.api)().kind);
        assert!(
            !kinds
                .iter()
                .any(|kind| kind == "Secret" || kind == "ConfigMap"),
            "{kinds:?}"
        );
    }

    #[test]
    fn a_kind_that_is_not_in_the_dump_is_not_taken_for_empty() {
        let text = br#"{"kinds": ["Service"], "items": []}"#;
        let mut objects = Objects::parse(text).unwrap();
        let of = |kind: ApiResource| kind;
        assert_eq!(
            objects.get(&of(ApiResource::erase::<Service>(&())), None, "x"),
            Ok(None)
        );
        let missing = objects
            .get(&of(ApiResource::erase::<Node>(&())), None, "x")
            .unwrap_err();
        assert_eq!(missing.to_string(), "the dump has no nodes");
    }
}
