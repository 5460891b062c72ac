//! The backend: keeps kube-proxy's chains of both families to the plan.

use std::cell::RefCell;
use std::collections::VecDeque;

use hostnet::nft::{Change, Nft, Op, TableId};
use hostnet::sysctl::{Sysctl, SysctlError};
use hostnet::vocab::Family;

use super::counters;
use super::diff::{self, Planned, Rules};
use super::fixed::Context;
use super::index;
use super::leftovers::is_proxys;
use super::metrics::Metrics;
use super::options::Options;
use super::program::{ProgramError, Programs, Variant};
use super::saved::Saved;
use super::script::{Script, Table};
use crate::backend::{Applied, Backend};
use crate::plan::{Delta, FamilyDelta, FamilyRuleset, NodePortScope, Ruleset};

/// Of how many of our programs notice may still be on its way.
const REMEMBERED: usize = 64;

/// The chains in the tables of iptables of one network namespace: that of the thread which calls.
#[derive(Debug)]
pub struct IptablesBackend {
    options: Options,
    programs: Programs,
    metrics: Metrics,
    /// What the chains hold; None where that is not known.
    states: [Option<State>; 2],
    /// Processes that changed something for us.
    ours: VecDeque<u32>,
    told_of_localnet: bool,
    /// The programs are new enough.
    is_checked: bool,
}

/// What the chains of a family hold.
#[derive(Debug)]
struct State {
    plan: FamilyRuleset,
    rules: Rules,
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
            metrics: Metrics::default(),
            states: [None, None],
            ours: VecDeque::new(),
            told_of_localnet: false,
            is_checked: false,
        }
    }

    /// Tells of it.
    #[must_use]
    pub fn metrics(self, metrics: Metrics) -> IptablesBackend {
        IptablesBackend { metrics, ..self }
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
        let planned = diff::full(&context, rules, &saved);
        drop(text);
        self.carry_out(family, planned, rules.clone())
    }

    fn update_family(
        &mut self,
        family: Family,
        changes: &FamilyDelta,
    ) -> Result<usize, IptablesError> {
        let state = self.states[index(family)].take();
        let State { mut plan, rules } = state.ok_or(IptablesError::Unknown(family))?;
        let before = Context::new(family, &self.options, &plan);
        plan.apply(changes);
        let after = Context::new(family, &self.options, &plan);
        let planned = diff::partial(&before, &after, &plan, &changes.ports, rules);
        self.carry_out(family, planned, plan)
            .inspect_err(|_| self.metrics.failed(family, true))
            .map_err(|source| IptablesError::Program { family, source })
    }

    /// Makes the kernel hold the plan by what was found to lead there. Returns how many changes that were.
    fn carry_out(
        &mut self,
        family: Family,
        planned: Planned,
        plan: FamilyRuleset,
    ) -> Result<usize, ProgramError> {
        let Planned { script, rules } = planned;
        let ops = self.send(family, &script)?;
        for table in [Table::Filter, Table::Nat] {
            let there = rules.get(&table).copied().unwrap_or_default();
            self.metrics
                .wrote(family, table, script.written(table), there);
        }
        self.states[index(family)] = Some(State { plan, rules });
        Ok(ops)
    }

    /// Works on the tables of both families: what is amiss with those of one is no harm to the other's. Returns the
    /// sum, or the first error.
    fn for_each_family(
        &mut self,
        mut work: impl FnMut(&mut Self, Family) -> Result<usize, IptablesError>,
    ) -> Result<usize, IptablesError> {
        let [v4, v6] = Family::ALL.map(|family| work(self, family));
        Ok(v4? + v6?)
    }

    /// What [`Backend::replace`] would apply: IPv4, IPv6. Changes nothing.
    ///
    /// # Errors
    /// [`IptablesError::Program`].
    pub fn difference(&mut self, ruleset: &Ruleset) -> Result<[String; 2], IptablesError> {
        self.options.counters = counters::are_there();
        let of = |family| -> Result<String, IptablesError> {
            let saved = (self.programs.save(family))
                .map_err(|source| IptablesError::Program { family, source })?;
            let rules = ruleset.family(family);
            let context = Context::new(family, &self.options, rules);
            let planned = diff::full(&context, rules, &Saved::parse(&saved));
            Ok(planned.script.to_string())
        };
        Ok([of(Family::V4)?, of(Family::V6)?])
    }

    /// Applies the document, and returns how many changes it makes.
    fn send(&mut self, family: Family, script: &Script) -> Result<usize, ProgramError> {
        if script.is_empty() {
            return Ok(0);
        }
        let ours = RefCell::new(&mut self.ours);
        self.programs.restore(family, script, |id| {
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
    fn let_localnet_out(&mut self, scope: NodePortScope) {
        if let Err(error) = route_localnet(&self.options, scope)
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
        if !self.is_checked {
            // Those of both families are one program.
            let family = Family::V4;
            (self.programs.check(family))
                .map_err(|source| IptablesError::Program { family, source })?;
            self.is_checked = true;
        }
        self.options.counters = counters::ensure();
        let ops = self.for_each_family(|backend, family| {
            let replaced = backend.replace_family(family, ruleset.family(family));
            let replaced = replaced.inspect_err(|_| backend.metrics.failed(family, false));
            replaced.map_err(|source| IptablesError::Program { family, source })
        })?;
        self.let_localnet_out(ruleset.v4.node.node_port_scope);
        Ok(applied(ops))
    }

    fn is_bare(&mut self) -> Result<bool, IptablesError> {
        let family = Family::V4;
        let saved = (self.programs.save(family))
            .map_err(|source| IptablesError::Program { family, source })?;
        Ok(diff::is_bare(&Saved::parse(&saved)))
    }

    fn update(&mut self, delta: &Delta) -> Result<Applied, IptablesError> {
        let ops = self.for_each_family(|backend, family| {
            let changes = delta.family(family);
            match changes.is_empty() {
                true => Ok(0),
                false => backend.update_family(family, changes),
            }
        })?;
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
        self.is_told_of_changes()
            && !is_ours(change.port)
            && !change.pid.is_some_and(is_ours)
            && change.tables.iter().any(touches)
    }

    fn is_told_of_changes(&self) -> bool {
        self.variant() == Variant::Nft
    }

    fn shares_tables(&self) -> bool {
        true
    }

    fn cleanup(&mut self) -> Result<Applied, IptablesError> {
        let ops = self.for_each_family(|backend, family| {
            backend.states[index(family)] = None;
            let cleaned = backend.programs.save(family).and_then(|saved| {
                let script = diff::cleanup(&Saved::parse(&saved));
                backend.send(family, &script)
            });
            cleaned.map_err(|source| IptablesError::Program { family, source })
        })?;
        Ok(applied(ops))
    }
}

/// Where node ports answer at 127.0.0.1, lets the kernel route what comes from there to pods. Returns whether it did
/// not before.
///
/// # Errors
/// `/proc/sys` may not be written.
pub fn route_localnet(options: &Options, scope: NodePortScope) -> Result<bool, SysctlError> {
    if !options.serves_loopback(Family::V4, scope) {
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
    let mut nft = Nft::open().ok()?;
    Table::ALL.into_iter().find_map(|table| {
        let is_unseen =
            |chain: &str| is_proxys(chain, false) && saved.rules(table, chain).is_none();
        let found = nft.leftover_chains(&TableId::new(family, table.name()), is_unseen);
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
