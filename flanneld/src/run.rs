//! The daemon's loop: watches and kernel events mark what is dirty, passes put it right.
//!
//! ```text
//!  Nodes, Leases ──► index ──────────────► registrar ──► Leases, our Node
//!                      │  ▲                 │      ▲
//!                      │  └── subnets held ─┘      │ where we are
//!  kernel events ──► pacer ──► pass ──► kernel ────┘
//! ```
//!
//! One task owns all state. No pass runs before all Nodes are listed and a subnet is held: until then what an earlier
//! process left in the kernel stays as it is.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use agent::{
    http,
    sync::{Options, Pacer, Pass},
    watch::{Delta, Selector, deltas},
};
use futures::StreamExt;
use hostnet::{
    netlink, nft,
    vocab::{Family, Subnet},
};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    ByFamily,
    announce::Announcement,
    config::Config,
    diff::Op,
    files,
    health::{self, Health, Part},
    host::{Host, sysctl_root},
    index::{Index, LEASES},
    metrics::Counts,
    node::NodeObject,
    peers::Skipped,
    place::announcement,
    reconcile::{Reconciler, Report},
    registrar::{Registrar, View},
};

const PACE: Options = Options {
    min_interval: Duration::from_millis(20),
    full_every: Duration::from_secs(60),
    retry: Duration::from_millis(200),
    retry_max: Duration::from_secs(30),
};

/// How many changes of one pass are logged one by one.
const SHOWN: usize = 20;

/// Runs the daemon until `stop` is cancelled. What is in the kernel, in files and at the API server stays.
///
/// # Errors
/// What cannot be had at all: a port that is taken, netlink sockets, a client for the API server.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let (health, parts) = Health::new();
    let counts = Counts::new();
    serve(&config, parts, &counts, &stop).await?;
    // Before the first look at the kernel, so that nothing falls between.
    let events = Events::open()?;
    let reconciler = Reconciler::new(Host::open(sysctl_root())?);
    let client = agent::client::connect(&config.client)?;

    let (view, views) = watch::channel(None);
    let (announce, announcements) = watch::channel(None);
    let (hold, held) = watch::channel(None);
    let registrar = Registrar::new(Arc::clone(&config), client.clone(), hold);
    let registrar = tokio::spawn(registrar.run(views, announcements, stop.clone()));
    let daemon = Loop {
        index: Index::new(&config.node_name, config.annotations.clone()),
        config,
        reconciler,
        events,
        view,
        announce,
        held,
        health,
        counts,
        skipped: BTreeMap::new(),
        complaint: None,
    };
    tokio::select! {
        () = daemon.run(client, &stop) => Ok(()),
        // It ends when told to, or by a fault of ours, which must not go unseen.
        ended = registrar => Ok(ended?),
    }
}

/// Starts the servers for probes and metrics.
async fn serve(
    config: &Config,
    parts: watch::Receiver<std::collections::BTreeSet<Part>>,
    counts: &Counts,
    stop: &CancellationToken,
) -> Result<(), http::BindError> {
    if let Some(addr) = config.healthz {
        let listener = http::bind("--healthz-port", addr).await?;
        let answer = move |target: &str| health::reply(target, &parts.borrow());
        tokio::spawn(listener.serve(answer, stop.clone()));
    }
    if let Some(addr) = config.metrics {
        let listener = http::bind("--metrics-port", addr).await?;
        let counts = counts.clone();
        let answer = move |target: &str| match target.split('?').next() {
            Some("/metrics") => agent::metrics::reply(counts.registry()),
            _ => http::Reply::not_found(),
        };
        tokio::spawn(listener.serve(answer, stop.clone()));
    }
    Ok(())
}

/// The loop's state.
struct Loop {
    config: Arc<Config>,
    index: Index,
    reconciler: Reconciler,
    events: Events,
    view: watch::Sender<Option<View>>,
    announce: watch::Sender<Option<Announcement>>,
    held: watch::Receiver<Option<ByFamily<Subnet>>>,
    health: Health,
    counts: Counts,
    /// Nodes that are left out, as last logged.
    skipped: BTreeMap<(Arc<str>, Family), String>,
    complaint: Option<String>,
}

