//! kube-proxy's metrics of this mode: how many rules there are, restores that failed, and what rules themselves count.

use hostnet::vocab::Family;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::counters::{self, INVALID_PACKETS};
use super::script::Table;
use crate::metrics::{FamilyName, IpFamily, of};

/// The labels of numbers of rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTable {
    ip_family: FamilyName,
    table: &'static str,
}

/// All of them. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    rules: Labelled<OfTable, Gauge>,
    written: Labelled<OfTable, Gauge>,
    failures: Labelled<IpFamily, Counter>,
    partial_failures: Labelled<IpFamily, Counter>,
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let theirs = registry.sub_registry_with_prefix("kubeproxy");
        theirs.register(
            "sync_proxy_rules_iptables_total",
            "Rules of ours in a table of iptables",
            metrics.rules.clone(),
        );
        theirs.register(
            "sync_proxy_rules_iptables_last",
            "Rules that the last pass wrote to a table of iptables",
            metrics.written.clone(),
        );
        theirs.register(
            "sync_proxy_rules_iptables_restore_failures",
            "Runs of iptables-restore that failed",
            metrics.failures.clone(),
        );
        theirs.register(
            "sync_proxy_rules_iptables_partial_restore_failures",
            "Those of them that sent only what changed",
            metrics.partial_failures.clone(),
        );
        theirs.register_collector(Box::new(Packets));
        metrics
    }

    /// A pass over a family's tables wrote so many rules to this one, which now has so many of ours.
    pub(super) fn wrote(&self, family: Family, table: Table, written: i64, there: i64) {
        let label = OfTable {
            ip_family: FamilyName(family),
            table: table.name(),
        };
        self.written.get_or_create(&label).set(written);
        self.rules.get_or_create(&label).set(there);
    }

    /// A pass over a family's tables failed.
    pub(super) fn failed(&self, family: Family, is_partial: bool) {
        let label = of(family);
        self.failures.get_or_create(&label).inc();
        if is_partial {
            self.partial_failures.get_or_create(&label).inc();
        }
    }
}

/// What rules have counted, by those of the kernel's counters that there are.
#[derive(Debug)]
struct Packets;

impl Collector for Packets {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for (name, packets) in counters::packets() {
            let (metric, help) = match name {
                INVALID_PACKETS => (
                    "iptables_ct_state_invalid_dropped_packets",
                    "Packets that were dropped because connection tracking found them invalid",
                ),
                _ => (
                    "iptables_localhost_nodeports_accepted_packets",
                    "Packets that came to node ports at a loopback address",
                ),
            };
            if let Some(packets) = packets {
                let counter = ConstCounter::new(packets);
                let kind = counter.metric_type();
                counter.encode(encoder.encode_descriptor(metric, help, None, kind)?)?;
            }
        }
        Ok(())
    }
}
