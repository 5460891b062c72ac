//! Which endpoint is in which slot: an assignment that moves as few as it can.

use std::sync::Arc;

use crate::plan::Endpoint;

/// The endpoints of one view, each in the slot that its index says.
pub(super) type Slots = Arc<[Endpoint]>;

/// Puts the wanted endpoints (sorted, each once) into as many slots. An endpoint that was in one of these
/// slots stays; those whose slots are no more, and the new ones, fill what others have left.
///
/// So taking one of n away changes one slot at most (the last one's endpoint moves there), and adding one
/// changes none of the others.
pub(super) fn assign(previous: &[Endpoint], wanted: &Slots) -> Slots {
    let place = |endpoint: &Endpoint| {
        let key = |e: &Endpoint| (e.address, e.port);
        wanted.binary_search_by_key(&key(endpoint), key)
    };
    let mut slots: Vec<Option<usize>> = vec![None; wanted.len()];
    let mut is_placed = vec![false; wanted.len()];
    for (slot, endpoint) in slots.iter_mut().zip(previous) {
        // An endpoint that was there twice, in a table that others have changed, keeps one slot.
        if let Ok(index) = place(endpoint)
            && !is_placed[index]
        {
            *slot = Some(index);
            is_placed[index] = true;
        }
    }
    let mut left = (0..wanted.len()).filter(|index| !is_placed[*index]);
    let order: Vec<usize> = slots
        .into_iter()
        .filter_map(|slot| slot.or_else(|| left.next()))
        .collect();
    if order.is_sorted() {
        // The order of the plan: share its list.
        return wanted.clone();
    }
    order.into_iter().map(|index| wanted[index]).collect()
}
