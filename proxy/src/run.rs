//! The daemon's loop: watches and kernel events mark what is dirty, passes put it right.
//!
//! ```text
//!  Services, EndpointSlices, this Node ─▶ index ┐
//!  addresses of interfaces ────────────▶ plan   ├─▶ pacer ─▶ pass ─▶ backend ─▶ kernel
//!  foreign changes to our rules ─────────────── ┘                                 │
//!        ▲                                                                        │
//!        └────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! No pass runs before all kinds of objects have been listed: rules from half of them would cut off what
//! works. So a restart changes nothing in the kernel, and while the API is away the last rules stay.

use std::time::Duration;

use agent::sync::{Options, Pacer, Pass};
use agent::watch::{Delta, Selector, deltas};
use futures::stream::{BoxStream, StreamExt, select};
use hostnet::{memory, nft};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::config::{Config, Reload};
use crate::events::Events;
use crate::foreign::Foreign;
use crate::health::Health;
use crate::index::{Index, Update};
use crate::interfaces::{self, Interfaces};
use crate::metrics::Metrics;
use crate::plan::{Checks, Planner};
use crate::snapshot::Keeper;
use crate::sync::Syncer;

/// Whose Services these are: those of another proxy are not even sent to us.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Slices of headless Services have no rules.
const SLICES: &str = "!service.kubernetes.io/headless";
/// How long what nothing leads to any more stays for packets that are on their way.
const TICK: Duration = Duration::from_millis(250);
/// How long the first pass waits for ServiceCIDRs, of which a server before 1.33 never tells.
const NETWORKS: Duration = Duration::from_secs(2);
/// What has failed this often does not pass by itself: it is an Event.
const LASTING: u32 = 3;
/// The first wait after a failed pass, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// What the API tells of everything that rules come from, on a Node of that name. `proxy_name`: see
/// [`Index::proxy_name`]. What the API server refuses is told by `events`.
pub fn updates(
    client: &Client,
    node: &str,
    proxy_name: Option<&str>,
    events: &Events,
) -> BoxStream<'static, Update> {
    let refused = || {
        let (events, node) = (events.clone(), node.to_owned());
        move |error: &str| events.refused(&node, error)
    };
    let by_label = |labels: &str| Selector {
        labels: Some(labels.into()),
        fields: None,
    };
    let this_node = Selector {
        labels: None,
        fields: Some(format!("metadata.name={node}")),
    };
    let ours = match proxy_name {
        Some(name) => format!("{PROXY_NAME}={name}"),
        None => format!("!{PROXY_NAME}"),
    };
    let services =
        deltas(Api::all(client.clone()), &by_label(&ours), refused()).map(Update::Service);
    let slices = deltas(Api::all(client.clone()), &by_label(SLICES), refused()).map(Update::Slice);
    let nodes = deltas(Api::all(client.clone()), &this_node, refused()).map(Update::Node);
    // All: a server before 1.33 has none of them, and the rest goes on without.
    let cidrs =
        deltas(Api::all(client.clone()), &Selector::default(), refused()).map(Update::ServiceCidr);
    select(select(services, cidrs), select(slices, nodes)).boxed()
}

/// The loop's state.
#[derive(Debug)]
pub struct Runner<B> {
    index: Index,
    syncer: Syncer<B>,
    pacer: Pacer,
    interfaces: Option<Interfaces>,
    keeper: Option<Keeper>,
    reload: Option<Reload>,
    configz: watch::Sender<Value>,
    foreign: Option<Foreign>,
    tick_at: Option<Instant>,
    /// Until then the first pass waits for service networks.
    networks_by: Instant,
    health: watch::Sender<Health>,
    checks: watch::Sender<Checks>,
    metrics: Metrics,
}

/// How often passes run.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// Everything is compared with the kernel.
    pub full: Duration,
    /// The least time between two passes.
    pub least: Duration,
}

