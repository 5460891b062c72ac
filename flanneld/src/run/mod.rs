//! The daemon's loop: watches and kernel events mark what is dirty, passes put it right.
//!
//! ```text
//!  Nodes, Leases ──► index ──────────────► registrar ──► Leases, our Node
//!                      │  ▲                 │      ▲
//!                      │  └── subnets held ─┘      │ where we are
//!  kernel events ──► pacer ──► pass ──► kernel ────┘
//! ```
//!
//! One task owns all state. No pass runs before all Nodes are listed and a subnet is held, unless a snapshot tells what
//! was known last: without one, what an earlier process left in the kernel stays as it is until then.

mod keep;
mod notice;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use agent::{
    events::{self, Notice, Recorder},
    http, slim,
    sync::{Options, Pacer, Pass},
    watch::{Delta, Selector, deltas},
};
use futures::StreamExt;
use hostnet::memory;
use hostnet::vocab::{Family, Subnet, names};
use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use kube::{Api, Client};
use tokio::{sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    ByFamily,
    announce::{self, Announcement},
    config::Config,
    diff::Op,
    files,
    forward::Obstacle,
    health::{self, Health, Part},
    host::{Host, sysctl_root},
    index::{Index, LEASES},
    metrics::Counts,
    node::{NodeMessage, NodeObject},
    notices::{self, Rival},
    peers::Skipped,
    place::announcement,
    pods::Pods,
    prober,
    recall::{self, Recalled},
    reconcile::{Reconciler, Report},
    registrar::{Registrar, View},
    services,
};

use keep::Keeper;
use notice::{Events, Files, News};

const PACE: Options = Options {
    min_interval: Duration::from_millis(20),
    full_every: Duration::from_secs(60),
    retry: Duration::from_millis(200),
    retry_max: Duration::from_secs(30),
};

/// How many changes of one pass are logged one by one.
const SHOWN: usize = 20;

/// Trouble that this many passes in a row could not mend is an Event.
const LASTING: u32 = 3;

/// How often attachments are looked for whose container is gone: at a start, and then daily.
const ORPHANS_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs the daemon until `stop` is cancelled. What is in the kernel, in files and at the API server stays.
///
/// # Errors
/// What cannot be had at all: a port that is taken, netlink sockets, a client for the API server.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let (config, configs) = watch::channel(Arc::new(config));
    let current = Arc::clone(&config.borrow());
    let (health, missing) = Health::new();
    let counts = Counts::new();
    serve(&current, missing, &counts, &stop).await?;
    // Before the first look at the kernel, so that nothing falls between.
    let (events, files) = (Events::open()?, Files::open()?);
    let reconciler = Reconciler::new(Host::open(sysctl_root())?);
    let client = agent::client::connect(&current.client)?;

    let (view, views) = watch::channel(None);
    let (announce, announcements) = watch::channel(None);
    let (hold, held) = watch::channel(None);
    let recorder = Recorder::start(client.clone(), "flanneld", &current.node_name);
    let registrar = Registrar::new(
        configs,
        client.clone(),
        hold,
        recorder.clone(),
        counts.clone(),
        health.clone(),
    );
    if let Some(every) = current.probe_interval {
        let records = files_of(&current).records;
        tokio::spawn(prober::run(every, records, counts.clone()));
    }
    let registrar = tokio::spawn(registrar.run(views, announcements, stop.clone()));
    let (ranges, service_ranges) = watch::channel(Vec::new());
    tokio::spawn(services::follow(client.clone(), ranges));
    let current_pods = current.attachments_dir.clone().map(Pods::new);
    let daemon = Loop {
        index: Index::new(&current.node_name, current.annotations.clone()),
        recalled: recalled(&current),
        keeper: Keeper::new(current.snapshot_file.clone()),
        config: current,
        configs: config,
        reconciler,
        events,
        files,
        pods: current_pods,
        view,
        announce,
        held,
        health,
        counts,
        skipped: BTreeMap::new(),
        complaint: None,
        failed_passes: 0,
        rivals: Vec::new(),
        service_ranges,
        service_host: std::env::var("KUBERNETES_SERVICE_HOST")
            .ok()
            .and_then(|host| host.parse().ok()),
        pods_complaint: None,
        orphans_due: Instant::now(),
        misconfigured: None,
        obstacles: Vec::new(),
        recorder,
    };
    tokio::select! {
        // Told to stop, the loop comes first: what is known is written at its end.
        biased;
        () = daemon.run(client, &stop) => Ok(()),
        // It ends when told to, or by a fault of ours, which must not go unseen.
        ended = registrar => Ok(ended?),
    }
}

