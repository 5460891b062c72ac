//! The Lease object: what we write into it, and what others' say.

use std::time::Duration;

use hostnet::vocab::lease::{dashed, lease_name, parse_lease_name};
use hostnet::vocab::{Subnet, names};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::{SignedDuration, Timestamp},
};

use crate::config::LEASE_DURATION;

/// The node for which a Lease is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its UID: the garbage collector deletes the Lease when the Node of this UID is gone.
    pub uid: String,
}

impl Owner {
    pub(super) fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            ..OwnerReference::default()
        }
    }
}

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The subnet, by the Lease's name.
    pub subnet: Subnet,
    /// The node that holds it.
    pub holder: String,
    /// The UID of the Node that owns the Lease.
    pub owner: Option<String>,
    /// When it was created, and its UID: the older ranks first.
    pub age: (Timestamp, String),
    /// For preconditions.
    pub version: Option<String>,
    /// When it ends unless it is renewed.
    pub expires: Timestamp,
}

impl Holding {
    /// Reads a Lease; `None` if it is none of a subnet.
    #[must_use]
    pub fn of(lease: &Lease) -> Option<Self> {
        let metadata = &lease.metadata;
        let spec = lease.spec.as_ref();
        let owners = metadata.owner_references.iter().flatten();
        let created = metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::MIN, |time| time.0);
        let renewed = spec
            .and_then(|spec| spec.renew_time.as_ref())
            .map_or(created, |time| time.0);
        let lasts = spec
            .and_then(|spec| spec.lease_duration_seconds)
            .map_or(0, i64::from);
        Some(Self {
            subnet: parse_lease_name(metadata.name.as_deref()?)?,
            holder: spec
                .and_then(|spec| spec.holder_identity.clone())
                .unwrap_or_default(),
            owner: owners
                .filter(|owner| owner.kind == "Node")
                .map(|owner| owner.uid.clone())
                .next(),
            age: (created, metadata.uid.clone().unwrap_or_default()),
            version: metadata.resource_version.clone(),
            expires: renewed
                .saturating_add(SignedDuration::from_secs(lasts))
                .unwrap_or(Timestamp::MAX),
        })
    }

    /// Whether `owner` holds it.
    #[must_use]
    pub fn is_held_by(&self, owner: &Owner) -> bool {
        self.holder == owner.name
    }

    /// When to renew it, `margin` before its end.
    #[must_use]
    pub fn renew_at(&self, margin: Duration) -> Timestamp {
        SignedDuration::try_from(margin)
            .ok()
            .and_then(|margin| self.expires.checked_sub(margin).ok())
            .unwrap_or(Timestamp::MIN)
    }
}

/// `spec` of a Lease that `owner` holds from now on.
fn spec(owner: &Owner, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(owner.name.clone()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        ..LeaseSpec::default()
    }
}

/// The Lease by which `owner` claims `subnet`.
pub(super) fn new(subnet: Subnet, owner: &Owner, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(lease_name(subnet)),
            labels: Some([(names::LABEL_SUBNET.to_owned(), dashed(subnet))].into()),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: Some(spec(owner, now)),
    }
}

/// The merge patch that renews a Lease, and makes it `owner`'s Node's. Only of the very Lease that was looked at.
pub(super) fn renewal(holding: &Holding, owner: &Owner, now: Timestamp) -> serde_json::Value {
    serde_json::json!({
        "metadata": { "uid": holding.age.1, "ownerReferences": [owner.reference()] },
        "spec": { "renewTime": MicroTime(now), "leaseDurationSeconds": LEASE_DURATION.as_secs() },
    })
}
