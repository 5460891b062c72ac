//! twill-proxy: turns Services and EndpointSlices into NAT in the kernel.
#![forbid(unsafe_code)]

pub mod backend;
pub mod config;
#[cfg(test)]
mod fixtures;
pub mod foreign;
pub mod health;
pub mod index;
pub mod interfaces;
pub mod metrics;
pub mod nft;
pub mod plan;
pub mod ports;
pub mod run;
pub mod sync;
