//! A value for each address family, so that IPv4 and IPv6 share one piece of code.

use hostnet::vocab::Family;
use serde::{Deserialize, Serialize};

/// A value for IPv4, for IPv6, for both or for neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByFamily<T> {
    /// For IPv4.
    pub v4: Option<T>,
    /// For IPv6.
    pub v6: Option<T>,
}

impl<T> Default for ByFamily<T> {
    fn default() -> ByFamily<T> {
        ByFamily { v4: None, v6: None }
    }
}

impl<T> ByFamily<T> {
    /// Makes each family's value from the family.
    pub fn from_fn(mut make: impl FnMut(Family) -> Option<T>) -> ByFamily<T> {
        ByFamily {
            v4: make(Family::V4),
            v6: make(Family::V6),
        }
    }

    /// A family's value.
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The place of a family's value.
    pub fn get_mut(&mut self, family: Family) -> &mut Option<T> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The values that there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL
            .into_iter()
            .filter_map(|family| Some((family, self.get(family)?)))
    }

    /// Whether there is neither.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}
