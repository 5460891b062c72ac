//! Owns the change from another mode or another proxy: its rules go once ours are in, so that no connect fails.

use hostnet::nft::{Change, Error, Nft, TableId};
use hostnet::vocab::Family;

use crate::backend::{Applied, Backend};
use crate::iptables::{Variant, leftovers};
use crate::nft::NftBackend;
use crate::plan::{Delta, Ruleset};
use crate::run::chain;

/// The table of kube-proxy's nftables mode.
const KUBE_PROXY: &str = "kube-proxy";

/// A backend that has the rules of others removed after its first full pass.
#[derive(Debug)]
pub struct Successor<B> {
    backend: B,
    others: Option<Others>,
}

/// Whose rules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Where we are nf_tables ourselves: chains of iptables, and kube-proxy's table.
    OfNftables,
    /// Where we are this variant of iptables ourselves, which takes kube-proxy's chains in its tables over: tables in
    /// nf_tables, and chains in the other variant's.
    OfIptables(Variant),
}

/// Why rules could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("rules of another mode or proxy cannot be removed")]
pub struct RemoveError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Others {
    /// Removes them, and returns how many there were.
    ///
    /// # Errors
    /// [`RemoveError`]: some of them may be gone.
    pub fn remove(self) -> Result<usize, RemoveError> {
        let removed = match self {
            Others::OfNftables => kube_proxys_tables()
                .map_err(box_error)
                .and_then(|ops| Ok(ops + leftovers::remove().map_err(box_error)?)),
            Others::OfIptables(variant) => kube_proxys_tables()
                .map_err(box_error)
                .and_then(|ops| Ok(ops + our_tables()?))
                .and_then(|ops| {
                    let removed = leftovers::remove_of(variant.other());
                    Ok(ops + removed.map_err(box_error)?)
                }),
        };
        removed.map_err(RemoveError)
    }
}

/// Removes rules: of every mode, ours and kube-proxy's, or those of one mode of ours alone, which a kube-proxy in another
/// mode, or one in mode nftables, does without. Returns how many changes that took.
///
/// # Errors
/// [`RemoveError`]: some of them may be gone.
pub fn cleanup(mode: Option<Only>) -> Result<usize, RemoveError> {
    match mode {
        None => our_tables()
            .map_err(RemoveError)
            .and_then(|ops| Ok(ops + Others::OfNftables.remove()?)),
        Some(Only::Nftables) => our_tables().map_err(RemoveError),
        Some(Only::Iptables) => leftovers::remove().map_err(|error| RemoveError(error.into())),
    }
}

/// Whose rules [`cleanup`] removes, if not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Only {
    /// Our tables in nf_tables.
    Nftables,
    /// kube-proxy's chains of iptables, whichever proxy made them.
    Iptables,
}

fn box_error<E: std::error::Error + Send + Sync + 'static>(
    error: E,
) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

fn kube_proxys_tables() -> Result<usize, Error> {
    let mut nft = Nft::open()?;
    let mut removed = 0;
    for family in Family::ALL {
        removed += usize::from(nft.remove(&TableId::new(family, KUBE_PROXY))?);
    }
    Ok(removed)
}

fn our_tables() -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    Ok(NftBackend::open()?.cleanup()?.ops)
}

impl<B> Successor<B> {
    /// Removes the rules of `others` when `backend` holds its own.
    pub fn new(backend: B, others: Others) -> Successor<B> {
        Successor {
            backend,
            others: Some(others),
        }
    }
}

impl<B: Backend> Backend for Successor<B> {
    type Error = B::Error;

    fn replace(&mut self, ruleset: &Ruleset) -> Result<Applied, B::Error> {
        let applied = self.backend.replace(ruleset)?;
        match self.others.map(Others::remove) {
            None => {}
            Some(Ok(removed)) => {
                self.others = None;
                if removed > 0 {
                    tracing::info!(removed, "rules of another mode or proxy are gone");
                }
            }
            Some(Err(error)) => {
                let error = chain(&error);
                tracing::warn!(error, "will be tried again at the next full pass");
            }
        }
        Ok(applied)
    }

    fn is_bare(&mut self) -> Result<bool, B::Error> {
        self.backend.is_bare()
    }

    fn update(&mut self, delta: &Delta) -> Result<Applied, B::Error> {
        self.backend.update(delta)
    }

    fn tick(&mut self) -> Result<Applied, B::Error> {
        self.backend.tick()
    }

    fn is_disturbed_by(&self, change: &Change) -> bool {
        self.backend.is_disturbed_by(change)
    }

    fn is_told_of_changes(&self) -> bool {
        self.backend.is_told_of_changes()
    }

    fn shares_tables(&self) -> bool {
        self.backend.shares_tables()
    }

    fn is_untouched(&mut self) -> bool {
        self.backend.is_untouched()
    }

