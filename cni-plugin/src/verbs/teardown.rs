//! Taking away all that an attachment has, however little is known of it.

use std::net::IpAddr;
use std::panic::resume_unwind;

use hostnet::netlink::{AbsentOk, Rtnl, link};
use hostnet::nft::Nft;
use hostnet::vocab::IfName;

use crate::error::CniError;
use crate::ipam::Store;
use crate::nat::{self, Flows};
use crate::plan;
use crate::record::{Record, Records};
use crate::request::Identity;
use crate::shaping;

/// Takes attachments down.
#[derive(Debug)]
pub(super) struct Teardown<'a> {
    host: &'a mut Rtnl,
    store: Store,
    records: Records,
    nft: Hand<'a>,
}

/// A hand on nf_tables: one that was lent, or one that is opened when it is needed.
#[derive(Debug)]
enum Hand<'a> {
    Lent(&'a mut Nft),
    Own(Option<Nft>),
}

impl<'a> Teardown<'a> {
    pub(super) fn new(host: &'a mut Rtnl, store: Store, records: Records) -> Teardown<'a> {
        Teardown {
            host,
            store,
            records,
            nft: Hand::Own(None),
        }
    }

    /// By this hand on nf_tables, whose changes its owner knows as its own.
    pub(super) fn with_nft(self, nft: &'a mut Nft) -> Teardown<'a> {
        Teardown {
            nft: Hand::Lent(nft),
            ..self
        }
    }

    /// Removes an attachment: of `addrs` those that are reserved for it are given back. All is
    /// tried; all errors are told.
    ///
    /// The cable goes first: while it stays, so does the reservation, or the address would be
    /// given to a second pod. The record goes last, so that what was killed can be done again.
    pub(super) fn remove(
        &mut self,
        identity: &Identity,
        record: Option<&Record>,
        addrs: &[IpAddr],
    ) -> Result<(), CniError> {
        let veth = match record {
            Some(record) => record.veth.clone(),
            None => IfName::new(&plan::veth_name(identity))?,
        };
        let ifb = self.shaper(identity, record)?;
        let (cable, shaper) = self.links(&veth, ifb);
        let mut errors = Vec::new();
        errors.extend(self.rules(identity, record).err());
        errors.extend(shaper.err());
        match cable {
            Ok(()) => errors.extend(release(&self.store, identity, addrs).err()),
            Err(error) => errors.insert(0, error),
        }
        if let Some(error) = CniError::join(errors) {
            return Err(error);
        }
        self.records.remove(identity)?;
        // An ADD at the same moment that has not seen the record go will not take back what it
        // made since we looked.
        if self.host.link(&veth)?.is_some() {
            let ifb = self.shaper(identity, None)?;
            let (cable, shaper) = self.links(&veth, ifb);
            cable?;
            shaper?;
            self.rules(identity, None)?;
        }
        Ok(())
    }

    /// Removes the cable, and the device that shaped what came from it, if there is one. Both at
    /// once: the kernel lets each removal wait until no processor can hold the link any more.
    fn links(
        &mut self,
        veth: &IfName,
        ifb: Option<IfName>,
    ) -> (Result<(), CniError>, Result<(), CniError>) {
        let cable = |host: &mut Rtnl| Ok(host.apply(link::delete(veth)).absent_ok()?);
        let Some(ifb) = ifb else {
            return (cable(self.host), Ok(()));
        };
        std::thread::scope(|scope| {
            let shaper = || shaping::remove_ifb(&mut Rtnl::open()?, &ifb);
            match std::thread::Builder::new().spawn_scoped(scope, shaper) {
                Ok(started) => {
                    let cable = cable(self.host);
                    let shaper = started.join().unwrap_or_else(|panic| resume_unwind(panic));
                    (cable, shaper)
                }
                Err(_) => (cable(self.host), shaping::remove_ifb(self.host, &ifb)),
            }
        })
    }

    /// Host ports and masquerade. Without a record the tables tell.
    fn rules(&mut self, identity: &Identity, record: Option<&Record>) -> Result<(), CniError> {
        if record.is_some_and(|record| nat::families(record).is_empty()) {
            return Ok(());
        }
        nat::withdraw(self.nft()?, identity)?;
        match record {
            Some(record) => nat::forget(record, Flows::ToIt, &[]).map(drop),
            None => Ok(()),
        }
    }

    /// The device that shapes what an attachment sends. Without a record it is looked for; one that
    /// cannot be looked for is taken to be there.
    fn shaper(
        &mut self,
        identity: &Identity,
        record: Option<&Record>,
    ) -> Result<Option<IfName>, CniError> {
        if let Some(record) = record {
            return Ok(record.ifb.clone());
        }
        let name = IfName::new(&plan::ifb_name(identity))?;
        let is_absent = matches!(self.host.link(&name), Ok(None));
        Ok((!is_absent).then_some(name))
    }

    pub(super) fn nft(&mut self) -> Result<&mut Nft, CniError> {
        match &mut self.nft {
            Hand::Lent(nft) => Ok(nft),
            Hand::Own(Some(nft)) => Ok(nft),
            Hand::Own(none) => Ok(none.insert(Nft::open()?)),
        }
    }
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
