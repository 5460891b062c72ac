//! DEL: take away all that is an attachment's, however little is known of it. Done twice, without
//! namespace or after a reboot it succeeds.

use std::net::IpAddr;

use hostnet::netlink::link;
use hostnet::netlink::{AbsentOk, Rtnl};
use hostnet::netns::NetNs;

use super::predecessor;
use super::teardown::Teardown;
use crate::error::{CniError, Code};
use crate::ipam::Store;
use crate::ipam::foreign::ForeignIpam;
use crate::record::Records;
use crate::request::config::Place;
use crate::request::{Identity, RawRequest, Target, Verb};

/// Detaches a container. Every part is tried; all that failed is told.
pub fn del(target: &Target, place: &Place, raw: &RawRequest) -> Result<(), CniError> {
    let identity = &target.identity;
    let records = Records::new(&place.state_dir);
    let store = Store::new(&place.ipam_dir, &place.network);
    let record = records.read(identity)?;
    let mut host = Rtnl::open()?;
    let mut addrs = match &record {
        Some(record) => record.addrs(),
        None => owned(&store, identity)?,
    };
    let mut errors = Vec::new();
    if record.is_none()
        && let Err(error) = detach_foreign(target, &addrs)
    {
        // While the interface may be there its addresses stay reserved.
        addrs.clear();
        errors.push(error);
    }
    let mut teardown = Teardown::new(&mut host, store, records);
    if record.is_none() {
        let chains = teardown
            .nft()
            .and_then(|nft| predecessor::remove_rules(nft, &place.network, identity));
        errors.extend(chains.err());
        errors.extend(predecessor::forget_flannel(&place.flannel_dir, identity).err());
    }
    errors.extend(teardown.remove(identity, record.as_ref(), &addrs).err());
    if let Some(name) = &place.foreign_ipam {
        let foreign = ForeignIpam::find(name, raw);
        errors.extend(foreign.and_then(|ipam| ipam.forward(Verb::Del)).err());
    }
    CniError::join(errors).map_or(Ok(()), Err)
}

/// What is reserved for an attachment without a record: one that flannel's plugins made, or whose
/// record was lost.
fn owned(store: &Store, identity: &Identity) -> Result<Vec<IpAddr>, CniError> {
    match store.lock_existing()? {
        Some(_locked) => Ok(store.owned_by(identity)?),
        None => Ok(Vec::new()),
    }
}

/// Takes down an interface that other plugins made, whose node's end has a name that we cannot
/// know. The namespace may be another container's by now, so the interface must have an address
/// that is reserved for this one.
fn detach_foreign(target: &Target, addrs: &[IpAddr]) -> Result<(), CniError> {
    let Some(netns) = target.netns.as_deref().filter(|_| !addrs.is_empty()) else {
        return Ok(());
    };
    let pod_ns = match NetNs::open(netns) {
        Ok(pod_ns) => pod_ns,
        Err(error) if error.is_absent() => return Ok(()),
        Err(error) => return Err(CniError::of(Code::Io, &error)),
    };
    let own = NetNs::current().map_err(|error| CniError::of(Code::Io, &error))?;
    if pod_ns == own {
        return Ok(());
    }
    let mut pod = Rtnl::open_in(&pod_ns)?;
    let Some(found) = pod.link(&target.identity.ifname)? else {
        return Ok(());
    };
    let present = match pod.addrs(Some(found.index)) {
        // Another DEL, or an ADD that undoes itself, was quicker.
        Err(error) if error.is_absent() => return Ok(()),
        present => present?,
    };
    if present.iter().any(|addr| addrs.contains(&addr.cidr.addr())) {
        pod.apply(link::delete(found.index)).absent_ok()?;
    }
    Ok(())
}
