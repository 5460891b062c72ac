//! The ports of Services at which load balancers ask whether this node has endpoints of them
//! (`spec.healthCheckNodePort`), one small server for each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use agent::http::{self, Reply};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::Server;
use crate::events::Events;
use crate::plan::Checks;

/// How often a port that is taken is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps servers as `checks` says, until `stop` is cancelled. `server` knows how the proxy is.
pub async fn serve(
    mut checks: watch::Receiver<Checks>,
    server: Server,
    events: Events,
    stop: CancellationToken,
) {
    let mut running: BTreeMap<SocketAddr, CancellationToken> = BTreeMap::new();
    let mut refused = BTreeSet::new();
    let mut again = interval(AGAIN);
    loop {
        let now = checks.borrow_and_update().clone();
        let wanted: BTreeSet<SocketAddr> = (now.services.keys())
            .flat_map(|port| now.addresses.iter().map(|ip| SocketAddr::new(*ip, *port)))
            .collect();
        running.retain(|address, running| {
            let stays = wanted.contains(address);
            if !stays {
                running.cancel();
            }
            stays
        });
        refused.retain(|address| wanted.contains(address));
        for address in wanted {
            if running.contains_key(&address) {
                continue;
            }
            match http::bind("healthCheckNodePort", address).await {
                Ok(listener) => {
                    let stop = stop.child_token();
                    running.insert(address, stop.clone());
                    refused.remove(&address);
                    let (checks, server) = (checks.clone(), server.clone());
                    let answer = move |_: &str| answer(&checks, &server, address.port());
                    tokio::spawn(listener.serve(answer, stop));
                }
                Err(error) if refused.insert(address) => {
                    tracing::warn!(%error, "will try again until the port is free");
                    if let Some(check) = now.services.get(&address.port()) {
                        events.no_health_check(check, &error.to_string());
                    }
                }
                Err(_) => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = checks.changed() => if changed.is_err() { return },
            _ = again.tick(), if !refused.is_empty() => {}
        }
    }
}

/// The answer at a port; names and headers are kube-proxy's.
fn answer(checks: &watch::Receiver<Checks>, server: &Server, port: u16) -> Reply {
    let checks = checks.borrow();
    let Some(check) = checks.services.get(&port) else {
        return Reply::not_found();
    };
    let healthy = server.is_healthy(Timestamp::now());
    let (namespace, name) = check.service.parts();
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": healthy,
    });
    let status = if healthy && check.local_endpoints > 0 {
        200
    } else {
        503
    };
    Reply {
        headers: vec![
            ("x-content-type-options", "nosniff".to_owned()),
            (
                "x-load-balancing-endpoint-weight",
                check.local_endpoints.to_string(),
            ),
        ],
        ..Reply::json(status, body.to_string())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::health::Health;
    use crate::index::ObjectName;
    use crate::metrics::Metrics;
    use crate::plan::HealthCheck;

    fn server(health: Health) -> Server {
        let (_, health) = watch::channel(health);
        let metrics = Metrics::new(&mut Registry::default());
        Server::new(health, Duration::from_secs(60), metrics)
    }

    fn checks(port: u16, local_endpoints: usize) -> Checks {
        let check = HealthCheck {
            service: ObjectName::new("shop", "web"),
            port,
            local_endpoints,
        };
        Checks {
            addresses: [[127, 0, 0, 1].into()].into(),
            services: [(port, check)].into(),
        }
    }

    #[test]
    fn it_says_yes_with_endpoints_and_rules_alone() {
        let up = Health {
            last_updated: Some(Timestamp::now()),
            ..Health::default()
        };
        let status = |local, health| {
            let (_, checks) = watch::channel(checks(30_100, local));
            answer(&checks, &server(health), 30_100).status
        };
        assert_eq!(status(2, up.clone()), 200);
        assert_eq!(status(0, up.clone()), 503);
        assert_eq!(status(2, Health::default()), 503, "no rules yet");
        let leaving = Health {
            node_leaving: true,
            ..up.clone()
        };
        assert_eq!(status(2, leaving), 200, "what is here still serves");
        let (_, checks) = watch::channel(checks(30_100, 2));
        let reply = answer(&checks, &server(up), 30_100);
        assert_eq!(
            reply.body,
            r#"{"localEndpoints":2,"service":{"name":"web","namespace":"shop"},"serviceProxyHealthy":true}"#
        );
        let weight = ("x-load-balancing-endpoint-weight", "2".to_owned());
        assert!(reply.headers.contains(&weight));
    }

    async fn is_open(address: SocketAddr) -> bool {
        tokio::net::TcpStream::connect(address).await.is_ok()
    }

    async fn wait(what: &str, mut is: impl AsyncFnMut() -> bool) {
        let waiting = async {
            let mut again = interval(Duration::from_millis(20));
            while !is().await {
                again.tick().await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        assert!(done.is_ok(), "{what}");
    }

    #[tokio::test]
    async fn ports_open_and_close_with_their_services() {
        let taken = http::bind("--test", ([127, 0, 0, 1], 0).into())
            .await
            .unwrap();
        let free = http::bind("--test", ([127, 0, 0, 1], 0).into())
            .await
            .unwrap();
        let (first, second) = (taken.local_addr(), free.local_addr());
        drop(free);
        let (sender, receiver) = watch::channel(checks(first.port(), 1));
        let stop = CancellationToken::new();
        let server = server(Health::default());
        let serving = tokio::spawn(serve(receiver, server, Events::default(), stop.clone()));
        sender.send_replace(checks(second.port(), 1));
        wait("the second port", async || is_open(second).await).await;
        // Back to the first, which someone else has, and gives up in the end.
        sender.send_replace(checks(first.port(), 1));
        wait("the second port is given up", async || {
            !is_open(second).await
        })
        .await;
        drop(taken);
        wait("the first port", async || is_open(first).await).await;
        stop.cancel();
        serving.await.unwrap();
        wait("an end", async || !is_open(first).await).await;
    }
}
