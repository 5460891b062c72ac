//! UDP flows that go on by rules which are no more, and the task that has the kernel forget them.
//!
//! The kernel keeps the way of a flow for as long as packets come. So after rules have changed, flows to an endpoint
//! that serves no more would go on into the void, and so would those of a client that began before there was a
//! rule at all. TCP and SCTP connections have an end of their own and are left alone.
//!
//! * `stale`: which flows these are, from what changed in the plan; pure;
//! * [`Cleaner`]: a thread that reads the flows once for all that changed, and deletes. Rules never wait for it.

mod cleaner;
mod stale;
#[cfg(test)]
mod tests;

pub use cleaner::Cleaner;
pub use stale::Stale;
