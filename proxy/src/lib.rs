//! twill-proxy: turns Services and EndpointSlices into NAT in the kernel.
//!
//! ```text
//!  API ──watches──▶ index ──what is dirty──▶ plan ──what changed──▶ nft ──one transaction──▶ kernel
//!                     plain objects            pure: Ruleset          elements of a few maps    │
//!                     (run: one task owns all of it)  ◀──── foreign changes, by netlink ────────┘
//! ```
//!
//! * [`index`] folds what the watches tell into plain objects, and remembers what was touched;
//! * [`plan`] is a pure function of it: a backend-neutral ruleset, and the difference to the last one;
//! * [`nft`] compiles plans for nf_tables, [`iptables`] for kube-proxy's chains, behind the seam [`backend`];
//! * [`conntrack`] has the kernel forget UDP flows that go on by rules which are no more;
//! * [`sync`] is one pass through these, [`run`] the loop that decides when, [`daemon`] the process;
//! * [`succession`] has the rules of another mode or proxy go once ours are in;
//! * [`snapshot`] keeps the last good index on disk, for a start before the API server answers;
//! * [`render`] prints what a dump of objects makes, without a cluster;
//! * [`config`] reads kube-proxy's file and flags, [`health`], [`metrics`] and [`ports`] answer its
//!   questions under its names, [`events`] tell of what a user has to mend
//!   ([`host_ports`] among it); [`interfaces`] and [`foreign`] hear what the kernel has to tell.
//!
//! A change costs what changed, however large the cluster; a restart changes nothing in the kernel.
//!
//! # Rights
//!
//! In the API, cluster-wide: `list` and `watch` on `services`, on `endpointslices` of `discovery.k8s.io`, on
//! `servicecidrs` of `networking.k8s.io`, and on `nodes` (by `metadata.name`, its own); `create` and `patch` on `events` of `events.k8s.io`. It writes nothing else.
//!
//! In the kernel: `CAP_NET_ADMIN` in the network namespace of the node.
#![forbid(unsafe_code)]

pub mod backend;
pub mod config;
pub mod conntrack;
pub mod daemon;
pub mod events;
#[cfg(test)]
mod fixtures;
pub mod foreign;
pub mod health;
pub mod host_ports;
pub mod index;
pub mod interfaces;
pub mod iptables;
pub mod metrics;
pub mod nft;
pub mod plan;
pub mod ports;
pub mod render;
pub mod run;
pub mod snapshot;
pub mod succession;
pub mod sync;
