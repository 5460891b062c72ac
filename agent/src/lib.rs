//! What both daemons need to live beside a Kubernetes API server: finding it, watching it, being probed, measured,
//! logged and stopped, and the rhythm of a level-triggered loop.
//!
//! ```text
//!  client ──► (slim ──►) watch ──► (the owning task folds Deltas into its index) ──► marks sync::Pacer ──► a pass
//!  logging, http (health, metrics), metrics, keeping (on disk), shutdown: around it
//! ```
//!
//! Nothing here knows what a daemon does; nothing here touches the kernel.
#![forbid(unsafe_code)]

pub mod client;
mod errors;
pub mod events;
pub mod http;
pub mod keeping;
pub mod logging;
pub mod metrics;
pub mod shutdown;
pub mod slim;
pub mod sync;
pub mod watch;

pub use errors::chain;
