//! Locks among processes: an exclusive `flock(2)` on a file, which host-local takes too.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A lock, held until dropped or the process ends.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// A lock that could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("cannot lock {}", path.display())]
pub struct LockError {
    path: PathBuf,
    source: io::Error,
}

impl LockError {
    /// Whether the file's directory is missing.
    pub fn is_no_directory(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

impl FileLock {
    /// Takes the lock on a file, which is made (mode 0600) if missing; waits for whoever has it.
    pub fn acquire(path: impl AsRef<Path>) -> Result<FileLock, LockError> {
        let path = path.as_ref();
        let failed = |source| LockError {
            path: path.to_owned(),
            source,
        };
        let file = open(path).map_err(failed)?;
        loop {
            match file.lock() {
                Ok(()) => return Ok(FileLock { _file: file }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Takes the lock if nobody has it; `None` if somebody does.
    pub fn try_acquire(path: impl AsRef<Path>) -> Result<Option<FileLock>, LockError> {
        let path = path.as_ref();
        let failed = |source| LockError {
            path: path.to_owned(),
            source,
        };
        let file = open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(FileLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::acquire(&path).unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| FileLock::acquire(&path).unwrap());
            drop(held);
            let _held = waiter.join().unwrap();
            assert!(FileLock::try_acquire(&path).unwrap().is_none());
        });
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn errors_name_the_file() {
        let error = FileLock::acquire("/nonexistent/lock").unwrap_err();
        assert_eq!(error.to_string(), "cannot lock /nonexistent/lock");
    }
}
