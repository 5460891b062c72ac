//! The numbers that flanneld tells: `flanneld_*`.

use std::sync::Arc;

use cli::probe::Probed;
use hostnet::vocab::Family;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family as Metrics, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{
    diff::Op,
    peers::Selection,
    reconcile::{Error, Report},
};

/// A family of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    family: &'static str,
}

/// Why a node is no peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// A kind of object in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    object: &'static str,
}

/// Handles on all that is counted. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct Counts {
    registry: Arc<Registry>,
    peers: Metrics<OfFamily, Gauge>,
    skipped: Metrics<Why, Gauge>,
    changes: Metrics<What, Counter>,
    repairs: Metrics<What, Counter>,
    passes: Histogram,
    failures: Counter,
    netlink_errors: Metrics<What, Counter>,
    configured: Gauge,
    leases: Metrics<OfFamily, Gauge>,
    probes: Counter,
    probes_lost: Counter,
    probe_times: Histogram,
    unwell: Gauge,
}

impl Counts {
    /// All at zero, with the build's version beside them.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = agent::metrics::registry("flanneld");
        let counts = Self {
            registry: Arc::default(),
            peers: Metrics::default(),
            skipped: Metrics::default(),
            changes: Metrics::default(),
            repairs: Metrics::default(),
            passes: Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
            ]),
            failures: Counter::default(),
            netlink_errors: Metrics::default(),
            configured: Gauge::default(),
            leases: Metrics::default(),
            probes: Counter::default(),
            probes_lost: Counter::default(),
            probe_times: Histogram::new([
                0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            ]),
            unwell: Gauge::default(),
        };
        counts.configured.set(1);
        // A monitor sees the first of a kind only where it has seen none before.
        let of_kernel = Op::OBJECTS.into_iter().chain(["pods"]);
        for object in of_kernel.clone() {
            counts.repairs.get_or_create(&What { object }).inc_by(0);
        }
        for object in of_kernel.chain(["state", "events"]) {
            counts
                .netlink_errors
                .get_or_create(&What { object })
                .inc_by(0);
        }
        registry.register(
            "flanneld_peers",
            "Peers that are programmed",
            counts.peers.clone(),
        );
        registry.register(
            "flanneld_skipped_peers",
            "Nodes that are left out, by reason",
            counts.skipped.clone(),
        );
        registry.register(
            "flanneld_changes",
            "Changes made in the kernel, by kind of object",
            counts.changes.clone(),
        );
        registry.register(
            "flanneld_repairs",
            "Changes by others that were undone, by kind of object",
            counts.repairs.clone(),
        );
        registry.register(
            "flanneld_sync_duration_seconds",
            "Time that a pass over the kernel took",
            counts.passes.clone(),
        );
        registry.register(
            "flanneld_sync_failures",
            "Passes that did not reach what is desired",
            counts.failures.clone(),
        );
        registry.register(
            "flanneld_netlink_errors",
            "Changes that the kernel refused, by kind of object; `state`: it could not be read, `events`: some were lost",
            counts.netlink_errors.clone(),
        );
        registry.register(
            "flanneld_lease_expiry_timestamp_seconds",
            "When the subnet's Lease ends unless it is renewed, in seconds since 1970",
            counts.leases.clone(),
        );
        registry.register(
            "flanneld_config_valid",
            "1 if net-conf.json is right; 0: the last good one is in force",
            counts.configured.clone(),
        );
        registry.register(
            "flanneld_probes",
            "Packets sent to other nodes to see whether they arrive",
            counts.probes.clone(),
        );
        registry.register(
            "flanneld_probes_lost",
            "Those that were not answered",
            counts.probes_lost.clone(),
        );
        registry.register(
            "flanneld_probe_duration_seconds",
            "Time to the answer, the median of one turn to one peer",
            counts.probe_times.clone(),
        );
        registry.register(
            "flanneld_unwell_peers",
            "Peers to which packets are lost, or none of full size gets",
            counts.unwell.clone(),
        );
        Self {
            registry: Arc::new(registry),
            ..counts
        }
    }

    /// What is registered.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A pass has ended well after so many seconds.
    pub fn passed(&self, seconds: f64, report: &Report) {
        self.passes.observe(seconds);
        for op in &report.ops {
            self.changes
                .get_or_create(&What {
                    object: op.object(),
                })
                .inc();
        }
        for op in &report.lost {
            self.repairs
                .get_or_create(&What {
                    object: op.object(),
                })
                .inc();
        }
        self.selected(&report.selection);
    }

    fn selected(&self, selection: &Selection) {
        for (family, name) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            let count = selection
                .peers
                .iter()
                .filter(|peer| peer.subnet.family() == family)
                .count();
            self.peers
                .get_or_create(&OfFamily { family: name })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.skipped.clear();
        for skipped in &selection.skipped {
            self.skipped
                .get_or_create(&Why {
                    reason: skipped.reason.label(),
                })
                .inc();
        }
    }

    /// A subnet is held until a moment, in seconds since 1970.
    pub fn held(&self, family: Family, until: i64) {
        let family = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        self.leases.get_or_create(&OfFamily { family }).set(until);
    }

    /// So many things that pods rely on were put back.
    pub fn mended_for_pods(&self, count: usize) {
        if count > 0 {
            let what = What { object: "pods" };
            self.repairs.get_or_create(&what).inc_by(count as u64);
        }
    }

    /// Packets were sent to other nodes.
    pub fn probed(&self, all: &[Probed]) {
        for probed in all {
            for [lost, sent] in [probed.lost_small, probed.lost_full] {
                self.probes.inc_by(sent as u64);
                self.probes_lost.inc_by(lost as u64);
            }
            if let Some(milliseconds) = probed.latency {
                self.probe_times.observe(milliseconds / 1e3);
            }
        }
    }

    /// So many peers are not reached as they should be.
    pub fn unwell(&self, count: usize) {
        self.unwell.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// net-conf.json was read again.
    pub fn configured(&self, is_valid: bool) {
        self.configured.set(i64::from(is_valid));
    }

    /// A pass has failed.
    pub fn failed(&self, error: &Error) {
        self.failures.inc();
        match error {
            Error::Observe(_) => self.refused("state"),
            Error::Apply { failures, .. } => {
                for failure in failures {
                    self.refused(failure.object);
                }
            }
            Error::Iface(_) | Error::PublicTaken { .. } => {}
        }
    }

    /// What pods rely on could not be put back.
    pub fn failed_for_pods(&self) {
        self.refused("pods");
    }

    /// The kernel had more to tell than it keeps for us.
    pub fn lost_events(&self) {
        self.refused("events");
    }

    fn refused(&self, object: &'static str) {
        self.netlink_errors.get_or_create(&What { object }).inc();
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}
