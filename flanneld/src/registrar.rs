//! The task that speaks to the API server on our behalf: holds the subnets, renews their Leases, and keeps our Node
//! saying where we are. It is apart from the loop that programs the kernel, so that no slow or absent API server is in
//! the way of mending.
//!
//! Level-triggered, too: each pass looks at what our Node says and at what is held, and does what is missing.

use std::{sync::Arc, time::Duration};

use agent::{
    events::{self, Recorder},
    sync::{Options, Pacer},
};
use hostnet::vocab::Subnet;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ByFamily,
    announce::{self, Announcement},
    config::Config,
    health::{Health, Part},
    lease::{Error, Holding, Leases, Others, Owner, renew_in},
    metrics::Counts,
    node::NodeObject,
    notices,
};

/// How long to wait for a controller-manager that seems to give out subnets.
const PATIENCE: Duration = Duration::from_secs(10);

const PACE: Options = Options {
    min_interval: Duration::from_millis(100),
    full_every: Duration::from_secs(300),
    retry: Duration::from_millis(500),
    retry_max: Duration::from_secs(30),
};

/// What the watches tell of us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Our Node; `None` if there is none.
    pub node: Option<NodeObject>,
    /// What other nodes have. Filled in only where it is needed: while our Node has no subnet.
    pub others: Others,
    /// Leases in our name, as far as our subnets go.
    pub leased: Vec<Subnet>,
}

/// What the task needs.
#[derive(Debug)]
pub struct Registrar {
    config: Arc<Config>,
    configs: watch::Receiver<Arc<Config>>,
    leases: Leases,
    nodes: Api<NodeObject>,
    held: watch::Sender<Option<ByFamily<Subnet>>>,
    holdings: Option<Held>,
    /// Since when we wait for somebody else to give us a subnet.
    waiting_since: Option<Instant>,
    /// The last complaint, so that it is said once.
    complaint: Option<String>,
    events: Recorder,
    counts: Counts,
    health: Health,
}

/// What is held, and for which Node.
#[derive(Debug)]
struct Held {
    uid: String,
    holdings: ByFamily<Holding>,
    since: Instant,
    /// The watches have told of all this, too. They are a little behind our own requests.
    seen: bool,
}

/// How long the watches may take to tell of what we have just done.
const WATCH_LAG: Duration = Duration::from_secs(10);

impl Registrar {
    /// A registrar that publishes what is held to `held`.
    #[must_use]
    pub fn new(
        mut configs: watch::Receiver<Arc<Config>>,
        client: Client,
        held: watch::Sender<Option<ByFamily<Subnet>>>,
        events: Recorder,
        counts: Counts,
        health: Health,
    ) -> Self {
        let config = Arc::clone(&configs.borrow_and_update());
        let leases = Leases::new(client.clone(), &config.lease_namespace, &config.node_name);
        Self {
            config,
            configs,
            leases,
            nodes: Api::all(client),
            held,
            holdings: None,
            waiting_since: None,
            complaint: None,
            events,
            counts,
            health,
        }
    }

