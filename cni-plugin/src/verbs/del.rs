//! DEL: take away all that is an attachment's, however little is known of it. Done twice, without
//! namespace or after a reboot it succeeds.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use hostnet::netlink::link;
use hostnet::netlink::{AbsentOk, Rtnl};
use hostnet::netns::NetNs;
use hostnet::vocab::IfName;

use crate::error::{CniError, Code};
use crate::ipam::Store;
use crate::plan;
use crate::record::Records;
use crate::request::config::Place;
use crate::request::{Identity, Target};

/// Detaches a container.
///
/// The cable goes first: while it stays, so does the reservation, or the address would be given
/// to a second pod. The record goes last, so that a DEL that was killed can be done again.
pub fn del(target: &Target, place: &Place) -> Result<(), CniError> {
    let identity = &target.identity;
    let records = Records::new(&place.state_dir);
    let store = Store::new(&place.ipam_dir, &place.network);
    let record = records.read(identity)?;
    let mut host = Rtnl::open()?;

    let (veth, addrs) = match &record {
        Some(record) => {
            let addrs = record.addresses.iter().map(|a| a.address.addr()).collect();
            (record.veth.clone(), addrs)
        }
        None => {
            let name = IfName::new(&plan::veth_name(identity))
                .map_err(|error| CniError::of(Code::Kernel, &error))?;
            (name, owned(&store, identity)?)
        }
    };
    host.apply(link::delete(veth)).absent_ok()?;
    if record.is_none() {
        detach_foreign(target, &addrs)?;
    }
    release(&store, identity, &addrs)?;
    records.remove(identity)?;
    if record.is_none() {
        forget_flannel(&place.flannel_dir, identity)?;
    }
    Ok(())
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
    let present = pod.addrs(Some(found.index))?;
    if present.iter().any(|addr| addrs.contains(&addr.cidr.addr())) {
        pod.apply(link::delete(found.index)).absent_ok()?;
    }
    Ok(())
}

/// Gives addresses back; all are tried.
pub(super) fn release(
    store: &Store,
    identity: &Identity,
    addrs: &[IpAddr],
) -> Result<(), CniError> {
    if addrs.is_empty() {
        return Ok(());
    }
    let Some(locked) = store.lock_existing()? else {
        return Ok(());
    };
    let errors = addrs
        .iter()
        .filter_map(|addr| locked.release(identity, *addr).err())
        .map(CniError::from)
        .collect();
    CniError::join(errors).map_or(Ok(()), Err)
}

/// Removes the configuration that flannel's plugin kept for a container it attached.
fn forget_flannel(flannel_dir: &Path, identity: &Identity) -> Result<(), CniError> {
    let path = flannel_dir.join(identity.container_id.as_str());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let msg = format!("cannot remove {}", path.display());
            Err(CniError {
                details: error.to_string(),
                ..CniError::new(Code::Io, msg)
            })
        }
        _ => Ok(()),
    }
}
