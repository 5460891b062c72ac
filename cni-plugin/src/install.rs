//! `twill-cni install` and `uninstall`: for an image without a shell, the program brings itself
//! onto the node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use hostnet::atomic_file;
use hostnet::vocab::names;
use serde_json::Value;

use crate::error::CniError;
use crate::help;
use crate::remains;

/// What to bring where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `--bin-dir`: where the runtime looks for plugins.
    pub bin_dir: Option<PathBuf>,
    /// `--conf-dir`: where the runtime looks for network configurations.
    pub conf_dir: Option<PathBuf>,
    /// `--conflist`: the configuration to put there; it keeps its file name. To uninstall, its file
    /// name alone counts.
    pub conflist: Option<PathBuf>,
    /// `--force`: in place of a newer version too.
    pub force: bool,
    /// `--state-dir`, to uninstall: where the records of attachments are, if not at the usual place.
    pub state_dir: Option<PathBuf>,
    /// `--data-dir`, to uninstall: where host-local's reservations are, if not at the usual place.
    pub data_dir: Option<PathBuf>,
}

/// What keeps it from being done.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The command line is wrong.
    #[error("{0}: see twill-cni --help")]
    Usage(String),
    /// What lies there is newer.
    #[error(
        "{} is {there}, newer than this {}: use --force to put this one in its place",
        path.display(),
        help::VERSION
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        there: String,
    },
    /// The configuration is none.
    #[error("{} is not a network configuration list: {why}", path.display())]
    Conflist {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file could not be handled.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("{error}: {}", std::error::Error::source(error).map(ToString::to_string).unwrap_or_default())]
    Write {
        /// Which, and why.
        error: atomic_file::WriteError,
    },
    /// What calls have left on the node could not be taken away.
    #[error(transparent)]
    Remains(#[from] CniError),
}

impl Options {
    /// Reads the arguments behind `install` or `uninstall`.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options, InstallError> {
        let mut options = Options::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            if name == "--force" {
                options.force = true;
                continue;
            }
            let slot = match name.as_str() {
                "--bin-dir" => &mut options.bin_dir,
                "--conf-dir" => &mut options.conf_dir,
                "--conflist" => &mut options.conflist,
                "--state-dir" => &mut options.state_dir,
                "--data-dir" => &mut options.data_dir,
                other => {
                    return Err(InstallError::Usage(format!("{other:?} is not an option")));
                }
            };
            let value = inline.or_else(|| arguments.next());
            match value.filter(|value| !value.is_empty()) {
                Some(value) => *slot = Some(PathBuf::from(value)),
                None => return Err(InstallError::Usage(format!("{name} needs a path"))),
            }
        }
        if options.bin_dir.is_none() && options.conf_dir.is_none() {
            let missing = "--bin-dir or --conf-dir is missing".to_owned();
            return Err(InstallError::Usage(missing));
        }
        if options.conf_dir.is_some() != options.conflist.is_some() {
            let half = "--conf-dir and --conflist need each other".to_owned();
            return Err(InstallError::Usage(half));
        }
        Ok(options)
    }

    fn program(&self) -> Option<PathBuf> {
        Some(self.bin_dir.as_ref()?.join(names::CNI_TYPE))
    }

    fn conf_file(&self) -> Option<PathBuf> {
        let name = self.conflist.as_ref()?.file_name()?;
        Some(self.conf_dir.as_ref()?.join(name))
    }
}

/// Copies the running program, and the configuration where one is told. Everything is checked
/// before anything is written; each file appears whole. `tell` gets a line for each thing done.
pub fn install(options: &Options, tell: &mut dyn FnMut(String)) -> Result<(), InstallError> {
    let conflist = match (&options.conflist, options.conf_file()) {
        (Some(source), Some(target)) => Some((read_conflist(source)?, target)),
        _ => None,
    };
    let program = match options.program() {
        Some(target) => {
            refuse_newer(&target, options.force)?;
            let own = Path::new("/proc/self/exe");
            Some((read(own)?, target))
        }
        None => None,
    };
    // The program first: a configuration that names it makes the runtime call it.
    if let Some((contents, target)) = program {
        tell(put(&target, &contents, 0o755)?);
    }
    if let Some((contents, target)) = conflist {
        tell(put(&target, &contents, 0o644)?);
    }
    Ok(())
}

