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
pub mod apply;
pub mod backend;
mod by_family;
pub mod config;
pub mod desired;
pub mod diff;
pub mod events;
pub mod files;
#[cfg(test)]
mod fixture;
pub mod health;
pub mod host;
pub mod iface;
pub mod index;
pub mod lease;
pub mod masquerade;
pub mod metrics;
pub mod node;
pub mod observe;
pub mod peers;
pub mod place;
pub mod reconcile;
pub mod registrar;
pub mod run;
pub mod state;

pub use by_family::ByFamily;
