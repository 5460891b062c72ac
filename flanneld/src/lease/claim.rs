//! Claiming, renewing and giving back subnets, by requests to the API server.

use std::time::Duration;

use hostnet::vocab::{Subnet, names};
use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{
    Error, Holding, Others, Owner, Taken, lease_name,
    object::{new, renewal},
    pick,
};
use crate::{
    ByFamily,
    config::{Allocate, NetConf, Network},
    node::NodeObject,
};

/// How many free subnets are tried in one go before looking anew: bounds the requests of one claim.
const TRIES: usize = 8;

/// How often a Node that somebody else changes at the same moment is read again.
const ROUNDS: usize = 4;

/// How often, and after how long, we look whether a younger Lease that overlaps ours has yielded.
const LOOKS: usize = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Our hand on the Leases of one namespace, and on our Node.
#[derive(Clone, Debug)]
pub struct Leases {
    leases: Api<Lease>,
    nodes: Api<NodeObject>,
    node: String,
}

/// What became of a claim.
enum Claim {
    /// We hold it; `new` if we did not before.
    Held { holding: Holding, new: bool },
    /// It is somebody else's.
    Taken(Rival),
}

/// Who has what we want.
struct Rival {
    holder: String,
    lease: String,
}

/// A request that failed, with what it was to do.
fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let what = what.into();
    move |source| Error::Api { what, source }
}

/// Whether an object of that name is there, or it was changed meanwhile.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

