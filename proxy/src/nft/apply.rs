//! The backend: keeps the kernel's two tables to the plan.

use hostnet::nft::{Change, Changes, Error, Nft, Op, TableId};
use hostnet::vocab::{Family, names};

use super::diff::State;
use crate::backend::{Applied, Backend};
use crate::plan::{Delta, Ruleset};

/// The most operations in one transaction, where they can be parted: the kernel works on one for tens of
/// milliseconds at most, during which nobody else in the machine can change rules.
const PART: usize = 10_000;

/// For how many elements a map has room at least: that of a small cluster, and some kilobytes.
const ROOM: u32 = 512;

/// How often a full pass is tried when others change the ruleset meanwhile.
const ATTEMPTS: u32 = 10;

/// The tables `ip twill-proxy` and `ip6 twill-proxy` of one network namespace.
#[derive(Debug)]
pub struct NftBackend {
    nft: Nft,
    /// The generation that the last full pass found, less the transactions that we had made by then.
    found: Option<u32>,
    /// What the tables hold; None where that is not known.
    states: [Option<State>; 2],
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel, or the way to it.
    #[error("program {family} services")]
    Kernel {
        /// The family whose table it was about. The other one's may have been changed.
        family: Family,
        /// What it said.
        source: Error,
    },
    /// Changes were asked for after an error, or before the first full pass.
    #[error("what the table of {0} services holds is not known: a full pass has to come first")]
    Unknown(Family),
}

impl NftBackend {
    /// Connects to the nf_tables of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<NftBackend, Error> {
        Ok(NftBackend {
            nft: Nft::open()?,
            found: None,
            states: [None, None],
        })
    }

    /// What [`Backend::replace`] would change, and leftovers that it would remove after it. Changes nothing.
    ///
    /// # Errors
    /// As [`Nft::observe`].
    pub fn difference(&mut self, ruleset: &Ruleset) -> Result<[Changes; 2], Error> {
        let mut of = |family| -> Result<Changes, Error> {
            let observed = self.nft.observe(&table(family))?;
            let rules = ruleset.family(family);
            Ok(State::difference(family, observed.table.as_ref(), rules))
        };
        Ok([of(Family::V4)?, of(Family::V6)?])
    }

    fn replace_family(&mut self, family: Family, ruleset: &Ruleset) -> Result<usize, Error> {
        self.states[index(family)] = None;
        let mut attempt = 1;
        loop {
            let observed = self.nft.observe(&table(family))?;
            let found = observed.generation.wrapping_sub(self.nft.transactions());
            self.found.get_or_insert(found);
            let rules = ruleset.family(family);
            let least = self.nft.resizes_sets().then_some(ROOM);
            let (changes, state) = State::replace(family, observed.table.as_ref(), rules, least);
            match self.send(changes, Some(observed.generation)) {
                Ok(ops) => {
                    self.states[index(family)] = Some(state);
                    return Ok(ops);
                }
                Err(error) if error.is_surprise() && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets the state of each family say what to do, and does it. Until it is done the state is not known.
    fn step(
        &mut self,
        families: impl IntoIterator<Item = Family>,
        mut changes: impl FnMut(Family, &mut State) -> Changes,
    ) -> Result<Applied, NftError> {
        let mut ops = 0;
        for family in families {
            let state = self.states[index(family)].take();
            let mut state = state.ok_or(NftError::Unknown(family))?;
            let changes = changes(family, &mut state);
            let sent = self.send(changes, None);
            ops += sent.map_err(|source| NftError::Kernel { family, source })?;
            self.states[index(family)] = Some(state);
        }
        Ok(self.applied(ops))
    }

    /// Sends the changes, many of them in parts, and returns how many they were.
    ///
    /// Their order makes every part right by itself: slots come before the entrances that lead to them, and
    /// what an entrance leads to does not go in the same call. A table that is replaced is never parted, so
    /// that there is no moment without one.
    fn send(&mut self, changes: Changes, mut generation: Option<u32>) -> Result<usize, Error> {
        let Changes { table, ops } = changes;
        let count = ops.len();
        let part = if ops.contains(&Op::DeleteTable) {
            count
        } else {
            PART
        };
        let mut left = ops.into_iter();
        loop {
            let changes = Changes {
                table: table.clone(),
                ops: left.by_ref().take(part).collect(),
            };
            if changes.is_empty() {
                return Ok(count);
            }
            match generation.take() {
                Some(generation) => self.nft.apply_at(generation, &changes)?,
                None => self.nft.apply(&changes)?,
            }
        }
    }

    fn applied(&self, ops: usize) -> Applied {
        Applied {
            ops,
            unfinished: self.states.iter().flatten().any(State::is_unfinished),
        }
    }
}

impl Backend for NftBackend {
    type Error = NftError;

    fn replace(&mut self, ruleset: &Ruleset) -> Result<Applied, NftError> {
        self.found = None;
        let mut ops = 0;
        for family in Family::ALL {
            ops += self
                .replace_family(family, ruleset)
                .map_err(|source| NftError::Kernel { family, source })?;
        }
        Ok(self.applied(ops))
    }

    fn is_bare(&mut self) -> Result<bool, NftError> {
        let tables = self.nft.tables().map_err(|source| NftError::Kernel {
            family: Family::V4,
            source,
        })?;
        let is_ours = |found: &TableId| *found.name == *names::TABLE_PROXY;
        Ok(!tables.iter().any(is_ours))
    }

    fn update(&mut self, delta: &Delta) -> Result<Applied, NftError> {
        let changed = Family::ALL
            .into_iter()
            .filter(|family| !delta.family(*family).is_empty());
        self.step(changed, |family, state| state.update(delta.family(family)))
    }

    fn tick(&mut self) -> Result<Applied, NftError> {
        self.step(Family::ALL, |_, state| state.tick())
    }

    fn is_disturbed_by(&self, change: &Change) -> bool {
        let is_ours = |family| change.tables.contains(&table(family));
        change.port != self.nft.port() && Family::ALL.into_iter().any(is_ours)
    }

    fn is_untouched(&mut self) -> bool {
        let ours = self
            .found
            .map(|found| found.wrapping_add(self.nft.transactions()));
        ours.is_some() && ours == self.nft.generation().ok()
    }

    fn cleanup(&mut self) -> Result<Applied, NftError> {
        let mut ops = 0;
        for family in Family::ALL {
            self.states[index(family)] = None;
            let removed = self.nft.remove(&table(family));
            ops += usize::from(removed.map_err(|source| NftError::Kernel { family, source })?);
        }
        Ok(self.applied(ops))
    }
}

fn table(family: Family) -> TableId {
    TableId::new(family, names::TABLE_PROXY)
}

fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}
