//! One pass: from the index over the plan into the kernel, and what is told of it.

use std::time::{Duration, Instant};

use agent::sync::Pass;
use hostnet::vocab::Family;
use k8s_openapi::jiff::Timestamp;

use crate::backend::{Applied, Backend};
use crate::conntrack::{Cleaner, Stale};
use crate::events::Events;
use crate::host_ports::HostPorts;
use crate::index::Index;
use crate::metrics::{Kind, Metrics};
use crate::plan::{Delta, Planner};

/// How many changed service ports a log line names.
const NAMED: usize = 5;

/// Keeps the kernel in line with the index.
#[derive(Debug)]
pub struct Syncer<B> {
    backend: B,
    planner: Planner,
    metrics: Metrics,
    started: Timestamp,
    /// Changes of endpoints that rules do not follow yet.
    triggers: Vec<(Family, Timestamp)>,
    /// The kernel held the plan after the last call to the backend.
    in_line: bool,
    /// There has been a pass that succeeded.
    first_done: bool,
    unfinished: bool,
    cleaner: Option<Cleaner>,
    events: Events,
    host_ports: HostPorts,
    /// UDP flows that have to be looked at once the rules are in.
    stale: Stale,
}

impl<B: Backend> Syncer<B> {
    /// Programs `backend` with what `planner` plans.
    pub fn new(backend: B, planner: Planner, metrics: Metrics) -> Self {
        Self {
            backend,
            planner,
            metrics,
            started: Timestamp::now(),
            triggers: Vec::new(),
            in_line: false,
            first_done: false,
            unfinished: false,
            cleaner: None,
            events: Events::default(),
            host_ports: HostPorts::default(),
            stale: Stale::default(),
        }
    }

    /// Has stale UDP flows deleted.
    #[must_use]
    pub fn cleaner(self, cleaner: Cleaner) -> Self {
        Self {
            cleaner: Some(cleaner),
            ..self
        }
    }

    /// Tells the cluster's users what they have to mend.
    #[must_use]
    pub fn events(self, events: Events) -> Self {
        Self { events, ..self }
    }

    /// The plan's owner, to tell it what is not in the index.
    pub fn planner(&mut self) -> &mut Planner {
        &mut self.planner
    }

    /// The packet filter.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The packet filter, to ask it what the kernel holds.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Whether the kernel holds the plan, as far as is known.
    pub fn in_line(&self) -> bool {
        self.in_line
    }

    /// Whether [`Syncer::tick`] is wanted.
    pub fn unfinished(&self) -> bool {
        self.unfinished
    }

    /// Plans what is dirty in the index, and brings the kernel in line with the plan: with all of it
    /// where `pass` says so or after a failure, else with what changed. Blocks while the kernel works.
    /// Returns whether anything was planned anew.
    pub fn pass(&mut self, index: &mut Index, pass: Pass) -> Result<bool, B::Error> {
        let start = Instant::now();
        let dirty = index.take_dirty();
        let delta = self.planner.update(index, &dirty);
        self.metrics.planned(&delta);
        self.tell_of_conflicts(index);
        self.stale.add(&delta, self.planner.ruleset());
        // What was changed before the start was late by no fault of this process.
        let news = dirty
            .triggers
            .into_iter()
            .filter(|(_, at)| *at >= self.started);
        self.triggers.extend(news);

        let kind = if pass == Pass::Full || !self.in_line {
            Kind::Full
        } else {
            Kind::Partial
        };
        let applied = match kind {
            Kind::Full => self.backend.replace(self.planner.ruleset()),
            Kind::Partial if delta.is_empty() => Ok(Applied {
                ops: 0,
                unfinished: self.unfinished,
            }),
            Kind::Partial => self.backend.update(&delta),
        };
        let was_in_line = std::mem::replace(&mut self.in_line, applied.is_ok());
        let applied = applied.inspect_err(|_| self.metrics.failed(kind, &delta))?;
        self.unfinished = applied.unfinished;
        let stale = std::mem::take(&mut self.stale);
        if let Some(cleaner) = &self.cleaner {
            cleaner.clean(stale);
        }
        let took = start.elapsed();
        self.metrics.synced(kind, took, &delta);
        for (family, trigger) in self.triggers.drain(..) {
            self.metrics.programmed(family, trigger);
        }
        // After changes or a failure there is something to do; else nobody but us should have made it so.
        let repaired = was_in_line && kind == Kind::Full && delta.is_empty() && applied.ops > 0;
        self.tell(kind, &delta, applied.ops, repaired, took);
        self.first_done = true;
        Ok(!delta.is_empty())
    }