    /// Runs until `stop`. `view` is `None` until all Nodes and Leases have been listed; what our Node has been given is
    /// held before. Leases are not given back then: a restart finds them.
    pub async fn run(
        mut self,
        mut view: watch::Receiver<Option<View>>,
        mut announcement: watch::Receiver<Option<Announcement>>,
        stop: CancellationToken,
    ) {
        let mut pacer = Pacer::new(PACE);
        loop {
            let wake = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = view.changed() => if changed.is_err() { return } else { pacer.mark() },
                changed = announcement.changed() => if changed.is_err() { return } else { pacer.mark() },
                changed = self.configs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.config = Arc::clone(&self.configs.borrow_and_update());
                    pacer.mark();
                }
                // After a failure the pacer knows when to try again.
                () = sleep_until(wake), if pacer.failures() == 0 => pacer.mark(),
                pass = pacer.due() => {
                    let view = view.borrow_and_update().clone();
                    let announcement = announcement.borrow_and_update().clone();
                    let result = match view {
                        Some(view) => self.pass(&view, announcement.as_ref()).await,
                        None => self.begin().await,
                    };
                    pacer.finished(pass, result.is_ok());
                    if self.complain(result.as_ref().err())
                        && let Err(error) = &result
                    {
                        self.tell(error).await;
                    }
                }
            }
        }
    }

    /// When there is something to do though nothing changes.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let renewal = self
            .holdings
            .as_ref()
            .map(|held| now + renew_in(&held.holdings, self.config.renew_margin));
        let unseen = self
            .holdings
            .as_ref()
            .filter(|held| !held.seen)
            .map(|held| held.since + WATCH_LAG);
        let patience = self.waiting_since.map(|since| since + PATIENCE);
        let waits = unseen.into_iter().chain(patience).filter(|end| *end > now);
        let far = now + PACE.full_every;
        renewal.into_iter().chain(waits).min().unwrap_or(far)
    }

    async fn pass(
        &mut self,
        view: &View,
        announcement: Option<&Announcement>,
    ) -> Result<(), Error> {
        // Without a Node there is nothing that a Lease could belong to. What we held stays in use.
        let node = view.node.as_ref().ok_or_else(|| Error::NoNode {
            node: self.config.node_name.clone(),
        })?;
        if !self.is_current(node, view) {
            self.hold(view).await?;
        }
        self.renew(node).await?;
        for (family, holding) in self.holdings.iter().flat_map(|held| held.holdings.iter()) {
            self.counts.held(family, holding.expires.as_second());
        }
        if let Some(announcement) = announcement {
            self.announce(node, announcement).await?;
        }
        Ok(())
    }

    /// Whether what is held is what our Node asks for, and the Leases are there.
    fn is_current(&mut self, node: &NodeObject, view: &View) -> bool {
        let Some(held) = &mut self.holdings else {
            return false;
        };
        let assigned = node.subnets();
        let is_as_told = held.uid == node.uid()
            && held.holdings.iter().all(|(family, holding)| {
                assigned.get(family) == Some(&holding.subnet)
                    && view.leased.contains(&holding.subnet)
            });
        held.seen |= is_as_told;
        is_as_told || (!held.seen && held.since.elapsed() < WATCH_LAG)
    }

    /// While the others are being listed: takes what our Node has been given already.
    async fn begin(&mut self) -> Result<(), Error> {
        if self.holdings.is_none()
            && let Some(holdings) = self.leases.hold_if_assigned(&self.config.net).await?
        {
            self.use_holdings(holdings);
        }
        Ok(())
    }

    async fn hold(&mut self, view: &View) -> Result<(), Error> {
        let may_wait = self
            .waiting_since
            .is_none_or(|since| since.elapsed() < PATIENCE);
        let conf = &self.config.net;
        match self.leases.hold(conf, &view.others, may_wait).await {
            Ok(holdings) => {
                self.use_holdings(holdings);
                Ok(())
            }
            Err(error) => {
                if matches!(error, Error::Unassigned { .. }) {
                    self.waiting_since.get_or_insert_with(Instant::now);
                }
                Err(error)
            }
        }
    }

    fn use_holdings(&mut self, holdings: ByFamily<Holding>) {
        let subnets = ByFamily::from_fn(|family| Some(holdings.get(family)?.subnet));
        if self.held.borrow().as_ref() != Some(&subnets) {
            let listed: Vec<String> = subnets
                .iter()
                .map(|(_, subnet)| subnet.to_string())
                .collect();
            tracing::info!(subnets = listed.join(","), "subnet held");
        }
        let Some((_, first)) = holdings.iter().next() else {
            return;
        };
        self.holdings = Some(Held {
            uid: first.owner.clone().unwrap_or_default(),
            holdings,
            since: Instant::now(),
            seen: false,
        });
        self.waiting_since = None;
        self.held.send_if_modified(|held| {
            let new = held.as_ref() != Some(&subnets);
            *held = Some(subnets);
            new
        });
    }

    async fn renew(&mut self, node: &NodeObject) -> Result<(), Error> {
        let Some(held) = &mut self.holdings else {
            return Ok(());
        };
        let owner = Owner {
            name: self.config.node_name.clone(),
            uid: node.uid().to_owned(),
        };
        let due =
            |holding: &Holding| holding.renew_at(self.config.renew_margin) <= Timestamp::now();
        for family in hostnet::vocab::Family::ALL {
            let Some(holding) = held.holdings.get(family).filter(|holding| due(holding)) else {
                continue;
            };
            match self.leases.renew(holding, &owner).await? {
                Some(renewed) => {
                    tracing::info!(subnet = %renewed.subnet, until = %renewed.expires, "Lease renewed");
                    *held.holdings.get_mut(family) = Some(renewed);
                }
                // Gone: the next pass claims it again.
                None => {
                    self.holdings = None;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn announce(&self, node: &NodeObject, announcement: &Announcement) -> Result<(), Error> {
        let Some(patch) = announce::patch(
            node,
            announcement,
            &self.config.annotations,
            Timestamp::now(),
        ) else {
            return Ok(());
        };
        let name = &self.config.node_name;
        let patched = self
            .nodes
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch))
            .await;
        patched.map_err(|source| Error::Api {
            what: format!("annotate Node {name}"),
            source,
        })?;
        tracing::info!(node = %name, patch = %patch, "told the other nodes where we are");
        Ok(())
    }

    /// Tells of trouble where a user of the cluster looks.
    async fn tell(&self, error: &Error) {
        let reference = |node: NodeObject| events::node(node.name(), node.uid());
        let get = async |name: &str| match self.nodes.get_opt(name).await {
            Ok(node) => node.map(reference),
            // Who may not read a Node may be allowed to write an Event about it.
            Err(_) => Some(events::node(name, "")),
        };
        let Some(own) = get(&self.config.node_name).await else {
            return;
        };
        let other = match error {
            Error::Clash { holder, .. } => get(holder).await,
            _ => None,
        };
        for notice in notices::claim(error, &own, other.as_ref()) {
            self.events.publish(notice);
        }
    }

    /// Logs trouble when it begins, changes and ends. Returns whether this is such a moment.
    fn complain(&mut self, error: Option<&Error>) -> bool {
        let text = error.map(ToString::to_string);
        let is_new = text != self.complaint;
        if is_new {
            match &text {
                Some(error) => {
                    let part = match &self.holdings {
                        None => Part::Subnet,
                        Some(_) => Part::Published,
                    };
                    self.health.explain(part, error);
                    tracing::warn!(error, "not registered; trying again");
                }
                None => tracing::info!("registered again"),
            }
            self.complaint = text;
        }
        is_new
    }
}
