//! The process: from a configuration to a running loop with its two ports, and the way out.

use std::path::PathBuf;
use std::sync::Arc;

use agent::events::Recorder;
use agent::http::BindError;
use futures::stream::BoxStream;
use hostnet::nft;
use hostnet::sysctl::Sysctl;
use serde_json::Value;
use tokio::runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::config::{Args, Config, Mode, Reload};
use crate::conntrack::Cleaner;
use crate::events::Events;
use crate::health::checks;
use crate::health::{self, Health};
use crate::index::{Index, Update};
use crate::interfaces;
use crate::iptables::{self, IptablesBackend, Options, Variant};
use crate::metrics::Metrics;
use crate::nft::NftBackend;
use crate::plan::{Checks, Planner};
use crate::ports::Port;
use crate::run::{Periods, Runner, updates};
use crate::snapshot::Keeper;
use crate::succession::{Others, Successor};
use crate::sync::Syncer;

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

/// Runs until `stop` is cancelled, and follows the file that `args` name; what is in the kernel then stays there. It
/// blocks its thread while the kernel works: what is asked at the ports is answered in the runtime `answers`.
///
/// # Errors
/// What is missing at the start. Later on errors are logged, counted, and tried again.
pub async fn run(
    args: &Args,
    config: Config,
    answers: &runtime::Handle,
    stop: CancellationToken,
) -> Result<(), Error> {
    config.tell();
    set_oom_score_adj(config.oom_score_adj);
    tracing::info!(node = %config.hostname, mode = config.mode.as_str(), settings = %config.settings, "starting");

    let client = agent::client::connect(&config.client)?;
    let events = Events::from(Recorder::start(
        client.clone(),
        "twill-proxy",
        &config.hostname,
    ));
    let mut registry = agent::metrics::registry("twill_proxy");
    let mut metrics = Metrics::new(&mut registry);
    let of_iptables = match &config.mode {
        Mode::Nftables => {
            metrics = metrics.of_nftables(&mut registry);
            iptables::Metrics::default()
        }
        Mode::Iptables { .. } => iptables::Metrics::new(&mut registry),
    };
    let (health, health_seen) = watch::channel(Health::default());
    let port = |flag, address| Port {
        flag,
        address,
        hard_fail: config.bind_hard_fail,
    };
    let server = health::Server::new(health_seen, config.sync_period * 2, metrics.clone());
    let answering = server.clone();
    let (tell, node) = (events.clone(), config.hostname.clone());
    port("--healthz-bind-address", config.healthz)
        .serve_in(
            answers,
            move |path: &str| answering.answer(path),
            move |error| tell.no_health_port(&node, error),
            stop.clone(),
        )
        .await?;
    let registry = Arc::new(registry);
    let mode = config.mode.as_str();
    let (configz, configz_seen) = watch::channel(config.document());
    let (tell, node) = (events.clone(), config.hostname.clone());
    port("--metrics-bind-address", config.metrics)
        .serve_in(
            answers,
            move |path: &str| health::metrics_answer(&registry, &configz_seen, mode, path),
            move |error| tell.no_metrics_port(&node, error),
            stop.clone(),
        )
        .await?;

    let periods = Periods::of(&config);
    events.starting(&config.hostname);
    let (checks, checks_seen) = watch::channel(Checks::default());
    answers.spawn(checks::serve(
        checks_seen,
        server,
        events.clone(),
        stop.clone(),
    ));
    let index = Index::new(&config.hostname).proxy_name(config.service_proxy_name.clone());
    let updates = updates(
        &client,
        &config.hostname,
        config.service_proxy_name.as_deref(),
        &events,
    );
    let service = Service {
        index,
        planner: Planner::new(config.settings),
        periods,
        health,
        checks,
        metrics,
        events,
        reload: Reload::watch(args),
        configz,
        snapshot: config.snapshot,
    };
    match config.mode {
        Mode::Nftables => {
            let backend = Successor::new(NftBackend::open()?, Others::OfNftables);
            service.run(backend, updates, stop).await
        }
        Mode::Iptables { options, variant } => {
            let backend = iptables_backend(options, variant).metrics(of_iptables);
            let variant = backend.variant();
            if let Some(others) = variant.contradicted() {
                let (ours, others_name) = (variant.as_str(), others.as_str());
                tracing::warn!(
                    ours,
                    others = others_name,
                    "the kubelet and others use the other iptables, so that rules of both are in force: leave \
                     iptables.variant out or set it to theirs"
                );
                service
                    .events
                    .contradicted(&config.hostname, variant, others);
            }
            let backend = Successor::new(backend, Others::OfIptables(variant));
            service.run(backend, updates, stop).await
        }
    }
}

/// As the kernel is now: whether it answers late packets with a reset is one of its switches.
pub(crate) fn iptables_backend(options: Options, variant: Option<Variant>) -> IptablesBackend {
    let liberal = Sysctl::default().get("netfilter/nf_conntrack_tcp_be_liberal");
    let options = Options {
        drop_invalid: !liberal.is_ok_and(|value| value != "0"),
        ..options
    };
    let given = variant.is_some();
    let variant = variant.unwrap_or_else(Variant::of_host);
    let names = options.naming;
    tracing::info!(variant = variant.as_str(), given, ?names, "iptables mode");
    IptablesBackend::new(options, variant)
}

/// What the loop is made of, save for the packet filter.
struct Service {
    index: Index,
    planner: Planner,
    periods: Periods,
    health: watch::Sender<Health>,
    checks: watch::Sender<Checks>,
    metrics: Metrics,
    events: Events,
    reload: Reload,
    configz: watch::Sender<Value>,
    snapshot: Option<PathBuf>,
}

impl Service {
    async fn run<B: Backend>(
        self,
        backend: B,
        updates: BoxStream<'static, Update>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let syncer = Syncer::new(backend, self.planner, self.metrics.clone())
            .cleaner(Cleaner::start(self.metrics.clone())?)
            .events(self.events);
        let runner = Runner::new(
            self.index,
            syncer,
            self.periods,
            self.health,
            self.checks,
            self.metrics,
        )?
        .reload(self.reload, self.configz);
        let runner = match self.snapshot {
            Some(path) => runner.snapshot(Keeper::new(path)),
            None => runner,
        };
        runner.run(updates, stop).await;
        Ok(())
    }
}

/// Without the right to it (CAP_SYS_RESOURCE) it stays as it is: most who run this in a container do.
fn set_oom_score_adj(score: i32) {
    #[expect(
        clippy::disallowed_methods,
        reason = "procfs takes a value in one write"
    )]
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::debug!(%error, score, "oom_score_adj stays as it is");
    }
}
