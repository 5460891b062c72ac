//! One pass: observe, desire, compare, change.
//!
//! A full pass reads the kernel. A dirty one goes by what is believed to be there since the last pass, and looks at no
//! other nodes than those that have changed if it concerns none, so that one more peer costs as much as one peer; kernel events that tell otherwise make the next pass full.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use agent::sync::Pass;
use hostnet::{
    netlink::{Event, Object},
    nft::{self, Changes},
    vocab::{Cidr, Family, Subnet, names},
};

use crate::{
    ByFamily,
    apply::Failure,
    backend::{self, Own},
    config::{Backend, Config},
    desired::{Inputs, desired},
    diff::{Op, diff},
    events::{Belief, named, our_devices},
    forward::{self, Obstacle},
    host::{self, Host},
    iface::IfaceError,
    index::Index,
    leftovers,
    node::NodeObject,
    peers::{self, Past, Peer, Reason, Selection},
    place::{announcement, place},
    state::State,
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
    /// The address that we were told to publish is another node's.
    #[error(
        "the address {addr} that this node was told to publish is that of Node {node}, which had it before: --public-ip, \
         --public-ipv6 and the annotations for it must differ on every node; without them it is the interface's, {own}"
    )]
    PublicTaken {
        /// The address.
        addr: IpAddr,
        /// Who has it.
        node: Arc<str>,
        /// Our address on the interface.
        own: Cidr,
    },
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
    /// Who may drop pods' packets on this node.
    pub obstacles: Vec<Obstacle>,
}

/// Brings the kernel of one node to what is desired.
#[derive(Debug)]
pub struct Reconciler {
    host: Host,
    belief: Option<Belief>,
    own: ByFamily<Own>,
    held: ByFamily<Subnet>,
    /// The backend of the last pass.
    backend: Option<Backend>,
    /// The one before, as long as there may be nodes that still send by it.
    former: Option<Former>,
    grace: Duration,
    /// Who was a peer in the last pass, by this backend.
    selection: Selection,
    /// How often other nodes had changed by then.
    changes: u64,
    /// Who else has a say in whether forwarded packets pass.
    forward: forward::Seen,
    /// What takes away a predecessor's rules: looked for once.
    leftovers: Vec<Changes>,
}

/// How long the former backend stays after our Node has told the others of the new one: their watches take a moment.
const GRACE: Duration = Duration::from_secs(10);

