//! The proxy's metrics: kube-proxy's names with kube-proxy's meaning, and a few of our own.
//!
//! One pass serves both families, so its duration is told for each family that it touched.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hostnet::vocab::Family;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;

use crate::plan::{At, Delta, ServicePort, Verdict};

/// The label that tells the families apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct IpFamily {
    ip_family: FamilyName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FamilyName(pub(crate) Family);

impl EncodeLabelValue for FamilyName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self.0 {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
        .encode(encoder)
    }
}

pub(crate) fn of(family: Family) -> IpFamily {
    IpFamily {
        ip_family: FamilyName(family),
    }
}

/// The label of `no_local_endpoints_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLocal {
    ip_family: FamilyName,
    traffic_policy: &'static str,
}

/// The label of answers on the health port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

/// Made on first use, as `Labelled::default` cannot make a histogram.
type Durations = Labelled<IpFamily, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// All of them. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    sync: Durations,
    sync_full: Durations,
    sync_partial: Durations,
    programming: Durations,
    last_sync: Labelled<IpFamily, Seconds>,
    last_queued: Labelled<IpFamily, Seconds>,
    service_changes: Counter,
    service_changes_pending: Gauge,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    no_local_endpoints: Labelled<NoLocal, Gauge>,
    sync_failures: Labelled<IpFamily, Counter>,
    cleanup_failures: Labelled<IpFamily, Counter>,
    healthz: Labelled<Code, Counter>,
    livez: Labelled<Code, Counter>,
    service_ports: Labelled<IpFamily, Gauge>,
    repairs: Counter,
    conflicts: Gauge,
    flow_durations: Durations,
    flows_deleted: Labelled<IpFamily, Counter>,
}

/// 1 ms to 16 s, doubling: as kube-proxy's.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Up to 5 minutes, finest below one: as kube-proxy's.
fn programming_buckets() -> Histogram {
    let buckets = [0.25, 0.5].into_iter().chain(linear_buckets(1.0, 1.0, 59));
    Histogram::new(
        buckets
            .chain(linear_buckets(60.0, 5.0, 12))
            .chain(linear_buckets(120.0, 30.0, 7)),
    )
}

