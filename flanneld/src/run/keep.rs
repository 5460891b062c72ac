//! What is known is written to disk, once it is all that the API server tells.

use std::{path::PathBuf, sync::Arc};

use agent::keeping::Keeping;
use tokio::time::sleep_until;

use crate::{
    config::Config,
    recall::{self, State},
};

/// Writes snapshots.
#[derive(Debug)]
pub(super) struct Keeper {
    path: Option<PathBuf>,
    /// All is known that belongs into a snapshot.
    is_whole: bool,
    keeping: Keeping,
}

impl Keeper {
    /// One that keeps nothing if there is no file.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            is_whole: false,
            keeping: Keeping::default(),
        }
    }

    /// Something has changed.
    pub(super) fn mark(&mut self) {
        self.keeping.mark();
    }

    /// All that the API server tells is known, and programmed: nothing is written before.
    pub(super) fn begin(&mut self) {
        self.is_whole = true;
    }

    /// Part of it is gone for now.
    pub(super) fn postpone(&mut self) {
        self.keeping.postpone();
    }

    /// Waits until something is to be written. Cancel safe.
    pub(super) async fn due(&self) {
        if self.path.is_none() || !self.is_whole {
            return std::future::pending().await;
        }
        sleep_until(self.keeping.due()).await;
    }

    /// Writes, in the background unless it is the `last` time.
    pub(super) fn keep(&mut self, config: &Arc<Config>, uid: &str, state: State, last: bool) {
        let Some(path) = self.path.clone() else {
            return;
        };
        if last && !self.keeping.is_stale() || !self.keeping.begin() {
            return;
        }
        let (config, uid) = (Arc::clone(config), uid.to_owned());
        let write = move || match recall::keep(&path, &config, &uid, &state) {
            Ok(()) => tracing::debug!(file = %path.display(), "what is known is kept"),
            Err(error) => tracing::warn!(
                error = agent::chain(&error),
                "what is known cannot be kept for a start without the API server (--snapshot-file)"
            ),
        };
        if last {
            write();
        } else {
            self.keeping.write(write);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_before_all_is_known() {
        let is_due = async |keeper: &Keeper| timeout(Duration::ZERO, keeper.due()).await.is_ok();
        let mut keeper = Keeper::new(Some("/snapshot".into()));
        keeper.mark();
        assert!(!is_due(&keeper).await);
        keeper.begin();
        assert!(is_due(&keeper).await);
        keeper.postpone();
        assert!(!is_due(&keeper).await);
        let mut none = Keeper::new(None);
        none.begin();
        assert!(!is_due(&none).await, "there is no file");
    }
}
