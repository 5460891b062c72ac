//! The backend: keeps kube-proxy's chains of both families to the plan.

use std::cell::RefCell;
use std::collections::VecDeque;

use hostnet::nft::{Change, Nft, Op, TableId};
use hostnet::sysctl::{Sysctl, SysctlError};
use hostnet::vocab::Family;

use super::diff;
use super::fixed::Context;
use super::index;
use super::leftovers::is_proxys;
use super::options::Options;
use super::program::{ProgramError, Programs, Variant};
use super::saved::Saved;
use super::script::{Script, Table};
use crate::backend::{Applied, Backend};
use crate::plan::{Delta, FamilyRuleset, Ruleset};

/// Of how many of our programs notice may still be on its way.
const REMEMBERED: usize = 64;

/// The chains in the tables of iptables of one network namespace: that of the thread which calls.
#[derive(Debug)]
pub struct IptablesBackend {
    options: Options,
    programs: Programs,
    /// What the chains hold; None where that is not known.
    states: [Option<FamilyRuleset>; 2],
    /// Processes that changed something for us.
    ours: VecDeque<u32>,
    told_of_localnet: bool,
    /// The programs are new enough.
    is_checked: bool,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// The programs, or the kernel behind them.
    #[error("program {family} services")]
    Program {
        /// The family whose tables it was about. The other one's may have been changed.
        family: Family,
        /// What went wrong.
        source: ProgramError,
    },
    /// Changes were asked for after an error, or before the first full pass.
    #[error("what the chains of {0} services hold is not known: a full pass has to come first")]
    Unknown(Family),
}

impl IptablesBackend {
    /// For the kernel's packet filter of this variant.
    pub fn new(options: Options, variant: Variant) -> IptablesBackend {
        IptablesBackend {
            options,
            programs: Programs::new(variant),
            states: [None, None],
            ours: VecDeque::new(),
            told_of_localnet: false,
            is_checked: false,
        }
    }

    /// Which of the kernel's packet filters it works on.
    pub fn variant(&self) -> Variant {
        self.programs.variant()
    }

    fn replace_family(
        &mut self,
        family: Family,
        rules: &FamilyRuleset,
    ) -> Result<usize, ProgramError> {
        self.states[index(family)] = None;
        let text = match self.programs.save(family) {
            // A kernel without IPv6 has no such tables, and needs none.
            Err(ProgramError::Failed { said, .. })
                if rules.ports.is_empty() && family == Family::V6 =>
            {
                tracing::debug!(said, "no IPv6 tables, and no IPv6 Services");
                return Ok(0);
            }
            saved => saved?,
        };
        let context = Context::new(family, &self.options, rules);
        let saved = Saved::parse(&text);
        if let Some(chain) = unseen_chain(family, &text, &saved) {
            let program = self.programs.name(family, "restore");
            return Err(ProgramError::Foreign { program, chain });
        }
        let script = diff::full(&context, rules, &saved);
        drop(text);
        let ops = self.send(family, &script)?;
        self.states[index(family)] = Some(rules.clone());
        Ok(ops)
    }

    /// What [`Backend::replace`] would apply: IPv4, IPv6. Changes nothing.
    ///
    /// # Errors
    /// [`IptablesError::Program`].
    pub fn difference(&self, ruleset: &Ruleset) -> Result<[String; 2], IptablesError> {
        let of = |family| -> Result<String, IptablesError> {
            let saved = (self.programs.save(family))
                .map_err(|source| IptablesError::Program { family, source })?;
            let rules = ruleset.family(family);
            let context = Context::new(family, &self.options, rules);
            Ok(diff::full(&context, rules, &Saved::parse(&saved)).to_string())
        };
        Ok([of(Family::V4)?, of(Family::V6)?])
    }

    /// Applies the document, and returns how many changes it makes.
    fn send(&mut self, family: Family, script: &Script) -> Result<usize, ProgramError> {
        if script.is_empty() {
            return Ok(0);
        }
        let ours = RefCell::new(&mut self.ours);
        self.programs.restore(family, &script.to_string(), |id| {
            let mut ours = ours.borrow_mut();
            ours.push_back(id);
            if ours.len() > REMEMBERED {
                ours.pop_front();
            }
        })?;
        Ok(script.ops())
    }

