//! Progress for people who wait: one line per step with the time it took.
//!
//! On a terminal the running step counts its seconds in place; in a pipe a step that takes long
//! says so now and then, so that a log shows where the time goes.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where progress goes: standard error, or nowhere.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    shown: bool,
    terminal: bool,
}

/// A step that runs; dropped without [`Step::done`] it has failed.
#[derive(Debug)]
pub struct Step {
    progress: Progress,
    label: String,
    start: Instant,
    /// Dropping it stops the clock.
    clock: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Progress on standard error.
    pub fn shown() -> Progress {
        Progress {
            shown: true,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// No progress: for tests, which speak when they fail.
    pub fn hidden() -> Progress {
        Progress {
            shown: false,
            terminal: false,
        }
    }

    /// Starts a step.
    pub fn step(self, label: impl Into<String>) -> Step {
        let label = label.into();
        let start = Instant::now();
        Step {
            progress: self,
            clock: self.shown.then(|| self.start_clock(label.clone(), start)),
            label,
            start,
        }
    }

    /// Says something between steps.
    pub fn note(self, text: &str) {
        if self.shown {
            line(text);
        }
    }

    fn start_clock(self, label: String, start: Instant) -> (Sender<()>, JoinHandle<()>) {
        let interval = match self.terminal {
            true => Duration::from_millis(200),
            false => Duration::from_secs(15),
        };
        let (stop, stopped) = channel::<()>();
        let clock = std::thread::spawn(move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let seconds = start.elapsed().as_secs();
                match self.terminal {
                    true => write_all(&format!("\r\x1b[2K  … {label} {seconds} s")),
                    false => line(&format!("  … {label} {seconds} s")),
                }
            }
        });
        (stop, clock)
    }
}

impl Step {
    /// The step succeeded.
    pub fn done(mut self) {
        self.end("✓", "\x1b[32m");
    }

    fn end(&mut self, mark: &str, colour: &str) {
        let Some((stop, clock)) = self.clock.take() else {
            return;
        };
        drop(stop);
        // The clock only writes; it cannot panic in a way that matters here.
        let _ = clock.join();
        let seconds = self.start.elapsed().as_secs_f64();
        let label = &self.label;
        match self.progress.terminal {
            true => line(&format!(
                "\r\x1b[2K  {colour}{mark}\x1b[0m {label:<58} {seconds:>6.1} s"
            )),
            false => line(&format!("  {mark} {label} {seconds:.1} s")),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.end("✗", "\x1b[31m");
    }
}

fn line(text: &str) {
    write_all(&format!("{text}\n"));
}

fn write_all(text: &str) {
    // Whoever closed standard error does not want to hear of progress.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
