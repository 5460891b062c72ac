//! The operations of the CNI specification.

pub mod add;
pub mod del;
