//! flanneld: owns this node's subnets, publishes them, and programs the way to every other node's.
//!
//! ```text
//!  net-conf.json, flags ─► config ─┐
//!  links, addrs, routes ─► iface ──┼─► desired ─► State ─┐
//!  Node and Lease objects ─► peers ┘   (backend,         ├─► diff ─► ops ─► the kernel
//!                                       masquerade)      │
//!  the kernel ───────────► observed ────────► State ─────┘
//! ```
//!
//! All but the two ends is pure: a pass reads everything anew, so that what was lost, changed or
//! left behind is mended whatever happened to it.
#![forbid(unsafe_code)]

pub mod announce;
pub mod backend;
mod by_family;
pub mod config;
pub mod desired;
pub mod diff;
#[cfg(test)]
mod fixture;
pub mod iface;
pub mod lease;
pub mod masquerade;
pub mod node;
pub mod peers;
pub mod state;

pub use by_family::ByFamily;
