//! What `doctor --fix` does: what the daemons would do too, where they run.

use std::fmt;

use hostnet::netlink::link::{self, Change};
use hostnet::netlink::{Addr, Rtnl, addr};
use hostnet::sysctl::Sysctl;
use hostnet::vocab::{Cidr, IfName};

/// A change that mends a finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fix {
    /// A switch below `/proc/sys/net` gets a value.
    Switch(String, &'static str),
    /// A link is set up.
    Up(IfName),
    /// A link gets an address.
    Address(IfName, Cidr),
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fix::Switch(key, value) => write!(f, "sysctl -w net/{key}={value}"),
            Fix::Up(link) => write!(f, "ip link set {link} up"),
            Fix::Address(link, cidr) => write!(f, "ip address add {cidr} dev {link}"),
        }
    }
}

impl Fix {
    /// Makes the change, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn apply(&self) -> anyhow::Result<()> {
        match self {
            Fix::Switch(key, value) => {
                Sysctl::default().ensure(key, value)?;
            }
            Fix::Up(name) => {
                let up = Change {
                    up: Some(true),
                    ..Change::default()
                };
                Rtnl::open()?.apply(link::change(name.clone(), &up))?;
            }
            Fix::Address(name, cidr) => {
                let mut rtnl = Rtnl::open()?;
                if let Some(link) = rtnl.link(name.clone())? {
                    rtnl.apply(addr::replace(&Addr::new(link.index, *cidr)))?;
                }
            }
        }
        Ok(())
    }
}