/// How a pass looked for what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of it was compared with the kernel.
    Full,
    /// Only what changed in the plan was sent.
    Partial,
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            sync: Labelled::new_with_constructor(sync_buckets),
            sync_full: Labelled::new_with_constructor(sync_buckets),
            sync_partial: Labelled::new_with_constructor(sync_buckets),
            programming: Labelled::new_with_constructor(programming_buckets),
            last_sync: Labelled::default(),
            last_queued: Labelled::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            no_local_endpoints: Labelled::default(),
            sync_failures: Labelled::default(),
            cleanup_failures: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
            service_ports: Labelled::default(),
            repairs: Counter::default(),
            conflicts: Gauge::default(),
            flow_durations: Labelled::new_with_constructor(sync_buckets),
            flows_deleted: Labelled::default(),
        };
        let theirs = registry.sub_registry_with_prefix("kubeproxy");
        theirs.register(
            "sync_proxy_rules_duration_seconds",
            "Time that a pass took",
            metrics.sync.clone(),
        );
        theirs.register(
            "sync_full_proxy_rules_duration_seconds",
            "Time that a pass took that compared everything with the kernel",
            metrics.sync_full.clone(),
        );
        theirs.register(
            "sync_partial_proxy_rules_duration_seconds",
            "Time that a pass took that sent only what changed",
            metrics.sync_partial.clone(),
        );
        theirs.register(
            "network_programming_duration_seconds",
            "Time from a change of a Service's pods to rules that follow it",
            metrics.programming.clone(),
        );
        theirs.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the last pass succeeded",
            metrics.last_sync.clone(),
        );
        theirs.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a pass was last asked for",
            metrics.last_queued.clone(),
        );
        theirs.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services that were told",
            metrics.service_changes.clone(),
        );
        theirs.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that rules do not follow yet",
            metrics.service_changes_pending.clone(),
        );
        theirs.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices that were told",
            metrics.endpoint_changes.clone(),
        );
        theirs.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that rules do not follow yet",
            metrics.endpoint_changes_pending.clone(),
        );
        theirs.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports of policy Local that have endpoints, but none on this node",
            metrics.no_local_endpoints.clone(),
        );
        theirs.register(
            "proxy_healthz",
            "Answers of /healthz",
            metrics.healthz.clone(),
        );
        theirs.register("proxy_livez", "Answers of /livez", metrics.livez.clone());
        theirs.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Time that it took to find and delete stale UDP flows",
            metrics.flow_durations.clone(),
        );
        theirs.register(
            "conntrack_reconciler_deleted_entries",
            "Stale UDP flows that were deleted",
            metrics.flows_deleted.clone(),
        );
        let ours = registry.sub_registry_with_prefix("twill_proxy");
        ours.register(
            "service_ports",
            "Service ports that are served",
            metrics.service_ports.clone(),
        );
        ours.register(
            "repairs",
            "Changes to the kernel by passes that should have found nothing to do",
            metrics.repairs.clone(),
        );
        ours.register(
            "conflicting_frontends",
            "Addresses and ports of Services that are left out, since another Service has them",
            metrics.conflicts.clone(),
        );
        metrics
    }

    /// Registers those that kube-proxy has in nftables mode alone, too.
    #[must_use]
    pub fn of_nftables(self, registry: &mut Registry) -> Self {
        let theirs = registry.sub_registry_with_prefix("kubeproxy");
        theirs.register(
            "sync_proxy_rules_nftables_sync_failures",
            "Passes that failed",
            self.sync_failures.clone(),
        );
        theirs.register(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Failures to remove what nothing leads to any more",
            self.cleanup_failures.clone(),
        );
        self
    }

    /// Stale UDP flows were looked for, and so many deleted.
    pub fn flows_deleted(&self, family: Family, took: Duration, deleted: usize) {
        let label = of(family);
        self.flow_durations
            .get_or_create(&label)
            .observe(took.as_secs_f64());
        self.flows_deleted
            .get_or_create(&label)
            .inc_by(deleted as u64);
    }

    /// How many frontends are left out, since another Service has them.
    pub fn conflicts(&self, count: usize) {
        self.conflicts.set(count as i64);
    }

    /// Changes were told that rules do not follow yet.
    pub fn queued(&self, services: u64, slices: u64) {
        self.service_changes.inc_by(services);
        self.service_changes_pending.inc_by(services as i64);
        self.endpoint_changes.inc_by(slices);
        self.endpoint_changes_pending.inc_by(slices as i64);
        for family in Family::ALL {
            self.last_queued
                .get_or_create(&of(family))
                .set(seconds(Timestamp::now()));
        }
    }

    /// A pass succeeded in that time, and made these changes to the plan.
    pub fn synced(&self, kind: Kind, took: Duration, delta: &Delta) {
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
        for family in touched(kind, delta) {
            let label = of(family);
            let took = took.as_secs_f64();
            self.sync.get_or_create(&label).observe(took);
            match kind {
                Kind::Full => self.sync_full.get_or_create(&label).observe(took),
                Kind::Partial => self.sync_partial.get_or_create(&label).observe(took),
            }
            self.last_sync
                .get_or_create(&label)
                .set(seconds(Timestamp::now()));
        }
    }

    /// A pass failed.
    pub fn failed(&self, kind: Kind, delta: &Delta) {
        for family in touched(kind, delta) {
            self.sync_failures.get_or_create(&of(family)).inc();
        }
    }

    /// What an earlier pass left could not be removed. One call serves both families.
    pub fn cleanup_failed(&self) {
        for family in Family::ALL {
            self.cleanup_failures.get_or_create(&of(family)).inc();
        }
    }

    /// The plan changed.
    pub fn planned(&self, delta: &Delta) {
        for family in Family::ALL {
            for change in &delta.family(family).ports {
                self.count(family, change.before.as_deref(), -1);
                self.count(family, change.after.as_deref(), 1);
            }
        }
    }

    fn count(&self, family: Family, port: Option<&ServicePort>, by: i64) {
        let Some(port) = port else { return };
        self.service_ports.get_or_create(&of(family)).inc_by(by);
        let drops = |policy, found: bool| {
            if found {
                let label = NoLocal {
                    ip_family: FamilyName(family),
                    traffic_policy: policy,
                };
                self.no_local_endpoints.get_or_create(&label).inc_by(by);
            }
        };
        let has = |cluster_ip: bool| {
            (port.frontends.iter()).any(|frontend| {
                matches!(frontend.at, At::ClusterIp(_)) == cluster_ip
                    && frontend.outside == Verdict::Drop
            })
        };
        drops("internal", has(true));
        drops("external", has(false));
    }

    /// Rules now follow a change of endpoints of that family that was made at that time.
    pub fn programmed(&self, family: Family, trigger: Timestamp) {
        let took = seconds(Timestamp::now()) - seconds(trigger);
        self.programming
            .get_or_create(&of(family))
            .observe(took.max(0.0));
    }

    /// A pass that should have found nothing to do found that many changes to make.
    pub fn repaired(&self, ops: usize) {
        self.repairs.inc_by(ops as u64);
    }

    /// `/healthz` was answered.
    pub fn healthz(&self, code: u16) {
        self.healthz.get_or_create(&Code { code }).inc();
    }

    /// `/livez` was answered.
    pub fn livez(&self, code: u16) {
        self.livez.get_or_create(&Code { code }).inc();
    }
}

