//! What the kernel shall hold: a pure function of the configuration, our own place and the peers.

use hostnet::vocab::{Family, Subnet};

use crate::ByFamily;
use crate::backend::{self, Own};
use crate::config::{Backend, Masquerade};
use crate::forward;
use crate::masquerade;
use crate::peers::Peer;
use crate::state::State;

/// All that the desired state follows from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// How packets reach the other nodes.
    pub backend: &'a Backend,
    /// Whether and how to masquerade.
    pub masquerade: Option<Masquerade>,
    /// Destinations that pods reach with their own address.
    pub no_masquerade: &'a [Subnet],
    /// Our own place in each network. What belongs to a family that is not here is taken down: all
    /// configured ones must be, so there is nothing to compute before every subnet is held.
    pub own: &'a ByFamily<Own>,
    /// The peers of all families.
    pub peers: &'a [Peer],
    /// The backend that we had before, while nodes still send by it, with those that we reach by it.
    pub former: Option<(&'a Backend, &'a [Peer])>,
    /// The families in which `iptables-nft`'s FORWARD drops what nobody accepts.
    pub gated: &'a [Family],
}

/// What the kernel shall hold of ours.
pub fn desired(inputs: &Inputs<'_>) -> State {
    let mut state = State::default();
    for (family, own) in inputs.own.iter() {
        let forwarding = match family {
            Family::V4 => "ipv4/ip_forward",
            Family::V6 => "ipv6/conf/all/forwarding",
        };
        state.sysctls.insert(forwarding.to_owned(), "1".to_owned());
        let of_family = |peer: &&Peer| peer.subnet.family() == family;
        if let Some((former, peers)) = inputs.former {
            let peers = peers.iter().filter(of_family);
            backend::program(former, Some(inputs.backend), own, peers, &mut state);
        }
        let peers = inputs.peers.iter().filter(of_family);
        backend::program(inputs.backend, None, own, peers, &mut state);
        if inputs.gated.contains(&family) {
            let rules = forward::rules(own.network);
            state.admitted.insert(forward::table(family), rules);
        }
        if let Some(how) = inputs.masquerade {
            let table = masquerade::table(family, own, inputs.no_masquerade, how);
            state.tables.insert(table.id.clone(), table);
        }
    }
    state
}

#[cfg(test)]
mod tests;
