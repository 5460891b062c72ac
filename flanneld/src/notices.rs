//! What becomes an Event: the things that somebody has to do something about. Pure.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc};

use agent::events::{Notice, node};
use hostnet::vocab::{Subnet, names};
use k8s_openapi::api::core::v1::ObjectReference;

use crate::{
    forward::Obstacle,
    lease::Error,
    peers::{Reason, Skipped},
};

/// About a subnet that could not be held. `own` is our Node, `other` the Node that has it.
#[must_use]
pub fn claim(error: &Error, own: &ObjectReference, other: Option<&ObjectReference>) -> Vec<Notice> {
    let reason = match error {
        Error::Clash { .. } => "SubnetConflict",
        Error::Exhausted { .. } => "NetworkExhausted",
        Error::Outside { .. } | Error::LacksFamily { .. } | Error::Reserved { .. } => {
            "SubnetUnusable"
        }
        Error::Api {
            source: kube::Error::Api(status),
            ..
        } if status.is_forbidden() => "MissingPermission",
        _ => return Vec::new(),
    };
    let notice = |regarding: &ObjectReference, related: Option<&ObjectReference>| Notice {
        warning: true,
        reason,
        action: "ClaimSubnet",
        note: error.to_string(),
        regarding: regarding.clone(),
        related: related.cloned(),
    };
    let on_other = other.map(|other| notice(other, Some(own)));
    [notice(own, other)].into_iter().chain(on_other).collect()
}

/// About a node that is left out. `uid` gives the UID of a Node that exists.
#[must_use]
pub fn left_out(skipped: &Skipped, uid: impl Fn(&str) -> Option<String>) -> Vec<Notice> {
    let reference = |name: &str| node(name, &uid(name).unwrap_or_default());
    let bad = reference(&skipped.node);
    let other = match &skipped.reason {
        Reason::SubnetTaken { by, .. } | Reason::VtepTaken { by, .. } => Some(reference(by)),
        _ => None,
    };
    let notice = |regarding: &ObjectReference, related: Option<&ObjectReference>| Notice {
        warning: true,
        reason: "PeerLeftOut",
        action: "ProgramPeer",
        note: format!(
            "Node {} gets no {} packets from other nodes: {}",
            skipped.node, skipped.family, skipped.reason
        ),
        regarding: regarding.clone(),
        related: related.cloned(),
    };
    let on_other = other.as_ref().map(|other| notice(other, Some(&bad)));
    let on_bad = notice(&bad, other.as_ref());
    [on_bad].into_iter().chain(on_other).collect()
}

/// How many nodes tell of one that is left out: were it all, a thousand would.
const TELLERS: usize = 3;

/// Whether it is on us to tell of it: we are among the first nodes by name, or it is about us alone.
#[must_use]
pub fn is_ours_to_tell<'a>(
    own_name: &str,
    names: impl IntoIterator<Item = &'a Arc<str>>,
    reason: &Reason,
) -> bool {
    let is_about_us = matches!(
        reason,
        Reason::SubnetOurs { .. }
            | Reason::AddressOurs(_)
            | Reason::VtepOurs(_)
            | Reason::NotDirect { .. }
    );
    let before_us = |name: &&Arc<str>| ***name < *own_name;
    is_about_us || names.into_iter().filter(before_us).take(TELLERS).count() < TELLERS
}

/// About somebody who drops pods' packets on our node.
#[must_use]
pub fn obstacle(obstacle: &Obstacle, own: &ObjectReference) -> Notice {
    Notice {
        warning: obstacle.is_certain(),
        reason: "ForwardingBlocked",
        action: "ForwardPackets",
        note: obstacle.to_string(),
        regarding: own.clone(),
        related: None,
    }
}

/// About a net-conf.json that cannot be used.
#[must_use]
pub fn misconfigured(error: &str, own: &ObjectReference) -> Notice {
    Notice {
        warning: true,
        reason: "InvalidConfiguration",
        action: "ReadConfiguration",
        note: format!("the last good configuration stays in force: {error}"),
        regarding: own.clone(),
        related: None,
    }
}

/// About a pod network that is not there, or no longer mended.
#[must_use]
pub fn not_as_desired(error: &str, own: &ObjectReference) -> Notice {
    Notice {
        warning: true,
        reason: "NetworkNotProgrammed",
        action: "ProgramNetwork",
        note: error.to_owned(),
        regarding: own.clone(),
        related: None,
    }
}

/// Another network where ours should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rival {
    /// A CNI configuration that the runtime takes in place of ours.
    Conflist(PathBuf),
    /// Services have addresses among the pods'.
    Services {
        /// That of the Service `kubernetes`.
        ip: IpAddr,
        /// The pods' network.
        network: Subnet,
    },
    /// They may get them there.
    ServiceRange {
        /// What a ServiceCIDR says.
        range: Subnet,
        /// The pods' network.
        network: Subnet,
    },
}

