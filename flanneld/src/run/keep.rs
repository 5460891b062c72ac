//! When what is known is written to disk: as soon as there is something, then soon after it has changed, not at each
//! change, and often enough that it never grows too old to be used.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hostnet::memory;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    config::Config,
    recall::{self, State},
};

/// Least time between two writes: with many nodes the file is large, and disks wear.
const PAUSE: Duration = Duration::from_secs(10);

/// A file that is as it should be is written again, so that it keeps being young.
const REFRESH: Duration = Duration::from_secs(60 * 60);

/// Writes snapshots.
#[derive(Debug)]
pub(super) struct Keeper {
    path: Option<PathBuf>,
    /// All is known that belongs into a snapshot.
    is_whole: bool,
    /// Something has changed since the last write.
    is_stale: bool,
    written: Option<Instant>,
    writing: Option<JoinHandle<()>>,
}

impl Keeper {
    /// One that keeps nothing if there is no file.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            is_whole: false,
            is_stale: false,
            written: None,
            writing: None,
        }
    }

    /// Something has changed.
    pub(super) fn mark(&mut self) {
        self.is_stale = true;
    }

    /// All that the API server tells is known, and programmed: nothing is written before.
    pub(super) fn begin(&mut self) {
        self.is_whole = true;
    }

    /// Part of it is gone for now.
    pub(super) fn postpone(&mut self) {
        self.written = Some(Instant::now());
    }

    /// Waits until something is to be written. Cancel safe.
    pub(super) async fn due(&self) {
        let pause = if self.is_stale { PAUSE } else { REFRESH };
        match self.written {
            _ if self.path.is_none() || !self.is_whole => std::future::pending().await,
            // The first is not put off: whoever kills us then finds it.
            None => (),
            Some(written) => sleep_until(written + pause).await,
        }
    }

    /// Writes, on a thread of its own unless it is the `last` time: a slow disk shall hold up nothing.
    pub(super) fn keep(&mut self, config: &Arc<Config>, uid: &str, state: State, last: bool) {
        let Some(path) = self.path.clone() else {
            return;
        };
        if last && !self.is_stale {
            return;
        }
        self.written = Some(Instant::now());
        // The one before still waits for its disk: the next time serves for both.
        if self
            .writing
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            return;
        }
        self.is_stale = false;
        let (config, uid) = (Arc::clone(config), uid.to_owned());
        let write = move || {
            let written = recall::keep(&path, &config, &uid, &state);
            drop(state);
            memory::release();
            match written {
                Ok(()) => tracing::debug!(file = %path.display(), "what is known is kept"),
                Err(error) => tracing::warn!(
                    error = agent::chain(&error),
                    "what is known cannot be kept for a start without the API server (--snapshot-file)"
                ),
            }
        };
        if last {
            write();
        } else {
            self.writing = Some(tokio::task::spawn_blocking(write));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    /// Whether something is to be written now.
    async fn is_due(keeper: &Keeper) -> bool {
        timeout(Duration::ZERO, keeper.due()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_is_written_at_once_and_the_next_after_a_pause() {
        let mut keeper = Keeper::new(Some("/snapshot".into()));
        keeper.mark();
        assert!(!is_due(&keeper).await, "not all is known yet");
        keeper.begin();
        assert!(is_due(&keeper).await);
        keeper.written = Some(Instant::now());
        keeper.is_stale = false;
        advance(PAUSE).await;
        assert!(!is_due(&keeper).await, "nothing has changed");
        keeper.mark();
        assert!(is_due(&keeper).await);
        keeper.written = Some(Instant::now());
        assert!(!is_due(&keeper).await, "disks wear");
        advance(PAUSE).await;
        assert!(is_due(&keeper).await);
        keeper.is_stale = false;
        advance(REFRESH - PAUSE).await;
        assert!(is_due(&keeper).await, "it would grow too old");
    }
}
