//! What is said to a keeper: one JSON line there, one back, over the lab's socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a keeper can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Start a process.
    Spawn(Spawn),
    /// Send a signal to the process of this name.
    Kill { name: String, signal: i32 },
    /// Tell all processes, also those that have ended.
    List,
    /// Live on without the process that started the lab.
    Detach,
}

/// What a keeper answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It is done.
    Done,
    /// Every process that was ever started, by name.
    Processes(Vec<Process>),
    /// It could not be done: why.
    Failed(String),
}

/// A process to start in the keeper's namespaces; `argv` goes on to others by `nsenter`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spawn {
    /// Its name: free, or that of a process that has ended.
    pub name: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Where its output goes: appended.
    pub log: PathBuf,
}

/// A process as its keeper sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The name that it was started by.
    pub name: String,
    /// Its pid in the lab's pid namespace.
    pub pid: i32,
    /// How it ended, if it did: `exit status 1`, `signal SIGKILL`.
    pub ended: Option<String>,
}