    /// Lets the kernel route what goes from this node's loopback to pods. Where `/proc/sys` may not be written, as in
    /// most containers, all other rules work without.
    fn let_localnet_out(&mut self) {
        if let Err(error) = route_localnet(&self.options)
            && !std::mem::replace(&mut self.told_of_localnet, true)
        {
            let error = crate::run::chain(&error);
            tracing::warn!(
                error,
                "node ports do not answer at 127.0.0.1: set net.ipv4.conf.all.route_localnet=1 on the node, run \
                 twill-proxy --init-only with all rights first, or set iptables.localhostNodePorts to false"
            );
        }
    }
}

impl Backend for IptablesBackend {
    type Error = IptablesError;

    fn replace(&mut self, ruleset: &Ruleset) -> Result<Applied, IptablesError> {
        let mut ops = 0;
        if !self.is_checked {
            // Those of both families are one program.
            let family = Family::V4;
            (self.programs.check(family))
                .map_err(|source| IptablesError::Program { family, source })?;
            self.is_checked = true;
        }
        for family in Family::ALL {
            ops += self
                .replace_family(family, ruleset.family(family))
                .map_err(|source| IptablesError::Program { family, source })?;
        }
        self.let_localnet_out();
        Ok(applied(ops))
    }

    fn is_bare(&mut self) -> Result<bool, IptablesError> {
        let family = Family::V4;
        let saved = (self.programs.save(family))
            .map_err(|source| IptablesError::Program { family, source })?;
        Ok(diff::is_bare(&Saved::parse(&saved)))
    }

    fn update(&mut self, delta: &Delta) -> Result<Applied, IptablesError> {
        let mut ops = 0;
        for family in Family::ALL {
            let changes = delta.family(family);
            if changes.is_empty() {
                continue;
            }
            let state = self.states[index(family)].take();
            let before = state.ok_or(IptablesError::Unknown(family))?;
            let mut after = before.clone();
            after.apply(changes);
            let script = diff::partial(
                (&Context::new(family, &self.options, &before), &before),
                (&Context::new(family, &self.options, &after), &after),
                changes.ports.iter().map(|change| &change.key),
            );
            ops += self
                .send(family, &script)
                .map_err(|source| IptablesError::Program { family, source })?;
            self.states[index(family)] = Some(after);
        }
        Ok(applied(ops))
    }

    /// Nothing is left over: a document takes effect table by table, in one step each.
    fn tick(&mut self) -> Result<Applied, IptablesError> {
        Ok(Applied::default())
    }

    fn is_disturbed_by(&self, change: &Change) -> bool {
        let is_ours = |id: u32| self.ours.contains(&id);
        let touches = |table: &TableId| {
            Family::ALL.contains(&table.family) && Table::by_name(&table.name).is_some()
        };
        self.variant() == Variant::Nft
            && !is_ours(change.port)
            && !change.pid.is_some_and(is_ours)
            && change.tables.iter().any(touches)
    }

    fn shares_tables(&self) -> bool {
        true
    }

    fn cleanup(&mut self) -> Result<Applied, IptablesError> {
        let mut ops = 0;
        for family in Family::ALL {
            self.states[index(family)] = None;
            let mut clean = || {
                let saved = self.programs.save(family)?;
                let script = diff::cleanup(&Saved::parse(&saved));
                self.send(family, &script)
            };
            ops += clean().map_err(|source| IptablesError::Program { family, source })?;
        }
        Ok(applied(ops))
    }
}

/// Where node ports answer at 127.0.0.1, lets the kernel route what comes from there to pods. Returns whether it did
/// not before.
///
/// # Errors
/// `/proc/sys` may not be written.
pub fn route_localnet(options: &Options) -> Result<bool, SysctlError> {
    if !options.serves_loopback(Family::V4) {
        return Ok(false);
    }
    Sysctl::default().ensure("ipv4/conf/all/route_localnet", "1")
}

/// A chain of a proxy's name that `iptables-nft-save` leaves out: a document would change tables before it is refused.
fn unseen_chain(family: Family, text: &str, saved: &Saved<'_>) -> Option<String> {
    let leaves_out = |line: &str| line.starts_with("# Table ") && line.contains("incompatible");
    if !text.lines().any(leaves_out) {
        return None;
    }
    Table::ALL.into_iter().find_map(|table| {
        let is_unseen =
            |chain: &str| is_proxys(chain, false) && saved.rules(table, chain).is_none();
        let found = Nft::open()
            .ok()?
            .leftover_chains(&TableId::new(family, table.name()), is_unseen);
        found.ok()?.ops.into_iter().find_map(|op| match op {
            Op::DeleteChain(chain) => Some(chain.to_string()),
            _ => None,
        })
    })
}

fn applied(ops: usize) -> Applied {
    Applied {
        ops,
        unfinished: false,
    }
}
