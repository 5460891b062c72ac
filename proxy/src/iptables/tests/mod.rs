//! The compiler's text, and what the kernel holds of it.

mod kernel;
mod listing;
mod packets;
