//! The real binary, called as a runtime calls it, in private namespaces.

mod bandwidth;
mod bridge;
mod crash;
mod hostports;
mod lifecycle;
mod refusals;
mod runtime;
mod traffic;
mod verbs;