    /// Removes what an earlier pass left for packets on their way. Blocks while the kernel works.
    pub fn tick(&mut self) -> Result<(), B::Error> {
        let applied = self.backend.tick();
        self.in_line &= applied.is_ok();
        let applied = applied.inspect_err(|_| self.metrics.cleanup_failed())?;
        self.unfinished = applied.unfinished;
        tracing::debug!(
            ops = applied.ops,
            "removed what was left for packets on their way"
        );
        Ok(())
    }

    /// Tells the Node's users why rules cannot be programmed.
    pub fn tell_of_failure(&self, index: &Index, error: &str) {
        self.events.not_programmed(index.this_node(), error);
    }

    /// Tells of node ports that pods of this node have as host ports.
    pub fn tell_of_host_ports(&mut self, index: &Index) {
        match self.host_ports.look(self.planner.ruleset()) {
            Ok(clashes) => {
                for clash in clashes {
                    self.events.host_port(&clash, index);
                    tracing::warn!(
                        service = %clash.key,
                        port = clash.port,
                        owner = clash.owner,
                        "a pod has the node port as its host port, and answers in place of the Service"
                    );
                }
            }
            Err(error) => tracing::debug!(%error, "twill-cni's host ports cannot be read"),
        }
    }

    fn tell_of_conflicts(&mut self, index: &Index) {
        for conflict in self.planner.take_new_conflicts() {
            self.events.conflict(&conflict, index);
            tracing::warn!(
                service = %conflict.loser,
                frontend = %conflict.frontend.place(),
                owner = %conflict.owner,
                "frontend left out: another Service has the same address and port"
            );
        }
        self.metrics.conflicts(self.planner.conflicts().len());
    }

    fn tell(&self, kind: Kind, delta: &Delta, ops: usize, repaired: bool, took: Duration) {
        let took = format_args!("{took:.1?}");
        let ports: usize = Family::ALL
            .map(|f| self.planner.ruleset().family(f).ports.len())
            .iter()
            .sum();
        match kind {
            Kind::Full if !self.first_done => {
                tracing::info!(ports, ops, %took, "rules are in line with all Services");
            }
            Kind::Full if repaired => {
                self.metrics.repaired(ops);
                tracing::warn!(
                    ports,
                    ops,
                    %took,
                    "rules were not as they should be: repaired"
                );
            }
            Kind::Full => {
                tracing::debug!(ports, ops, %took, "compared all rules with the kernel")
            }
            Kind::Partial if delta.is_empty() => {}
            Kind::Partial => {
                let changed = names(delta);
                tracing::info!(%changed, ports, ops, %took, "rules follow what changed");
            }
        }
        for family in Family::ALL {
            for change in &delta.family(family).ports {
                tracing::debug!(%family, %change, "planned");
            }
        }
    }
}

