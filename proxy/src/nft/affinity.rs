//! Session affinity: what a service port has of its own in the table, where its clients stay with their endpoints.
//!
//! ```text
//!  vips, nodeports ──► aff-svc-PORT  ip saddr @clients-… goto aff-ep-…     one rule for each endpoint: who has been there
//!                                    numgen random mod 2 0 goto aff-ep-…   else a pick, each as likely as another
//!                                    goto aff-ep-…
//!                      aff-ep-…      update @clients-… { ip saddr }        remembers, or remembers for longer
//!                                    dnat to ENDPOINT
//! ```
//!
//! All frontends of the port lead here, so that a client has one choice over all of its addresses. The sets
//! are filled by packets and never read: a restart keeps them, a new endpoint does not touch the others', and
//! an endpoint that goes takes its set along. A timeout is part of a set's name: another one begins anew.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hostnet::nft::Selector::{L4Proto, Random, Saddr};
use hostnet::nft::{FieldType, KeyType, Name, Proto, Rule, SetDecl};
use hostnet::vocab::Family;

use super::layout::REFUSE;
use crate::plan::{Endpoint, PortKey, View};

/// The most clients that an endpoint remembers; those beyond are served, and forgotten. It is what `nft` gives
/// a dynamic set that does not say.
const CLIENTS: u32 = 65_535;

const ENDPOINT: &str = "aff-ep-";
const CLUSTER: &str = "aff-svc-";
const LOCAL: &str = "aff-svl-";
const SET: &str = "clients-";

/// Whether a chain is one of a service port with affinity.
pub(super) fn is_chain(name: &str) -> bool {
    [ENDPOINT, CLUSTER, LOCAL]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Whether a set remembers clients.
pub(super) fn is_set(name: &str) -> bool {
    name.starts_with(SET)
}

/// Chains that lead to others come after these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum OwnChain {
    /// Sends to one endpoint.
    Endpoint(Name),
    /// Chooses one.
    Choice(Name),
}

impl OwnChain {
    /// The chain of that name, if it is one of these.
    pub(super) fn by_name(name: &Name) -> Option<OwnChain> {
        match is_chain(name) {
            true if name.starts_with(ENDPOINT) => Some(OwnChain::Endpoint(name.clone())),
            true => Some(OwnChain::Choice(name.clone())),
            false => None,
        }
    }

    pub(super) fn name(&self) -> &Name {
        match self {
            OwnChain::Endpoint(name) | OwnChain::Choice(name) => name,
        }
    }
}

/// A service port whose clients stay with their endpoints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affinity<'a> {
    pub(super) family: Family,
    pub(super) key: &'a PortKey,
    pub(super) timeout: NonZeroU32,
}

impl Affinity<'_> {
    /// The chain to which the frontends of a view lead.
    pub(super) fn choice_name(self, view: View) -> Name {
        let prefix = match view {
            View::Cluster => CLUSTER,
            View::Local => LOCAL,
        };
        format!("{prefix}{}", self.port()).into()
    }

    /// That chain's rules.
    pub(super) fn choice(self, endpoints: &[Endpoint]) -> Vec<Rule> {
        let known = endpoints.iter().map(|endpoint| {
            Rule::new()
                .in_set([Saddr(self.family)], self.set_name(endpoint))
                .goto(self.endpoint_name(endpoint))
        });
        let pick = (1..=endpoints.len() as u32)
            .rev()
            .zip(endpoints)
            .map(|(left, endpoint)| {
                let pick = match left {
                    1 => Rule::new(),
                    _ => Rule::new().eq(Random(left), 0_u32),
                };
                pick.goto(self.endpoint_name(endpoint))
            });
        known.chain(pick).collect()
    }

    /// What an endpoint needs: a set of its clients, and a chain that sends to it.
    pub(super) fn endpoint(self, endpoint: &Endpoint) -> (Arc<SetDecl>, OwnChain, Vec<Rule>) {
        let client = KeyType::of([FieldType::addr(self.family)]);
        let timeout = Duration::from_secs(self.timeout.get().into());
        let set = SetDecl::set(self.set_name(endpoint), client).dynamic(timeout, CLIENTS);
        let rules = vec![
            // A rule of its own: where the set is full, the next one still sends.
            Rule::new().update([Saddr(self.family)], set.name.clone()),
            Rule::new()
                .eq(L4Proto, Proto(self.key.protocol.number()))
                .dnat_to(endpoint.address, Some(endpoint.port)),
            Rule::new().goto(REFUSE),
        ];
        let chain = OwnChain::Endpoint(self.endpoint_name(endpoint));
        (Arc::new(set), chain, rules)
    }

    fn endpoint_name(self, endpoint: &Endpoint) -> Name {
        format!("{ENDPOINT}{}__{}", self.port(), place(endpoint)).into()
    }

    fn set_name(self, endpoint: &Endpoint) -> Name {
        let (timeout, port) = (self.timeout, self.port());
        format!("{SET}{timeout}-{port}__{}", place(endpoint)).into()
    }

    /// `namespace/service/port/protocol`, in letters that nft takes in names. Names of objects are at most 63
    /// letters, of ports 15: all in all less than the 255 that a name may have.
    fn port(self) -> String {
        let name = self.key.name.as_str().replace(':', "/");
        format!("{name}/{}", self.key.protocol)
    }
}

fn place(endpoint: &Endpoint) -> String {
    let address = endpoint.address.to_string().replace(':', ".");
    format!("{address}/{}", endpoint.port)
}
