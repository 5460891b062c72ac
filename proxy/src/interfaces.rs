//! The addresses on this node's interfaces, as they come and go: node ports may answer at them.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use hostnet::netlink::Rtnl;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;

/// The interfaces' addresses.
#[derive(Debug)]
pub struct Interfaces {
    rtnl: Rtnl,
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

/// Why the addresses cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no notice of changes.
    #[error("cannot watch the addresses of interfaces: {0}")]
    Watch(io::Error),
    /// The addresses cannot be read.
    #[error("cannot read the addresses of interfaces: {0}")]
    Read(#[from] hostnet::netlink::Error),
}

impl Interfaces {
    /// Begins to watch them. Needs the runtime.
    ///
    /// # Errors
    /// [`Error`].
    pub fn watch() -> Result<Self, Error> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, events) =
            rtnetlink::new_multicast_connection(&groups).map_err(Error::Watch)?;
        tokio::spawn(connection);
        Ok(Self {
            rtnl: Rtnl::open()?,
            events,
        })
    }

    /// The addresses as they are now.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn list(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        Ok(self
            .rtnl
            .addrs(None)?
            .iter()
            .map(|address| address.cidr.addr())
            .collect())
    }

    /// Returns once something has changed since the last call, or notice of it was lost: list again.
    /// Cancel safe.
    pub async fn changed(&mut self) {
        if self.events.next().await.is_none() {
            // The connection has ended: nothing will be told any more. The periodic pass lists anyway.
            std::future::pending::<()>().await;
        }
        while self.events.next().now_or_never().flatten().is_some() {}
    }
}
