//! Files that appear whole or not at all, and survive a loss of power.
//!
//! Contents go into a temporary file in the same directory, which is synced and then given its
//! name; the directory is synced last. A reader never sees half a file; after a crash there is the
//! old state or the new one.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{AT_FDCWD, AtFlags};

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

impl WriteError {
    /// Whether [`create`] found the file already there.
    pub fn is_exists(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }

    /// Whether the directory is missing.
    pub fn is_no_directory(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Writes a file with these contents and permissions in place of whatever is there.
pub fn replace(path: impl AsRef<Path>, contents: &[u8], mode: u32) -> Result<(), WriteError> {
    let path = path.as_ref();
    let write = || {
        let directory = directory_of(path);
        Named::stage(directory, path, contents, mode, Sync::Now)?.rename_to(path)?;
        sync_directory(directory)
    };
    write().map_err(|source| WriteError {
        path: path.to_owned(),
        source,
    })
}

/// The same in a directory that another program reads whenever something in it is written, renamed or removed, as
/// container runtimes do with CNI's: what makes it look is the file's new name, and nothing before that.
///
/// The contents are staged in a folder beside the file, where no one looks. From there the file gets a first name in the
/// directory, and then its own by renaming: runtimes pass over what appears, and react to what is renamed.
pub fn replace_watched(
    path: impl AsRef<Path>,
    contents: &[u8],
    mode: u32,
) -> Result<(), WriteError> {
    let path = path.as_ref();
    let write = || {
        let directory = directory_of(path);
        let folder = directory.join(format!(
            ".{}.new",
            path.file_name().unwrap_or_default().to_string_lossy()
        ));
        // One that a killed process has left.
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir(&folder)?;
        let written = Named::stage(&folder, path, contents, mode, Sync::Now).and_then(|staged| {
            let linked = Named::link(directory, &staged)?;
            linked.rename_to(path)
        });
        std::fs::remove_dir_all(&folder)?;
        written?;
        sync_directory(directory)
    };
    write().map_err(|source| WriteError {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that must not exist yet: of several that try at once, one succeeds, and the
/// others' error [`WriteError::is_exists`].
pub fn create(path: impl AsRef<Path>, contents: &[u8], mode: u32) -> Result<(), WriteError> {
    create_with(path.as_ref(), contents, mode, Sync::Now)
}

/// The same without waiting for the disk: a loss of power may leave the file empty or missing.
/// For what a reboot makes void anyway.
pub fn create_unsynced(
    path: impl AsRef<Path>,
    contents: &[u8],
    mode: u32,
) -> Result<(), WriteError> {
    create_with(path.as_ref(), contents, mode, Sync::Never)
}

fn create_with(path: &Path, contents: &[u8], mode: u32, sync: Sync) -> Result<(), WriteError> {
    let written = match create_unnamed(path, contents, mode, sync) {
        // A file system without nameless files says so in one of these ways (open(2)).
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            create_named(path, contents, mode, sync)
        }
        other => other,
    };
    written.map_err(|source| WriteError {
        path: path.to_owned(),
        source,
    })
}

/// Through a file without a name, which leaves nothing behind when we are killed before the link.
fn create_unnamed(path: &Path, contents: &[u8], mode: u32, sync: Sync) -> io::Result<()> {
    let directory = directory_of(path);
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)?;
    fill(&file, contents, mode, sync)?;
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::unistd::linkat(
        AT_FDCWD,
        nameless.as_str(),
        AT_FDCWD,
        path,
        AtFlags::AT_SYMLINK_FOLLOW,
    )?;
    sync.directory(directory)
}

/// Through a temporary file with a name.
fn create_named(path: &Path, contents: &[u8], mode: u32, sync: Sync) -> io::Result<()> {
    let directory = directory_of(path);
    let staged = Named::stage(directory, path, contents, mode, sync)?;
    std::fs::hard_link(&staged.path, path)?;
    drop(staged);
    sync.directory(directory)
}

/// Whether to wait for the disk.
#[derive(Clone, Copy)]
enum Sync {
    /// Contents before the file has its name, then the name.
    Now,
    /// Neither.
    Never,
}

impl Sync {
    fn file(self, file: &File) -> io::Result<()> {
        match self {
            Sync::Now => file.sync_all(),
            Sync::Never => Ok(()),
        }
    }

    fn directory(self, directory: &Path) -> io::Result<()> {
        match self {
            Sync::Now => sync_directory(directory),
            Sync::Never => Ok(()),
        }
    }
}

/// A temporary file beside the final one; removed when dropped.
struct Named {
    path: PathBuf,
}

impl Named {
    fn stage(
        directory: &Path,
        path: &Path,
        contents: &[u8],
        mode: u32,
        sync: Sync,
    ) -> io::Result<Named> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let staged = Named {
            path: directory.join(format!(".{name}.{}.{count}.tmp", std::process::id())),
        };
        // One of the same name was left by a killed process whose number is now ours.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&staged.path)?;
        fill(&file, contents, mode, sync)?;
        Ok(staged)
    }

    /// A second name for what is staged elsewhere.
    fn link(directory: &Path, staged: &Named) -> io::Result<Named> {
        let linked = Named {
            path: directory.join(staged.path.file_name().unwrap_or_default()),
        };
        // One of a killed process whose number is now ours.
        match std::fs::remove_file(&linked.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::hard_link(&staged.path, &linked.path)?,
        }
        Ok(linked)
    }

    fn rename_to(self, path: &Path) -> io::Result<()> {
        // What is left to take away when this is dropped is a name that is no more.
        std::fs::rename(&self.path, path)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // What stays is a small file that nobody reads.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn fill(mut file: &File, contents: &[u8], mode: u32, sync: Sync) -> io::Result<()> {
    // Whatever the umask says.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    sync.file(file)
}

/// The directory that a path lies in; `.` for a bare name.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes names that were given and taken in a directory survive a loss of power.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_with_mode_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        replace(&path, b"one", 0o644).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(names(dir.path()), ["subnet.env"]);
    }

    #[test]
    fn a_watched_directory_says_nothing_before_the_file_has_its_name() {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10-flannel.conflist");
        for text in ["one", "two"] {
            let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
            // What fsnotify calls Write, Rename and Remove: containerd reads the directory at each.
            let looks =
                AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
            watch.add_watch(dir.path(), looks).unwrap();
            replace_watched(&path, text.as_bytes(), 0o644).unwrap();
            let events = watch.read_events().unwrap();
            assert_eq!(events[0].mask, AddWatchFlags::IN_MOVED_FROM, "{events:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            assert_eq!(mode(&path), 0o644);
            assert_eq!(names(dir.path()), ["10-flannel.conflist"]);
        }
        // What a process that was killed has left is in nobody's way.
        std::fs::create_dir(dir.path().join(".10-flannel.conflist.new")).unwrap();
        replace_watched(&path, b"three", 0o644).unwrap();
        assert_eq!(names(dir.path()), ["10-flannel.conflist"]);
    }

    #[test]
    fn a_failed_replace_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("occupied");
        std::fs::create_dir(&path).unwrap();
        let replaced = [
            replace(&path, b"x", 0o644),
            replace_watched(&path, b"x", 0o644),
        ];
        for error in replaced {
            assert_eq!(
                error.unwrap_err().to_string(),
                format!("cannot write {}", path.display())
            );
            assert_eq!(names(dir.path()), ["occupied"]);
        }
    }

    #[test]
    fn creates_once() {
        for (create, sync) in [
            (
                create_unnamed as fn(&Path, &[u8], u32, Sync) -> io::Result<()>,
                Sync::Now,
            ),
            (create_unnamed, Sync::Never),
            (create_named, Sync::Now),
            (create_named, Sync::Never),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("10.244.3.2");
            create(&path, b"one", 0o600, sync).unwrap();
            let error = create(&path, b"two", 0o600, sync).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&path).unwrap(), b"one");
            assert_eq!(mode(&path), 0o600);
            assert_eq!(names(dir.path()), ["10.244.3.2"]);
        }
    }

    #[test]
    fn of_many_creators_one_wins_and_readers_see_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let contents: Vec<_> = (0..8u8).map(|n| vec![n; 100_000]).collect();
        let winners: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = contents
                .iter()
                .map(|contents| scope.spawn(|| create(&path, contents, 0o600).is_ok()))
                .collect();
            threads
                .into_iter()
                .filter_map(|t| t.join().ok())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
        assert!(contents.contains(&std::fs::read(&path).unwrap()));
    }

    #[test]
    fn a_missing_directory_is_told_apart() {
        let error = create("/nonexistent/dir/file", b"", 0o600).unwrap_err();
        assert!(error.is_no_directory() && !error.is_exists());
    }
}
