//! The rhythm of a level-triggered loop: when the next pass is due, and of which kind.
//!
//! A [`Pacer`] does no work itself. The task that owns the state waits for [`Pacer::due`] beside its events:
//!
//! ```text
//! select! {
//!     event = events.next() => { index.fold(event); pacer.mark(); }
//!     pass = pacer.due()    => { let result = sync(pass); pacer.finished(result.is_ok()); }
//! }
//! ```

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The kind of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// Only what was marked needs to be looked at.
    Dirty,
    /// Everything: observe the kernel anew, compare all of it.
    Full,
}

/// How often passes may, and must, run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Least time from one pass's end to the next; the first mark after a quiet time is served at once.
    pub min_interval: Duration,
    /// A full pass at least this often, even if nothing was marked: the safety net.
    pub full_every: Duration,
    /// Wait after a first failed pass; doubled by each further one.
    pub retry: Duration,
    /// The longest wait after failures.
    pub retry_max: Duration,
}

/// Knows when the next pass is due. Starts with a full pass due at once.
#[derive(Debug)]
pub struct Pacer {
    options: Options,
    wanted: Option<Pass>,
    /// Not before this moment.
    earliest: Instant,
    next_full: Instant,
    failures: u32,
}

impl Pacer {
    /// A pacer whose first pass is full and due now.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let now = Instant::now();
        Self {
            options,
            wanted: Some(Pass::Full),
            earliest: now,
            next_full: now + options.full_every,
            failures: 0,
        }
    }

    /// Goes by other options from now on, with a full pass first.
    pub fn set_options(&mut self, options: Options) {
        self.options = options;
        self.next_full = self.next_full.min(Instant::now() + options.full_every);
        self.mark_full();
    }

    /// Something changed.
    pub fn mark(&mut self) {
        self.want(Pass::Dirty);
    }

    /// Something was lost or cannot be told: look at everything.
    pub fn mark_full(&mut self) {
        self.want(Pass::Full);
    }

    fn want(&mut self, pass: Pass) {
        self.wanted = self.wanted.max(Some(pass));
        if self.failures > 0 {
            // News may be the cure: it need not wait out a long backoff, but neither does it void it.
            let soon = Instant::now() + self.options.retry.max(self.options.min_interval);
            self.earliest = self.earliest.min(soon);
        }
    }

    /// Waits until a pass is due, and returns its kind. Cancel safe: what was wanted stays wanted until
    /// [`Pacer::finished`] is called.
    pub async fn due(&mut self) -> Pass {
        match self.wanted {
            Some(_) => sleep_until(self.earliest).await,
            None => sleep_until(self.next_full).await,
        }
        if Instant::now() >= self.next_full {
            Pass::Full
        } else {
            self.wanted.unwrap_or(Pass::Full)
        }
    }

    /// The pass that [`Pacer::due`] announced has ended. After a failure the next one is full, and waits.
    /// Marks made from now on ask for another pass.
    pub fn finished(&mut self, pass: Pass, ok: bool) {
        let now = Instant::now();
        if ok {
            self.failures = 0;
            self.wanted = None;
            self.earliest = now + self.options.min_interval;
            if pass == Pass::Full {
                self.next_full = now + self.options.full_every;
            }
        } else {
            let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
            self.earliest = now
                + self
                    .options
                    .retry
                    .saturating_mul(factor)
                    .min(self.options.retry_max);
            self.failures = self.failures.saturating_add(1);
            self.wanted = Some(Pass::Full);
        }
    }

    /// Passes that failed since the last good one.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    const OPTIONS: Options = Options {
        min_interval: Duration::from_millis(100),
        full_every: Duration::from_secs(60),
        retry: Duration::from_secs(1),
        retry_max: Duration::from_secs(8),
    };

    /// Waits for the next pass, and tells how long that took.
    async fn next(pacer: &mut Pacer) -> (Pass, Duration) {
        let start = Instant::now();
        let pass = pacer.due().await;
        (pass, start.elapsed())
    }

    async fn settled() -> Pacer {
        let mut pacer = Pacer::new(OPTIONS);
        assert_eq!(next(&mut pacer).await, (Pass::Full, Duration::ZERO));
        pacer.finished(Pass::Full, true);
        pacer
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_after_quiet_is_served_at_once_and_the_next_after_the_interval() {
        let mut pacer = settled().await;
        advance(Duration::from_secs(1)).await;
        pacer.mark();
        assert_eq!(next(&mut pacer).await, (Pass::Dirty, Duration::ZERO));
        pacer.finished(Pass::Dirty, true);
        pacer.mark();
        let (pass, waited) = next(&mut pacer).await;
        assert_eq!(pass, Pass::Dirty);
        assert!(
            waited >= OPTIONS.min_interval && waited < OPTIONS.min_interval * 2,
            "{waited:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_marks_a_full_pass_comes_when_its_time_has_come() {
        let mut pacer = settled().await;
        let (pass, waited) = next(&mut pacer).await;
        assert_eq!((pass, waited.as_secs()), (Pass::Full, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_marks_does_not_keep_the_full_pass_away() {
        let mut pacer = settled().await;
        let start = Instant::now();
        loop {
            pacer.mark();
            let pass = pacer.due().await;
            pacer.finished(pass, true);
            if pass == Pass::Full {
                break;
            }
            assert!(start.elapsed() < OPTIONS.full_every * 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_to_a_bound_and_make_the_next_pass_full() {
        let mut pacer = settled().await;
        pacer.mark();
        let mut pass = pacer.due().await;
        for seconds in [1, 2, 4, 8, 8] {
            pacer.finished(pass, false);
            let (kind, waited) = next(&mut pacer).await;
            assert_eq!((kind, waited.as_secs()), (Pass::Full, seconds));
            pass = kind;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn news_shortens_a_long_backoff() {
        let mut pacer = settled().await;
        for _ in 0..10 {
            pacer.finished(Pass::Full, false);
        }
        pacer.mark();
        let (pass, waited) = next(&mut pacer).await;
        assert_eq!((pass, waited.as_secs()), (Pass::Full, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_can_be_cut_off_without_losing_the_mark() {
        let mut pacer = settled().await;
        pacer.mark();
        assert!(
            timeout(Duration::from_millis(1), pacer.due())
                .await
                .is_err()
        );
        assert_eq!(pacer.due().await, Pass::Dirty);
    }
}