/// The first few names of what changed, and how many more there are.
fn names(delta: &Delta) -> String {
    let changes = || {
        Family::ALL
            .into_iter()
            .flat_map(|family| &delta.family(family).ports)
    };
    let mut names: Vec<_> = changes()
        .map(|change| change.key.to_string())
        .take(NAMED)
        .collect();
    if Family::ALL
        .iter()
        .any(|family| delta.family(*family).node.is_some())
    {
        names.insert(0, "this node".into());
    }
    match changes().count().saturating_sub(NAMED) {
        0 => names.join(" "),
        more => format!("{} and {more} more", names.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use hostnet::nft::Change;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::fixtures::{self, SEED};
    use crate::plan::Ruleset;

    /// A kernel that can be told to fail.
    #[derive(Debug, Default)]
    struct Model {
        holds: Ruleset,
        fail: bool,
        calls: Vec<&'static str>,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the kernel refused")]
    struct Refused;

    impl Model {
        fn call(&mut self, name: &'static str, ops: usize) -> Result<Applied, Refused> {
            self.calls.push(name);
            if std::mem::take(&mut self.fail) {
                // What a failed call leaves is not known: make it wrong.
                self.holds = Ruleset::default();
                return Err(Refused);
            }
            Ok(Applied {
                ops,
                unfinished: false,
            })
        }
    }

    impl Backend for Model {
        type Error = Refused;

        fn replace(&mut self, ruleset: &Ruleset) -> Result<Applied, Refused> {
            let ops = usize::from(self.holds != *ruleset);
            self.call("replace", ops)
                .inspect(|_| self.holds = ruleset.clone())
        }

        fn is_bare(&mut self) -> Result<bool, Refused> {
            Ok(self.holds == Ruleset::default())
        }

        fn update(&mut self, delta: &Delta) -> Result<Applied, Refused> {
            assert!(!delta.is_empty());
            self.call("update", 1).inspect(|_| self.holds.apply(delta))
        }

        fn tick(&mut self) -> Result<Applied, Refused> {
            self.call("tick", 1)
        }

        fn is_disturbed_by(&self, _: &Change) -> bool {
            true
        }

        fn cleanup(&mut self) -> Result<Applied, Refused> {
            self.call("cleanup", 1)
        }
    }

    fn syncer() -> (Syncer<Model>, Registry) {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let planner = Planner::new(fixtures::cluster_cidr("10.244.0.0/16"));
        (Syncer::new(Model::default(), planner, metrics), registry)
    }

    fn check(syncer: &Syncer<Model>, calls: &[&str]) {
        assert_eq!(syncer.backend.calls, calls);
        assert_eq!(&syncer.backend.holds, syncer.planner.ruleset());
    }

    fn change(index: &mut Index) {
        change_to(index, "10.244.3.82");
    }

    fn change_to(index: &mut Index, address: &str) {
        let changed = SEED.replace("10.244.3.81", address);
        fixtures::upserts(&changed)
            .into_iter()
            .for_each(|update| index.update(update));
    }

    #[test]
    fn the_first_pass_is_full_and_then_only_changes_are_sent() {
        let (mut syncer, _) = syncer();
        let mut index = fixtures::index(SEED);
        syncer.pass(&mut index, Pass::Dirty).unwrap();
        check(&syncer, &["replace"]);
        syncer.pass(&mut index, Pass::Dirty).unwrap();
        check(&syncer, &["replace"]);
        change(&mut index);
        syncer.pass(&mut index, Pass::Dirty).unwrap();
        check(&syncer, &["replace", "update"]);
        syncer.pass(&mut index, Pass::Full).unwrap();
        check(&syncer, &["replace", "update", "replace"]);
    }

    #[test]
    fn a_failed_pass_is_followed_by_a_full_one() {
        let (mut syncer, _) = syncer();
        let mut index = fixtures::index(SEED);
        syncer.pass(&mut index, Pass::Dirty).unwrap();
        change(&mut index);
        syncer.backend.fail = true;
        syncer.pass(&mut index, Pass::Dirty).unwrap_err();
        // Nothing is dirty any more; the change must not be lost with the failure.
        syncer.pass(&mut index, Pass::Dirty).unwrap();
        check(&syncer, &["replace", "update", "replace"]);
        syncer.backend.fail = true;
        syncer.tick().unwrap_err();
        syncer.pass(&mut index, Pass::Dirty).unwrap();
        check(
            &syncer,
            &["replace", "update", "replace", "tick", "replace"],
        );
    }

    #[test]
    fn only_drift_counts_as_repaired() {
        let (mut syncer, registry) = syncer();
        let repairs = || {
            let text = agent::metrics::reply(&registry).body;
            let line = text
                .lines()
                .find(|line| line.starts_with("twill_proxy_repairs_total"))
                .unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let mut index = fixtures::index(SEED);
        syncer.pass(&mut index, Pass::Full).unwrap();
        change(&mut index);
        syncer.pass(&mut index, Pass::Full).unwrap();
        syncer.pass(&mut index, Pass::Full).unwrap();
        assert_eq!(repairs(), "0");
        change_to(&mut index, "10.244.3.83");
        syncer.backend.fail = true;
        syncer.pass(&mut index, Pass::Dirty).unwrap_err();
        syncer.pass(&mut index, Pass::Full).unwrap();
        assert_eq!(repairs(), "0", "after a failure something is to be done");
        syncer.backend.holds = Ruleset::default();
        syncer.pass(&mut index, Pass::Full).unwrap();
        assert_eq!(repairs(), "1");
        assert_eq!(&syncer.backend.holds, syncer.planner.ruleset());
    }
}
