//! The keeper: pid 1 of a lab. It starts the lab's processes, reaps them, and by its end ends
//! them all.
//!
//! A test or command that starts a lab holds a pipe to the keeper, the lifeline: should it die,
//! by whatever signal, the keeper sees the pipe's end and goes too. `lab up` detaches the keeper
//! as its very last step; so there is never a half-made lab that stays.

mod handle;
mod protocol;
mod server;

pub use handle::Keeper;
pub use protocol::{Process, Spawn};
pub use server::serve;
