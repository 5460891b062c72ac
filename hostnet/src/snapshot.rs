//! The last good state of a daemon on disk, for the time from its start to the first answer of the API server.
//!
//! The first line names the format and carries the SHA-256 of the rest, which is one JSON object: whose state it is,
//! when and in which boot it was written, and the state. A file that is cut short, altered, of another node, of another
//! version or too old is refused with the reason: no state is better than a wrong one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::atomic_file;

/// A state older than this is no guide to the cluster: the Leases that it speaks of have ended.
pub const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How far ahead of our clock a file may be: clocks are set while machines start.
const MAX_AHEAD: Duration = Duration::from_secs(10 * 60);

const MAGIC: &str = "twill-snapshot 1 sha256:";

/// Whose state, and in which shape.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What it is the state of, such as `flanneld peers`.
    pub kind: &'a str,
    /// The version of its shape: a state of another version is refused.
    pub version: u32,
    /// The name of the Node.
    pub node: &'a str,
}

/// A state that was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot<T> {
    /// The state.
    pub state: T,
    /// The UID of the Node object for which it was written; compare it as soon as the API server tells the Node's.
    pub uid: String,
    /// It was written since the machine started: what it says of this node's own pods still holds.
    pub same_boot: bool,
    /// How long ago it was written; zero if it is from ahead of our clock.
    pub age: Duration,
}

/// A state that could not be written. The old one, if any, is still there.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The folder cannot be made.
    #[error("cannot make the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The state has no JSON form.
    #[error("the state cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The file.
    #[error(transparent)]
    File(#[from] atomic_file::WriteError),
}

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no file: nothing was written yet.
    #[error("there is none")]
    Absent,
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// The file is cut short or was altered.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The file holds something else.
    #[error("it is {found}, not {expected}")]
    Other {
        /// Kind and version, or Node, as written.
        found: String,
        /// What was looked for.
        expected: String,
    },
    /// It was written too long ago.
    #[error("it is {} old", hours(.0))]
    Old(Duration),
    /// It was written in the future: the clock cannot be trusted, so its age is not known.
    #[error("it is dated {} ahead of this machine's clock", hours(.0))]
    Ahead(Duration),
    /// It was whole when it was written, but does not say what this version expects.
    #[error("it cannot be understood")]
    Decode(#[source] serde_json::Error),
}

fn hours(time: &Duration) -> String {
    format!("{:.1} hours", time.as_secs_f64() / 3600.0)
}

#[derive(Serialize, Deserialize)]
struct Body<S, T> {
    kind: S,
    version: u32,
    node: S,
    uid: S,
    boot: S,
    /// Seconds since 1970.
    written: u64,
    state: T,
}

/// Who wrote a file, without what it holds.
#[derive(Deserialize)]
struct Head {
    kind: String,
    version: u32,
    node: String,
}

/// A state in the form that lies on disk, to be written when the disk has time.
#[derive(Debug)]
pub struct Encoded {
    /// The first line, with room for the checksum, and the rest.
    text: Vec<u8>,
}

/// Takes a state down. `uid` is the Node's.
///
/// # Errors
/// [`WriteError::Encode`].
pub fn encode<T: Serialize>(
    subject: Subject<'_>,
    uid: &str,
    state: &T,
) -> Result<Encoded, WriteError> {
    let boot = boot_id();
    let body = Body {
        kind: subject.kind,
        version: subject.version,
        node: subject.node,
        uid,
        boot: &boot,
        written: seconds(SystemTime::now()),
        state,
    };
    let mut text = first_line("").into_bytes();
    serde_json::to_writer(&mut text, &body).map_err(WriteError::Encode)?;
    Ok(Encoded { text })
}

impl Encoded {
    /// Writes the state in place of the last one, with its folder if that is missing.
    ///
    /// # Errors
    /// [`WriteError::Folder`], [`WriteError::File`].
    pub fn write(mut self, path: &Path) -> Result<(), WriteError> {
        let (head, body) = self.text.split_at_mut(first_line("").len());
        head.copy_from_slice(first_line(&hex(body)).as_bytes());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|source| WriteError::Folder {
                path: folder.into(),
                source,
            })?;
        }
        Ok(atomic_file::replace(path, &self.text, 0o600)?)
    }
}