/// What was known last, if it can be used.
fn recalled(config: &Config) -> Option<Recalled> {
    let path = config.snapshot_file.as_ref()?;
    let recalled = recall::recall(path, config);
    recalled
        .map_err(|refusal| recall::explain(path, &refusal))
        .ok()
}

/// Starts the servers for probes and metrics.
async fn serve(
    config: &Config,
    missing: watch::Receiver<health::Missing>,
    counts: &Counts,
    stop: &CancellationToken,
) -> Result<(), http::BindError> {
    if let Some(addr) = config.healthz {
        let listener = http::bind("--healthz-port", addr).await?;
        let answer = move |target: &str| health::reply(target, &missing.borrow());
        tokio::spawn(listener.serve(answer, stop.clone()));
    }
    if let Some(addr) = config.metrics {
        let listener = http::bind("--metrics-port", addr).await?;
        let counts = counts.clone();
        let files = files_of(config);
        let answer = move |target: &str| {
            let (target, counts, files) = (target.to_owned(), counts.clone(), files.clone());
            async move {
                match target.split('?').next() {
                    Some("/metrics") => agent::metrics::reply(counts.registry()),
                    // For `twill` elsewhere: who gets to the node's own address may see it.
                    Some(_) if addr.ip().is_loopback() && cli::far::is_known(&target) => {
                        told(target, files).await
                    }
                    _ => http::Reply::not_found(),
                }
            }
        };
        tokio::spawn(listener.serve_slow(answer, stop.clone()));
    }
    Ok(())
}

/// Where `twill` finds what is not in the kernel.
fn files_of(config: &Config) -> cli::far::Files {
    let records = config.attachments_dir.clone();
    let cni_conf_dir = config.cni_conf_dir.clone();
    cli::far::Files {
        records: records.unwrap_or_else(|| names::ATTACHMENTS_DIR.into()),
        subnet_file: config.subnet_file.clone(),
        cni_conf_dir: cni_conf_dir.unwrap_or_else(|| names::CNI_CONF_DIR.into()),
        cni_bin_dir: names::CNI_BIN_DIR.into(),
    }
}

/// What `twill` elsewhere has asked, answered beside the loop: packets that are lost take their time.
async fn told(target: String, files: cli::far::Files) -> http::Reply {
    let answer = tokio::task::spawn_blocking(move || cli::far::reply(&target, &files));
    match answer.await {
        Ok(Some((status, body))) => http::Reply::json(status, body),
        Ok(None) => http::Reply::not_found(),
        Err(error) => http::Reply::text(500, format!("{error}\n")),
    }
}

/// The loop's state.
struct Loop {
    config: Arc<Config>,
    configs: watch::Sender<Arc<Config>>,
    index: Index,
    /// What was known last, until the API server has told everything.
    recalled: Option<Recalled>,
    keeper: Keeper,
    reconciler: Reconciler,
    events: Events,
    files: Files,
    pods: Option<Pods>,
    view: watch::Sender<Option<View>>,
    announce: watch::Sender<Option<Announcement>>,
    held: watch::Receiver<Option<ByFamily<Subnet>>>,
    health: Health,
    counts: Counts,
    /// Nodes that are left out, as last logged.
    skipped: BTreeMap<(Arc<str>, Family), String>,
    complaint: Option<String>,
    /// How many passes in a row did not reach what is desired.
    failed_passes: u32,
    /// Other networks in the way, as last told.
    rivals: Vec<Rival>,
    /// Where Services get their addresses from, as far as the API server tells.
    service_ranges: watch::Receiver<Vec<Subnet>>,
    /// The address of the Service `kubernetes`.
    service_host: Option<IpAddr>,
    pods_complaint: Option<String>,
    /// When attachments are looked for whose container is gone.
    orphans_due: Instant,
    /// What is wrong with net-conf.json, while an older one is in force.
    misconfigured: Option<String>,
    /// Who may drop pods' packets, as last told.
    obstacles: Vec<Obstacle>,
    recorder: Recorder,
}

