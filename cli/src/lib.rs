//! `twill`: explains what the kernel of a node does with packets.
//!
//! ```text
//!  view (questions) ◄── kernel (hostnet answers) or a test's model      objects ◄── the API server, if there is one
//!    │                                                                     │
//!    ├─ walk     nf_tables, rule by rule, for one packet; legacy is what iptables-legacy has beside it
//!    ├─ trace    a packet's way: pod, rules, routes, neighbours, forwarding entries, ports ──► report (tree, JSON)
//!    │     begin is at which node; remote is the view of another one
//!    │     onward asks other nodes for their part of it, far is how flanneld answers there
//!    │     saved is where twill-proxy remembers Services by name
//!    ├─ pods     which pod has which address, veth, port
//!    ├─ top      which Services are used, by the table of connections
//!    ├─ probe    real packets to every other node; matrix is what all nodes' came to, side by side
//!    ├─ status   what all nodes' daemons say of themselves
//!    ├─ dump     all of that in one archive, and a View of it for traces later
//!    └─ doctor   what is wrong on this node, whoever sends packets
//! ```
//!
//! It works on a node without any daemon and without the API server: names then come from the comments of our nf_tables
//! elements and from twill-cni's records. With the API server each place is compared with the object that it comes from.
//! Nothing is changed but by `doctor --fix`.
#![forbid(unsafe_code)]

pub mod args;
mod begin;
mod crowd;
pub mod doctor;
pub mod dump;
pub mod far;
pub mod fix;
pub mod kernel;
pub mod legacy;
pub mod matrix;
pub mod objects;
pub mod onward;
pub mod pods;
pub mod probe;
pub mod remote;
pub mod report;
pub mod saved;
pub mod status;
mod table;
pub mod target;
pub mod top;
pub mod trace;
pub mod view;
pub mod walk;
