//! Notice of changes to the files of a few folders (inotify(7)).
//!
//! Folders are watched, not files: a file that is replaced atomically is another file, and a mounted ConfigMap changes
//! by a symbolic link beside the file. What changed is not told: whoever cares looks at its own files again.

use std::{io, path::Path, sync::Arc};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// Watched folders. Clones share them, so that one thread can wait while another adds.
#[derive(Clone, Debug)]
pub struct DirWatch(Arc<Inotify>);

impl DirWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel gives no more inotify instances (`fs.inotify.max_user_instances`).
    pub fn open() -> io::Result<DirWatch> {
        Ok(DirWatch(Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?)))
    }

    /// Watches a folder, from now on. For one that is watched already this changes nothing; one that was deleted and
    /// made again has to be added again.
    ///
    /// # Errors
    /// It is not there, or is no folder.
    pub fn add(&self, folder: &Path) -> io::Result<()> {
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        self.0.add_watch(folder, changes)?;
        Ok(())
    }

    /// Waits until something has changed in one of the folders.
    ///
    /// # Errors
    /// The kernel's, which do not pass.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match self.0.read_events() {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic_file;
    use std::os::unix::fs::symlink;

    #[test]
    fn replaced_files_swapped_links_and_deleted_folders_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (config, state) = (folder.path().join("config"), folder.path().join("state"));
        let [one, two] = ["..one", "..two"].map(|name| config.join(name));
        for path in [&config, &state, &one, &two] {
            std::fs::create_dir(path).unwrap();
        }
        let watch = DirWatch::open().unwrap();
        assert!(watch.add(&folder.path().join("nowhere")).is_err());
        for folder in [&config, &state, &state] {
            watch.add(folder).unwrap();
        }
        // Each would wait for ever if nothing were told.
        atomic_file::replace(state.join("subnet.env"), b"x", 0o644).unwrap();
        watch.wait().unwrap();
        symlink("..one", config.join("..data")).unwrap();
        watch.wait().unwrap();
        symlink("..two", config.join("..data_tmp")).unwrap();
        watch.wait().unwrap();
        std::fs::rename(config.join("..data_tmp"), config.join("..data")).unwrap();
        watch.wait().unwrap();
        std::fs::remove_dir_all(&state).unwrap();
        watch.wait().unwrap();
        std::fs::create_dir(&state).unwrap();
        watch.add(&state).unwrap();
        std::fs::File::create(state.join("new")).unwrap();
        watch.wait().unwrap();
    }
}
