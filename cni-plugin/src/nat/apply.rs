//! Bringing an attachment's elements into the kernel's table and out of it.

use hostnet::nft::{self, Changes, Nft, Op, Table, diff};
use hostnet::vocab::Family;

use super::{ElementOwner, Entry, entries, families, layout, table, table_id, with_attachment};
use crate::error::{CniError, Code};
use crate::record::{Record, Records};

impl From<nft::Error> for CniError {
    fn from(error: nft::Error) -> CniError {
        CniError::of(Code::Kernel, &error)
    }
}

/// How often to look again when others change the same table at the same moment. Each time one
/// of them got its way.
const ATTEMPTS: u32 = 100;

/// Tables as they were read a moment ago.
#[derive(Clone, Debug, Default)]
pub struct Seen(Vec<(Family, Option<Table>)>);

/// Brings the elements of an attachment into the tables of its families. What else is in there
/// stays, and what is missing of the chains is mended. A table that is not there (a first host
/// port, or somebody flushed the ruleset) is made from all records. What was `seen` is read again
/// only if it turns out to have changed.
///
/// # Errors
/// Code 11 when another attachment has one of the ports, naming it; nothing of that family is
/// changed then. Families that were done before stay done: [`withdraw`] takes them back.
pub fn publish(
    nft: &mut Nft,
    record: &Record,
    records: &Records,
    mut seen: Seen,
) -> Result<(), CniError> {
    for family in families(record) {
        attempt(nft, |nft| {
            let known = seen.0.iter().position(|(of, _)| *of == family);
            let observed = match known.map(|index| seen.0.swap_remove(index)) {
                Some((_, table)) => table,
                None => nft.observe(&table_id(family))?.table,
            };
            let desired = match &observed {
                Some(found) if is_declared_alike(found, family) => {
                    with_entries(found, family, record).map_err(Failure::Told)?
                }
                _ => {
                    let all = records.list().map_err(CniError::from)?;
                    // Of two that are being made at once each sees the other's record: the
                    // younger one gives way.
                    let older = all.iter().filter(|other| other.age() < record.age());
                    let mut desired = with_entries(&table(family, older), family, record)
                        .map_err(Failure::Told)?;
                    let younger = all.iter().filter(|other| other.age() > record.age());
                    for entry in younger.flat_map(|other| entries(family, other)) {
                        if let Some(set) = desired.sets.get_mut(entry.set) {
                            set.elements.entry(entry.key).or_insert(entry.element);
                        }
                    }
                    desired
                }
            };
            Ok(nft.apply(&diff(observed.as_ref(), desired))?)
        })?;
    }
    Ok(())
}

/// Refuses an attachment one of whose ports another one has, as [`publish`] would. Gives the tables
/// as they were found.
pub fn refuse_taken(nft: &mut Nft, record: &Record) -> Result<Seen, CniError> {
    let mut seen = Seen::default();
    for family in families(record) {
        let found = nft.observe(&table_id(family))?.table;
        if let Some(found) = &found {
            with_entries(found, family, record)?;
        }
        seen.0.push((family, found));
    }
    Ok(seen)
}

/// Takes all elements of an attachment out of the tables, whatever they say. Returns how many
/// there were.
pub fn withdraw(nft: &mut Nft, identity: &crate::request::Identity) -> Result<usize, CniError> {
    withdraw_if(nft, |owner| owner.is(identity))
}

/// Takes out all elements of the attachments that `is_gone` picks.
pub fn withdraw_if(
    nft: &mut Nft,
    is_gone: impl Fn(&ElementOwner) -> bool,
) -> Result<usize, CniError> {
    let mut count = 0;
    for family in Family::ALL {
        attempt(nft, |nft| {
            let Some(found) = nft.observe(&table_id(family))?.table else {
                return Ok(());
            };
            let mut changes = Changes::new(table_id(family));
            for set in found.sets.values() {
                for (key, element) in &set.elements {
                    if ElementOwner::of(element).is_some_and(|owner| is_gone(&owner)) {
                        changes
                            .ops
                            .push(Op::DeleteElement(set.decl.clone(), key.clone()));
                    }
                }
            }
            let taken = changes.ops.len();
            nft.apply(&changes)?;
            count += taken;
            Ok(())
        })?;
    }
    Ok(count)
}