fn touched(kind: Kind, delta: &Delta) -> impl Iterator<Item = Family> + '_ {
    let touched = move |family: &Family| kind == Kind::Full || !delta.family(*family).is_empty();
    Family::ALL.into_iter().filter(touched)
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, SEED};
    use crate::plan::Planner;

    fn text(registry: &Registry) -> String {
        agent::metrics::reply(registry).body
    }

    #[test]
    fn names_are_kube_proxys() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry).of_nftables(&mut registry);
        let mut index = fixtures::index(SEED);
        let mut planner = Planner::new(fixtures::cluster_cidr("10.244.0.0/16"));
        let dirty = index.take_dirty();
        let delta = planner.update(&index, &dirty);
        metrics.queued(4, 4);
        metrics.planned(&delta);
        metrics.synced(Kind::Full, Duration::from_millis(3), &delta);
        metrics.synced(Kind::Partial, Duration::from_millis(1), &delta);
        metrics.failed(Kind::Partial, &delta);
        metrics.cleanup_failed();
        metrics.programmed(Family::V4, Timestamp::now());
        metrics.healthz(200);
        metrics.livez(503);
        let text = text(&registry);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 4",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 4",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
            "twill_proxy_service_ports{ip_family=\"IPv4\"} 6",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        for name in ["last_timestamp_seconds", "last_queued_timestamp_seconds"] {
            let name = format!("kubeproxy_sync_proxy_rules_{name}{{ip_family=\"IPv4\"}} ");
            assert!(
                text.lines().any(|found| found.starts_with(&name)),
                "{name} is not in\n{text}"
            );
        }
    }

    #[test]
    fn ports_without_local_endpoints_are_counted_while_they_are() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let mut index = fixtures::index(
            &SEED
                .replace(
                    "externalTrafficPolicy: Cluster",
                    "externalTrafficPolicy: Local",
                )
                .replace("nodeName: k8s-node-2", "nodeName: k8s-node-1"),
        );
        let mut planner = Planner::new(fixtures::cluster_cidr("10.244.0.0/16"));
        let line = |n| {
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total\
             {ip_family=\"IPv4\",traffic_policy=\"external\"} "
                .to_owned()
                + n
        };
        let dirty = index.take_dirty();
        metrics.planned(&planner.update(&index, &dirty));
        assert!(
            text(&registry).contains(&line("1\n")),
            "{}",
            text(&registry)
        );
        fixtures::removes(SEED)
            .into_iter()
            .for_each(|update| index.update(update));
        let dirty = index.take_dirty();
        metrics.planned(&planner.update(&index, &dirty));
        assert!(
            text(&registry).contains(&line("0\n")),
            "{}",
            text(&registry)
        );
    }
}
