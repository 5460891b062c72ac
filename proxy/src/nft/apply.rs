//! The backend: keeps the kernel's two tables to the plan.

use hostnet::nft::{Change, Changes, Error, Nft, TableId};
use hostnet::vocab::{Family, names};

use super::diff::State;
use crate::backend::{Applied, Backend};
use crate::plan::{Delta, Ruleset};

/// How often a full pass is tried when others change the ruleset meanwhile.
const ATTEMPTS: u32 = 10;

/// The tables `ip twill-proxy` and `ip6 twill-proxy` of one network namespace.
#[derive(Debug)]
pub struct NftBackend {
    nft: Nft,
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
            states: [None, None],
        })
    }

    fn replace_family(&mut self, family: Family, ruleset: &Ruleset) -> Result<usize, Error> {
        self.states[index(family)] = None;
        let mut attempt = 1;
        loop {
            let observed = self.nft.observe(&table(family))?;
            let rules = ruleset.family(family);
            let (changes, state) = State::replace(family, observed.table.as_ref(), rules);
            match self.nft.apply_at(observed.generation, &changes) {
                Ok(()) => {
                    self.states[index(family)] = Some(state);
                    return Ok(changes.ops.len());
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
            let slot = &mut self.states[index(family)];
            let mut state = slot.take().ok_or(NftError::Unknown(family))?;
            let changes = changes(family, &mut state);
            self.nft
                .apply(&changes)
                .map_err(|source| NftError::Kernel { family, source })?;
            ops += changes.ops.len();
            *slot = Some(state);
        }
        Ok(self.applied(ops))
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
        let mut ops = 0;
        for family in Family::ALL {
            ops += self
                .replace_family(family, ruleset)
                .map_err(|source| NftError::Kernel { family, source })?;
        }
        Ok(self.applied(ops))
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