impl Periods {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            full: config.sync_period,
            least: config.min_sync_period,
        }
    }

    fn options(self) -> Options {
        Options {
            min_interval: self.least,
            full_every: self.full,
            retry: RETRY.0,
            retry_max: RETRY.1,
        }
    }
}

impl<B: Backend> Runner<B> {
    /// Follows the configuration file: what can be changed while it runs is, and `configz` is told.
    #[must_use]
    pub fn reload(self, reload: Reload, configz: watch::Sender<Value>) -> Self {
        Self {
            reload: Some(reload),
            configz,
            ..self
        }
    }

    /// Keeps the last good state in a file. Where the kernel holds no rules of ours (a node that was rebooted), those
    /// of the file are programmed now, before the API server has answered.
    #[must_use]
    pub fn snapshot(mut self, keeper: Keeper) -> Self {
        let is_bare = self.syncer.backend_mut().is_bare();
        let is_bare = is_bare.unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::warn!(
                error,
                "it is not known whether rules are there: the state on disk is not used"
            );
            false
        });
        let saved = if is_bare {
            keeper.read(self.index.this_node())
        } else {
            tracing::info!("rules are there already: the state on disk is not needed");
            None
        };
        self.keeper = Some(keeper);
        let Some(mut saved) = saved else { return self };
        match self.syncer.pass(&mut saved, Pass::Full) {
            Ok(_) => {
                tracing::info!("rules are as in the state on disk, until the API server answers");
                self.health.send_replace(Health {
                    last_updated: Some(Timestamp::now()),
                    ..Health::default()
                });
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "rules of the state on disk could not be programmed");
            }
        }
        self.index.supersede(&saved);
        self
    }

    /// A loop that programs `syncer`'s backend with what it folds into the index. Watches the interfaces'
    /// addresses where node ports go by them. Needs the runtime.
    ///
    /// # Errors
    /// The kernel does not tell of its addresses.
    pub fn new(
        index: Index,
        mut syncer: Syncer<B>,
        periods: Periods,
        health: watch::Sender<Health>,
        checks: watch::Sender<Checks>,
        metrics: Metrics,
    ) -> Result<Self, interfaces::Error> {
        let interfaces = watch_interfaces(&mut syncer)?;
        Ok(Self {
            index,
            syncer,
            pacer: Pacer::new(periods.options()),
            interfaces,
            keeper: None,
            reload: None,
            configz: watch::channel(Value::Null).0,
            foreign: None,
            tick_at: None,
            networks_by: Instant::now() + NETWORKS,
            health,
            checks,
            metrics,
        })
    }

    /// Runs until `stop` is cancelled. What is in the kernel stays there. Blocks its thread while the kernel works.
    pub async fn run(mut self, mut updates: BoxStream<'static, Update>, stop: CancellationToken) {
        loop {
            // So that a restart does not take away what it is about to be told of.
            let waits = !self.index.has_service_networks() && Instant::now() < self.networks_by;
            tokio::select! {
                // What was told goes before passes, so that one pass serves all of it.
                biased;
                () = stop.cancelled() => break,
                Some(update) = updates.next() => self.fold(update),
                change = next_change(&mut self.foreign) => self.heed(change),
                () = addresses_changed(&mut self.interfaces) => {
                    tracing::info!("addresses of this node's interfaces changed");
                    self.list_addresses();
                    self.mark();
                }
                config = reloaded(&mut self.reload) => self.configure(config),
                pass = self.pacer.due(), if self.index.is_complete() && !waits => self.pass(pass),
                () = sleep_until(self.networks_by), if waits => {}
                () = write_due(&self.keeper), if self.syncer.in_line() && self.index.is_complete() => {
                    if let Some(keeper) = &mut self.keeper {
                        keeper.write(&self.index);
                    }
                }
                () = sleep_until(self.tick_at.unwrap_or_else(Instant::now)), if self.tick_at.is_some() => {
                    self.tick();
                }
            }
        }
        if let Some(keeper) = &mut self.keeper
            && self.syncer.in_line()
            && self.index.is_complete()
        {
            keeper.write_last(&self.index).await;
        }
    }

    fn fold(&mut self, update: Update) {
        let (services, slices) = match &update {
            Update::Service(Delta::Upsert(_) | Delta::Remove(_)) => (1, 0),
            Update::Slice(Delta::Upsert(_) | Delta::Remove(_)) => (0, 1),
            _ => (0, 0),
        };
        self.metrics.queued(services, slices);
        let was_complete = self.index.is_complete();
        self.index.update(update);
        if self.index.is_complete() {
            if !was_complete {
                self.tell_of_the_start();
            }
            self.mark();
        }
    }

    /// Goes by another configuration, as far as that can be changed while it runs.
    fn configure(&mut self, config: Config) {
        config.tell();
        let planner = self.syncer.planner();
        let needs = |planner: &Planner| planner.settings().node_port_addresses.needs_interfaces();
        let had = needs(planner);
        planner.set_settings(config.settings.clone());
        if needs(planner) && !had {
            match watch_interfaces(&mut self.syncer) {
                Ok(interfaces) => self.interfaces = interfaces,
                Err(error) => tracing::error!(%error, "node ports stay where they are"),
            }
        }
        self.pacer.set_options(Periods::of(&config).options());
        self.mark();
        let document = config.document();
        let restart = needs_restart(&self.configz.borrow(), &document);
        tracing::info!(settings = %config.settings, "the configuration file was read anew");
        if !restart.is_empty() {
            let fields = restart.join(", ");
            tracing::warn!(
                fields,
                "these changed too, and need a restart to have an effect"
            );
        }
        self.configz.send_replace(document);
    }

    fn tell_of_the_start(&self) {
        let (services, node) = (self.index.names().count(), self.index.this_node());
        tracing::info!(
            services,
            node,
            "all Services, EndpointSlices and this Node are listed"
        );
        if self.index.node().is_none() {
            tracing::warn!(
                node,
                "there is no Node of this name, so node ports answer nowhere: is --hostname-override right?"
            );
        }
    }

    fn mark(&mut self) {
        self.pacer.mark();
        self.health.send_if_modified(|health| {
            let pending = health.pending_since.is_none();
            if pending {
                health.pending_since = Some(Timestamp::now());
            }
            pending
        });
    }

    fn heed(&mut self, change: Result<nft::Change, nft::Error>) {
        match change {
            Ok(change) if !self.syncer.backend().is_disturbed_by(&change) => return,
            Ok(change) if self.syncer.backend().shares_tables() => tracing::debug!(
                process = change.process.as_deref().unwrap_or("unknown"),
                "someone else changed tables that hold our chains: comparing everything"
            ),
            Ok(change) => tracing::warn!(
                process = change.process.as_deref().unwrap_or("unknown"),
                pid = change.pid,
                generation = change.generation,
                "our rules were changed by someone else: repairing"
            ),
            Err(nft::Error::Overrun) => {
                tracing::debug!("missed some changes to nf_tables: comparing everything");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot watch nf_tables until the next full pass");
                self.foreign = None;
                return;
            }
        }
        self.pacer.mark_full();
    }

    fn list_addresses(&mut self) {
        match self.interfaces.as_mut().map(Interfaces::list) {
            Some(Ok(addresses)) => self.syncer.planner().set_interfaces(addresses),
            Some(Err(error)) => {
                tracing::warn!(%error, "node ports stay at the addresses as last known")
            }
            None => {}
        }
    }

    fn pass(&mut self, pass: Pass) {
        if pass == Pass::Full {
            self.list_addresses();
        }
        let result = self.syncer.pass(&mut self.index, pass);
        self.pacer.finished(pass, result.is_ok());
        match result {
            Ok(changed) => {
                if let Some(keeper) = &mut self.keeper {
                    keeper.note(changed);
                }
                if pass == Pass::Full {
                    self.syncer.tell_of_host_ports(&self.index);
                    self.watch_others();
                    // The whole table was in it twice.
                    memory::release();
                }
                if let Some(checks) = self.syncer.planner().take_checks() {
                    self.checks.send_replace(checks);
                }
                let node_leaving = self.index.node().is_some_and(|node| node.leaving);
                self.health.send_replace(Health {
                    last_updated: Some(Timestamp::now()),
                    pending_since: None,
                    node_leaving,
                });
            }
            Err(error) => {
                let (error, failures) = (chain(&error), self.pacer.failures());
                if failures == LASTING {
                    self.syncer.tell_of_failure(&self.index, &error);
                }
                tracing::error!(error, failures, "rules could not be programmed: will retry");
            }
        }
        self.plan_tick();
    }

    /// Begins to heed foreign changes, after the first load: notices of our own would make that slow.
    /// Where something may have been changed before the subscription, one more comparison finds it.
    fn watch_others(&mut self) {
        if self.foreign.is_none() && self.syncer.backend().is_told_of_changes() {
            match Foreign::watch() {
                Ok(foreign) => {
                    self.foreign = Some(foreign);
                    if !self.syncer.backend_mut().is_untouched() {
                        self.pacer.mark_full();
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot watch nf_tables until the next full pass");
                }
            }
        }
    }

    fn tick(&mut self) {
        if let Err(error) = self.syncer.tick() {
            tracing::error!(
                error = chain(&error),
                "leftovers could not be removed: comparing everything"
            );
            self.pacer.mark_full();
        }
        self.tick_at = None;
        self.plan_tick();
    }

    fn plan_tick(&mut self) {
        if self.syncer.unfinished() {
            self.tick_at.get_or_insert_with(|| Instant::now() + TICK);
        } else {
            self.tick_at = None;
        }
    }
}

