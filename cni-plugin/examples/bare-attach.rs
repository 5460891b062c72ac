//! The netlink calls of an ADD and nothing else: the measure for what `twill-cni` takes. It makes a cable
//! from the bridge `cni0` into a namespace, gives it an address and a default route, and waits until the
//! port forwards.
//!
//! Usage: `bare-attach NETNS VETH ADDRESS/LENGTH GATEWAY`

#![forbid(unsafe_code)]

use std::error::Error;

use hostnet::netlink::link::{self, Bridge, BridgePort, Change, NewLink, NewPeer};
use hostnet::netlink::{Addr, LinkKind, Route, Rtnl, addr, route};
use hostnet::netns::NetNs;
use hostnet::vocab::{Cidr, Family, IfName, Mac, Subnet};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [netns, veth, address, gateway] = arguments.as_slice() else {
        return Err("expected NETNS VETH ADDRESS/LENGTH GATEWAY".into());
    };
    let (veth, bridge, eth0) = (
        IfName::new(veth)?,
        IfName::new("cni0")?,
        IfName::new("eth0")?,
    );
    let (address, gateway): (Cidr, Cidr) = (address.parse()?, gateway.parse()?);
    let pod_ns = NetNs::open(netns)?;
    let mut host = Rtnl::open()?;
    let mut pod = Rtnl::open_in(&pod_ns)?;
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    let cni0 = match host.link(&bridge)? {
        Some(link) => link,
        None => {
            let kind = LinkKind::Bridge(Bridge::default());
            host.apply(link::create(&NewLink {
                up: true,
                ..NewLink::new(bridge.clone(), kind)
            }))?;
            let made = host.link(&bridge)?.ok_or("no bridge")?;
            host.apply(addr::add(&Addr::new(made.index, gateway)))?;
            made
        }
    };
    let peer = NewPeer {
        mac: Some(Mac::for_ip(address.addr())),
        ..NewPeer::new(eth0.clone(), pod_ns)
    };
    host.apply(link::create(&NewLink {
        master: Some(cni0.index),
        up: true,
        ..NewLink::veth(veth.clone(), peer)
    }))?;
    let index = pod.link(&eth0)?.ok_or("no eth0")?.index;
    let default = Route::new(Subnet::any(Family::V4), Some(gateway.addr()), Some(index));
    for outcome in pod.apply_all(&[
        addr::add(&Addr::new(index, address)),
        link::change(index, &up),
        route::add(&default),
    ]) {
        outcome?;
    }
    host.apply(link::set_port(&veth, BridgePort::default()))?;
    while !host.link(&veth)?.is_some_and(|link| link.operational) {
        std::thread::yield_now();
    }
    Ok(())
}
