//! Owns the watch on the configuration file: a new configuration as soon as the file says something else.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{Args, Config};

/// How often the file is read. A ConfigMap's files change by a link above them, which inotify would have to follow.
const LOOK: Duration = Duration::from_secs(2);

/// The file of `--config`, watched.
#[derive(Debug)]
pub struct Reload {
    args: Args,
    seen: Option<Vec<u8>>,
    look: Interval,
}

impl Reload {
    /// Watches from now on. Needs the runtime.
    pub fn watch(args: &Args) -> Reload {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Reload {
            args: args.clone(),
            seen: read(args),
            look,
        }
    }

    /// The next configuration. What cannot be read or used is told, and the old one stays in force. Cancel safe.
    pub async fn next(&mut self) -> Config {
        loop {
            self.look.tick().await;
            let now = read(&self.args);
            if now.is_none() || now == self.seen {
                continue;
            }
            self.seen = now;
            match Config::load(&self.args) {
                Ok(config) => return config,
                Err(error) => {
                    tracing::error!(
                        "the new configuration is not used, the old one stays: {error}"
                    );
                }
            }
        }
    }
}

/// A file that is away for a moment, while it is replaced, has not changed.
fn read(args: &Args) -> Option<Vec<u8>> {
    std::fs::read(args.config.as_ref()?).ok()
}
