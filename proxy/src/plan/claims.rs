//! Owns who has an address and port that two Services may claim: the best claim has it, and the next one gets it
//! when that goes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use hostnet::vocab::Family;

use super::{PortKey, Protocol};

/// An address (`None`: node ports), protocol and port that only one service port can have.
pub(super) type Place = (Family, Option<IpAddr>, Protocol, u16);

/// A service port's claim to a place. Of all claims to a place, the first in order has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    /// A cluster IP is given by the API server to one Service alone.
    pub(super) is_foreign: bool,
    pub(super) created: i64,
    pub(super) key: PortKey,
}

/// All claims to all places.
#[derive(Debug, Default)]
pub(super) struct Claims {
    owners: HashMap<Place, Claim>,
    /// The claims of those that do not have the place: most places have none.
    others: BTreeSet<(Place, Claim)>,
}

impl Claims {
    /// Who has a place.
    pub(super) fn owner(&self, place: &Place) -> Option<&PortKey> {
        self.owners.get(place).map(|claim| &claim.key)
    }

    /// Who claims a place, the best claim first.
    pub(super) fn claimants(&self, place: Place) -> impl Iterator<Item = &PortKey> {
        self.owner(&place)
            .into_iter()
            .chain(self.others_of(place).map(|claim| &claim.key))
    }

    /// Adds a claim.
    pub(super) fn insert(&mut self, place: Place, mut claim: Claim) {
        match self.owners.entry(place) {
            Entry::Vacant(vacant) => drop(vacant.insert(claim)),
            Entry::Occupied(mut owner) => {
                if claim < *owner.get() {
                    std::mem::swap(&mut claim, owner.get_mut());
                }
                self.others.insert((place, claim));
            }
        }
    }

    /// Takes a claim back.
    pub(super) fn remove(&mut self, place: Place, claim: Claim) {
        if self.owners.get(&place) != Some(&claim) {
            self.others.remove(&(place, claim));
            return;
        }
        let heir = self.others_of(place).next().cloned();
        match heir {
            Some(heir) => {
                self.others.remove(&(place, heir.clone()));
                self.owners.insert(place, heir);
            }
            None => drop(self.owners.remove(&place)),
        }
    }

    fn others_of(&self, place: Place) -> impl Iterator<Item = &Claim> {
        let first = Claim {
            is_foreign: false,
            created: i64::MIN,
            key: PortKey {
                name: Default::default(),
                protocol: Protocol::Tcp,
            },
        };
        (self.others.range((place, first)..))
            .take_while(move |(other, _)| *other == place)
            .map(|(_, claim)| claim)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::PortName;

    fn claim() -> impl Strategy<Value = (Place, Claim)> {
        (0u16..2, any::<bool>(), 0i64..2, "[ab]").prop_map(|(port, is_foreign, created, name)| {
            let key = PortKey {
                name: PortName::new("ns", &name, ""),
                protocol: Protocol::Tcp,
            };
            let claim = Claim {
                is_foreign,
                created,
                key,
            };
            ((Family::V4, None, Protocol::Tcp, port), claim)
        })
    }

    proptest! {
        #[test]
        fn the_claimants_of_a_place_are_in_order(steps in prop::collection::vec((claim(), any::<bool>()), 0..40)) {
            let (mut claims, mut model) = (Claims::default(), BTreeSet::new());
            for ((place, claim), comes) in steps {
                // A service port claims a place once.
                if comes && model.insert((place, claim.clone())) {
                    claims.insert(place, claim);
                } else if !comes && model.remove(&(place, claim.clone())) {
                    claims.remove(place, claim);
                }
                let expected = model.iter().filter(|(other, _)| *other == place);
                let expected: Vec<_> = expected.map(|(_, claim)| &claim.key).collect();
                prop_assert_eq!(claims.claimants(place).collect::<Vec<_>>(), expected);
                prop_assert!(model.is_empty() == claims.owners.is_empty());
            }
        }
    }
}
