//! Owns the choice of endpoints: which of those in a Service's slices a service port uses, per view.
//!
//! Readiness and termination are KEP-1669's: terminating endpoints that still serve are used where no
//! ready one is left, decided for each view by itself. Hints are KEP-2433's and KEP-3015's: all or
//! nothing, among ready endpoints, in the Cluster view only.

use std::net::IpAddr;
use std::sync::Arc;

use hostnet::vocab::Family;

use super::{Endpoint, Protocol};
use crate::index::{Hints, Slice, SliceEndpoint};

/// The endpoints of one service port in one family.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Views {
    /// Those to use of the whole cluster.
    pub(super) cluster: Arc<[Endpoint]>,
    /// Those to use of this node.
    pub(super) local: Arc<[Endpoint]>,
    /// Whether any endpoint anywhere takes traffic.
    pub(super) any: bool,
    /// Of UDP, those that still serve; see [`ServicePort::serving`](super::ServicePort::serving).
    pub(super) serving: Arc<[Endpoint]>,
}

/// The service port that endpoints are wanted for, and the node that wants them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) family: Family,
    pub(super) port_name: &'a str,
    pub(super) protocol: Protocol,
    pub(super) node: &'a str,
    pub(super) zone: Option<&'a str>,
}

/// How well an endpoint takes traffic, worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Unusable,
    ServingTerminating,
    Ready,
}

impl State {
    fn of(endpoint: &SliceEndpoint) -> Self {
        if endpoint.ready {
            Self::Ready
        } else if endpoint.serving && endpoint.terminating {
            Self::ServingTerminating
        } else {
            Self::Unusable
        }
    }
}

struct Candidate<'a> {
    state: State,
    /// Ready, or at least able to answer.
    serving: bool,
    local: bool,
    hints: Option<&'a Hints>,
}

/// Sorted by address and port, each once.
type Candidates<'a> = Vec<((IpAddr, u16), Candidate<'a>)>;

impl Views {
    /// Chooses among the endpoints of all `slices`. An address and port that is there twice is one
    /// endpoint: its best state counts, and it is local if either says so.
    pub(super) fn choose<'a>(
        slices: impl IntoIterator<Item = &'a Slice>,
        target: Target<'_>,
    ) -> Self {
        let all = merge(slices, target);
        let scope = Scope::of(&all, target);
        // Ready ones, else those that at least still serve.
        let pick = |ready: &Wish<'_>, serving: &Wish<'_>| {
            let found = list(&all, State::Ready, ready);
            if found.is_empty() {
                list(&all, State::ServingTerminating, serving)
            } else {
                found
            }
        };
        let cluster = pick(&|c| scope.includes(c), &|_| true);
        let serving = match target.protocol {
            Protocol::Udp => serving(&all, &cluster),
            Protocol::Tcp | Protocol::Sctp => Arc::default(),
        };
        Self {
            cluster,
            serving,
            local: pick(&|c| c.local, &|c| c.local),
            any: all
                .iter()
                .any(|(_, candidate)| candidate.state != State::Unusable),
        }
    }
}

fn merge<'a>(slices: impl IntoIterator<Item = &'a Slice>, target: Target<'_>) -> Candidates<'a> {
    let mut all = Candidates::new();
    for slice in slices
        .into_iter()
        .filter(|slice| slice.family == target.family)
    {
        let matching = (slice.ports.iter())
            .filter(|port| port.protocol == target.protocol && *port.name == *target.port_name);
        for port in matching {
            all.extend(slice.endpoints.iter().map(|endpoint| {
                let candidate = Candidate {
                    state: State::of(endpoint),
                    serving: endpoint.ready || endpoint.serving,
                    local: endpoint.local,
                    hints: endpoint.hints.as_deref(),
                };
                ((endpoint.address, port.port), candidate)
            }));
        }
    }
    // Stable: of two in one state the first one's hints count.
    all.sort_by_key(|(at, _)| *at);
    all.dedup_by(|(at, new), (kept_at, old)| {
        if at != kept_at {
            return false;
        }
        old.local |= new.local;
        old.serving |= new.serving;
        if new.state > old.state {
            (old.state, old.hints) = (new.state, new.hints);
        }
        true
    });
    all
}

type Wish<'w> = dyn Fn(&Candidate<'_>) -> bool + 'w;

fn list(all: &Candidates<'_>, state: State, wish: &Wish<'_>) -> Arc<[Endpoint]> {
    endpoints(all, &|candidate| {
        candidate.state == state && wish(candidate)
    })
    .into()
}

/// All that serve; the list `cluster` itself where these are the same.
fn serving(all: &Candidates<'_>, cluster: &Arc<[Endpoint]>) -> Arc<[Endpoint]> {
    let found = endpoints(all, &|candidate| candidate.serving);
    if *found == **cluster {
        cluster.clone()
    } else {
        found.into()
    }
}

fn endpoints(all: &Candidates<'_>, wish: &Wish<'_>) -> Vec<Endpoint> {
    (all.iter())
        .filter(|(_, candidate)| wish(candidate))
        .map(|&((address, port), ref candidate)| Endpoint {
            address,
            port,
            local: candidate.local,
        })
        .collect()
}

/// How far the hints of the ready endpoints, taken together, narrow the choice.
enum Scope<'a> {
    Everywhere,
    Node(&'a str),
    Zone(&'a str),
}

impl<'a> Scope<'a> {
    /// Narrow only where every ready endpoint has a hint of that kind, and one of them means us: else
    /// some clients would be left with nothing.
    fn of(all: &Candidates<'_>, target: Target<'a>) -> Self {
        let ready = || {
            all.iter()
                .map(|(_, candidate)| candidate)
                .filter(|candidate| candidate.state == State::Ready)
        };
        let agreed =
            |scope: &Self| ready().all(|c| scope.has_hint(c)) && ready().any(|c| scope.includes(c));
        [Some(Self::Node(target.node)), target.zone.map(Self::Zone)]
            .into_iter()
            .flatten()
            .find(agreed)
            .unwrap_or(Self::Everywhere)
    }

    fn names<'c>(&self, candidate: &Candidate<'c>) -> &'c [Box<str>] {
        match (self, candidate.hints) {
            (Self::Node(_), Some(hints)) => &hints.nodes,
            (Self::Zone(_), Some(hints)) => &hints.zones,
            _ => &[],
        }
    }

    fn has_hint(&self, candidate: &Candidate<'_>) -> bool {
        !self.names(candidate).is_empty()
    }

    fn includes(&self, candidate: &Candidate<'_>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Node(name) | Self::Zone(name) => {
                self.names(candidate).iter().any(|n| **n == **name)
            }
        }
    }
}