/// A backend that was replaced.
#[derive(Debug)]
struct Former {
    backend: Backend,
    /// When it may go: known once our Node tells of the new one.
    until: Option<Instant>,
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
            backend: None,
            former: None,
            grace: GRACE,
            selection: Selection::default(),
            changes: 0,
            forward: forward::Seen::default(),
            leftovers: Vec::new(),
        }
    }

    /// Lets the former backend stay so long after our Node has told of a new one.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Our hands on the kernel.
    pub fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    /// The netlink port of our changes of the ruleset.
    #[must_use]
    pub fn nft_port(&self) -> u32 {
        self.host.nft.port()
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
        let backend = config.net.backend;
        let is_same = *held == self.held && self.backend == Some(backend);
        let (mut belief, before) = match before {
            Some(belief) if pass == Pass::Dirty && is_same => {
                if let Some(amended) = self.amended(&belief.state, config, index) {
                    return self.amend(belief, amended, node, index);
                }
                (belief, None)
            }
            before => (self.observe(config, node, held)?, before),
        };
        let past = Past {
            former: self.former.as_ref().map(|former| &former.backend),
            peers: &self.selection.peers,
        };
        let selection = peers::select(index.others(), &config.node_name, &self.own, &backend, past);
        self.check_public(node, index, &selection)?;
        self.age_former(config, node, &selection);
        let mut shall = self.desired(config, &selection);
        if index.is_recalled() {
            shall.keep_peers(&belief.state);
        }
        if belief.state.sysctls.is_empty() {
            belief.state.sysctls = self.host.switches(shall.sysctls.keys());
        }
        let lost = before
            .map(|before| diff(&belief.state, &before.state))
            .unwrap_or_default();
        let mut ops = diff(&belief.state, &shall);
        // Once ours stand: what a predecessor's rules did is done without a gap.
        ops.extend(self.leftovers.drain(..).map(Op::ChangeTable));
        self.apply(&ops)?;
        let names_change = |op: &Op| {
            matches!(
                op,
                Op::CreateLink { .. } | Op::DeleteLink { .. } | Op::RenameLink { .. }
            )
        };
        if ops.iter().any(names_change) {
            let links = self
                .host
                .rtnl
                .links()
                .map_err(|error| Error::Observe(error.into()))?;
            belief.devices = our_devices(&links);
        }
        belief.state = shall;
        Ok(self.passed(belief, ops, lost, selection, index))
    }

    /// What a change of a few nodes comes to, if it concerns no other node and nothing else has changed: who is a peer
    /// then, and what the kernel shall hold for those nodes no longer, and from now on.
    fn amended(
        &self,
        believed: &State,
        config: &Config,
        index: &Index,
    ) -> Option<(Selection, State, State)> {
        if self.former.is_some() || !self.leftovers.is_empty() {
            return None;
        }
        let changed = index.changed_since(self.changes)?;
        let mut selection = self.selection.clone();
        let facts = |name: &str| index.other(name);
        let backend = &config.net.backend;
        let amendment = peers::amend(&mut selection, changed, facts, &self.own, backend)?;
        let [gone, come] = [amendment.gone, amendment.come].map(|peers| {
            let alone = Selection {
                peers,
                ..Selection::default()
            };
            self.desired(config, &alone)
        });
        believed
            .is_but_for_peers(&come)
            .then_some((selection, gone, come))
    }

    fn amend(
        &mut self,
        mut belief: Belief,
        (selection, gone, come): (Selection, State, State),
        node: &NodeObject,
        index: &Index,
    ) -> Result<Report, Error> {
        self.check_public(node, index, &selection)?;
        let ops = diff(&gone, &come);
        self.apply(&ops)?;
        belief.state.exchange(&gone, come);
        Ok(self.passed(belief, ops, Vec::new(), selection, index))
    }

    fn desired(&self, config: &Config, selection: &Selection) -> State {
        let former = self.former.as_ref();
        let gated: Vec<Family> = Family::ALL
            .into_iter()
            .filter(|family| self.forward.is_gated(*family))
            .collect();
        desired(&Inputs {
            backend: &config.net.backend,
            former: former.map(|former| (&former.backend, &selection.former[..])),
            gated: &gated,
            masquerade: config.masquerade,
            no_masquerade: &config.net.no_masquerade,
            own: &self.own,
            peers: &selection.peers,
        })
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), Error> {
        let failures = self.host.apply(ops);
        if failures.is_empty() {
            return Ok(());
        }
        let all = ops.len();
        Err(Error::Apply { failures, all })
    }

    /// Keeps what is known after a good pass.
    fn passed(
        &mut self,
        belief: Belief,
        ops: Vec<Op>,
        lost: Vec<Op>,
        selection: Selection,
        index: &Index,
    ) -> Report {
        self.belief = Some(belief);
        self.selection.clone_from(&selection);
        self.changes = index.changes();
        Report {
            ops,
            lost,
            selection,
            obstacles: forward::obstacles(&self.forward, &self.own),
        }
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
        if self.backend.is_none() {
            self.leftovers = leftovers::rules(&mut self.host.nft)
                .map_err(|error| Error::Observe(error.into()))?;
            for line in leftovers::legacy_rules() {
                tracing::warn!("{line}");
            }
        }
        self.note_backend(config.net.backend, &state);
        let former = self.former.as_ref().map(|former| &former.backend);
        self.own = place(config, node, held, &kernel, &state, former)?;
        self.held = *held;
        self.forward = kernel.forward;
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

    /// Notes a change of the backend, made now or while no flanneld ran.
    fn note_backend(&mut self, backend: Backend, ours: &State) {
        if self.backend == Some(backend) {
            return;
        }
        let before = match self.backend.replace(backend) {
            Some(before) => Some(before).filter(|before| backend::is_another(before, &backend)),
            None => backend::left_behind(ours, &backend),
        };
        // What the last peers were by the backend before says nothing of this one.
        if let Some(backend) = before {
            self.former = Some(Former {
                backend,
                until: None,
            });
            self.selection = Selection::default();
        }
    }

    /// Refuses to publish an address that an older node has, and that is not on our interface: a flag that is the same
    /// for all nodes. (One that is there is ours, whatever others say.)
    fn check_public(
        &self,
        node: &NodeObject,
        index: &Index,
        selection: &Selection,
    ) -> Result<(), Error> {
        for skipped in &selection.skipped {
            let Reason::AddressOurs(addr) = skipped.reason else {
                continue;
            };
            let Some(own) = self.own.get(skipped.family) else {
                continue;
            };
            let other = index.others().find(|other| other.name == skipped.node);
            let is_older = other
                .is_some_and(|other| (other.created, &*other.uid) < (node.created(), node.uid()));
            if addr == own.uplink.public && addr != own.uplink.addr.addr() && is_older {
                return Err(Error::PublicTaken {
                    addr,
                    node: Arc::clone(&skipped.node),
                    own: own.uplink.addr,
                });
            }
        }
        Ok(())
    }

    /// Forgets the former backend once nobody can have a use for it any more.
    fn age_former(&mut self, config: &Config, node: &NodeObject, selection: &Selection) {
        let is_said = announcement(config, &self.own).is_said_by(node, &config.annotations);
        let Some(former) = &mut self.former else {
            return;
        };
        // Who listens on the port that we had may not know yet that we have another.
        let is_behind = |peer: &Peer| match (former.backend, config.net.backend) {
            (Backend::Vxlan(had), Backend::Vxlan(has)) => {
                had.port != has.port && peer.port == Some(had.port)
            }
            _ => false,
        };
        if !is_said || !selection.former.is_empty() || selection.peers.iter().any(is_behind) {
            former.until = None;
            return;
        }
        let now = Instant::now();
        let until = *former.until.get_or_insert(now + self.grace);
        if until <= now {
            tracing::info!(
                backend = former.backend.name(),
                "every node has followed the change of the backend"
            );
            self.former = None;
        }
    }

    /// When the next pass has something to do though nothing changes.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let until = self.former.as_ref()?.until;
        until.filter(|until| *until > Instant::now())
    }

    /// Whether a change in the kernel asks for a full pass. While nothing is believed, what could give us an interface
    /// does.
    #[must_use]
    pub fn is_news(&self, event: &Event) -> bool {
        match &self.belief {
            Some(belief) => belief.is_news(event),
            None => matches!(
                event.object,
                Object::Link(_) | Object::Addr(_) | Object::Route(_)
            ),
        }
    }

    /// Whether a change of the ruleset touched a table of ours, and was not our own doing.
    #[must_use]
    pub fn is_disturbing(&self, change: &nft::Change) -> bool {
        self.is_of_others(change, names::TABLE_FLANNEL)
    }

    /// Whether a change of the ruleset, not our own doing, may let forwarded packets pass, or no longer.
    #[must_use]
    pub fn is_at_the_gate(&self, change: &nft::Change) -> bool {
        self.is_of_others(change, forward::TABLE)
    }

    fn is_of_others(&self, change: &nft::Change, name: &str) -> bool {
        change.port != self.host.nft.port()
            && change.tables.iter().any(|table| *table.name == *name)
    }
}
