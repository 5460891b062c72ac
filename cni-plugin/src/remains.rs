//! What calls leave on a node beside attachments: tables, the bridge, records and bookkeeping. It
//! goes when the program goes, but never under a pod that still has its attachment.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use hostnet::netlink::link::Bridge;
use hostnet::netlink::{AbsentOk, Link, LinkKind, Rtnl, link};
use hostnet::nft::Nft;
use hostnet::vocab::{Family, IfName, Mac, names};

use crate::error::{CniError, Code};
use crate::ipam::Store;
use crate::nat;
use crate::plan::{self, NETFILTER};
use crate::record::{self, Record, Records};

/// What the file is called that tells that a network was used: `NETWORK.boot`.
pub(crate) const MARKER: &str = ".boot";

/// Removes what calls have left in the current namespace and below the two folders: the records'
/// (`stateDir`) and that of host-local's reservations (`ipam.dataDir`). `tell` gets a line for each
/// thing that was removed, and for each that stays, with the reason.
///
/// # Errors
/// The kernel refuses, or a file cannot be handled; what was told is done.
pub fn remove(
    state_dir: &Path,
    data_dir: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let records = Records::new(state_dir);
    let boot = record::boot_id()?;
    let all = records.list_all()?;
    let (void, standing): (Vec<Record>, Vec<Record>) =
        all.into_iter().partition(|record| record.is_void(&boot));
    tables(&standing, tell)?;
    bridge(tell)?;
    let mut networks = marked(state_dir)?;
    for record in &void {
        networks.insert(record.network.clone());
        forget(record, &records, data_dir)?;
    }
    let mut kept = Vec::new();
    for network in networks {
        if reservations(data_dir, &network, &standing, tell)? {
            kept.push(network);
        }
    }
    if let Some(first) = standing.first() {
        tell(format!(
            "left {}: {} still has its attachment",
            state_dir.display(),
            first.whose()
        ));
        return Ok(());
    }
    // A network's marker stays with its folder, for the next time.
    let is_ours = |name: &str| {
        let marked = name.strip_suffix(MARKER);
        marked.is_some_and(|network| !kept.iter().any(|kept| kept == network))
            || name.ends_with(".json")
    };
    empty(state_dir, is_ours, tell)?;
    Ok(())
}

fn tables(standing: &[Record], tell: &mut dyn FnMut(String)) -> Result<(), CniError> {
    let mut nft = Nft::open()?;
    let there = nft.tables()?;
    for table in Family::ALL.map(nat::table_id) {
        if !there.contains(&table) {
            continue;
        }
        match standing.first() {
            Some(first) => tell(format!(
                "left the table {table}: {} still has its attachment",
                first.whose()
            )),
            None if nft.remove(&table)? => tell(format!("removed the table {table}")),
            None => {}
        }
    }
    Ok(())
}

/// Its addresses and routes go with it.
fn bridge(tell: &mut dyn FnMut(String)) -> Result<(), CniError> {
    let name = IfName::new(names::BRIDGE)?;
    let mut rtnl = Rtnl::open()?;
    let Some(found) = rtnl.link(&name)? else {
        return Ok(());
    };
    if !is_our_make(&found) {
        tell(format!("left {name}: twill-cni did not make it"));
        return Ok(());
    }
    let mut gateways = Vec::new();
    let mut ports = rtnl.ports(found.index)?;
    // The gateways of VLANs are ports themselves.
    for n in (0..ports.len()).rev() {
        if let Some(gateway) = gateway(&mut rtnl, &ports[n], &name)? {
            gateways.push(gateway);
            ports.remove(n);
        }
    }
    if let Some(port) = ports.first() {
        tell(format!("left {name}: {} is a port of it", port.name));
        return Ok(());
    }
    for gateway in gateways.into_iter().chain([name]) {
        rtnl.apply(link::delete(&gateway)).absent_ok()?;
        tell(format!("removed {gateway}"));
    }
    Ok(())
}

/// The gateway of a VLAN whose port this is.
fn gateway(rtnl: &mut Rtnl, port: &Link, bridge: &IfName) -> Result<Option<IfName>, CniError> {
    let Some(peer) = port.peer.filter(|peer| peer.netns_id.is_none()) else {
        return Ok(None);
    };
    let name = rtnl.link(peer.index)?.map(|link| link.name);
    Ok(name.filter(|name| {
        plan::gateway_port(name) == port.name.as_str() && {
            name.as_str().starts_with(&format!("{bridge}."))
        }
    }))
}

