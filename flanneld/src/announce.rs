//! Telling the other nodes where we are: flannel's annotations on our Node, and the condition NetworkUnavailable. Pure:
//! [`patch`] gives the request, or nothing where the Node says all of it already.

use std::net::IpAddr;

use hostnet::vocab::{AnnotationKeys, BackendData, Family};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{ByFamily, node::NodeObject};

const CONDITION: &str = "NetworkUnavailable";
/// The reason that flannel gives, by which others know that the network is up.
const REASON: &str = "FlannelIsUp";

/// What other nodes need to know of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The backend's name.
    pub backend_type: &'static str,
    /// The UDP port of our VTEPs, if the backend has any.
    pub port: Option<u16>,
    /// Each family that is up.
    pub sides: ByFamily<Side>,
    /// Whether the condition NetworkUnavailable is ours to set.
    pub set_condition: bool,
}

/// What they need to know in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Where to send to.
    pub public: IpAddr,
    /// Our VTEP, if the backend has any.
    pub data: Option<BackendData>,
}

impl Announcement {
    /// The annotations, each with its value or `None` if it shall not be there.
    #[must_use]
    pub fn annotations(&self, keys: &AnnotationKeys) -> Vec<(String, Option<String>)> {
        let mut all = vec![
            (keys.kube_subnet_manager.clone(), Some("true".to_owned())),
            (
                keys.backend_type.clone(),
                Some(self.backend_type.to_owned()),
            ),
            (
                keys.backend_port.clone(),
                self.port.map(|port| port.to_string()),
            ),
        ];
        for family in Family::ALL {
            let (ip, data) = match family {
                Family::V4 => (&keys.public_ip, &keys.backend_data),
                Family::V6 => (&keys.public_ipv6, &keys.backend_v6_data),
            };
            let side = self.sides.get(family);
            all.push((ip.clone(), side.map(|side| side.public.to_string())));
            // flannel's nodes without a VTEP say "null", but only for IPv4.
            let none = (family == Family::V4).then(|| "null".to_owned());
            all.push((
                data.clone(),
                side.and_then(|side| side.data.map(|data| data.render()).or(none)),
            ));
        }
        all
    }
}

impl Announcement {
    /// Whether a Node's annotations say all of it.
    #[must_use]
    pub fn is_said_by(&self, node: &NodeObject, keys: &AnnotationKeys) -> bool {
        let has = node.annotations();
        let mut wanted = self.annotations(keys).into_iter();
        wanted.all(|(key, value)| has.get(&key) == value.as_ref())
    }
}