impl Leases {
    /// The Leases of `namespace`, on behalf of the Node `node`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, node: &str) -> Self {
        Self {
            leases: Api::namespaced(client.clone(), namespace),
            nodes: Api::all(client),
            node: node.into(),
        }
    }

    /// Makes sure that this node holds a subnet of each family in `conf`: those of `spec.podCIDRs`, else ones that are
    /// picked, unless `conf` says to wait (and `may_wait`). Both families are held, or neither.
    ///
    /// Costs a bounded number of requests: four in the usual cases, or six if a subnet is picked.
    ///
    /// # Errors
    /// See [`Error`]; all can pass by themselves or by somebody's doing, so it is worth trying again.
    pub async fn hold(
        &self,
        conf: &NetConf,
        others: &Others,
        may_wait: bool,
    ) -> Result<ByFamily<Holding>, Error> {
        for _ in 0..ROUNDS {
            let (node, owner) = self.own().await?;
            if !node.pod_cidrs().is_empty() {
                return self.hold_assigned(conf, &node, &owner).await;
            }
            self.may_pick(conf, others, may_wait).await?;
            if let Some(held) = self.hold_picked(conf, others, &node, &owner).await? {
                return Ok(held);
            }
            // Somebody changed the Node meanwhile, perhaps a controller-manager gave it a subnet: what it says counts.
        }
        Err(Error::Busy { tries: ROUNDS })
    }

    /// Makes sure that this node holds the subnets of `spec.podCIDRs`, if there are any: for that nobody needs to know
    /// of other nodes.
    ///
    /// # Errors
    /// As [`Leases::hold`].
    pub async fn hold_if_assigned(
        &self,
        conf: &NetConf,
    ) -> Result<Option<ByFamily<Holding>>, Error> {
        let (node, owner) = self.own().await?;
        if node.pod_cidrs().is_empty() {
            return Ok(None);
        }
        self.hold_assigned(conf, &node, &owner).await.map(Some)
    }

    /// Our Node, and what it is called in Leases.
    async fn own(&self) -> Result<(NodeObject, Owner), Error> {
        let node = self
            .nodes
            .get_opt(&self.node)
            .await
            .map_err(api(format!("read Node {}", self.node)))?;
        let node = node.ok_or_else(|| Error::NoNode {
            node: self.node.clone(),
        })?;
        let owner = Owner {
            name: self.node.clone(),
            uid: node.uid().into(),
        };
        Ok((node, owner))
    }

    /// Claims the subnets in `spec.podCIDRs`, and gives back any other that is in our name.
    async fn hold_assigned(
        &self,
        conf: &NetConf,
        node: &NodeObject,
        owner: &Owner,
    ) -> Result<ByFamily<Holding>, Error> {
        let assigned = node.subnets();
        let mut wanted = Vec::new();
        for (family, network) in conf.networks.iter() {
            let has = node.pod_cidrs().to_vec();
            let subnet = assigned.get(family).ok_or_else(|| Error::LacksFamily {
                node: self.node.clone(),
                has,
                family,
            })?;
            if !network.network.contains_subnet(*subnet) || *subnet == network.network {
                return Err(Error::Outside {
                    node: self.node.clone(),
                    subnet: *subnet,
                    network: network.network,
                });
            }
            wanted.push(*subnet);
        }
        let (mut held, mut new) = (ByFamily::default(), Vec::new());
        let clash = |subnet, rival: Rival| match rival {
            Rival { holder, lease } if holder.is_empty() => Error::Reserved {
                subnet,
                node: self.node.clone(),
                lease,
            },
            Rival { holder, lease } => Error::Clash {
                subnet,
                node: self.node.clone(),
                holder,
                lease,
            },
        };
        for subnet in wanted {
            match self.claim(subnet, owner).await {
                Ok(Claim::Held {
                    holding,
                    new: is_new,
                }) => {
                    new.extend(is_new.then(|| holding.clone()));
                    *held.get_mut(subnet.family()) = Some(holding);
                }
                Ok(Claim::Taken(rival)) => {
                    self.give_back(&new).await;
                    return Err(clash(subnet, rival));
                }
                Err(error) => {
                    self.give_back(&new).await;
                    return Err(error);
                }
            }
        }
        let leases = match self.settle(&held, &new, owner).await? {
            Ok(leases) => leases,
            Err((subnet, rival)) => return Err(clash(subnet, rival)),
        };
        let kept: Vec<Subnet> = held.iter().map(|(_, holding)| holding.subnet).collect();
        let is_stray = |lease: &Holding| lease.is_held_by(owner) && !kept.contains(&lease.subnet);
        self.give_back(&leases.into_iter().filter(is_stray).collect::<Vec<_>>())
            .await;
        Ok(held)
    }

    /// Whether a subnet may be picked now.
    async fn may_pick(&self, conf: &NetConf, others: &Others, may_wait: bool) -> Result<(), Error> {
        let wait = |why| {
            Err(Error::Unassigned {
                node: self.node.clone(),
                why,
            })
        };
        match conf.allocate {
            Allocate::Always => Ok(()),
            Allocate::Never => wait(
                "waiting for a controller-manager (--allocate-node-cidrs), since net-conf.json says Allocate never",
            ),
            Allocate::Auto if !may_wait => Ok(()),
            Allocate::Auto => {
                let leased: Vec<Subnet> = self
                    .list()
                    .await?
                    .into_iter()
                    .map(|holding| holding.subnet)
                    .collect();
                // A subnet that nobody holds was given by somebody else than a flanneld of ours.
                let mut given = others
                    .subnets
                    .iter()
                    .flat_map(|(_, subnets)| subnets.iter().map(|(_, subnet)| *subnet));
                if given.any(|subnet| !leased.contains(&subnet)) {
                    return wait(
                        "a controller-manager seems to give out subnets; waiting a few seconds for it",
                    );
                }
                Ok(())
            }
        }
    }

    /// Picks free subnets, claims them and writes them into the Node. `None` if somebody else changed the Node, or
    /// claimed what overlaps, meanwhile.
    async fn hold_picked(
        &self,
        conf: &NetConf,
        others: &Others,
        node: &NodeObject,
        owner: &Owner,
    ) -> Result<Option<ByFamily<Holding>>, Error> {
        let leases = self.list().await?;
        let (mut held, mut new) = (ByFamily::default(), Vec::new());
        for (family, network) in conf.networks.iter() {
            match self.pick_and_claim(network, others, &leases, owner).await {
                Ok((holding, is_new)) => {
                    new.extend(is_new.then(|| holding.clone()));
                    *held.get_mut(family) = Some(holding);
                }
                Err(error) => {
                    self.give_back(&new).await;
                    return Err(error);
                }
            }
        }
        if self.settle(&held, &new, owner).await?.is_err() {
            return Ok(None);
        }
        let cidrs: Vec<String> = held
            .iter()
            .map(|(_, holding)| holding.subnet.to_string())
            .collect();
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "podCIDR": cidrs.first(), "podCIDRs": cidrs },
        });
        match self
            .nodes
            .patch(&self.node, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(_) => {
                tracing::info!(node = %self.node, pod_cidrs = cidrs.join(","), "subnet picked and written into the Node");
                Ok(Some(held))
            }
            // 409: changed since it was read. 422: podCIDRs are set already, and cannot be changed. What we claimed is
            // found again in the next round, and used or given back as the Node then says.
            Err(kube::Error::Api(status)) if matches!(status.code, 409 | 422) => Ok(None),
            Err(source) => Err(Error::Api {
                what: format!("set spec.podCIDRs of Node {}", self.node),
                source,
            }),
        }
    }

    /// Claims a free subnet of one family: one that we hold already (we were interrupted last time), else a new one.
    /// Tells whether it is new.
    async fn pick_and_claim(
        &self,
        network: &Network,
        others: &Others,
        leases: &[Holding],
        owner: &Owner,
    ) -> Result<(Holding, bool), Error> {
        let family = network.network.family();
        let fits = |subnet: Subnet| {
            network.network.contains_subnet(subnet) && subnet.prefix() == network.subnet_len
        };
        let ours = leases
            .iter()
            .find(|holding| holding.is_held_by(owner) && fits(holding.subnet));
        let mut taken = Taken::default();
        taken.extend(leases.iter().map(|holding| holding.subnet));
        taken.extend(
            others
                .subnets
                .iter()
                .filter_map(|(_, subnets)| subnets.get(family).copied()),
        );
        let rivals = others
            .subnets
            .iter()
            .filter(|(_, subnets)| subnets.is_empty())
            .count();
        let free = pick(network, &taken, rivals, &self.node);
        if ours.is_none() && free.is_empty() {
            return Err(Error::Exhausted {
                network: network.network,
                len: network.subnet_len,
                min: network.subnet_min,
                max: network.subnet_max,
            });
        }
        for subnet in ours
            .map(|holding| holding.subnet)
            .into_iter()
            .chain(free)
            .take(TRIES)
        {
            if let Claim::Held { holding, new } = self.claim(subnet, owner).await? {
                return Ok((holding, new));
            }
        }
        Err(Error::Busy { tries: TRIES })
    }

    /// Claims one subnet: creates its Lease, or finds that it is ours already.
    async fn claim(&self, subnet: Subnet, owner: &Owner) -> Result<Claim, Error> {
        let name = lease_name(subnet);
        let mut rival = Rival {
            holder: "another node".into(),
            lease: name.clone(),
        };
        // Twice: the Lease in the way may have gone, or be one that may be swept.
        for _ in 0..2 {
            let lease = self
                .leases
                .get_opt(&name)
                .await
                .map_err(api(format!("read Lease {name}")))?;
            if let Some(holding) = lease.as_ref().and_then(Holding::of) {
                if holding.is_held_by(owner) {
                    if holding.owner.as_deref() == Some(&owner.uid) {
                        return Ok(Claim::Held {
                            holding,
                            new: false,
                        });
                    }
                    // Our Node was deleted and made again: the garbage collector must not take the Lease for an orphan.
                    match self.renew(&holding, owner).await? {
                        Some(holding) => {
                            return Ok(Claim::Held {
                                holding,
                                new: false,
                            });
                        }
                        None => continue,
                    }
                }
                if !self.sweep(&holding).await? {
                    return Ok(Claim::Taken(Rival {
                        holder: holding.holder,
                        lease: name,
                    }));
                }
                rival.holder = holding.holder;
            }
            match self
                .leases
                .create(
                    &PostParams::default(),
                    &new(subnet, owner, Timestamp::now()),
                )
                .await
            {
                Ok(made) => {
                    if let Some(holding) = Holding::of(&made) {
                        return Ok(Claim::Held { holding, new: true });
                    }
                }
                Err(error) if is_conflict(&error) => (),
                Err(source) => {
                    return Err(Error::Api {
                        what: format!("create Lease {name}"),
                        source,
                    });
                }
            }
        }
        Ok(Claim::Taken(rival))
    }

    /// Names do not exclude overlaps of subnets of different lengths. A claim holds only once no other that overlaps it
    /// is seen *after* it was made: then of two nodes at least the later one sees the other, whatever their clocks say.
    /// Where both see each other, the younger yields, and the older waits for that. Returns all Leases, or what is in
    /// the way; then new claims of ours are given back.
    async fn settle(
        &self,
        held: &ByFamily<Holding>,
        new: &[Holding],
        owner: &Owner,
    ) -> Result<Result<Vec<Holding>, (Subnet, Rival)>, Error> {
        for look in 1..=LOOKS {
            let leases = self.list().await?;
            let in_the_way = held.iter().find_map(|(_, ours)| {
                let is_rival = |other: &&Holding| {
                    other.subnet.overlaps(ours.subnet) && !other.is_held_by(owner)
                };
                leases.iter().find(is_rival).map(|other| (ours, other))
            });
            let Some((ours, other)) = in_the_way else {
                return Ok(Ok(leases));
            };
            if other.age < ours.age || look == LOOKS {
                self.give_back(new).await;
                return Ok(Err((
                    ours.subnet,
                    Rival {
                        holder: other.holder.clone(),
                        lease: lease_name(other.subnet),
                    },
                )));
            }
            sleep_until(Instant::now() + LOOK_AGAIN).await;
        }
        Err(Error::Busy { tries: LOOKS })
    }

    /// Deletes a Lease that is expired and whose Node is gone: where no garbage collector runs, somebody has to.
    /// Returns whether it is gone.
    async fn sweep(&self, holding: &Holding) -> Result<bool, Error> {
        // Without a holder it is a reservation, made by a person, who takes it back.
        if holding.expires > Timestamp::now() || holding.holder.is_empty() {
            return Ok(false);
        }
        let node = self
            .nodes
            .get_opt(&holding.holder)
            .await
            .map_err(api(format!("read Node {}", holding.holder)))?;
        if node.is_some() {
            return Ok(false);
        }
        tracing::info!(subnet = %holding.subnet, holder = %holding.holder, "the Lease has expired and its Node is gone: deleting it");
        self.delete(holding).await
    }

    /// Gives new claims back that are of no use. What fails here is found and taken up by the next attempt.
    async fn give_back(&self, holdings: &[Holding]) {
        for holding in holdings {
            if let Err(error) = self.delete(holding).await {
                tracing::warn!(subnet = %holding.subnet, %error, "a claimed subnet could not be given back");
            }
        }
    }

    /// Deletes exactly this Lease. `false` if it was changed meanwhile.
    async fn delete(&self, holding: &Holding) -> Result<bool, Error> {
        let name = lease_name(holding.subnet);
        let preconditions = Preconditions {
            uid: Some(holding.age.1.clone()),
            resource_version: holding.version.clone(),
        };
        let params = DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match self.leases.delete(&name, &params).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(source) => Err(Error::Api {
                what: format!("delete Lease {name}"),
                source,
            }),
        }
    }

    /// Renews a Lease that we hold. `None` if it is gone: then it has to be claimed again.
    ///
    /// # Errors
    /// The request failed.
    pub async fn renew(&self, holding: &Holding, owner: &Owner) -> Result<Option<Holding>, Error> {
        let name = lease_name(holding.subnet);
        let patch = renewal(holding, owner, Timestamp::now());
        match self
            .leases
            .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(lease) => Ok(Holding::of(&lease)),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.code == 409 => {
                Ok(None)
            }
            Err(source) => Err(Error::Api {
                what: format!("renew Lease {name}"),
                source,
            }),
        }
    }

    /// All subnets that are held.
    async fn list(&self) -> Result<Vec<Holding>, Error> {
        let labelled = ListParams::default().labels(names::LABEL_SUBNET);
        let list = self
            .leases
            .list(&labelled)
            .await
            .map_err(api("list Leases of subnets"))?;
        Ok(list.items.iter().filter_map(Holding::of).collect())
    }
}

/// When the first of these Leases is to be renewed, from now.
#[must_use]
pub fn renew_in(held: &ByFamily<Holding>, margin: Duration) -> Duration {
    let first = held
        .iter()
        .map(|(_, holding)| holding.renew_at(margin))
        .min();
    let left = first.map_or(Duration::ZERO, |at| {
        Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
    });
    // Not in a loop, whatever the clocks say.
    left.max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests;