fn first_line(sum: &str) -> String {
    format!("{MAGIC}{sum:64}\n")
}

/// Reads the last state. `uid` is the Node's, if it is known: then a state of another is refused.
///
/// # Errors
/// See [`Refusal`].
pub fn read<T: DeserializeOwned>(
    path: &Path,
    subject: Subject<'_>,
    uid: Option<&str>,
) -> Result<Snapshot<T>, Refusal> {
    let text = text_of(path)?;
    parse(&text, subject, uid, SystemTime::now())
}

/// Reads the last state for a program that does not know of which Node it should be: the file is this machine's.
///
/// # Errors
/// See [`Refusal`].
pub fn read_of_any_node<T: DeserializeOwned>(
    path: &Path,
    kind: &str,
    version: u32,
) -> Result<Snapshot<T>, Refusal> {
    checked(
        &text_of(path)?,
        (kind, version),
        None,
        None,
        SystemTime::now(),
    )
}

fn text_of(path: &Path) -> Result<Vec<u8>, Refusal> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Refusal::Absent,
        _ => Refusal::Read(error),
    })
}

/// Who wrote a whole file, and its body.
fn head(text: &[u8]) -> Result<(Head, &[u8]), Refusal> {
    let end = text.iter().position(|byte| *byte == b'\n');
    let (head, body) = end
        .and_then(|end| Some((&text[..end], text.get(end + 1..)?)))
        .ok_or(Refusal::Damaged("it has no first line"))?;
    let sum = head
        .strip_prefix(MAGIC.as_bytes())
        .ok_or(Refusal::Damaged("its first line is none of a snapshot"))?;
    if sum != hex(body).as_bytes() {
        return Err(Refusal::Damaged("its checksum does not fit"));
    }
    Ok((serde_json::from_slice(body).map_err(Refusal::Decode)?, body))
}

fn parse<T: DeserializeOwned>(
    text: &[u8],
    subject: Subject<'_>,
    uid: Option<&str>,
    now: SystemTime,
) -> Result<Snapshot<T>, Refusal> {
    let what = (subject.kind, subject.version);
    checked(text, what, Some(subject.node), uid, now)
}

