//! Route netlink: links, addresses, routes, neighbours, forwarding entries and traffic control as
//! plain comparable data, read from and written to the kernel.
//!
//! Reading is by methods of [`Rtnl`]: `rtnl.links()`, `rtnl.routes(…)`. A change is a [`Request`]
//! made by a function of the object's module, `route::replace(&route)`; it is sent alone by
//! [`Rtnl::apply`] or with others in one system call by [`Rtnl::apply_all`], which gives each
//! request's own outcome. Errors name the operation and the object, and carry the kernel's
//! extended-ack text.

pub mod addr;
mod error;
mod extack;
pub mod link;
mod monitor;
pub mod neigh;
pub mod route;
mod socket;
pub mod tc;

pub use addr::Addr;
pub use error::{AbsentOk, Error};
pub use extack::ExtAck;
pub use link::{Link, LinkKind, LinkRef};
pub use monitor::{Event, Monitor, Object, Switches};
pub use neigh::{FdbEntry, Neigh};
pub use route::Route;
pub use socket::{Request, Rtnl};

/// What a netlink call gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
