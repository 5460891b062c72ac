//! Packets to other nodes now and then, so that a way that is blocked is known before somebody misses it.
//!
//! At each turn a bounded number of peers is asked, the next ones at the next turn: the work does not grow with the cluster.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use cli::{
    kernel::Kernel,
    probe::{self, Peer, Probed},
};
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::Counts;

/// How many peers are asked at one turn.
const AT_A_TURN: usize = 16;
/// Packets of either size to each: one may be lost by chance.
const PACKETS: usize = 2;

/// Sends packets at each interval, as long as the process lives.
pub async fn run(every: Duration, records: PathBuf, counts: Counts) {
    let mut turns = interval(every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut prober = Prober::default();
    loop {
        turns.tick().await;
        let (records, next) = (records.clone(), prober.next);
        let turn = tokio::task::spawn_blocking(move || turn(&records, next));
        match turn.await.map_err(anyhow::Error::from).flatten() {
            Ok(turn) => {
                counts.probed(&turn.probed);
                for line in prober.heard(turn) {
                    tracing::info!("{line}");
                }
                counts.unwell(prober.unwell.len());
            }
            Err(error) => tracing::warn!("no packets to other nodes this time: {error:#}"),
        }
    }
}

/// What came of one turn.
struct Turn {
    /// The subnets of all peers that there are.
    peers: Vec<String>,
    probed: Vec<Probed>,
}

fn turn(records: &Path, next: usize) -> anyhow::Result<Turn> {
    let peers = probe::peers(&mut Kernel::here(records)?)?;
    let probed = probe::probe(&chosen(&peers, next), PACKETS)?;
    let peers = peers.iter().map(|peer| peer.subnet.to_string()).collect();
    Ok(Turn { peers, probed })
}

/// The peers of a turn: so many from here on, and from the first where they end.
fn chosen(peers: &[Peer], next: usize) -> Vec<Peer> {
    let from = next.checked_rem(peers.len()).unwrap_or(0);
    let round = peers.iter().cycle().skip(from);
    round.take(AT_A_TURN.min(peers.len())).cloned().collect()
}

/// What is known of the peers.
#[derive(Default)]
struct Prober {
    /// Where the next turn begins.
    next: usize,
    /// What is wrong, by the peer's subnet.
    unwell: BTreeMap<String, String>,
}

impl Prober {
    /// Takes in what came of a turn, and says what is new.
    fn heard(&mut self, turn: Turn) -> Vec<String> {
        self.next = match turn.peers.len() {
            0 => 0,
            count => (self.next + turn.probed.len()) % count,
        };
        self.unwell.retain(|subnet, _| turn.peers.contains(subnet));
        let mut news = Vec::new();
        for Probed {
            subnet,
            problem,
            remedy,
            ..
        } in turn.probed
        {
            match (problem, remedy) {
                (Some(problem), Some(remedy)) => {
                    let was = self.unwell.insert(subnet.clone(), problem.clone());
                    if was.as_ref() != Some(&problem) {
                        news.push(format!("pods of {subnet}: {problem}; remedy: {remedy}"));
                    }
                }
                _ => {
                    if self.unwell.remove(&subnet).is_some() {
                        news.push(format!(
                            "pods of {subnet}: packets get there and back again"
                        ));
                    }
                }
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(n: usize) -> String {
        format!("10.244.{n}.0/24")
    }

    fn peers(count: usize) -> Vec<Peer> {
        let peer = |n| Peer {
            subnet: subnet(n).parse().unwrap(),
            target: [10, 244, n as u8, 0].into(),
            device: "flannel.1".to_owned(),
            mtu: 1450,
            underlay: None,
        };
        (0..count).map(peer).collect()
    }

    fn probed(n: usize, problem: Option<&str>) -> Probed {
        Probed {
            subnet: subnet(n),
            target: [10, 244, n as u8, 0].into(),
            node: None,
            name: None,
            lost_small: [0, 2],
            lost_full: [0, 2],
            latency: None,
            mtu: None,
            problem: problem.map(str::to_owned),
            remedy: problem.map(|_| "ask".to_owned()),
        }
    }

    #[test]
    fn all_peers_have_their_turn_and_few_at_a_time() {
        for count in [0, 1, 15, 16, 17, 100] {
            let peers = peers(count);
            let mut prober = Prober::default();
            let mut asked = BTreeMap::new();
            for _ in 0..count.div_ceil(AT_A_TURN) {
                let chosen = chosen(&peers, prober.next);
                assert!(chosen.len() <= AT_A_TURN);
                let probed = chosen.iter().map(|peer| {
                    let n = peers.iter().position(|p| p == peer).unwrap();
                    *asked.entry(n).or_insert(0) += 1;
                    probed(n, None)
                });
                let turn = Turn {
                    probed: probed.collect(),
                    peers: (0..count).map(subnet).collect(),
                };
                assert!(prober.heard(turn).is_empty());
            }
            assert_eq!(asked.len(), count);
        }
    }

    #[test]
    fn trouble_is_told_once_and_so_is_its_end() {
        let mut prober = Prober::default();
        let mut heard = |problem: Option<&str>, peers: &[usize]| {
            let peers = peers.iter().map(|n| subnet(*n)).collect();
            let probed = vec![probed(1, problem)];
            let news = prober.heard(Turn { peers, probed });
            (news.join("\n"), prober.unwell.len())
        };
        let said = "pods of 10.244.1.0/24: silent; remedy: ask".to_owned();
        assert_eq!(heard(Some("silent"), &[1, 2]), (said, 1));
        assert_eq!(heard(Some("silent"), &[1, 2]), (String::new(), 1));
        let said = "pods of 10.244.1.0/24: packets get there and back again".to_owned();
        assert_eq!(heard(None, &[1, 2]), (said, 0));
        heard(Some("silent"), &[1, 2]);
        let gone = Turn {
            peers: vec![subnet(2)],
            probed: Vec::new(),
        };
        assert!(prober.heard(gone).is_empty());
        assert!(prober.unwell.is_empty(), "one that is no peer is none");
    }
}