fn checked<T: DeserializeOwned>(
    text: &[u8],
    (kind, version): (&str, u32),
    node: Option<&str>,
    uid: Option<&str>,
    now: SystemTime,
) -> Result<Snapshot<T>, Refusal> {
    let (head, body) = head(text)?;
    let differs = |found: String, expected: String| match found == expected {
        true => Ok(()),
        false => Err(Refusal::Other { found, expected }),
    };
    differs(
        format!("{} of version {}", head.kind, head.version),
        format!("{kind} of version {version}"),
    )?;
    let of_node = |node: &str| format!("of Node {node}");
    if let Some(node) = node {
        differs(of_node(&head.node), of_node(node))?;
    }
    let body: Body<String, T> = serde_json::from_slice(body).map_err(Refusal::Decode)?;
    if let Some(uid) = uid {
        let of_uid = |uid: &str| format!("of Node {} with UID {uid}", head.node);
        differs(of_uid(&body.uid), of_uid(uid))?;
    }
    let written = UNIX_EPOCH + Duration::from_secs(body.written);
    let age = match now.duration_since(written) {
        Ok(age) if age > MAX_AGE => return Err(Refusal::Old(age)),
        Ok(age) => age,
        Err(ahead) if ahead.duration() > MAX_AHEAD => {
            return Err(Refusal::Ahead(ahead.duration()));
        }
        Err(_) => Duration::ZERO,
    };
    Ok(Snapshot {
        state: body.state,
        uid: body.uid,
        same_boot: !body.boot.is_empty() && body.boot == boot_id(),
        age,
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// What the kernel calls this boot (random(4)); empty where it cannot be read.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SUBJECT: Subject<'_> = Subject {
        kind: "test peers",
        version: 3,
        node: "node-1",
    };

    fn state() -> Vec<String> {
        vec!["10.244.2.0/24".to_owned(), "line\nbreak".to_owned()]
    }

    fn write(path: &Path, state: &[String]) {
        let encoded = encode(SUBJECT, "uid-1", &state).unwrap();
        encoded.write(path).unwrap();
    }

    fn written() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it");
        write(&path, &state());
        fs::read(path).unwrap()
    }

    fn parsed(text: &[u8], after: Duration) -> Result<Snapshot<Vec<String>>, String> {
        parse(text, SUBJECT, Some("uid-1"), SystemTime::now() + after)
            .map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers");
        let absent = read::<Vec<String>>(&path, SUBJECT, None).unwrap_err();
        assert!(matches!(absent, Refusal::Absent));
        write(&path, &["old".to_owned()]);
        write(&path, &state());
        let snapshot = read::<Vec<String>>(&path, SUBJECT, None).unwrap();
        assert_eq!(snapshot.state, state());
        let of_any = read_of_any_node::<Vec<String>>(&path, "test peers", 3).unwrap();
        assert_eq!(of_any.state, state());
        let other = read_of_any_node::<Vec<String>>(&path, "test peers", 4).unwrap_err();
        assert!(matches!(other, Refusal::Other { .. }));
        assert_eq!(snapshot.uid, "uid-1");
        assert!(snapshot.same_boot && snapshot.age < MAX_AGE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_trusted_is_refused_with_the_reason() {
        let text = written();
        assert!(parsed(&text, Duration::ZERO).is_ok());
        let minute = Duration::from_secs(60);
        assert!(parsed(&text, MAX_AGE - minute).is_ok());
        let old = parsed(&text, MAX_AGE + minute).unwrap_err();
        assert_eq!(old, "it is 24.0 hours old");
        let before = SystemTime::now() - 2 * MAX_AHEAD;
        let ahead = parse::<Vec<String>>(&text, SUBJECT, None, before).unwrap_err();
        assert!(ahead.to_string().contains("ahead of this machine's clock"));
        let of = |subject, uid| {
            parse::<Vec<String>>(&text, subject, uid, SystemTime::now())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            of(SUBJECT, Some("uid-2")),
            "it is of Node node-1 with UID uid-1, not of Node node-1 with UID uid-2"
        );
        let node = Subject {
            node: "node-2",
            ..SUBJECT
        };
        assert_eq!(of(node, None), "it is of Node node-1, not of Node node-2");
        let version = Subject {
            version: 4,
            ..SUBJECT
        };
        assert_eq!(
            of(version, None),
            "it is test peers of version 3, not test peers of version 4"
        );
        let other = parse::<u32>(&text, SUBJECT, None, SystemTime::now()).unwrap_err();
        assert!(matches!(other, Refusal::Decode(_)));
    }

    #[test]
    fn a_state_of_another_boot_says_so() {
        let text = String::from_utf8(written()).unwrap();
        let body = text
            .split_once('\n')
            .unwrap()
            .1
            .replace(&boot_id(), "another");
        let text = format!("{MAGIC}{}\n{body}", hex(body.as_bytes()));
        assert!(!parsed(text.as_bytes(), Duration::ZERO).unwrap().same_boot);
    }

    #[test]
    fn each_beginning_of_a_file_is_refused() {
        let text = written();
        for end in 0..text.len() {
            let refused = parsed(&text[..end], Duration::ZERO).unwrap_err();
            assert!(refused.starts_with("it is damaged"), "{end}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn a_byte_that_changed_is_seen(at in any::<prop::sample::Index>(), by in 1u8..) {
            static TEXT: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(written);
            let mut text = TEXT.clone();
            let at = at.index(text.len());
            text[at] = text[at].wrapping_add(by);
            prop_assert!(parsed(&text, Duration::ZERO).unwrap_err().starts_with("it is damaged"));
        }
    }
}