/// The strategic merge patch of our Node's status (which may carry annotations, too) that makes it say `announcement`.
#[must_use]
pub fn patch(
    node: &NodeObject,
    announcement: &Announcement,
    keys: &AnnotationKeys,
    now: Timestamp,
) -> Option<Value> {
    let has = node.annotations();
    let wanted = announcement.annotations(keys);
    let changed = wanted
        .into_iter()
        .filter(|(key, value)| has.get(key) != value.as_ref());
    let annotations: Map<String, Value> = changed.map(|(key, value)| (key, json!(value))).collect();
    let is_said = |condition: &crate::node::Condition| {
        condition.kind == CONDITION && condition.status == "False" && condition.reason == REASON
    };
    let mut patch = Map::new();
    if !annotations.is_empty() {
        patch.insert("metadata".into(), json!({ "annotations": annotations }));
    }
    if announcement.set_condition && !node.status.conditions.iter().any(is_said) {
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let condition = json!({
            "type": CONDITION,
            "status": "False",
            "reason": REASON,
            "message": "flanneld is running on this node",
            "lastTransitionTime": now,
            "lastHeartbeatTime": now,
        });
        patch.insert("status".into(), json!({ "conditions": [condition] }));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> AnnotationKeys {
        AnnotationKeys::new("flannel.alpha.coreos.com").unwrap()
    }

    fn side(public: &str, mac: &str) -> Option<Side> {
        let data = BackendData {
            vni: Some(1),
            vtep_mac: mac.parse().unwrap(),
        };
        Some(Side {
            public: public.parse().unwrap(),
            data: Some(data),
        })
    }

    fn vxlan() -> Announcement {
        let sides = ByFamily {
            v4: side("192.0.2.1", "9e:a1:5c:00:00:01"),
            v6: None,
        };
        Announcement {
            backend_type: "vxlan",
            port: Some(8472),
            sides,
            set_condition: true,
        }
    }

    fn now() -> Timestamp {
        "2026-11-22T21:00:00.5Z".parse().unwrap()
    }

    fn patched(node: &NodeObject, announcement: &Announcement) -> Option<Value> {
        patch(node, announcement, &keys(), now())
    }

    /// The node after the API server has applied the patch.
    fn after(node: &NodeObject, patch: &Value) -> NodeObject {
        let mut node = node.clone();
        let annotations = node.metadata.annotations.get_or_insert_default();
        for (key, value) in patch["metadata"]["annotations"]
            .as_object()
            .into_iter()
            .flatten()
        {
            match value.as_str() {
                Some(text) => annotations.insert(key.clone(), text.to_owned()),
                None => annotations.remove(key),
            };
        }
        if let Some(condition) = patch["status"]["conditions"].get(0) {
            node.status.conditions = vec![serde_json::from_value(condition.clone()).unwrap()];
        }
        node
    }

    #[test]
    fn a_new_node_is_told_everything_in_flannels_words() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&patched(&NodeObject::default(), &vxlan()).unwrap()).unwrap(), @r#"
        {
          "metadata": {
            "annotations": {
              "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"9e:a1:5c:00:00:01\"}",
              "flannel.alpha.coreos.com/backend-port": "8472",
              "flannel.alpha.coreos.com/backend-type": "vxlan",
              "flannel.alpha.coreos.com/kube-subnet-manager": "true",
              "flannel.alpha.coreos.com/public-ip": "192.0.2.1"
            }
          },
          "status": {
            "conditions": [
              {
                "lastHeartbeatTime": "2026-11-22T21:00:00Z",
                "lastTransitionTime": "2026-11-22T21:00:00Z",
                "message": "flanneld is running on this node",
                "reason": "FlannelIsUp",
                "status": "False",
                "type": "NetworkUnavailable"
              }
            ]
          }
        }
        "#);
    }

    #[test]
    fn what_is_said_is_not_said_again_and_only_what_differs_is_sent() {
        let told = after(
            &NodeObject::default(),
            &patched(&NodeObject::default(), &vxlan()).unwrap(),
        );
        assert_eq!(patched(&told, &vxlan()), None);
        let mut lost = told.clone();
        lost.metadata
            .annotations
            .as_mut()
            .unwrap()
            .remove("flannel.alpha.coreos.com/public-ip");
        let again = json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/public-ip": "192.0.2.1" } } });
        assert_eq!(patched(&lost, &vxlan()), Some(again));
        let mut unavailable = told;
        unavailable.status.conditions[0].status = "True".into();
        let patch = patched(&unavailable, &vxlan()).unwrap();
        assert!(
            patch["metadata"].is_null() && patch["status"]["conditions"][0]["status"] == "False"
        );
    }

    #[test]
    fn a_family_that_is_off_is_taken_back() {
        let dual = Announcement {
            sides: ByFamily {
                v6: side("2001:db8::1", "9e:a1:5c:00:00:02"),
                ..vxlan().sides
            },
            ..vxlan()
        };
        let told = after(
            &NodeObject::default(),
            &patched(&NodeObject::default(), &dual).unwrap(),
        );
        let patch = patched(&told, &vxlan()).unwrap();
        let gone = json!({ "flannel.alpha.coreos.com/public-ipv6": null, "flannel.alpha.coreos.com/backend-v6-data": null });
        assert_eq!(patch["metadata"]["annotations"], gone);
        assert_eq!(patched(&after(&told, &patch), &vxlan()), None);
    }

    #[test]
    fn a_backend_without_a_vtep_says_what_flannel_says() {
        let bare = |public: &str| {
            Some(Side {
                public: public.parse().unwrap(),
                data: None,
            })
        };
        let sides = ByFamily {
            v4: bare("192.0.2.1"),
            v6: bare("2001:db8::1"),
        };
        let host_gw = Announcement {
            backend_type: "host-gw",
            port: None,
            sides,
            set_condition: false,
        };
        let patch = patched(&NodeObject::default(), &host_gw).unwrap();
        let annotations = &patch["metadata"]["annotations"];
        assert_eq!(annotations["flannel.alpha.coreos.com/backend-data"], "null");
        assert!(
            annotations
                .get("flannel.alpha.coreos.com/backend-v6-data")
                .is_none()
                && patch["status"].is_null()
        );
    }
}
