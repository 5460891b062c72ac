//! flanneld: holds this node's pod subnet, tells other nodes where it is, and programs the way to theirs.
#![forbid(unsafe_code)]

pub mod config;
