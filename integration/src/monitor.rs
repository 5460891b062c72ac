//! Every change of a namespace's links, addresses, routes and nft rules, as the kernel announces
//! it: also of what was deleted and put back between two looks.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result};
use hostnet::netns::NetNs;

use crate::{inspect, wait};

/// A recording that runs until it is finished or dropped.
#[derive(Debug)]
pub struct Monitor {
    netns: NetNs,
    recorders: Vec<Recorder>,
}

#[derive(Debug)]
struct Recorder {
    child: Child,
    lines: Receiver<String>,
    wave: &'static Wave,
}

/// A change of our own, which shows that a recorder listens, and then that it has told all that
/// came before.
#[derive(Debug)]
struct Wave {
    recorder: &'static str,
    make: &'static str,
    undo: &'static str,
    /// In what a recorder says of both, and of nothing else.
    mark: &'static str,
    /// In what it says of the end of the second.
    end: &'static str,
}

const WAVES: &[Wave] = &[
    Wave {
        recorder: "ip monitor link address route",
        make: "ip route add blackhole 192.0.2.1/32",
        undo: "ip route del blackhole 192.0.2.1/32",
        mark: "blackhole 192.0.2.1",
        end: "Deleted blackhole 192.0.2.1",
    },
    Wave {
        recorder: "nft monitor",
        make: "nft add table ip twill-lab-wave",
        undo: "nft delete table ip twill-lab-wave",
        mark: "twill-lab-wave",
        end: "delete table ip twill-lab-wave",
    },
];

impl Monitor {
    /// Starts to record; from now on nothing is missed.
    pub fn start(netns: &NetNs) -> Result<Monitor> {
        let recorders = WAVES.iter().map(|wave| Recorder::start(netns, wave));
        let mut monitor = Monitor {
            netns: netns.clone(),
            recorders: recorders.collect::<Result<_>>()?,
        };
        monitor.collect()?;
        Ok(monitor)
    }

    /// Stops, and returns what was recorded.
    pub fn finish(mut self) -> Result<Vec<String>> {
        self.collect()
    }

    /// Makes waves, and returns what was recorded before they were seen.
    fn collect(&mut self) -> Result<Vec<String>> {
        let mut recorded = Vec::new();
        for recorder in &self.recorders {
            recorded.append(&mut recorder.collect(&self.netns)?);
        }
        Ok(recorded)
    }
}

impl Recorder {
    fn start(netns: &NetNs, wave: &'static Wave) -> Result<Recorder> {
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", netns.fd_path().display()))
            .arg("--")
            .args(wave.recorder.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run nsenter")?;
        let stdout = child.stdout.take().context("no pipe from the recorder")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Recorder { child, lines, wave })
    }

    fn collect(&self, netns: &NetNs) -> Result<Vec<String>> {
        let mut recorded = Vec::new();
        wait::until(self.wave.recorder, wait::PATIENCE, || {
            // Again and again, because a recorder that just starts misses the first.
            inspect::run_in(netns, self.wave.make)?;
            inspect::run_in(netns, self.wave.undo)?;
            let mut seen = false;
            while let Ok(line) = self.lines.recv_timeout(wait::INTERVAL) {
                seen |= line.contains(self.wave.end);
                recorded.push(line);
            }
            Ok(wait::holds(seen, "it says nothing"))
        })?;
        recorded.retain(|line| {
            // nft tells who began a generation: the waves' are of `nft` itself.
            !line.contains(self.wave.mark) && !line.ends_with("(nft)")
        });
        Ok(recorded)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // It may have ended with its namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_is_recorded_too() {
        let netns = NetNs::new_anonymous().unwrap();
        inspect::run_in(&netns, "ip link set lo up").unwrap();
        let quiet = Monitor::start(&netns).unwrap().finish().unwrap();
        assert_eq!(quiet, Vec::<String>::new());
        let monitor = Monitor::start(&netns).unwrap();
        for line in [
            "ip address add 10.1.2.3/32 dev lo",
            "ip address del 10.1.2.3/32 dev lo",
            "nft add table ip foreign",
            "nft delete table ip foreign",
        ] {
            inspect::run_in(&netns, line).unwrap();
        }
        let text = monitor.finish().unwrap().join("\n");
        assert!(text.contains("10.1.2.3/32"), "{text}");
        assert!(text.contains("delete table ip foreign"), "{text}");
    }
}
