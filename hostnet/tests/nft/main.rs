//! nf_tables against the running kernel, each test in a network namespace of its own, with the `nft` program
//! as the second opinion.

mod lookup;
mod properties;
mod roundtrip;
mod support;
mod transactions;
