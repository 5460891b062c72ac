//! The operations of the CNI specification.

pub mod add;
pub mod check;
pub mod del;
pub mod gc;
pub mod orphans;
mod predecessor;
mod reclaim;
pub mod status;
mod teardown;
