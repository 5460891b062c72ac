//! Owns the difference between two rulesets: what a backend must do, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use hostnet::vocab::Family;

use super::{FamilyRuleset, NodeRules, PortKey, Ruleset, ServicePort};

/// What changed from one ruleset to the next, both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// IPv4.
    pub v4: FamilyDelta,
    /// IPv6.
    pub v6: FamilyDelta,
}

/// What changed in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyDelta {
    /// The new rules that hold for all ports, where they changed.
    pub node: Option<NodeRules>,
    /// The service ports that changed, each once, in the order of their keys.
    pub ports: Vec<Change>,
}

/// A service port that came, went or changed. `before` and `after` differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which service port.
    pub key: PortKey,
    /// As the ruleset had it; `None`: new.
    pub before: Option<Arc<ServicePort>>,
    /// As it shall be; `None`: gone.
    pub after: Option<Arc<ServicePort>>,
}

impl Change {
    /// Whether the port was there and is, and nothing but its endpoints differs.
    pub fn is_of_endpoints(&self) -> bool {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                before.frontends == after.frontends && before.affinity == after.affinity
            }
            _ => false,
        }
    }
}

impl Delta {
    /// What changed in one family.
    pub fn family(&self, family: Family) -> &FamilyDelta {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// What changed in one family, to add to it.
    pub(super) fn family_mut(&mut self, family: Family) -> &mut FamilyDelta {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// What leads from `old` to `new`. Looks at every port: for a start, and for checks.
    pub fn between(old: &Ruleset, new: &Ruleset) -> Self {
        Self {
            v4: FamilyDelta::between(&old.v4, &new.v4),
            v6: FamilyDelta::between(&old.v6, &new.v6),
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FamilyDelta {
    /// What leads from `old` to `new`.
    pub fn between(old: &FamilyRuleset, new: &FamilyRuleset) -> Self {
        // Gone or changed first, then new; sorted together below.
        let kept_or_gone = old.ports.iter().filter_map(|(key, before)| {
            let after = new.ports.get(key);
            (after != Some(before)).then(|| Change {
                key: key.clone(),
                before: Some(before.clone()),
                after: after.cloned(),
            })
        });
        let came = new
            .ports
            .iter()
            .filter(|(key, _)| !old.ports.contains_key(key))
            .map(|(key, after)| Change {
                key: key.clone(),
                before: None,
                after: Some(after.clone()),
            });
        let mut ports: Vec<_> = kept_or_gone.chain(came).collect();
        ports.sort_by(|a, b| a.key.cmp(&b.key));
        Self {
            node: (old.node != new.node).then(|| new.node.clone()),
            ports,
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.node.is_none() && self.ports.is_empty()
    }
}

impl Ruleset {
    /// Makes the changes: afterwards this is the ruleset that the delta leads to.
    pub fn apply(&mut self, delta: &Delta) {
        self.v4.apply(&delta.v4);
        self.v6.apply(&delta.v6);
    }
}

impl FamilyRuleset {
    /// Makes the changes of one family.
    pub fn apply(&mut self, delta: &FamilyDelta) {
        if let Some(node) = &delta.node {
            self.node = node.clone();
        }
        for change in &delta.ports {
            set(&mut self.ports, &change.key, change.after.clone());
        }
    }
}

fn set(
    ports: &mut BTreeMap<PortKey, Arc<ServicePort>>,
    key: &PortKey,
    value: Option<Arc<ServicePort>>,
) {
    match value {
        Some(port) => ports.insert(key.clone(), port),
        None => ports.remove(key),
    };
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::{At, Endpoint, Frontend, Masquerade, PortName, Protocol, Verdict, View};

    fn family() -> impl Strategy<Value = FamilyRuleset> {
        let port = (1u16..4, 0u8..3).prop_map(|(number, endpoints)| {
            let verdict = if endpoints == 0 {
                Verdict::Reject
            } else {
                Verdict::Balance(View::Cluster)
            };
            let frontend = Frontend {
                at: At::ClusterIp(IpAddr::from([10, 96, 0, 1])),
                port: number,
                inside: verdict,
                outside: verdict,
                masquerade: Masquerade::NotPods,
                sources: None,
            };
            let endpoint = |n| Endpoint {
                address: IpAddr::from([10, 244, 0, n]),
                port: 80,
                local: false,
            };
            Arc::new(ServicePort {
                frontends: vec![frontend],
                cluster: (0..endpoints).map(endpoint).collect(),
                ..ServicePort::default()
            })
        });
        let key = "[abc]".prop_map(|s| PortKey {
            name: PortName::new("ns", &s, ""),
            protocol: Protocol::Tcp,
        });
        prop::collection::btree_map(key, port, 0..4).prop_map(|ports| FamilyRuleset {
            ports,
            ..Default::default()
        })
    }

    proptest! {
        #[test]
        fn applying_the_delta_leads_to_the_new_ruleset(old in family(), new in family()) {
            let (old, new) = (Ruleset { v4: old, ..Default::default() }, Ruleset { v4: new, ..Default::default() });
            let mut model = old.clone();
            model.apply(&Delta::between(&old, &new));
            prop_assert_eq!(model, new);
        }

        #[test]
        fn nothing_changes_from_a_ruleset_to_itself(rules in family()) {
            let rules = Ruleset { v4: rules, ..Default::default() };
            prop_assert!(Delta::between(&rules, &rules).is_empty());
        }
    }
}
