//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How long between two looks.
const INTERVAL: Duration = Duration::from_millis(5);

/// Looks until there is something, and gives it. Panics after `deadline` with what was waited for.
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} for {what}");
        #[expect(clippy::disallowed_methods, reason = "the one place that polls")]
        std::thread::sleep(INTERVAL);
    }
}

/// Looks until a condition holds. Panics after `deadline` with what was waited for.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, deadline, || condition().then_some(()));
}