/// Removes what [`install`] put there: the configuration first, so that the runtime calls nothing
/// that is not there. With the program goes what its calls have left on the node, see
/// [`remains::remove`]. What is not ours is left alone. `tell` gets a line for each thing done.
pub fn uninstall(options: &Options, tell: &mut dyn FnMut(String)) -> Result<(), InstallError> {
    if let Some(target) = options.conf_file() {
        tell(match fs::read(&target) {
            Ok(contents) if !names_us(&contents) => {
                format!(
                    "left {}: it does not name {}",
                    target.display(),
                    names::CNI_TYPE
                )
            }
            _ => take_away(&target)?,
        });
    }
    if let Some(target) = options.program() {
        tell(take_away(&target)?);
        let state_dir = options.state_dir.as_deref();
        let data_dir = options.data_dir.as_deref();
        remains::remove(
            state_dir.unwrap_or(names::ATTACHMENTS_DIR.as_ref()),
            data_dir.unwrap_or(names::IPAM_DIR.as_ref()),
            tell,
        )?;
    }
    Ok(())
}

fn put(target: &Path, contents: &[u8], mode: u32) -> Result<String, InstallError> {
    if fs::read(target).is_ok_and(|there| there == contents) {
        return Ok(format!("{} is there already", target.display()));
    }
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir).map_err(|source| InstallError::File {
            operation: "make the directory",
            path: dir.to_owned(),
            source,
        })?;
    }
    atomic_file::replace(target, contents, mode).map_err(|error| InstallError::Write { error })?;
    Ok(format!("wrote {}", target.display()))
}

fn take_away(target: &Path) -> Result<String, InstallError> {
    match fs::remove_file(target) {
        Ok(()) => Ok(format!("removed {}", target.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(format!("{} is not there", target.display()))
        }
        Err(source) => Err(InstallError::File {
            operation: "remove",
            path: target.to_owned(),
            source,
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, InstallError> {
    fs::read(path).map_err(|source| InstallError::File {
        operation: "read",
        path: path.to_owned(),
        source,
    })
}

/// A list whose plugins have types: a runtime that finds a broken one in its folder has no network.
fn read_conflist(path: &Path) -> Result<Vec<u8>, InstallError> {
    let contents = read(path)?;
    let wrong = |why: &str| InstallError::Conflist {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let json: Value = serde_json::from_slice(&contents).map_err(|e| wrong(&e.to_string()))?;
    if !json["name"].is_string() {
        return Err(wrong("name is missing"));
    }
    let plugins = json["plugins"].as_array().filter(|list| !list.is_empty());
    let plugins = plugins.ok_or_else(|| wrong("plugins is not a list of at least one"))?;
    if !plugins.iter().all(|plugin| plugin["type"].is_string()) {
        return Err(wrong("one of the plugins has no type"));
    }
    Ok(contents)
}

fn names_us(conflist: &[u8]) -> bool {
    let json: Value = serde_json::from_slice(conflist).unwrap_or_default();
    let plugins = json["plugins"].as_array();
    plugins.is_some_and(|list| list.iter().any(|plugin| plugin["type"] == names::CNI_TYPE))
}

/// A newer version may have records on this node that this one does not understand.
fn refuse_newer(target: &Path, force: bool) -> Result<(), InstallError> {
    if force || !target.exists() {
        return Ok(());
    }
    let output = Command::new(target).arg("--version").output();
    // What does not tell its version is not a newer one of ours.
    let there = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let there = there.unwrap_or_default();
    match (version(&there), version(help::VERSION)) {
        (Some(found), Some(own)) if found > own => Err(InstallError::Newer {
            path: target.to_owned(),
            there,
        }),
        _ => Ok(()),
    }
}

/// The numbers of `twill-cni 1.2.3`.
fn version(text: &str) -> Option<Vec<u64>> {
    let numbers = text.strip_prefix("twill-cni ")?;
    let numbers = numbers.split(['-', '+']).next()?;
    numbers.split('.').map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        let words = text.split_whitespace().map(str::to_owned);
        Options::parse(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line() {
        let all = parse("--bin-dir /a --conf-dir=/b --conflist /c/10.conflist --force").unwrap();
        assert_eq!(all.program().unwrap(), Path::new("/a/twill-cni"));
        assert_eq!(all.conf_file().unwrap(), Path::new("/b/10.conflist"));
        assert!(all.force);
        for (text, error) in [
            ("", "--bin-dir or --conf-dir is missing"),
            ("--bin-dir", "--bin-dir needs a path"),
            ("--frob x", "\"--frob\" is not an option"),
            (
                "--bin-dir /a --conf-dir /b",
                "--conf-dir and --conflist need each other",
            ),
        ] {
            assert!(parse(text).unwrap_err().starts_with(error), "{text}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("twill-cni 0.10.0") > version("twill-cni 0.9.9"));
        assert_eq!(version("twill-cni 1.2.3-rc1"), Some(vec![1, 2, 3]));
        assert_eq!(version("CNI bridge plugin v1.9.1"), None);
    }
}
