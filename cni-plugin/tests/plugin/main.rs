//! The real binary, called as a runtime calls it, in private namespaces.

mod bridge;
mod crash;
mod lifecycle;
mod refusals;
mod runtime;
mod traffic;
mod verbs;
