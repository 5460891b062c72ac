//! How many elements the maps of a table have room for.
//!
//! The kernel has two kinds of hash table. One has as many buckets as it was told to have room for, and is filled and
//! read faster; the other grows by itself, beside the transaction that fills it. Ours are of the first kind where the
//! room can be changed later: they begin with more than is needed, and get twice as much before they are full.

use std::collections::BTreeMap;
use std::sync::Arc;

use hostnet::nft::{Changes, Name, Op, SetDecl, Table};

/// The room of every map, and how much of it is taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Rooms {
    /// The least room that a new map gets; `None`: it grows by itself.
    least: Option<u32>,
    maps: BTreeMap<Name, Room>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Room {
    taken: usize,
    size: Option<u32>,
}

impl Rooms {
    /// The rooms of the table that is there. New maps will have room for `least` elements and more, or as many as
    /// there come.
    pub(super) fn new(least: Option<u32>, observed: Option<&Table>) -> Rooms {
        let sets = observed.into_iter().flat_map(|table| table.sets.values());
        let of = |set: &hostnet::nft::Set| Room {
            taken: set.elements.len(),
            size: set.decl.size,
        };
        Rooms {
            least,
            maps: sets.map(|set| (set.decl.name.clone(), of(set))).collect(),
        }
    }

    /// Sees to it that there is room for what the changes add: says for how many elements new maps are, and has
    /// others resized.
    pub(super) fn make(&mut self, changes: &mut Changes) {
        let mut resized: BTreeMap<Name, Arc<SetDecl>> = BTreeMap::new();
        let mut made = Vec::new();
        for (at, op) in changes.ops.iter().enumerate() {
            match op {
                Op::DeleteTable => self.maps.clear(),
                Op::AddSet(decl) if !decl.interval && !decl.dynamic => {
                    self.maps.insert(decl.name.clone(), Room::default());
                    made.push(at);
                }
                Op::DeleteSet(decl) => drop(self.maps.remove(&decl.name)),
                _ => {}
            }
        }
        let lists = changes.ops.chunk_by(|a, b| match (list(a), list(b)) {
            (Some((a, a_adds)), Some((b, b_adds))) => a_adds == b_adds && a.name == b.name,
            _ => false,
        });
        for ops in lists {
            let Some((decl, adds)) = list(&ops[0]) else {
                continue;
            };
            let Some(room) = self.maps.get_mut(&decl.name) else {
                continue;
            };
            room.taken = match adds {
                true => room.taken + ops.len(),
                false => room.taken.saturating_sub(ops.len()),
            };
            if room.size.is_some_and(|size| room.taken > size as usize) {
                let size = Some(fit(room.taken, 0));
                room.size = size;
                let decl = SetDecl {
                    size,
                    ..(**decl).clone()
                };
                resized.insert(decl.name.clone(), decl.into());
            }
        }
        for at in made {
            if let (Op::AddSet(decl), Some(least)) = (&mut changes.ops[at], self.least)
                && let Some(room) = self.maps.get_mut(&decl.name)
            {
                room.size = Some(fit(room.taken, least));
                Arc::make_mut(decl).size = room.size;
            }
        }
        let resizes = resized.into_values().map(Op::ResizeSet);
        changes.ops.splice(..0, resizes);
    }
}

/// The set that an operation adds an element to, or removes one from.
fn list(op: &Op) -> Option<(&Arc<SetDecl>, bool)> {
    match op {
        Op::AddElement(decl, ..) => Some((decl, true)),
        Op::DeleteElement(decl, ..) => Some((decl, false)),
        _ => None,
    }
}

/// Half as many again, as a power of two: that is how many buckets the kernel takes, or twice as many.
fn fit(elements: usize, least: u32) -> u32 {
    let elements = u32::try_from(elements).unwrap_or(u32::MAX / 4);
    (elements.saturating_add(elements / 2))
        .max(least)
        .next_power_of_two()
}
