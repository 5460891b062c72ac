//! The host-gw backend: each peer is the gateway of its subnet, on a link that all nodes share.

use super::{Own, direct_route};
use crate::peers::Peer;
use crate::state::State;

/// Adds the routes of one family. Peers behind a router were left out by
/// [`peers::select`](crate::peers::select): nothing would come of a route to them.
pub(super) fn program<'a>(own: &Own, peers: impl Iterator<Item = &'a Peer>, state: &mut State) {
    state
        .routes
        .extend(peers.map(|peer| direct_route(peer, &own.uplink)));
}
