//! One pass: observe, desire, compare, change.
//!
//! A full pass reads the kernel. A dirty one goes by what is believed to be there since the last pass, so that one more
//! peer costs as much as one peer; kernel events that tell otherwise make the next pass full.

use agent::sync::Pass;
use hostnet::{
    netlink::{Event, Object},
    nft,
    vocab::{Subnet, names},
};

use crate::{
    ByFamily,
    apply::Failure,
    backend::Own,
    config::Config,
    desired::{Inputs, desired},
    diff::{Op, diff},
    events::{Belief, named, our_devices},
    host::{self, Host},
    iface::IfaceError,
    index::Index,
    node::NodeObject,
    peers::{self, Selection},
    place::place,
};

/// Why a pass did not reach what is desired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot be read.
    #[error("cannot read the kernel's state: {}", agent::chain(.0))]
    Observe(#[source] host::Error),
    /// There is no interface to other nodes.
    #[error(transparent)]
    Iface(#[from] Box<IfaceError>),
    /// Some changes could not be made; the others were.
    #[error("{} of {all} changes failed, the first: {}", .failures.len(), first(.failures))]
    Apply {
        /// Those that failed.
        failures: Vec<Failure>,
        /// How many there were.
        all: usize,
    },
}

fn first(failures: &[Failure]) -> String {
    failures
        .first()
        .map_or_else(String::new, |failure| agent::chain(failure))
}

/// What a pass found and did.
#[derive(Debug)]
pub struct Report {
    /// What was done.
    pub ops: Vec<Op>,
    /// What of ours others had changed or taken away since the last pass: the ops that put it back.
    pub lost: Vec<Op>,
    /// Who is a peer and who is not.
    pub selection: Selection,
}

/// Brings the kernel of one node to what is desired.
#[derive(Debug)]
pub struct Reconciler {
    host: Host,
    belief: Option<Belief>,
    own: ByFamily<Own>,
    held: ByFamily<Subnet>,
}

impl Reconciler {
    /// One that believes nothing yet.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Self {
            host,
            belief: None,
            own: ByFamily::default(),
            held: ByFamily::default(),
        }
    }

    /// Our place as of the last pass.
    #[must_use]
    pub fn own(&self) -> &ByFamily<Own> {
        &self.own
    }

    /// Runs one pass for the subnets that are held.
    ///
    /// # Errors
    /// See [`Error`]. The next pass is a full one, whatever is asked for.
    pub fn pass(
        &mut self,
        pass: Pass,
        config: &Config,
        node: &NodeObject,
        held: &ByFamily<Subnet>,
        index: &Index,
    ) -> Result<Report, Error> {
        let before = self.belief.take();
        let (mut belief, before) = match before {
            Some(belief) if pass == Pass::Dirty && *held == self.held => (belief, None),
            before => (self.observe(config, node, held)?, before),
        };
        let selection = peers::select(
            index.others(),
            &config.node_name,
            &self.own,
            &config.net.backend,
        );
        let shall = desired(&Inputs {
            backend: &config.net.backend,
            masquerade: config.masquerade,
            no_masquerade: &config.net.no_masquerade,
            own: &self.own,
            peers: &selection.peers,
        });
        if belief.state.sysctls.is_empty() {
            belief.state.sysctls = self.host.switches(shall.sysctls.keys());
        }
        let lost = before
            .map(|before| diff(&belief.state, &before.state))
            .unwrap_or_default();
        let ops = diff(&belief.state, &shall);
        let failures = self.host.apply(&ops);
        if !failures.is_empty() {
            return Err(Error::Apply {
                failures,
                all: ops.len(),
            });
        }
        if ops
            .iter()
            .any(|op| matches!(op, Op::CreateLink { .. } | Op::DeleteLink { .. }))
        {
            let links = self
                .host
                .rtnl
                .links()
                .map_err(|error| Error::Observe(error.into()))?;
            belief.devices = our_devices(&links);
        }
        belief.state = shall;
        self.belief = Some(belief);
        Ok(Report {
            ops,
            lost,
            selection,
        })
    }

    /// Reads the kernel, and finds our place in it.
    fn observe(
        &mut self,
        config: &Config,
        node: &NodeObject,
        held: &ByFamily<Subnet>,
    ) -> Result<Belief, Error> {
        let kernel = self.host.observe().map_err(Error::Observe)?;
        let state = kernel.ours();
        self.own = place(config, node, held, &kernel, &state)?;
        self.held = *held;
        let uplinks = self
            .own
            .iter()
            .map(|(_, own)| own.uplink.name.clone())
            .collect();
        Ok(Belief {
            state,
            devices: our_devices(&kernel.links),
            uplinks: named(&kernel.links, &uplinks),
        })
    }

    /// Whether a change in the kernel asks for a full pass. While nothing is believed, what could give us an interface
    /// does.
    #[must_use]
    pub fn is_news(&self, event: &Event) -> bool {
        match &self.belief {
            Some(belief) => belief.is_news(event),
            None => !matches!(event.object, Object::Neigh(_) | Object::Fdb(_)),
        }
    }

    /// Whether a change of the ruleset touched a table of ours, and was not our own doing.
    #[must_use]
    pub fn is_disturbing(&self, change: &nft::Change) -> bool {
        change.port != self.host.nft.port()
            && change
                .tables
                .iter()
                .any(|table| *table.name == *names::TABLE_FLANNEL)
    }
}
