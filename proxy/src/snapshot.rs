//! The last good index on disk. It bridges the time from a node's start to the API server's first answer: where the
//! kernel holds no rules of ours, those of the snapshot are better than none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent::keeping::Keeping;
use hostnet::snapshot::{self, Refusal, Subject};
use tokio::time::Instant;

use crate::index::{Index, saved};

/// The file.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    keeping: Keeping,
}

impl Keeper {
    /// Keeps the state in this file.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            keeping: Keeping::default(),
        }
    }

    /// The index as it was saved for this Node; `None` where there is none that can be trusted, which is told.
    pub fn read(&self, node: &str) -> Option<Index> {
        match snapshot::read(&self.path, subject(node), None) {
            Ok(snapshot) => {
                let age = snapshot.age.as_secs();
                let (path, same_boot) = (self.path.display(), snapshot.same_boot);
                tracing::info!(%path, age, same_boot, "the last good state was found on disk");
                Some(Index::restore(node, snapshot.state, same_boot))
            }
            Err(Refusal::Absent) => None,
            Err(refusal) => {
                let path = self.path.display();
                tracing::warn!(%path, "the state on disk is not used: {refusal}");
                None
            }
        }
    }

    /// The rules follow what the index holds: `changed` since the last call.
    pub fn note(&mut self, changed: bool) {
        if changed {
            self.keeping.mark();
        }
    }

    /// When [`Keeper::write`] is due.
    pub fn due(&self) -> Instant {
        self.keeping.due()
    }

    /// Writes what the index holds, if it has changed since it was last written, and waits for the disk.
    pub async fn write_last(&mut self, index: &Index) {
        if self.keeping.is_stale() {
            self.keeping.written().await;
            self.write(index);
        }
        self.keeping.written().await;
    }

    /// Writes what the index holds, in the background. A failure is told; the old file then stays.
    pub fn write(&mut self, index: &Index) {
        if !self.keeping.begin() {
            return;
        }
        let uid = index.node().map_or("", |node| node.uid.as_str());
        // Taken at once; the disk may take its time.
        let state = snapshot::encode(subject(index.this_node()), uid, &index.saved());
        let path = self.path.clone();
        self.keeping.write(move || {
            if let Err(error) = state.and_then(|state| state.write(&path)) {
                let error = crate::run::chain(&error);
                tracing::warn!(
                    error,
                    "the state could not be saved: after a reboot nothing is served until the API server answers"
                );
            }
        });
    }
}

/// Removes the file, and its folder if nothing else is in it. Whether there was one.
///
/// # Errors
/// The file is there and cannot be removed.
pub fn remove(file: &Path) -> io::Result<bool> {
    let removed = match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        other => other.map(|()| true)?,
    };
    // It stays while flanneld has its own file there, and in a container, where it is a mount.
    if let Some(folder) = file.parent() {
        let _ = fs::remove_dir(folder);
    }
    Ok(removed)
}

fn subject(node: &str) -> Subject<'_> {
    Subject {
        kind: "twill-proxy index",
        version: saved::VERSION,
        node,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, SEED, cluster_cidr, plan};

    async fn write(keeper: &mut Keeper, index: &Index) {
        keeper.write(index);
        keeper.keeping.written().await;
    }

    #[tokio::test]
    async fn what_is_read_makes_the_same_plan() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(dir.path().join("twill/index"));
        assert!(keeper.read("k8s-node-2").is_none());
        let mut index = fixtures::index(SEED);
        write(&mut keeper, &index).await;
        let settings = cluster_cidr("10.244.0.0/16");
        let mut again = keeper.read("k8s-node-2").unwrap();
        assert!(again.is_complete());
        assert_eq!(plan(&mut again, &settings), plan(&mut index, &settings));
        assert!(keeper.read("another-node").is_none());
    }

    #[tokio::test]
    async fn a_file_that_is_torn_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let mut keeper = Keeper::new(path.clone());
        write(&mut keeper, &fixtures::index(SEED)).await;
        let mut text = std::fs::read(&path).unwrap();
        text.truncate(text.len() - 10);
        hostnet::atomic_file::replace(&path, &text, 0o600).unwrap();
        assert!(keeper.read("k8s-node-2").is_none());
    }

    #[tokio::test]
    async fn what_came_last_is_written_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(dir.path().join("index"));
        keeper.write(&Index::new("k8s-node-2"));
        let mut index = fixtures::index(SEED);
        keeper.note(true);
        keeper.write_last(&index).await;
        let settings = cluster_cidr("10.244.0.0/16");
        let mut again = keeper.read("k8s-node-2").unwrap();
        assert_eq!(plan(&mut again, &settings), plan(&mut index, &settings));
    }

    #[test]
    fn pods_of_this_node_do_not_outlive_a_reboot() {
        let index = fixtures::index(SEED);
        let text = serde_json::to_string(&index.saved()).unwrap();
        let saved = || serde_json::from_str(&text).unwrap();
        let settings = cluster_cidr("10.244.0.0/16");
        let local = |same_boot| {
            let mut index = Index::restore("k8s-node-2", saved(), same_boot);
            plan(&mut index, &settings)
                .to_string()
                .contains("10.244.3.81:8080 (local)")
        };
        assert!(local(true));
        assert!(!local(false));
    }

    #[tokio::test(start_paused = true)]
    async fn writes_are_rare_and_never_stop() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(dir.path().join("index"));
        assert_eq!(keeper.due(), Instant::now());
        write(&mut keeper, &fixtures::index(SEED)).await;
        let in_seconds = |keeper: &Keeper| (keeper.due() - Instant::now()).as_secs();
        assert_eq!(in_seconds(&keeper), 3600);
        keeper.note(false);
        assert_eq!(in_seconds(&keeper), 3600);
        keeper.note(true);
        assert_eq!(in_seconds(&keeper), 10);
    }
}
