//! GC: take down every attachment of the network that the runtime does not name.

use hostnet::netlink::Rtnl;
use hostnet::vocab::IfName;

use super::predecessor;
use super::teardown::Teardown;
use crate::error::{CniError, Code};
use crate::ipam::Store;
use crate::ipam::foreign::ForeignIpam;
use crate::nat;
use crate::record::Records;
use crate::request::config::{Config, ValidAttachment};
use crate::request::{ContainerId, Identity, RawRequest, Verb};

/// Takes down what no valid attachment has, goes on past failures and tells of them all. Without
/// the key `cni.dev/valid-attachments` nothing is known, and nothing is touched.
pub fn gc(config: &Config, raw: &RawRequest) -> Result<(), CniError> {
    let Some(valid) = config.valid_attachments()? else {
        return Ok(());
    };
    let place = &config.place;
    let records = Records::new(&place.state_dir);
    let store = Store::new(&place.ipam_dir, &place.network);
    let mut host = Rtnl::open()?;
    let mut teardown = Teardown::new(&mut host, store.clone(), records.clone());
    let mut errors = Vec::new();

    for record in records.list_all()? {
        let Some(identity) = record
            .identity()
            .filter(|_| record.network == place.network)
        else {
            continue;
        };
        if !is_valid(&valid, &record.container_id, Some(&record.if_name)) {
            let addrs = record.addrs();
            errors.extend(teardown.remove(&identity, Some(&record), &addrs).err());
        }
    }

    // What is left has no record: other plugins made it, or a record was lost.
    for (addr, owner) in store.reservations()? {
        if is_valid(&valid, &owner.container_id, owner.ifname.as_deref()) {
            continue;
        }
        let done = stray(&owner.container_id, owner.ifname.as_deref()).and_then(|identity| {
            teardown.remove(&identity, None, &[addr])?;
            predecessor::remove_rules(teardown.nft()?, &place.network, &identity)?;
            predecessor::forget_flannel(&place.flannel_dir, &identity)
        });
        errors.extend(done.err());
    }
    let rules = teardown.nft().and_then(|nft| {
        nat::withdraw_if(nft, |owner| {
            owner.network == place.network
                && !is_valid(&valid, &owner.container_id, Some(&owner.ifname))
        })
    });
    errors.extend(rules.err());

    if let Some(name) = &place.foreign_ipam {
        let foreign = ForeignIpam::find(name, raw);
        errors.extend(foreign.and_then(|ipam| ipam.forward(Verb::Gc)).err());
    }
    CniError::join(errors).map_or(Ok(()), Err)
}

fn is_valid<S: PartialEq<str> + ?Sized>(
    valid: &[ValidAttachment],
    id: &str,
    ifname: Option<&S>,
) -> bool {
    valid
        .iter()
        .any(|v| v.container_id == id && ifname.is_none_or(|ifname| *ifname == *v.ifname))
}

/// The attachment of a reservation.
fn stray(id: &str, ifname: Option<&str>) -> Result<Identity, CniError> {
    ContainerId::new(id)
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
        })
}
