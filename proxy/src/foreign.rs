//! Notice of what is changed in nf_tables, by whomever.

use std::io;
use std::thread;

use hostnet::nft::{Change, Error, Monitor};
use tokio::sync::mpsc;

/// Changes that wait to be read. More than these the kernel keeps, until its buffer overruns.
const WAITING: usize = 64;

/// A subscription. A thread of its own waits for the kernel; it ends with the first change after this is
/// dropped, or with an error.
#[derive(Debug)]
pub struct Foreign {
    changes: mpsc::Receiver<Result<Change, Error>>,
}

impl Foreign {
    /// Subscribes to the changes in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn watch() -> Result<Self, Error> {
        let mut monitor = Monitor::open()?;
        let (sender, changes) = mpsc::channel(WAITING);
        let wait = move || {
            loop {
                let change = match monitor.next(true) {
                    Ok(Some(change)) => Ok(change),
                    Ok(None) => continue,
                    Err(error) => Err(error),
                };
                let last = matches!(&change, Err(error) if !matches!(error, Error::Overrun));
                if sender.blocking_send(change).is_err() || last {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("nft-monitor".into())
            .spawn(wait)
            .map_err(|source| Error::Socket {
                operation: "start a thread that waits for ruleset changes",
                source,
            })?;
        Ok(Self { changes })
    }

    /// The next change, our own among them. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Overrun`] when changes were missed; others when nothing will be told any more.
    pub async fn next(&mut self) -> Result<Change, Error> {
        let ended = || Error::Socket {
            operation: "wait for ruleset changes",
            source: io::ErrorKind::BrokenPipe.into(),
        };
        self.changes.recv().await.unwrap_or_else(|| Err(ended()))
    }
}
