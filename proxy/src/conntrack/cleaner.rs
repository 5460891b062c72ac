//! The thread that has the kernel forget stale flows.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use hostnet::conntrack::{Conntrack, Error};
use hostnet::vocab::Family;

use super::Stale;
use crate::metrics::Metrics;

/// The first wait after a failure, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Takes what is stale, and returns at once; a thread does the work. It ends when this is dropped.
#[derive(Debug)]
pub struct Cleaner {
    queue: Sender<Stale>,
}

impl Cleaner {
    /// Starts the thread, for the flows of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn start(metrics: Metrics) -> Result<Cleaner, Error> {
        let conntrack = Conntrack::open()?;
        let (queue, jobs) = channel();
        let failed = |source: io::Error| Error::Socket {
            operation: "start a thread",
            source,
        };
        thread::Builder::new()
            .name("conntrack".into())
            .spawn(move || work(conntrack, &jobs, &metrics))
            .map_err(failed)?;
        Ok(Cleaner { queue })
    }

    /// Has these flows looked at. The rules that new packets shall meet must be in already.
    pub fn clean(&self, stale: Stale) {
        if !stale.is_empty() && self.queue.send(stale).is_err() {
            tracing::warn!("stale UDP flows are not deleted any more: the thread for it has ended");
        }
    }
}

fn work(mut conntrack: Conntrack, jobs: &Receiver<Stale>, metrics: &Metrics) {
    let mut failures = 0;
    let mut left = Stale::default();
    loop {
        let wait = RETRY.1.min(RETRY.0 * 2_u32.pow(failures));
        let next = if failures > 0 {
            jobs.recv_timeout(wait)
        } else {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match next {
            Ok(stale) => left.extend(stale),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // One reading serves all that waits.
        while let Ok(stale) = jobs.try_recv() {
            left.extend(stale);
        }
        match clean(&mut conntrack, &left, metrics) {
            Ok(()) => {
                left = Stale::default();
                failures = 0;
            }
            Err(error) => {
                if failures == 0 {
                    let error = crate::run::chain(&error);
                    tracing::warn!(error, "stale UDP flows could not be deleted: will retry");
                }
                failures = (failures + 1).min(8);
            }
        }
    }
}

fn clean(conntrack: &mut Conntrack, stale: &Stale, metrics: &Metrics) -> Result<(), Error> {
    for family in Family::ALL {
        let Some(filter) = stale.filter(family) else {
            continue;
        };
        let start = Instant::now();
        let mut found = Vec::new();
        conntrack.dump(&filter, |flow| {
            if stale.contains(&flow) {
                found.push(flow);
            }
        })?;
        let deleted = conntrack.delete(&found)?;
        metrics.flows_deleted(family, start.elapsed(), deleted);
        if deleted > 0 {
            tracing::info!(%family, flows = deleted, example = %found[0], "deleted stale UDP flows");
        }
    }
    Ok(())
}
