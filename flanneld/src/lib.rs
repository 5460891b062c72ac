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
//! left behind is mended whatever happened to it. [`observe`] reads the kernel, [`apply`] writes to
//! it, [`reconcile`] is one pass, [`run`] the loop around it; [`registrar`] alone writes to the API.
//!
//! At the API server these rights are used, and no others:
//!
//! | resource | verbs | for |
//! |---|---|---|
//! | nodes | list, watch | peers, and our own Node |
//! | nodes | get | our own Node before a claim; the holder of a Lease that has expired |
//! | nodes | patch | `spec.podCIDRs` of our own Node, where no controller-manager sets it |
//! | nodes/status | patch | the annotations and the condition NetworkUnavailable of our own Node |
//! | leases.coordination.k8s.io, in one namespace | list, watch | who holds which subnet |
//! | the same | get, create, patch, delete | claiming, renewing and giving back our own; deleting one that has expired and whose Node is gone |
//! | servicecidrs.networking.k8s.io | list | whether Services have addresses of pods |
//! | events.k8s.io/events, in `default` | create, patch | telling of what somebody has to do something about |
#![forbid(unsafe_code)]

pub mod announce;
pub mod apply;
pub mod backend;
mod by_family;
pub mod cleanup;
pub mod config;
pub mod desired;
pub mod diff;
pub mod events;
pub mod files;
#[cfg(test)]
mod fixture;
pub mod forward;
pub mod health;
pub mod host;
pub mod iface;
pub mod index;
pub mod lease;
pub mod leftovers;
pub mod masquerade;
pub mod metrics;
pub mod node;
pub mod notices;
pub mod observe;
pub mod peers;
pub mod place;
pub mod pods;
pub mod prober;
pub mod recall;
pub mod reconcile;
pub mod registrar;
pub mod run;
pub mod services;
pub mod state;

pub use by_family::ByFamily;
