//! GC: take down every attachment of the network that the runtime does not name.

use std::net::IpAddr;

use hostnet::netlink::{AbsentOk, Rtnl, link};
use hostnet::vocab::IfName;

use super::del::release;
use crate::error::{CniError, Code};
use crate::ipam::Store;
use crate::plan;
use crate::record::Records;
use crate::request::config::{Config, ValidAttachment};
use crate::request::{ContainerId, Identity};

/// Takes down what no valid attachment has, goes on past failures and tells of them all. Without
/// the key `cni.dev/valid-attachments` nothing is known, and nothing is touched.
pub fn gc(config: &Config) -> Result<(), CniError> {
    let Some(valid) = config.valid_attachments()? else {
        return Ok(());
    };
    let place = &config.place;
    let records = Records::new(&place.state_dir);
    let store = Store::new(&place.ipam_dir, &place.network);
    let mut host = Rtnl::open()?;
    let mut errors = Vec::new();

    for record in records.list()? {
        let identity = ContainerId::new(&record.container_id).map(|container_id| Identity {
            container_id,
            ifname: record.if_name.clone(),
        });
        let Some(identity) = identity.filter(|_| record.network == place.network) else {
            continue;
        };
        if is_valid(&valid, &record.container_id, Some(&record.if_name)) {
            continue;
        }
        let addrs: Vec<IpAddr> = record.addresses.iter().map(|a| a.address.addr()).collect();
        let done = take_down(&mut host, &store, &identity, record.veth, &addrs)
            .and_then(|()| Ok(records.remove(&identity)?));
        errors.extend(done.err());
    }

    // What is left has no record: other plugins made it, or a record was lost.
    for (addr, owner) in store.reservations()? {
        if is_valid(&valid, &owner.container_id, owner.ifname.as_deref()) {
            continue;
        }
        match stray(&owner.container_id, owner.ifname.as_deref()) {
            Ok((identity, veth)) => {
                errors.extend(take_down(&mut host, &store, &identity, veth, &[addr]).err());
            }
            Err(error) => errors.push(error),
        }
    }
    CniError::join(errors).map_or(Ok(()), Err)
}

fn is_valid(valid: &[ValidAttachment], id: &str, ifname: Option<&str>) -> bool {
    valid
        .iter()
        .any(|v| v.container_id == id && ifname.is_none_or(|ifname| v.ifname == ifname))
}

/// As DEL: the cable first, the address when it is gone.
fn take_down(
    host: &mut Rtnl,
    store: &Store,
    identity: &Identity,
    veth: IfName,
    addrs: &[IpAddr],
) -> Result<(), CniError> {
    host.apply(link::delete(veth)).absent_ok()?;
    release(store, identity, addrs)
}

/// The attachment of a reservation, and the name that its cable has if it is ours.
fn stray(id: &str, ifname: Option<&str>) -> Result<(Identity, IfName), CniError> {
    let identity = ContainerId::new(id)
        .zip(IfName::new(ifname.unwrap_or(hostnet::vocab::names::POD_INTERFACE)).ok())
        .map(|(container_id, ifname)| Identity {
            container_id,
            ifname,
        })
        .ok_or_else(|| {
            let msg = format!(
                "the reservation of {id:?} {ifname:?} is not a container's: remove it by hand"
            );
            CniError::new(Code::Io, msg)
        })?;
    let veth = IfName::new(&plan::veth_name(&identity))
        .map_err(|error| CniError::of(Code::Kernel, &error))?;
    Ok((identity, veth))
}
