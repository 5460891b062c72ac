//! twill-proxy: turns Services and EndpointSlices into NAT in the kernel.
#![forbid(unsafe_code)]

pub mod index;
pub mod plan;
