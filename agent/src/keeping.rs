//! The rhythm in which a daemon writes its last good state to disk: as soon as there is one, then soon after it has
//! changed, not at each change, and often enough that it never grows too old to be used.

use std::time::Duration;

use hostnet::memory;
use tokio::{task::JoinHandle, time::Instant};

/// Least time between two writes: a write costs as much as all that is known, and disks wear.
pub const PAUSE: Duration = Duration::from_secs(10);

/// A file that is as it should be is written again after this, so that it keeps being young.
pub const REFRESH: Duration = Duration::from_secs(60 * 60);

/// When to write, and the write that runs.
#[derive(Debug, Default)]
pub struct Keeping {
    /// Something has changed since the last write began.
    is_stale: bool,
    begun: Option<Instant>,
    writing: Option<JoinHandle<()>>,
}

impl Keeping {
    /// Something has changed.
    pub fn mark(&mut self) {
        self.is_stale = true;
    }

    /// Whether something has changed since the last write began.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// When to write; now, if nothing was written yet: who kills us then finds it.
    pub fn due(&self) -> Instant {
        let pause = if self.is_stale { PAUSE } else { REFRESH };
        self.begun.map_or_else(Instant::now, |begun| begun + pause)
    }

    /// As if it had been written now, though it has not.
    pub fn postpone(&mut self) {
        self.begun = Some(Instant::now());
    }

    /// Whether to write now: not while the write before still waits for its disk, since the next serves for both.
    /// If so, what changes from now on makes it stale.
    pub fn begin(&mut self) -> bool {
        self.postpone();
        let is_free = (self.writing.as_ref()).is_none_or(JoinHandle::is_finished);
        self.is_stale &= !is_free;
        is_free
    }

    /// Writes on a thread of its own, since a slow disk shall hold up nothing. The memory that it took goes back.
    pub fn write(&mut self, work: impl FnOnce() + Send + 'static) {
        self.writing = Some(tokio::task::spawn_blocking(move || {
            work();
            memory::release();
        }));
    }

    /// Waits for the write that runs.
    pub async fn written(&mut self) {
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_written_at_once_and_the_next_after_a_pause() {
        let is_due = |keeping: &Keeping| keeping.due() <= Instant::now();
        let mut keeping = Keeping::default();
        keeping.mark();
        assert!(is_due(&keeping));
        assert!(keeping.begin());
        advance(PAUSE).await;
        assert!(!is_due(&keeping), "nothing has changed");
        keeping.mark();
        assert!(is_due(&keeping));
        assert!(keeping.begin());
        assert!(!is_due(&keeping), "disks wear");
        advance(REFRESH).await;
        assert!(is_due(&keeping), "it would grow too old");
    }

    #[tokio::test]
    async fn what_cannot_be_written_now_is_written_later() {
        let mut keeping = Keeping::default();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        assert!(keeping.begin());
        keeping.write(move || wait.recv().unwrap());
        keeping.mark();
        assert!(!keeping.begin(), "the disk is slow");
        assert!(keeping.is_stale());
        go.send(()).unwrap();
        keeping.written().await;
        assert!(keeping.begin());
        assert!(!keeping.is_stale());
    }
}
