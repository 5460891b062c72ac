//! Route netlink against the real kernel, in private namespaces.

mod events;
mod links;
mod neighs;
mod requests;
mod routes;
mod shaping;

use std::net::IpAddr;

use hostnet::netlink::link::{self, Change, NewLink, NewPeer};
use hostnet::netlink::{Link, Rtnl};
use hostnet::netns::NetNs;
use hostnet::vocab::{Cidr, IfName, Subnet};

pub(crate) fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

pub(crate) fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

pub(crate) fn private() -> (NetNs, Rtnl) {
    let ns = NetNs::new_anonymous().unwrap();
    let rtnl = Rtnl::open_in(&ns).unwrap();
    (ns, rtnl)
}

/// Makes a link that is up and has carrier: a veth whose peer is here too, and up.
pub(crate) fn cable(rtnl: &mut Rtnl, text: &str) -> Link {
    let peer_name = name(&format!("{text}-far"));
    let peer = NewPeer {
        name: peer_name.clone(),
        mac: None,
        mtu: None,
        ns: None,
    };
    rtnl.apply(link::create(&NewLink {
        up: true,
        ..NewLink::veth(name(text), peer)
    }))
    .unwrap();
    rtnl.apply(link::change(
        &peer_name,
        &Change {
            up: Some(true),
            ..Change::default()
        },
    ))
    .unwrap();
    rtnl.link(name(text)).unwrap().unwrap()
}
