//! All that touches the kernel: route netlink, nf_tables, namespaces, sysctls, durable files,
//! and the vocabulary that Twill's binaries share.
//!
//! Everything here is synchronous: `twill-cni` runs for a millisecond and needs no runtime, and
//! the daemons call in from one task. This crate is the only home of `unsafe`; each block says
//! why it is sound.

pub mod arp;
pub mod atomic_file;
pub mod conntrack;
pub mod dirwatch;
pub mod kernel;
pub mod knock;
pub mod lock;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nfacct;
mod nfnetlink;
pub mod nft;
pub mod ping;
pub mod snapshot;
pub mod sysctl;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod vocab;
pub mod xtables;
