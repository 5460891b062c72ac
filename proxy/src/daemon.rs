//! The process: from a configuration to a running loop with its two ports, and the way out.

use std::sync::Arc;

use agent::events::Recorder;
use agent::http::BindError;
use hostnet::nft;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::conntrack::Cleaner;
use crate::events::Events;
use crate::health::checks;
use crate::health::{self, Health};
use crate::interfaces;
use crate::metrics::Metrics;
use crate::nft::NftBackend;
use crate::plan::{Checks, Planner};
use crate::ports::Port;
use crate::run::{Periods, Runner, updates};
use crate::sync::Syncer;

/// What `/proxyMode` says.
const MODE: &str = "nftables";

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No API server is known.
    #[error(transparent)]
    Client(#[from] agent::client::Error),
    /// A port cannot be had.
    #[error(transparent)]
    Port(#[from] BindError),
    /// The kernel has no nf_tables for us.
    #[error("nf_tables cannot be reached; it needs Linux 5.13 and the capability NET_ADMIN")]
    Nft(#[from] nft::Error),
    /// The kernel gives no way to its connections.
    #[error(transparent)]
    Conntrack(#[from] hostnet::conntrack::Error),
    /// The kernel does not tell of addresses.
    #[error(transparent)]
    Interfaces(#[from] interfaces::Error),
}

/// Runs until `stop` is cancelled; what is in the kernel then stays there.
///
/// # Errors
/// What is missing at the start. Later on errors are logged, counted, and tried again.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    for note in &config.notes {
        tracing::warn!("configuration: {note}");
    }
    tracing::info!(node = %config.hostname, mode = MODE, settings = %config.settings, "starting");

    let mut registry = agent::metrics::registry("twill_proxy");
    let metrics = Metrics::new(&mut registry);
    let (health, health_seen) = watch::channel(Health::default());
    let port = |flag, address| Port {
        flag,
        address,
        hard_fail: config.bind_hard_fail,
    };
    let server = health::Server::new(health_seen, config.sync_period * 2, metrics.clone());
    let answering = server.clone();
    port("--healthz-bind-address", config.healthz)
        .serve(move |path: &str| answering.answer(path), stop.clone())
        .await?;
    let registry = Arc::new(registry);
    port("--metrics-bind-address", config.metrics)
        .serve(
            move |path: &str| health::metrics_answer(&registry, MODE, path),
            stop.clone(),
        )
        .await?;

    let backend = NftBackend::open()?;
    let client = agent::client::connect(&config.client)?;
    let events = Events::from(Recorder::start(
        client.clone(),
        "twill-proxy",
        &config.hostname,
    ));
    events.starting(&config.hostname);
    let (checks, checks_seen) = watch::channel(Checks::default());
    tokio::spawn(checks::serve(
        checks_seen,
        server,
        events.clone(),
        stop.clone(),
    ));
    let syncer = Syncer::new(backend, Planner::new(config.settings), metrics.clone())
        .cleaner(Cleaner::start(metrics.clone())?)
        .events(events);
    let periods = Periods {
        full: config.sync_period,
        least: config.min_sync_period,
    };
    let runner = Runner::new(&config.hostname, syncer, periods, health, checks, metrics)?;
    runner.run(updates(&client, &config.hostname), stop).await;
    Ok(())
}