enum Failure {
    Nft(nft::Error),
    Told(CniError),
}

impl From<nft::Error> for Failure {
    fn from(error: nft::Error) -> Failure {
        Failure::Nft(error)
    }
}

impl From<CniError> for Failure {
    fn from(error: CniError) -> Failure {
        Failure::Told(error)
    }
}

/// Looks again when the table was not as it was seen.
fn attempt(
    nft: &mut Nft,
    mut once: impl FnMut(&mut Nft) -> Result<(), Failure>,
) -> Result<(), CniError> {
    let mut attempt = 1;
    loop {
        match once(nft) {
            Ok(()) => return Ok(()),
            Err(Failure::Nft(error)) if error.is_surprise() && attempt < ATTEMPTS => attempt += 1,
            Err(Failure::Nft(error)) => return Err(error.into()),
            Err(Failure::Told(error)) => return Err(error),
        }
    }
}

/// Whether a table can be mended element by element: else its elements are not to be trusted.
fn is_declared_alike(found: &Table, family: Family) -> bool {
    let wanted = layout(family);
    !found.foreign
        && wanted.sets.iter().all(|(name, set)| {
            found
                .sets
                .get(name)
                .is_some_and(|other| other.decl == set.decl)
        })
}

/// The table as it should be, if none of the attachment's elements is another's.
fn with_entries(found: &Table, family: Family, record: &Record) -> Result<Table, CniError> {
    let ours = record.identity();
    let is_ours = |owner: &ElementOwner| ours.as_ref().is_some_and(|id| owner.is(id));
    for entry in entries(family, record) {
        let set = found.sets.get(entry.set);
        let before = set.and_then(|set| set.elements.get(&entry.key));
        match before.and_then(ElementOwner::of) {
            Some(owner) if !is_ours(&owner) => return Err(conflict(record, &entry, &owner)),
            _ => {}
        }
    }
    match clashes(found, family, record).first() {
        Some((owner, port)) => Err(port_is_taken(port, owner)),
        None => Ok(with_attachment(found, family, record)),
    }
}

/// Ports of others that answer at an address at which one of the attachment's does: a port at one
/// address and the same port at all of them are different elements.
fn clashes(table: &Table, family: Family, record: &Record) -> Vec<(ElementOwner, String)> {
    let Some(ours) = record.identity() else {
        return Vec::new();
    };
    let others = |set: &str, holds: &dyn Fn(&hostnet::nft::Key) -> bool| {
        let elements = table
            .sets
            .get(set)
            .into_iter()
            .flat_map(|set| &set.elements);
        let mut owners = elements
            .filter(|(key, _)| holds(key))
            .filter_map(|(_, element)| ElementOwner::of(element));
        owners.find(|owner| !owner.is(&ours))
    };
    let mut clashes = Vec::new();
    for port in &record.ports {
        if port.families(&[family]).is_empty() {
            continue;
        }
        let (proto, number) = (port.protocol.proto(), port.host_port);
        let at_all = hostnet::nft::Key::from((proto, number));
        let owner = match port.at() {
            Some(_) => others(super::HOSTPORTS, &|key| *key == at_all),
            None => others(super::HOSTPORTS_AT, &|key| key.ends_with(&at_all)),
        };
        clashes.extend(owner.map(|owner| (owner, port.to_string())));
    }
    clashes
}

fn conflict(record: &Record, entry: &Entry, owner: &ElementOwner) -> CniError {
    let of_entry = |port: &&crate::request::ports::PortMapping| {
        let (proto, number) = (port.protocol.proto(), port.host_port);
        let key: hostnet::nft::Key = match port.at() {
            Some(at) => (at, proto, number).into(),
            None => (proto, number).into(),
        };
        key == entry.key
    };
    match record.ports.iter().find(of_entry) {
        Some(port) => port_is_taken(&port.to_string(), owner),
        None => {
            let msg = format!(
                "the rules of {} are those of {} already: an address has two owners",
                record.whose(),
                owner.whose()
            );
            CniError::new(Code::TryAgain, msg)
        }
    }
}

fn port_is_taken(port: &str, owner: &ElementOwner) -> CniError {
    let msg = format!(
        "runtimeConfig.portMappings asks for host port {port}, which {} has: remove that pod, or \
         choose another port",
        owner.whose()
    );
    CniError::new(Code::TryAgain, msg)
}
