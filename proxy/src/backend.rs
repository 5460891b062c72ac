//! The seam between the plan and a packet filter. `nft` compiles plans for nf_tables, `iptables` for kube-proxy's
//! chains.

use std::error::Error;

use hostnet::nft::Change;

use crate::plan::{Delta, Ruleset};

/// A packet filter that a plan can be put into. Calls block; one task makes them, one after another.
///
/// Every call is one or more transactions, of which each is right by itself: a packet never meets a state
/// that is not one of the plans, and an error leaves what the last transaction made.
pub trait Backend {
    /// Why a call failed. After an error the caller's next call is [`Backend::replace`].
    type Error: Error + Send + Sync + 'static;

    /// Makes the kernel hold exactly this ruleset, whatever of ours it holds now: observes it, and changes
    /// only what differs. For the start, after errors, and to repair.
    fn replace(&mut self, ruleset: &Ruleset) -> Result<Applied, Self::Error>;

    /// Whether the kernel holds nothing of ours: no rules that an earlier process has left.
    fn is_bare(&mut self) -> Result<bool, Self::Error>;

    /// Makes these changes to the ruleset that the kernel holds since the last call. Costs what changed.
    fn update(&mut self, delta: &Delta) -> Result<Applied, Self::Error>;

    /// Called from time to time while [`Applied::unfinished`]: removes what was left over at the tick
    /// before. What was left since then stays until the next tick, so that each leftover is there for
    /// a whole tick at least: longer than any packet is on its way.
    fn tick(&mut self) -> Result<Applied, Self::Error>;

    /// Whether someone else changed something of ours by this transaction, so that [`Backend::replace`]
    /// is wanted.
    fn is_disturbed_by(&self, change: &Change) -> bool;

    /// Whether the kernel tells of changes to tables like ours, so that there is something to ask
    /// [`Backend::is_disturbed_by`] about.
    fn is_told_of_changes(&self) -> bool {
        true
    }

    /// Whether it is sure that nobody else has changed anything since the last [`Backend::replace`] looked. If not,
    /// another one finds out.
    fn is_untouched(&mut self) -> bool {
        false
    }

    /// Whether others have rules in the same tables, so that most of what happens there is no harm to ours.
    fn shares_tables(&self) -> bool {
        false
    }

    /// Removes all that is ours, whichever version of this program made it.
    fn cleanup(&mut self) -> Result<Applied, Self::Error>;
}

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// How many changes went to the kernel: 0 means that it held everything already.
    pub ops: usize,
    /// Something that no rule leads to any more is still there, for packets that are on their way:
    /// [`Backend::tick`] is wanted.
    pub unfinished: bool,
}