impl Loop {
    async fn run(mut self, client: Client, stop: &CancellationToken) {
        let leases = Selector {
            labels: Some(LEASES.into()),
            fields: None,
        };
        let namespace = self.config.lease_namespace.clone();
        let mut nodes = std::pin::pin!(deltas(Api::all(client.clone()), &Selector::default()));
        let mut leases = std::pin::pin!(deltas(Api::namespaced(client, &namespace), &leases));
        let mut pacer = Pacer::new(PACE);
        loop {
            tokio::select! {
                // What was told goes before passes, so that one pass serves all of it.
                biased;
                () = stop.cancelled() => return,
                Some(delta) = nodes.next() => {
                    let is_own = self.is_own(&delta);
                    if self.index.node(delta) {
                        self.told(&mut pacer);
                        // What a user writes into our Node has a say in our place, which only a full pass looks for.
                        if is_own {
                            pacer.mark_full();
                        }
                    }
                }
                Some(delta) = leases.next() => if self.index.lease(delta) { self.told(&mut pacer) },
                Ok(()) = self.held.changed() => pacer.mark_full(),
                full = self.events.next(&self.reconciler) => if full { pacer.mark_full() },
                pass = pacer.due() => {
                    let done = self.pass(pass);
                    pacer.finished(pass, done);
                }
            }
        }
    }

    fn is_own(&self, delta: &Delta<NodeObject>) -> bool {
        match delta {
            Delta::Upsert(node) => node.name() == self.config.node_name,
            Delta::Remove(key) => *key.name == *self.config.node_name,
            Delta::Synced => false,
        }
    }

    /// The index has changed.
    fn told(&mut self, pacer: &mut Pacer) {
        if !self.index.is_complete() {
            return;
        }
        self.health.set(Part::Listed, true);
        let node = self.index.own().cloned();
        let assigned = node.as_ref().map(|node| node.subnets()).unwrap_or_default();
        let held = self.held.borrow().unwrap_or_default();
        let ours = assigned
            .iter()
            .chain(held.iter())
            .map(|(_, subnet)| *subnet);
        let view = View {
            others: if assigned.is_empty() {
                self.index.taken()
            } else {
                Default::default()
            },
            leased: ours
                .filter(|subnet| self.index.holder(*subnet) == Some(&*self.config.node_name))
                .collect(),
            node,
        };
        self.view.send_if_modified(|known| {
            let new = known.as_ref() != Some(&view);
            *known = Some(view);
            new
        });
        pacer.mark();
    }

    /// Runs one pass. Returns whether it reached what is desired.
    fn pass(&mut self, pass: Pass) -> bool {
        let held = *self.held.borrow_and_update();
        self.health.set(Part::Subnet, held.is_some());
        let (Some(held), true) = (held, self.index.is_complete()) else {
            return true;
        };
        // A Node that is gone for a moment takes nothing away: what was published last still stands.
        let node = self.index.own().cloned().unwrap_or_default();
        let start = Instant::now();
        let result = self
            .reconciler
            .pass(pass, &self.config, &node, &held, &self.index);
        self.health.set(Part::Kernel, result.is_ok());
        let report = match result {
            Ok(report) => report,
            Err(error) => {
                self.counts.failed();
                self.complain(Some(error.to_string()));
                return false;
            }
        };
        self.counts.passed(start.elapsed().as_secs_f64(), &report);
        self.log(&report, start.elapsed());
        let announcement = Some(announcement(&self.config, self.reconciler.own()));
        self.announce.send_if_modified(|known| {
            let new = *known != announcement;
            *known = announcement;
            new
        });
        let written = files::write(&self.config, self.reconciler.own());
        self.health.set(Part::Files, written.is_ok());
        for file in written.iter().flatten() {
            tracing::info!(file = %file.display(), "written");
        }
        let done = written.is_ok();
        self.complain(written.err().map(|error| error.to_string()));
        done
    }

