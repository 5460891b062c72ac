//! Addresses for pods, kept in the directory layout of the reference plugin host-local, so that a
//! node moves between the two with its pods running.

pub mod foreign;
mod range;
mod store;

pub use range::{Range, RangeError, RangeSet};
pub use store::{IpamError, Locked, Owner, Store};
