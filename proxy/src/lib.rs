//! twill-proxy: turns Services and EndpointSlices into NAT in the kernel.
#![forbid(unsafe_code)]

#[cfg(test)]
mod fixtures;
pub mod index;
pub mod plan;
