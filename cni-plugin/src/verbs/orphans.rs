//! What runtimes forget: attachments whose container is gone, though nobody has called DEL for it. containerd does not
//! call GC, so flanneld has this look now and then.

use std::path::Path;

use hostnet::netlink::Rtnl;
use hostnet::nft::Nft;
use hostnet::vocab::names;

use super::teardown::Teardown;
use crate::error::{CniError, Code};
use crate::ipam::Store;
use crate::record::{Record, Records};

/// Where runtimes keep the network namespaces of containers (containerd, CRI-O), as records have it.
const NAMESPACES: [&str; 2] = [names::NETNS_DIR, "/var/run/netns"];

/// Takes down the attachments that no container can have any more. Returns whose they were.
///
/// Two things must tell so: their namespace is no longer among the files in `namespaces`, which is the host's
/// `/run/netns`, and their cable is gone, which stands as long as anything is in the namespace. A namespace that is
/// kept elsewhere tells nothing, and its attachment stays. What is reserved for them lies below `data_dir`.
///
/// # Errors
/// All that could not be done, joined. What could be done is done.
pub fn take_down(
    rtnl: &mut Rtnl,
    nft: &mut Nft,
    records: &Records,
    data_dir: &Path,
    namespaces: &Path,
) -> Result<Vec<String>, CniError> {
    let mut done = Vec::new();
    let mut errors = Vec::new();
    // An ADD makes its record when the namespace is there already, and no name of one comes twice.
    for record in records.list()? {
        let orphaned = match is_orphan(&record, rtnl, namespaces) {
            Ok(true) => record.identity(),
            Ok(false) => None,
            Err(error) => {
                errors.push(error);
                None
            }
        };
        let Some(identity) = orphaned else {
            continue;
        };
        let store = Store::new(data_dir, &record.network);
        let mut teardown = Teardown::new(rtnl, store, records.clone()).with_nft(nft);
        match teardown.remove(&identity, Some(&record), &record.addrs()) {
            Ok(()) => done.push(record.whose()),
            Err(error) => errors.push(error),
        }
    }
    CniError::join(errors).map_or(Ok(done), Err)
}

fn is_orphan(record: &Record, rtnl: &mut Rtnl, namespaces: &Path) -> Result<bool, CniError> {
    let kept = record.netns.parent();
    let is_known = kept.is_some_and(|kept| NAMESPACES.iter().any(|known| kept == Path::new(known)));
    let Some(name) = record.netns.file_name().filter(|_| is_known) else {
        return Ok(false);
    };
    let exists = |path: &Path| {
        path.try_exists().map_err(|error| CniError {
            details: error.to_string(),
            ..CniError::new(Code::Io, format!("cannot look for {}", path.display()))
        })
    };
    Ok(exists(namespaces)?
        && !exists(&namespaces.join(name))?
        && rtnl.link(&record.veth)?.is_none())
}
