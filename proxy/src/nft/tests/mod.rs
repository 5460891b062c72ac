//! The backend against a model of the kernel, against the kernel, and with packets.

mod listing;
mod model;
pub(crate) mod packets;
mod table;
pub(crate) mod world;
