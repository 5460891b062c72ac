//! What can be asked of a network namespace, whether it is the kernel's or a test's.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cni_plugin::record::{Record, RecordError};
use hostnet::conntrack::{self, Traffic};
use hostnet::netlink::link::Counters;
use hostnet::netlink::{self, Addr, FdbEntry, Link, Neigh, Route};
use hostnet::netns::NetNsError;
use hostnet::nft::{
    self, AnyTable, BaseChain, Contents, Element, Key, Name, Proto, Rule, SetDecl, TableId,
};
use hostnet::vocab::Family;

use crate::saved::Saved;

/// What an answer is, or why there is none.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a question had no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Links, addresses, routes or neighbours could not be read.
    #[error("cannot read the kernel's network state")]
    Netlink(#[from] netlink::Error),
    /// Rules could not be read.
    #[error("cannot read nf_tables (this needs root)")]
    Nft(#[from] nft::Error),
    /// The old tables could not be read.
    #[error("cannot read the tables of iptables-legacy (this needs root)")]
    Legacy(#[source] std::io::Error),
    /// The table of connections could not be read.
    #[error("cannot read the table of connections (this needs root)")]
    Conntrack(#[from] conntrack::Error),
    /// A namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NetNsError),
    /// Another node was asked.
    #[error("node {0} does not answer: {1}")]
    Remote(String, String),
    /// The records of twill-cni could not be read.
    #[error("cannot read the records of twill-cni")]
    Records(#[from] RecordError),
}

/// One network namespace, read only: all that a packet meets in it. Nothing is kept longer than one run of the program.
pub trait View {
    /// Chains that packets enter at a hook, whosever they are.
    fn base_chains(&mut self) -> Result<Vec<BaseChain>>;
    /// The names of a table's chains; none if there is no such table.
    fn chains(&mut self, table: &TableId) -> Result<Vec<Name>>;
    /// All routes of the main table.
    fn routes(&mut self) -> Result<Vec<Route>>;
    /// Those of them by a link.
    fn routes_by(&mut self, link: u32) -> Result<Vec<Route>>;
    /// The rules of a chain; none if it is not there.
    fn rules(&mut self, table: &AnyTable, chain: &str) -> Result<Arc<[Rule]>>;
    /// What a set is.
    fn declaration(&mut self, table: &AnyTable, set: &str) -> Result<Option<Arc<SetDecl>>>;
    /// What a packet with this key finds in a set.
    fn element(
        &mut self,
        table: &AnyTable,
        set: &Arc<SetDecl>,
        key: &Key,
    ) -> Result<Option<(Key, Element)>>;
    /// All tables that see IP packets, whosever they are.
    fn tables(&mut self) -> Result<Vec<AnyTable>>;
    /// All that a table holds.
    fn contents(&mut self, table: &AnyTable) -> Result<Contents>;
    /// All elements of a set; none if it is not there.
    fn elements(&mut self, table: &AnyTable, set: &str) -> Result<Vec<(Key, Element)>>;
    /// All links.
    fn links(&mut self) -> Result<Vec<Link>>;
    /// What the links have carried, by their index.
    fn counters(&mut self) -> Result<Vec<(u32, Counters)>>;
    /// All addresses.
    fn addrs(&mut self) -> Result<Vec<Addr>>;
    /// The route that a packet to an address takes.
    fn route(&mut self, to: IpAddr) -> Result<Option<Route>>;
    /// The address from which this namespace would send to another.
    fn source(&mut self, to: IpAddr) -> Result<Option<IpAddr>>;
    /// The neighbours on a link.
    fn neighs(&mut self, link: u32) -> Result<Vec<Neigh>>;
    /// The forwarding entries of a VXLAN device or of a bridge's port.
    fn fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>>;
    /// A switch below `/proc/sys/net`; `None` if there is none of the name.
    fn switch(&mut self, key: &str) -> Result<Option<String>>;
    /// Where sockets wait for packets of TCP or UDP; `None` of another protocol, whose sockets are listed in another form.
    fn sockets(&mut self, proto: Proto) -> Result<Option<Vec<SocketAddr>>>;
    /// All flows of a family that the kernel remembers.
    fn traffic(&mut self, family: Family, each: &mut dyn FnMut(Traffic)) -> Result<()>;
    /// The pods of this node, by the records of twill-cni.
    fn records(&mut self) -> Result<Vec<Record>>;
    /// What twill-proxy remembers of a Service, by `NAMESPACE/NAME`.
    fn saved_service(&mut self, _name: &str) -> Option<Saved> {
        None
    }
    /// The inside of a pod; `None` if its namespace is gone.
    fn inside(&mut self, pod: &Record) -> Result<Option<Box<dyn View + '_>>>;

    /// Whether a socket takes what comes to this address and port. Of a protocol that is not known it is not doubted.
    fn listens(&mut self, proto: Proto, to: IpAddr, port: u16) -> Result<bool> {
        let is_at = |socket: &SocketAddr| {
            let is_address = match socket.ip().to_canonical() {
                // One of IPv6 takes both families, unless it was told not to.
                IpAddr::V6(address) if address.is_unspecified() => true,
                IpAddr::V4(address) if address.is_unspecified() => to.is_ipv4(),
                address => address == to,
            };
            is_address && socket.port() == port
        };
        Ok(self
            .sockets(proto)?
            .is_none_or(|sockets| sockets.iter().any(is_at)))
    }

    /// What an address is to this namespace: `RTN_*` of `linux/rtnetlink.h`, as `fib … type` gives it.
    fn address_type(&mut self, address: IpAddr) -> Result<u32> {
        const UNICAST: u32 = 1;
        const LOCAL: u32 = 2;
        const BROADCAST: u32 = 3;
        const MULTICAST: u32 = 5;
        if address.is_multicast() {
            return Ok(MULTICAST);
        }
        if address.is_loopback() {
            return Ok(LOCAL);
        }
        for addr in self.addrs()? {
            if addr.cidr.addr() == address {
                return Ok(LOCAL);
            }
            if addr.broadcast.map(IpAddr::V4) == Some(address) {
                return Ok(BROADCAST);
            }
        }
        Ok(UNICAST)
    }
}