const COLLISION: &str = "a pod may get an address that is a Service's; give Network in net-conf.json a range that neither \
                         nodes nor Services have";

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflist(path) => write!(
                f,
                "{} comes before {}, so that the container runtime makes pods by it, and not by Twill: remove it, with what \
                 writes it, or have it hand pods on to the network {}",
                path.display(),
                names::CONFLIST_FILE,
                names::CNI_NETWORK
            ),
            Self::Services { ip, network } => write!(
                f,
                "the Service kubernetes has the address {ip} (KUBERNETES_SERVICE_HOST), which is inside the pods' Network \
                 {network}: {COLLISION}"
            ),
            Self::ServiceRange { range, network } => write!(
                f,
                "Services get addresses of {range} (`kubectl get servicecidrs`), of which the pods' Network {network} has \
                 some too: {COLLISION}"
            ),
        }
    }
}

/// About another network in the way of ours.
#[must_use]
pub fn in_the_way(rival: &Rival, own: &ObjectReference) -> Notice {
    Notice {
        warning: true,
        reason: match rival {
            Rival::Conflist(_) => "OtherNetworkFirst",
            Rival::Services { .. } | Rival::ServiceRange { .. } => "NetworkCollision",
        },
        action: "ReadConfiguration",
        note: rival.to_string(),
        regarding: own.clone(),
        related: None,
    }
}

/// About pods that were made with another MTU than new ones will have.
#[must_use]
pub fn mtu_changed(was: u32, is: u32, own: &ObjectReference) -> Notice {
    Notice {
        warning: is < was,
        reason: "MtuChanged",
        action: "WriteSubnetEnv",
        note: mtu_text(was, is),
        regarding: own.clone(),
        related: None,
    }
}

/// What a change of the MTU means, for log and Event.
#[must_use]
pub fn mtu_text(was: u32, is: u32) -> String {
    let why = if is < was {
        "their large packets now depend on path MTU discovery"
    } else {
        "they send smaller packets than they could"
    };
    format!("new pods get MTU {is}; those that run keep {was} until they are started anew: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostnet::vocab::Family;

    fn clash() -> Error {
        Error::Clash {
            subnet: "10.244.1.0/24".parse().unwrap(),
            node: "n1".into(),
            holder: "n2".into(),
            lease: "subnet-10-244-1-0-24".into(),
        }
    }

    #[test]
    fn a_conflict_is_told_on_both_nodes_and_names_both() {
        let (own, other) = (node("n1", "u1"), node("n2", "u2"));
        let told = claim(&clash(), &own, Some(&other));
        let places: Vec<_> = told
            .iter()
            .map(|notice| (notice.regarding.clone(), notice.related.clone()))
            .collect();
        assert_eq!(
            places,
            [
                (own.clone(), Some(other.clone())),
                (other, Some(own.clone()))
            ]
        );
        for notice in told {
            assert_eq!(notice.reason, "SubnetConflict");
            for name in ["n1", "n2", "delete the Node object"] {
                assert!(notice.note.contains(name), "{}", notice.note);
            }
        }
        assert_eq!(claim(&Error::Busy { tries: 1 }, &own, None), []);
    }

    #[test]
    fn a_bad_peer_is_told_on_its_node_and_on_the_one_that_it_is_in_the_way_of() {
        let skipped = Skipped {
            node: "bad".into(),
            family: Family::V4,
            reason: Reason::SubnetTaken {
                subnet: "10.244.2.0/24".parse().unwrap(),
                taken: "10.244.2.0/24".parse().unwrap(),
                by: "n2".into(),
            },
        };
        let told = left_out(&skipped, |name| Some(format!("uid-{name}")));
        let names: Vec<_> = told
            .iter()
            .map(|notice| notice.regarding.uid.as_deref().unwrap())
            .collect();
        assert_eq!(names, ["uid-bad", "uid-n2"]);
        assert!(
            told[0].note.contains("Node bad gets no IPv4 packets"),
            "{}",
            told[0].note
        );
    }

    #[test]
    fn of_many_nodes_a_few_tell() {
        let names: Vec<Arc<str>> = (0..100).map(|n| format!("n{n:02}").into()).collect();
        let general = Reason::OtherVni { theirs: 2, ours: 1 };
        let tellers = names
            .iter()
            .filter(|own| is_ours_to_tell(own, &names, &general));
        assert_eq!(tellers.count(), TELLERS);
        let ours = Reason::AddressOurs("192.0.2.1".parse().unwrap());
        assert!(is_ours_to_tell("n99", &names, &ours));
    }
}