/// The addresses of interfaces, as far as the settings need them.
fn watch_interfaces<B: Backend>(
    syncer: &mut Syncer<B>,
) -> Result<Option<Interfaces>, interfaces::Error> {
    let planner = syncer.planner();
    if !planner.settings().node_port_addresses.needs_interfaces() {
        return Ok(None);
    }
    let mut interfaces = Interfaces::watch()?;
    planner.set_interfaces(interfaces.list()?);
    Ok(Some(interfaces))
}

/// Fields of the configuration that differ and are only read at the start.
fn needs_restart(old: &Value, new: &Value) -> Vec<&'static str> {
    const FIELDS: [&str; 10] = [
        "bindAddressHardFail",
        "clientConnection",
        "healthzBindAddress",
        "hostnameOverride",
        "iptables",
        "logging",
        "metricsBindAddress",
        "mode",
        "oomScoreAdj",
        "serviceProxyName",
    ];
    (FIELDS.into_iter())
        .filter(|field| old[field] != new[field])
        .collect()
}

async fn write_due(keeper: &Option<Keeper>) {
    match keeper {
        Some(keeper) => sleep_until(keeper.due()).await,
        None => std::future::pending().await,
    }
}

async fn reloaded(reload: &mut Option<Reload>) -> Config {
    match reload {
        Some(reload) => reload.next().await,
        None => std::future::pending().await,
    }
}

async fn next_change(foreign: &mut Option<Foreign>) -> Result<nft::Change, nft::Error> {
    match foreign {
        Some(foreign) => foreign.next().await,
        None => std::future::pending().await,
    }
}

async fn addresses_changed(interfaces: &mut Option<Interfaces>) {
    match interfaces {
        Some(interfaces) => interfaces.changed().await,
        None => std::future::pending().await,
    }
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in std::iter::successors(error.source(), |error| error.source()) {
        text = format!("{text}: {source}");
    }
    text
}