impl Loop {
    async fn run(mut self, client: Client, stop: &CancellationToken) {
        let leases = Selector {
            labels: Some(LEASES.into()),
            fields: None,
        };
        let namespace = self.config.lease_namespace.clone();
        let slim_nodes = Api::all(slim::client::<NodeMessage>(client.clone()));
        let refused = || {
            let (recorder, health) = (self.recorder.clone(), self.health.clone());
            let own = self.own_reference();
            move |error: &str| {
                health.explain(Part::Listed, error);
                recorder.publish(Notice::refused(error, own.clone()));
            }
        };
        let mut nodes = std::pin::pin!(deltas(slim_nodes, &Selector::default(), refused()));
        let of_leases = Api::namespaced(client, &namespace);
        let mut leases = std::pin::pin!(deltas(of_leases, &leases, refused()));
        let mut pacer = Pacer::new(PACE);
        self.files.watch_folder_of(&self.config.net_conf_file);
        // It may have changed since it was read.
        self.reload();
        loop {
            tokio::select! {
                // What was told goes before passes, so that one pass serves all of it.
                biased;
                () = stop.cancelled() => return self.keep(true),
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
                news = self.events.next(&self.reconciler, self.pods.as_mut()) => match news {
                    News::Everything => pacer.mark_full(),
                    News::Lost => {
                        self.counts.lost_events();
                        pacer.mark_full();
                    }
                    News::Pods => pacer.mark(),
                    News::Nothing => {}
                },
                Ok(()) = self.service_ranges.changed() => pacer.mark(),
                () = self.files.changed() => {
                    self.reload();
                    // Whether our own files are as they shall be is a pass's business.
                    pacer.mark();
                }
                () = self.keeper.due() => self.keep(false),
                () = sleep_until_some(self.reconciler.wake_at()) => pacer.mark_full(),
                () = sleep_until_some(Some(self.orphans_due)) => self.take_down_orphans(),
                pass = pacer.due() => {
                    if pass == Pass::Full {
                        self.reload();
                    }
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

    /// Reads net-conf.json again. A file that is wrong changes nothing, and is told once.
    fn reload(&mut self) {
        let trouble = match self.config.reload() {
            Ok(Some((config, warnings))) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!(backend = ?config.net.backend, "net-conf.json has changed: following it");
                self.config = Arc::new(config);
                self.configs.send_replace(Arc::clone(&self.config));
                self.keeper.mark();
                None
            }
            Ok(None) => None,
            Err(error) => Some(agent::chain(&error)),
        };
        if trouble != self.misconfigured {
            match &trouble {
                Some(error) => {
                    tracing::error!(
                        error,
                        "the configuration cannot be used; the last good one stays in force"
                    );
                    let notice = notices::misconfigured(error, &self.own_reference());
                    self.recorder.publish(notice);
                }
                None => tracing::info!("the configuration is right again"),
            }
            self.counts.configured(trouble.is_none());
            self.misconfigured = trouble;
        }
    }

    /// Our Node, for Events.
    fn own_reference(&self) -> ObjectReference {
        let name = &self.config.node_name;
        let index = self
            .recalled
            .as_ref()
            .map_or(&self.index, |recalled| &recalled.index);
        events::node(name, index.uid(name).unwrap_or_default())
    }

    /// Writes what is known to disk. At the end (`last`) only what is not there yet.
    fn keep(&mut self, last: bool) {
        let held = self.held.borrow().filter(|_| self.index.is_complete());
        let (Some(held), Some(own)) = (held, self.index.own()) else {
            return self.keeper.postpone();
        };
        let state = recall::state(&self.config, &held, &self.index);
        self.keeper.keep(&self.config, own.uid(), state, last);
    }

    /// The index has changed.
    fn told(&mut self, pacer: &mut Pacer) {
        if let (Some(recalled), Some(own)) = (&self.recalled, self.index.own())
            && recalled.uid != own.uid()
        {
            tracing::warn!(
                was = recalled.uid,
                is = own.uid(),
                "our Node is not the one that the snapshot was kept for; dropping what it said"
            );
            self.recalled = None;
        }
        if !self.index.is_complete() {
            return;
        }
        self.keeper.mark();
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
        let pods_are_well = self.mend_pods(pass);
        let network_is_well = self.network(pass);
        if pass == Pass::Full {
            // All that the kernel has was in it twice.
            memory::release();
        }
        network_is_well && pods_are_well
    }

    /// Puts back what pods rely on, if there is reason to look. Returns whether that is there.
    fn mend_pods(&mut self, pass: Pass) -> bool {
        let Some(pods) = &mut self.pods else {
            return true;
        };
        if pass == Pass::Full {
            pods.doubt();
        }
        match pods.mend(self.reconciler.host()) {
            Ok(done) => {
                for what in done.iter().take(SHOWN) {
                    tracing::warn!(what, "lost or changed by someone else; put back for pods");
                }
                self.counts.mended_for_pods(done.len());
                self.pods_complaint = None;
                true
            }
            Err(error) => {
                self.counts.failed_for_pods();
                let error = agent::chain(&error);
                if self.pods_complaint.as_ref() != Some(&error) {
                    tracing::error!(error, "what pods rely on cannot be put back; trying again");
                    self.pods_complaint = Some(error);
                }
                false
            }
        }
    }

    /// Takes down attachments that the runtime has forgotten.
    fn take_down_orphans(&mut self) {
        self.orphans_due = Instant::now() + ORPHANS_EVERY;
        let Some(pods) = &self.pods else {
            return;
        };
        match pods.take_down_orphans(self.reconciler.host()) {
            Ok(done) => {
                for whose in done {
                    tracing::info!(
                        whose,
                        "the container is gone, and nobody said so: took its attachment down"
                    );
                }
            }
            Err(error) => {
                let error = agent::chain(&error);
                tracing::error!(
                    error,
                    "attachments of containers that are gone cannot all be taken down"
                );
            }
        }
    }

    /// Brings the network to other nodes to what is desired. Returns whether it is there.
    fn network(&mut self, pass: Pass) -> bool {
        let held = *self.held.borrow_and_update();
        self.health.set(Part::Subnet, held.is_some());
        let is_told = held.is_some() && self.index.is_complete();
        let (held, index) = match (held, is_told, &self.recalled) {
            (Some(held), true, _) => {
                self.recalled = None;
                (held, &self.index)
            }
            (_, _, Some(recalled)) => (recalled.held, &recalled.index),
            _ => return true,
        };
        // A Node that is gone for a moment takes nothing away: what was published last still stands.
        let node = index.own().cloned().unwrap_or_default();
        let start = Instant::now();
        let result = self
            .reconciler
            .pass(pass, &self.config, &node, &held, index);
        self.health.set(Part::Kernel, result.is_ok());
        let report = match result {
            Ok(report) => report,
            Err(error) => {
                self.counts.failed(&error);
                self.complain(Part::Kernel, Some(error.to_string()));
                return false;
            }
        };
        self.counts.passed(start.elapsed().as_secs_f64(), &report);
        self.log(&report, start.elapsed());
        if is_told {
            self.keeper.begin();
        }
        let announcement = announcement(&self.config, self.reconciler.own());
        let is_said = self.index.own().is_some_and(|node| {
            announce::patch(
                node,
                &announcement,
                &self.config.annotations,
                Timestamp::now(),
            )
            .is_none()
        });
        self.health.set(Part::Published, is_said);
        self.announce.send_if_modified(|known| {
            let new = known.as_ref() != Some(&announcement);
            *known = Some(announcement);
            new
        });
        let written = files::write(&self.config, self.reconciler.own());
        self.health.set(Part::Files, written.is_ok());
        if let Ok(written) = &written {
            if let Some((was, is)) = written.mtu {
                tracing::warn!("{}", notices::mtu_text(was, is));
                self.recorder
                    .publish(notices::mtu_changed(was, is, &self.own_reference()));
            }
            for file in &written.files {
                tracing::info!(file = %file.display(), "written");
            }
        }
        self.files.watch_folder_of(&self.config.subnet_file);
        if let Some(folder) = &self.config.cni_conf_dir {
            self.files
                .watch_folder_of(&folder.join(names::CONFLIST_FILE));
        }
        self.look_for_rivals();
        let done = written.is_ok();
        self.complain(Part::Files, written.err().map(|error| error.to_string()));
        done
    }

    /// Other networks where ours should be are told, and are in the way of being ready, but of nothing else.
    fn look_for_rivals(&mut self) {
        let conflist = self.config.cni_conf_dir.as_deref().and_then(files::rival);
        let networks = self.config.net.networks.iter();
        let networks: Vec<Subnet> = networks.map(|(_, network)| network.network).collect();
        let by_address = self.service_host.and_then(|ip| {
            let network = *networks.iter().find(|network| network.contains(ip))?;
            Some(Rival::Services { ip, network })
        });
        let by_range = || {
            self.service_ranges.borrow().iter().find_map(|&range| {
                let network = *networks.iter().find(|network| network.overlaps(range))?;
                Some(Rival::ServiceRange { range, network })
            })
        };
        let rivals: Vec<Rival> = conflist
            .map(Rival::Conflist)
            .into_iter()
            .chain(by_address.or_else(by_range))
            .collect();
        for rival in &rivals {
            if !self.rivals.contains(rival) {
                tracing::error!("{rival}");
                self.recorder
                    .publish(notices::in_the_way(rival, &self.own_reference()));
            }
        }
        if rivals.is_empty() && !self.rivals.is_empty() {
            tracing::info!("no other network is in the way any more");
        }
        self.health.set(Part::Alone, rivals.is_empty());
        let said: Vec<_> = rivals.iter().map(Rival::to_string).collect();
        self.health.explain(Part::Alone, &said.join("; "));
        self.rivals = rivals;
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
                    self.tell(skipped);
                }
            }
        }
        for obstacle in &report.obstacles {
            if !self.obstacles.contains(obstacle) {
                tracing::warn!("{obstacle}");
                self.recorder
                    .publish(notices::obstacle(obstacle, &self.own_reference()));
            }
        }
        self.obstacles.clone_from(&report.obstacles);
        self.skipped = now
            .into_iter()
            .map(|(key, skipped)| (key, skipped.reason.to_string()))
            .collect();
    }

    /// Tells of a node that is left out, if that is on us.
    fn tell(&self, skipped: &Skipped) {
        let names = self.index.others().map(|facts| &facts.name);
        if notices::is_ours_to_tell(&self.config.node_name, names, &skipped.reason) {
            let uid = |name: &str| self.index.uid(name).map(str::to_owned);
            for notice in notices::left_out(skipped, uid) {
                self.recorder.publish(notice);
            }
        }
    }

    /// Logs trouble with a part when it begins, changes and ends. What does not pass by itself at once is an Event, too.
    fn complain(&mut self, part: Part, trouble: Option<String>) {
        if let Some(error) = &trouble {
            self.health.explain(part, error);
        }
        self.failed_passes = trouble
            .as_ref()
            .map_or(0, |_| self.failed_passes.saturating_add(1));
        if let Some(error) = &trouble
            && (self.failed_passes == LASTING
                || self.failed_passes > LASTING && trouble != self.complaint)
        {
            let old = hostnet::kernel::too_old(&hostnet::kernel::release());
            let error = old.map_or_else(|| error.clone(), |old| format!("{error}; {old}"));
            let notice = notices::not_as_desired(&error, &self.own_reference());
            self.recorder.publish(notice);
        }
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

async fn sleep_until_some(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
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