    fn cleanup(&mut self) -> Result<Applied, B::Error> {
        self.backend.cleanup()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use hostnet::nfacct::Counters;
    use hostnet::testkit::{Ns, ask_tcp, require_tool, wait_until};

    use super::*;
    use crate::iptables::{IptablesBackend, Naming, Options};
    use crate::nft::tests::world::{Service, World};

    /// What is in the kernel of a proxy's, by the programs that people use.
    fn traces(node: &Ns) -> Vec<String> {
        let mut traces = Vec::new();
        for program in [
            "iptables-nft-save",
            "ip6tables-nft-save",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
        ] {
            let saved = node.sh(program, &[]);
            let chains = saved.lines().filter(|line| line.contains("KUBE-"));
            traces.extend(chains.map(|line| format!("{program}: {line}")));
        }
        let tables = node.sh("nft", &["list", "tables"]);
        let is_proxys = |line: &&str| line.ends_with("-proxy");
        traces.extend(tables.lines().filter(is_proxys).map(str::to_owned));
        let mut counters = node.run(Counters::open).unwrap();
        let counters = [
            "ct_state_invalid_dropped_pkts",
            "localhost_nps_accepted_pkts",
        ]
        .into_iter()
        .filter(|name| counters.packets(name).unwrap().is_some());
        traces.extend(counters.map(|name| format!("nfacct: {name}")));
        traces
    }

    fn iptables(naming: Naming, variant: Variant) -> Successor<IptablesBackend> {
        let options = Options {
            naming,
            ..Options::default()
        };
        let backend = IptablesBackend::new(options, variant);
        Successor::new(backend, Others::OfIptables(variant))
    }

    /// Runs `switch` while connects go to the cluster IP and to the node port. None of them may fail.
    fn under_a_stream_of_connects(world: &World, switch: impl FnOnce()) {
        let stop = AtomicBool::new(false);
        let asked = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let targets = [(&world.c, world.vip()), (&world.client, world.node_port())];
        std::thread::scope(|scope| {
            for ((ns, target), asked) in targets.iter().zip(&asked) {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let answer = ask_tcp(ns, target);
                        assert!(answer.is_ok(), "{target}: {answer:?}");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let some_more = || {
                let before: Vec<_> = asked.iter().map(|n| n.load(Ordering::Relaxed)).collect();
                wait_until("connects on both ways", Duration::from_secs(60), || {
                    let now = asked.iter().map(|n| n.load(Ordering::Relaxed));
                    now.zip(&before).all(|(now, before)| now >= before + 20)
                });
            };
            some_more();
            switch();
            some_more();
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn no_connect_fails_from_one_mode_to_the_other_and_nothing_of_the_old_one_is_left() {
        require_tool("iptables-nft-save", "iptables");
        for family in Family::ALL {
            let world = World::new(family);
            let plan = world.plan([Service::tcp([world.endpoint(11), world.endpoint(12)])]);
            let nft = || {
                let mut backend = world
                    .node
                    .run(|| Successor::new(NftBackend::open().unwrap(), Others::OfNftables));
                world.node.run(|| backend.replace(&plan)).unwrap();
                let left = traces(&world.node);
                assert_eq!(left, ["table ip twill-proxy", "table ip6 twill-proxy"]);
            };
            let to_iptables = |naming, variant| {
                let mut backend = iptables(naming, variant);
                world.node.run(|| backend.replace(&plan)).unwrap();
                let left = traces(&world.node);
                let is_its_own =
                    |line: &String| line.contains(variant.as_str()) || line.starts_with("nfacct: ");
                assert!(left.iter().all(is_its_own), "{left:#?}");
                let jumps = left.iter().filter(|line| line.contains("-A PREROUTING"));
                assert_eq!(jumps.count(), 2, "{left:#?}");
                let counters = left.iter().filter(|line| line.starts_with("nfacct: "));
                assert_eq!(counters.count(), 2, "{left:#?}");
            };
            nft();
            under_a_stream_of_connects(&world, || to_iptables(Naming::Today, Variant::Nft));
            under_a_stream_of_connects(&world, || to_iptables(Naming::Legacy, Variant::Nft));
            under_a_stream_of_connects(&world, nft);
            under_a_stream_of_connects(&world, || to_iptables(Naming::Today, Variant::Legacy));
            under_a_stream_of_connects(&world, nft);
            // And from one variant of iptables to the other.
            to_iptables(Naming::Today, Variant::Nft);
            under_a_stream_of_connects(&world, || to_iptables(Naming::Today, Variant::Legacy));
            under_a_stream_of_connects(&world, || to_iptables(Naming::Today, Variant::Nft));
        }
    }

    #[test]
    fn what_a_kube_proxy_has_left_goes_and_what_is_others_stays() {
        let ns = Ns::new("left");
        ns.sh(
            "nft",
            &["add table ip kube-proxy; add table ip6 kube-proxy; add table ip others"],
        );
        ns.sh("iptables-nft", &["-t", "nat", "-N", "OTHERS"]);
        let mut backend = IptablesBackend::new(Options::default(), Variant::Nft);
        ns.run(|| backend.replace(&Ruleset::default())).unwrap();
        assert!(!traces(&ns).is_empty());
        assert!(ns.run(|| Others::OfNftables.remove()).unwrap() > 0);
        assert_eq!(traces(&ns), [""; 0]);
        assert!(ns.sh("nft", &["list tables"]).contains("table ip others"));
        assert!(ns.sh("iptables-nft-save", &[]).contains(":OTHERS"));
        assert_eq!(ns.run(|| Others::OfNftables.remove()).unwrap(), 0);
    }
}
