//! What a cluster's user finds in `kubectl describe`, beside the log: Events under kube-proxy's names where it has
//! one for the matter.

use agent::events::{Notice, Recorder, node};
use agent::http::BindError;
use k8s_openapi::api::core::v1::ObjectReference;

use crate::host_ports::Clash;
use crate::index::{Index, ObjectName};
use crate::iptables::Variant;
use crate::plan::{Conflict, HealthCheck};

/// Where Events go; nowhere by default.
#[derive(Clone, Debug, Default)]
pub struct Events(Option<Recorder>);

impl From<Recorder> for Events {
    fn from(recorder: Recorder) -> Self {
        Self(Some(recorder))
    }
}

impl Events {
    /// The proxy has begun its work on a Node.
    pub fn starting(&self, name: &str) {
        self.publish(|| Notice {
            warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            note: format!("twill-proxy {}", agent::metrics::VERSION),
            // As kubelet and kube-proxy do: a Node's Events are found by its name in place of its UID.
            regarding: node(name, name),
            related: None,
        });
    }

    /// The port at which a Node's proxy tells of its health is another's.
    pub fn no_health_port(&self, name: &str, error: &BindError) {
        self.no_port(name, "FailedToStartProxierHealthcheck", error);
    }

    /// The port for its metrics is.
    pub fn no_metrics_port(&self, name: &str, error: &BindError) {
        self.no_port(name, "FailedToStartMetricServer", error);
    }

    fn no_port(&self, name: &str, reason: &'static str, error: &BindError) {
        self.publish(|| Notice {
            warning: true,
            reason,
            action: "StartKubeProxy",
            note: format!("{error}: twill-proxy will try again until the port is free"),
            regarding: node(name, name),
            related: None,
        });
    }

    /// Other components of a Node use the other of the kernel's two iptables.
    pub fn contradicted(&self, name: &str, ours: Variant, others: Variant) {
        let (ours, others) = (ours.as_str(), others.as_str());
        self.publish(|| Notice {
            warning: true,
            reason: "IptablesVariantMismatch",
            action: "StartKubeProxy",
            note: format!(
                "twill-proxy uses iptables-{ours} as it was told, the kubelet and others iptables-{others}, so that rules \
                 of both are in force: leave iptables.variant out or set it to {others}"
            ),
            regarding: node(name, name),
            related: None,
        });
    }

    /// The API server does not let us read what rules come from.
    pub fn refused(&self, name: &str, error: &str) {
        self.publish(|| Notice::refused(error, node(name, name)));
    }

    /// Rules cannot be programmed, and that does not pass by itself.
    pub fn not_programmed(&self, name: &str, error: &str) {
        let old = hostnet::kernel::too_old(&hostnet::kernel::release());
        self.publish(|| Notice {
            warning: true,
            reason: "RulesNotProgrammed",
            action: "ProgramService",
            note: old.map_or_else(|| error.to_owned(), |old| format!("{error}; {old}")),
            regarding: node(name, name),
            related: None,
        });
    }

    /// An address and port of a Service is another's already.
    pub fn conflict(&self, conflict: &Conflict, index: &Index) {
        self.publish(|| Notice {
            warning: true,
            reason: "FrontendConflict",
            action: "ProgramService",
            note: format!(
                "{} is left out on node {}: {} has it. Give one of the two another address or port",
                conflict.frontend.place(),
                index.this_node(),
                conflict.owner,
            ),
            regarding: service(&conflict.loser.name.object(), index),
            related: Some(service(&conflict.owner.name.object(), index)),
        });
    }

    /// A node port is a pod's host port too.
    pub fn host_port(&self, clash: &Clash, index: &Index) {
        self.publish(|| Notice {
            warning: true,
            reason: "NodePortIsHostPort",
            action: "ProgramService",
            note: format!(
                "node port {} does not lead to {} on node {}: it is the host port of {}. Give one of the two another port",
                clash.port,
                clash.key,
                index.this_node(),
                clash.owner,
            ),
            regarding: service(&clash.key.name.object(), index),
            related: None,
        });
    }

    /// The port at which load balancers ask for a Service cannot be had.
    pub fn no_health_check(&self, check: &HealthCheck, error: &str) {
        self.publish(|| Notice {
            warning: true,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: format!(
                "load balancers cannot ask this node for {}: {error}",
                check.service
            ),
            regarding: reference(&check.service, 0),
            related: None,
        });
    }

    fn publish(&self, notice: impl FnOnce() -> Notice) {
        if let Some(recorder) = &self.0 {
            recorder.publish(notice());
        }
    }
}

fn service(name: &ObjectName, index: &Index) -> ObjectReference {
    let entry = index.entry(name).and_then(|entry| entry.service.as_ref());
    reference(name, entry.map_or(0, |service| service.uid))
}

fn reference(name: &ObjectName, uid: u128) -> ObjectReference {
    let (namespace, name) = name.parts();
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        uid: (uid != 0).then(|| hyphenated(uid)),
        ..ObjectReference::default()
    }
}

/// RFC 9562.
fn hyphenated(uid: u128) -> String {
    let digits = format!("{uid:032x}");
    [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn a_service_is_found_by_its_uid() {
        let uid = "0a1b2c3d-0000-4000-8000-000000000001";
        let index = fixtures::index(&format!(
            "kind: Service\nmetadata: {{name: web, namespace: shop, uid: {uid}}}\nspec: {{clusterIPs: [10.96.0.1]}}\n"
        ));
        let reference = service(&ObjectName::new("shop", "web"), &index);
        assert_eq!(reference.uid.as_deref(), Some(uid));
        assert_eq!(reference.namespace.as_deref(), Some("shop"));
        let other = service(&ObjectName::new("shop", "other"), &index);
        assert_eq!(other.uid, None);
    }
}
