//! Node objects, cut down to what flanneld reads: with a thousand nodes the rest (images, labels, addresses) would be
//! most of our memory. The numbers of fields are those of `generated.proto` in k8s.io/api/core/v1.

use std::collections::BTreeMap;

use agent::slim::Metadata;
use hostnet::vocab::{Family, Subnet};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::ByFamily;

/// A Node object.
#[derive(Resource, Clone, Debug, Default, Deserialize, PartialEq)]
#[resource(inherit = Node)]
pub struct NodeObject {
    /// Name, UID, annotations, age.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The subnets.
    #[serde(default)]
    pub spec: NodeSpec,
    /// The conditions.
    #[serde(default)]
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The first of the subnets.
    #[prost(string, optional, tag = "1")]
    #[serde(default, rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    pub pod_cidr: Option<String>,
    /// The subnets: at most one of each family.
    #[prost(string, repeated, tag = "7")]
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// `status` of a Node.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The conditions.
    #[prost(message, repeated, tag = "4")]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A condition of a Node.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct Condition {
    /// What it is about, e.g. `NetworkUnavailable`.
    #[prost(string, tag = "1")]
    #[serde(default, rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    #[prost(string, tag = "2")]
    #[serde(default)]
    pub status: String,
    /// Why, in one word.
    #[prost(string, tag = "5")]
    #[serde(default)]
    pub reason: String,
}

/// A Node where the API server speaks protobuf: the same fields.
#[derive(Clone, PartialEq, Message, Serialize)]
pub struct NodeMessage {
    /// Name, UID, annotations, age.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    /// The subnets.
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<NodeSpec>,
    /// The conditions.
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeStatus>,
}

impl NodeObject {
    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// `metadata.uid`.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `metadata.creationTimestamp` in seconds since 1970.
    #[must_use]
    pub fn created(&self) -> i64 {
        self.metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second())
    }

    /// `metadata.annotations`.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.metadata.annotations.as_ref().unwrap_or(&NONE)
    }

    /// `spec.podCIDRs`, or the one of `spec.podCIDR`, as text.
    #[must_use]
    pub fn pod_cidrs(&self) -> &[String] {
        match (&self.spec.pod_cidrs[..], &self.spec.pod_cidr) {
            ([], Some(one)) if !one.is_empty() => std::slice::from_ref(one),
            (all, _) => all,
        }
    }

    /// The first readable subnet of each family.
    #[must_use]
    pub fn subnets(&self) -> ByFamily<Subnet> {
        let readable = |family| {
            let subnets = self
                .pod_cidrs()
                .iter()
                .filter_map(|text| text.parse::<Subnet>().ok());
            subnets.into_iter().find(|subnet| subnet.family() == family)
        };
        ByFamily {
            v4: readable(Family::V4),
            v6: readable(Family::V6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_as_the_api_gives_it_is_read_and_the_rest_left_behind() {
        let text = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","uid":"u1","creationTimestamp":"2026-11-22T10:00:00Z",
            "annotations":{"a":"b"}},"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00:0:0:1::/64"],"taints":[]},
            "status":{"images":[{"names":["x"]}],"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","message":"m"}]}}"#;
        let node: NodeObject = serde_json::from_str(text).unwrap();
        assert_eq!(
            (node.name(), node.uid(), node.created()),
            ("n1", "u1", 1_795_341_600)
        );
        assert_eq!(node.subnets().v6, Some("fd00:0:0:1::/64".parse().unwrap()));
        assert_eq!(node.status.conditions[0].kind, "Ready");
    }

    #[test]
    fn the_single_pod_cidr_stands_for_the_list() {
        let node: NodeObject =
            serde_json::from_str(r#"{"metadata":{},"spec":{"podCIDR":"10.244.1.0/24"}}"#).unwrap();
        assert_eq!(node.subnets().v4, Some("10.244.1.0/24".parse().unwrap()));
        assert_eq!(NodeObject::default().pod_cidrs(), &[] as &[String]);
    }
}
