//! The real binary, called as a runtime calls it, in private namespaces.

mod bandwidth;
mod bridge;
mod concurrency;
mod crash;
mod foreign;
mod forms;
mod hostports;
mod install;
mod lifecycle;
mod refusals;
mod runtime;
mod traffic;
mod verbs;
mod vlans;
