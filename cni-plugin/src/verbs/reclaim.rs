//! After a reboot: the containers of the boot before are gone, and so is what was reserved for
//! them. Their runtime may never call DEL.

use std::path::PathBuf;

use hostnet::atomic_file;

use crate::error::{CniError, Code};
use crate::ipam::Locked;
use crate::record::{Record, Records};
use crate::remains::MARKER;
use crate::request::config::Place;

/// Frees what containers of another boot have reserved in this network, and removes their records:
/// once in each boot. What other plugins reserved has no record, and is left to DEL and GC.
///
/// The caller has the network's lock.
pub(super) fn after_reboot(
    locked: &Locked<'_>,
    records: &Records,
    place: &Place,
    boot: &str,
) -> Result<(), CniError> {
    let marker = marker(place);
    if std::fs::read_to_string(&marker).is_ok_and(|seen| seen == boot) {
        return Ok(());
    }
    let of_network = |record: &Record| record.network == place.network;
    for record in records.list_all()?.into_iter().filter(of_network) {
        if let Some(identity) = record.identity().filter(|_| record.is_void(boot)) {
            for addr in record.addrs() {
                locked.release(&identity, addr)?;
            }
            records.remove(&identity)?;
        }
    }
    records.make_dir()?;
    atomic_file::replace(&marker, boot.as_bytes(), 0o600)
        .map_err(|error| CniError::of(Code::Io, &error))
}

/// Tells the boot in which this was last done.
fn marker(place: &Place) -> PathBuf {
    place.state_dir.join(format!("{}{MARKER}", place.network))
}
