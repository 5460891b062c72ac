//! Waiting for conditions: asked again and again until it holds or time is up.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How long to wait for things that take milliseconds when all is well: long, because the
/// machine may be busy, and only a failure ever waits for all of it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is asked for.
pub const INTERVAL: Duration = Duration::from_millis(10);

/// Asks `condition` until it gives a value. Its inner error says why it does not hold *yet*; its
/// outer error says that it never will, and ends the wait. The error names `what` was waited for.
pub fn until<T>(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Result<Result<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let reason = match condition() {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(reason)) => reason,
            Err(error) => return Err(error.context(format!("there will be no {what}"))),
        };
        if Instant::now() >= deadline {
            let seconds = patience.as_secs();
            return Err(reason.context(format!("waited {seconds} s for {what}")));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the pause between two looks at a condition that nobody announces"
        )]
        std::thread::sleep(INTERVAL);
    }
}

/// A condition's answer: it holds, or not yet, because.
pub fn holds(condition: bool, otherwise: &str) -> Result<()> {
    ensure!(condition, "{otherwise}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn returns_as_soon_as_the_condition_holds() {
        let mut asked = 0;
        let value = until("three questions", PATIENCE, || {
            asked += 1;
            Ok(holds(asked == 3, "too few").map(|()| "yes"))
        });
        assert_eq!(value.unwrap(), "yes");
        assert_eq!(asked, 3);
    }

    #[test]
    fn gives_up_with_the_last_reason() {
        let error = until("nothing", Duration::ZERO, || {
            Ok(holds(false, "it is not there"))
        });
        let text = format!("{:#}", error.unwrap_err());
        assert_eq!(text, "waited 0 s for nothing: it is not there");
    }

    #[test]
    fn what_will_never_be_is_not_waited_for() {
        let error = until("answer", PATIENCE, || -> Result<Result<()>> {
            bail!("it is dead")
        });
        let text = format!("{:#}", error.unwrap_err());
        assert_eq!(text, "there will be no answer: it is dead");
    }
}