    fn log(&mut self, report: &Report, took: Duration) {
        for op in report.lost.iter().take(SHOWN) {
            tracing::warn!(%op, "lost or changed by someone else; putting it back");
        }
        for op in report.ops.iter().take(SHOWN) {
            tracing::debug!(%op, "changed");
        }
        if !report.ops.is_empty() {
            let peers = report.selection.peers.len();
            let removed = report.ops.iter().filter(|op| is_removal(op)).count();
            let set = report.ops.len() - removed;
            tracing::info!(
                peers,
                set,
                removed,
                took = %format_args!("{took:.1?}"),
                "kernel programmed"
            );
        }
        let now = report
            .selection
            .skipped
            .iter()
            .map(|skipped| (key(skipped), skipped))
            .collect::<BTreeMap<_, _>>();
        for (key, skipped) in &now {
            let reason = skipped.reason.to_string();
            if self.skipped.get(key) != Some(&reason) {
                if skipped.reason.is_pending() {
                    tracing::debug!(node = %skipped.node, family = %skipped.family, reason, "node not there yet");
                } else {
                    tracing::warn!(node = %skipped.node, family = %skipped.family, reason, "node left out");
                }
            }
        }
        self.skipped = now
            .into_iter()
            .map(|(key, skipped)| (key, skipped.reason.to_string()))
            .collect();
    }

    /// Logs trouble when it begins, changes and ends.
    fn complain(&mut self, trouble: Option<String>) {
        if trouble != self.complaint {
            match &trouble {
                Some(error) => {
                    tracing::error!(error, "the pod network is not as desired; trying again")
                }
                None => tracing::info!("the pod network is as desired again"),
            }
            self.complaint = trouble;
        }
    }
}

fn key(skipped: &Skipped) -> (Arc<str>, Family) {
    (Arc::clone(&skipped.node), skipped.family)
}

fn is_removal(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteLink { .. }
            | Op::DeleteAddr { .. }
            | Op::DeleteNeigh { .. }
            | Op::DeleteFdb { .. }
            | Op::DeleteRoute { .. }
    )
}

/// Notice of changes in the kernel: links, addresses, routes and the like, and nftables.
struct Events {
    links: mpsc::Receiver<Result<netlink::Event, netlink::Error>>,
    rules: mpsc::Receiver<Result<nft::Change, nft::Error>>,
}

impl Events {
    fn open() -> anyhow::Result<Self> {
        let (mut links, mut rules) = (netlink::Monitor::open()?, nft::Monitor::open()?);
        Ok(Self {
            links: listen(
                "links",
                move || links.next(true),
                netlink::Error::is_overrun,
            )?,
            rules: listen(
                "rules",
                move || rules.next(true),
                |error| matches!(error, nft::Error::Overrun),
            )?,
        })
    }

    /// Waits for a change, and tells whether it is news. Cancel safe.
    async fn next(&mut self, reconciler: &Reconciler) -> bool {
        tokio::select! {
            Some(event) = self.links.recv() => match event {
                Ok(event) => reconciler.is_news(&event),
                Err(error) => is_lost(&error),
            },
            Some(change) = self.rules.recv() => match change {
                Ok(change) if reconciler.is_disturbing(&change) => {
                    let process = change.process.as_deref().unwrap_or("unknown");
                    tracing::warn!(process, pid = change.pid, "someone else changed our nftables rules");
                    true
                }
                Ok(_) => false,
                Err(error) => is_lost(&error),
            },
            else => std::future::pending().await,
        }
    }
}

/// What happened is not known (too much at once, or a socket that fails), so all has to be looked at.
fn is_lost(error: &(dyn std::error::Error + 'static)) -> bool {
    tracing::debug!(error = agent::chain(error), "events were lost");
    true
}

/// How many events wait to be read here. More than these the kernel keeps, until its buffer overruns, which it tells.
const WAITING: usize = 256;

/// Starts a thread that waits for the kernel. It ends with the process, or with an error that will not pass.
fn listen<T: Send + 'static, E: Send + 'static>(
    name: &str,
    mut next: impl FnMut() -> Result<Option<T>, E> + Send + 'static,
    passes: impl Fn(&E) -> bool + Send + 'static,
) -> std::io::Result<mpsc::Receiver<Result<T, E>>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let wait = move || {
        loop {
            let Some(event) = next().transpose() else {
                continue;
            };
            let last = event.as_ref().is_err_and(|error| !passes(error));
            if sender.blocking_send(event).is_err() || last {
                return;
            }
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(wait)?;
    Ok(receiver)
}
