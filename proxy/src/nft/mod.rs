//! The nf_tables backend: the plan as elements of a few maps, whatever the number of services.
//!
//! * `layout`: the fixed chains and maps, and the way of a packet through them;
//! * `affinity`: what a service port has of its own whose clients stay with their endpoints;
//! * `desired`: what a service port is in the maps; `slots`: which endpoint has which slot;
//! * `observe`: what the kernel's table says about slots, so that a restart moves nothing;
//! * `diff`: from changes of the plan to operations, with what has to wait for packets on their way;
//! * `apply`: [`NftBackend`], which sends them.

mod affinity;
mod apply;
mod desired;
mod diff;
mod layout;
mod observe;
mod room;
mod slots;
#[cfg(test)]
pub(crate) mod tests;

pub use apply::{NftBackend, NftError};

use hostnet::nft::Changes;
use hostnet::vocab::Family;

use crate::plan::Ruleset;

/// What makes the rules of a plan where there are none: IPv4, IPv6.
pub fn rules(ruleset: &Ruleset) -> [Changes; 2] {
    Family::ALL.map(|family| diff::State::replace(family, None, ruleset.family(family), None).0)
}