/// Whether a bridge has the marks that ours are made with: netfilter's two switches, and a MAC that
/// belongs to an address (of an earlier subnet maybe) or to its name.
fn is_our_make(link: &Link) -> bool {
    let by_name = plan::name_mac(&link.name);
    let is_given = |mac: Mac| mac == by_name || mac.is_for_ip();
    let switches = |bridge: Bridge| Bridge {
        vlan_filtering: false,
        ..bridge
    };
    matches!(link.kind, LinkKind::Bridge(bridge) if switches(bridge) == NETFILTER)
        && link.mac.is_some_and(is_given)
}

/// The networks that have a marker.
fn marked(state_dir: &Path) -> Result<BTreeSet<String>, CniError> {
    let names = list(state_dir)?.unwrap_or_default();
    let names = names.iter().filter_map(|name| name.to_str());
    Ok(names
        .filter(|name| !name.starts_with('.'))
        .filter_map(|name| name.strip_suffix(MARKER))
        .map(str::to_owned)
        .collect())
}

/// Frees what an attachment of another boot had.
fn forget(record: &Record, records: &Records, data_dir: &Path) -> Result<(), CniError> {
    let Some(identity) = record.identity() else {
        return Ok(());
    };
    let store = Store::new(data_dir, &record.network);
    if let Some(locked) = store.lock_existing()? {
        for addr in record.addrs() {
            locked.release(&identity, addr)?;
        }
    }
    Ok(records.remove(&identity)?)
}

/// Removes a network's folder if it holds host-local's bookkeeping alone. Whether it stays.
fn reservations(
    data_dir: &Path,
    network: &str,
    standing: &[Record],
    tell: &mut dyn FnMut(String),
) -> Result<bool, CniError> {
    let store = Store::new(data_dir, network);
    let dir = data_dir.join(network);
    // Whoever reserves an address meanwhile waits, and then finds no folder.
    let Some(_lock) = store.lock_existing()? else {
        return Ok(false);
    };
    let reserved = store.reservations()?;
    let of_network = standing.iter().find(|record| record.network == network);
    let reason = match (reserved.first(), of_network) {
        (Some((addr, owner)), _) => format!("{addr} is reserved for {owner}"),
        (None, Some(record)) => format!("{} still has its attachment", record.whose()),
        (None, None) => {
            let is_bookkeeping =
                |name: &str| name == "lock" || name.starts_with("last_reserved_ip.");
            return empty(&dir, is_bookkeeping, tell);
        }
    };
    tell(format!("left {}: {reason}", dir.display()));
    Ok(true)
}

/// Removes files that are ours, and the folder if nothing else is in it. Whether it stays.
fn empty(
    dir: &Path,
    is_ours: impl Fn(&str) -> bool,
    tell: &mut dyn FnMut(String),
) -> Result<bool, CniError> {
    let Some(names) = list(dir)? else {
        return Ok(false);
    };
    let (ours, others): (Vec<OsString>, Vec<OsString>) = names
        .into_iter()
        .partition(|name| name.to_str().is_some_and(&is_ours));
    for name in ours {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path, &error));
            }
            _ => {}
        }
    }
    if let Some(other) = others.first() {
        let (dir, other) = (dir.display(), other.display());
        tell(format!("left {dir}: {other} is in it"));
        return Ok(true);
    }
    match fs::remove_dir(dir) {
        Ok(()) => {
            tell(format!("removed {}", dir.display()));
            Ok(false)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            tell(format!("left {}: it is in use", dir.display()));
            Ok(true)
        }
        Err(error) => Err(failed("remove", dir, &error)),
    }
}

/// The names in a folder, sorted; `None` without one.
fn list(dir: &Path) -> Result<Option<Vec<OsString>>, CniError> {
    let names = fs::read_dir(dir).and_then(|entries| {
        let names: io::Result<Vec<OsString>> =
            entries.map(|entry| Ok(entry?.file_name())).collect();
        names
    });
    match names {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("list", dir, &error)),
        Ok(mut names) => {
            names.sort();
            Ok(Some(names))
        }
    }
}

fn failed(operation: &str, path: &Path, error: &io::Error) -> CniError {
    let msg = format!("cannot {operation} {}", path.display());
    CniError {
        details: error.to_string(),
        ..CniError::new(Code::Io, msg)
    }
}
