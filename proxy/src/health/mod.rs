//! What the proxy says of its health, and the answers on its two ports.
//!
//! `/livez` fails when changes wait for longer than the proxy should ever need: a restart may help.
//! `/healthz` fails then, and also where new outside traffic should go to other nodes: before the first
//! rules are in, and while the Node is on its way out. Load balancers ask it (KEP-3836).

pub mod checks;

use std::sync::Arc;
use std::time::Duration;

use agent::http::Reply;
use hostnet::vocab::Family;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// What the answers are made of: the loop that programs rules keeps it up to date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// When the rules were last known to follow everything that was known.
    pub last_updated: Option<Timestamp>,
    /// Since when a change waits that rules do not follow yet.
    pub pending_since: Option<Timestamp>,
    /// The Node is on its way out.
    pub node_leaving: bool,
}

/// The answers on the health port.
#[derive(Clone, Debug)]
pub struct Server {
    health: watch::Receiver<Health>,
    /// A change that waits for longer than this is a fault.
    patience: Duration,
    metrics: Metrics,
}

impl Server {
    /// Answers from `health`. `patience`: how long a change may wait for its rules.
    pub fn new(health: watch::Receiver<Health>, patience: Duration, metrics: Metrics) -> Self {
        Self {
            health,
            patience,
            metrics,
        }
    }

    /// The answer to a request for this path on the health port.
    pub fn answer(&self, path: &str) -> Reply {
        match without_query(path) {
            "/healthz" => {
                let reply = self.healthz(Timestamp::now());
                self.metrics.healthz(reply.status);
                reply
            }
            "/livez" => {
                let reply = self.livez(Timestamp::now());
                self.metrics.livez(reply.status);
                reply
            }
            _ => Reply::not_found(),
        }
    }

    /// Whether rules are there and follow what changes: what a load balancer is told of every Service.
    fn is_healthy(&self, now: Timestamp) -> bool {
        let health = self.health.borrow();
        health.last_updated.is_some() && self.is_up_to_date(&health, now)
    }

    fn is_up_to_date(&self, health: &Health, now: Timestamp) -> bool {
        (health.pending_since)
            .is_none_or(|since| now.duration_since(since).unsigned_abs() <= self.patience)
    }

    fn healthz(&self, now: Timestamp) -> Reply {
        let health = self.health.borrow();
        let eligible = !health.node_leaving;
        self.reply(
            &health,
            now,
            health.last_updated.is_some() && eligible,
            Some(eligible),
        )
    }

    fn livez(&self, now: Timestamp) -> Reply {
        self.reply(&self.health.borrow(), now, true, None)
    }

    /// `and`: what else must hold beside rules that are up to date.
    fn reply(&self, health: &Health, now: Timestamp, and: bool, eligible: Option<bool>) -> Reply {
        let up_to_date = self.is_up_to_date(health, now);
        // With nothing waiting, what was right then is right now.
        let idle = health.pending_since.is_none();
        let updated = health
            .last_updated
            .map(|at| if idle { now } else { at }.to_string());
        let healthy = up_to_date && and;
        let mut body = json!({
            "lastUpdated": updated,
            "currentTime": now.to_string(),
            "healthy": healthy,
            "status": Family::ALL
                .map(|family| (family.to_string(), json!({"lastUpdated": updated, "healthy": up_to_date})))
                .into_iter()
                .collect::<serde_json::Map<_, _>>(),
        });
        if let Some(eligible) = eligible {
            body["nodeEligible"] = eligible.into();
        }
        Reply::json(if healthy { 200 } else { 503 }, body.to_string())
    }
}

/// The answer to a request for this path on the metrics port.
pub fn metrics_answer(
    registry: &Arc<Registry>,
    configz: &watch::Receiver<Value>,
    mode: &'static str,
    path: &str,
) -> Reply {
    match without_query(path) {
        "/configz" => {
            let document = json!({"kubeproxy.config.k8s.io": *configz.borrow()});
            Reply::json(200, document.to_string())
        }
        "/metrics" => agent::metrics::reply(registry),
        "/proxyMode" => Reply::text(200, mode),
        "/healthz" => Reply::text(200, "ok"),
        _ => Reply::not_found(),
    }
}

fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// The statuses of `/healthz` and `/livez`, an hour after the start of time.
    fn statuses(health: Health) -> (u16, u16) {
        let (_sender, receiver) = watch::channel(health);
        let server = Server::new(receiver, PATIENCE, Metrics::new(&mut Registry::default()));
        (
            server.healthz(at(3600)).status,
            server.livez(at(3600)).status,
        )
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn health_and_life() {
        let updated = Health {
            last_updated: Some(at(3000)),
            ..Health::default()
        };
        assert_eq!(statuses(Health::default()), (503, 200), "no rules yet");
        assert_eq!(statuses(updated.clone()), (200, 200), "nothing to do since");
        let waits = |since| Health {
            pending_since: Some(at(since)),
            ..updated.clone()
        };
        assert_eq!(
            statuses(waits(3541)),
            (200, 200),
            "a change waits, not for long"
        );
        assert_eq!(
            statuses(waits(3539)),
            (503, 503),
            "a change waits for too long"
        );
        let leaving = Health {
            node_leaving: true,
            ..updated
        };
        assert_eq!(statuses(leaving), (503, 200), "the Node is on its way out");
    }

    #[test]
    fn the_body_is_kube_proxys() {
        let health = Health {
            last_updated: Some(at(3000)),
            pending_since: Some(at(3590)),
            node_leaving: false,
        };
        let (_sender, receiver) = watch::channel(health);
        let server = Server::new(receiver, PATIENCE, Metrics::new(&mut Registry::default()));
        let body: serde_json::Value = serde_json::from_str(&server.healthz(at(3600)).body).unwrap();
        let family = json!({"lastUpdated": "1970-01-01T00:50:00Z", "healthy": true});
        let expected = json!({
            "lastUpdated": "1970-01-01T00:50:00Z",
            "currentTime": "1970-01-01T01:00:00Z",
            "nodeEligible": true,
            "healthy": true,
            "status": {"IPv4": family, "IPv6": family},
        });
        assert_eq!(body, expected);
        let body: serde_json::Value = serde_json::from_str(&server.livez(at(3600)).body).unwrap();
        assert_eq!(body.get("nodeEligible"), None);
    }

    #[test]
    fn other_paths_are_not_there() {
        let registry = Arc::new(Registry::default());
        let (_, configz) = watch::channel(json!({"mode": "nftables"}));
        let answer = |path| metrics_answer(&registry, &configz, "nftables", path);
        assert_eq!(answer("/proxyMode").body, "nftables");
        assert_eq!(answer("/metrics").status, 200);
        let document = r#"{"kubeproxy.config.k8s.io":{"mode":"nftables"}}"#;
        assert_eq!(answer("/configz").body, document);
        assert_eq!(answer("/").status, 404);
    }
}
