//! What the runtime asks for: raw (the environment and standard input), then validated. Nothing
//! below sees the raw form.

mod args;
mod bridge;
pub mod config;
mod fields;
mod ipam;
pub mod ports;
pub mod prev;
pub mod rates;
pub mod settings;
mod vlans;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use hostnet::vocab::IfName;

use crate::error::{CniError, Code};
use crate::version::Version;

pub use args::Args;

/// The environment and standard input as they came.
#[derive(Clone, Debug, Default)]
pub struct RawRequest {
    /// `CNI_COMMAND`
    pub command: Option<OsString>,
    /// `CNI_CONTAINERID`
    pub container_id: Option<OsString>,
    /// `CNI_NETNS`
    pub netns: Option<OsString>,
    /// `CNI_IFNAME`
    pub ifname: Option<OsString>,
    /// `CNI_ARGS`
    pub args: Option<OsString>,
    /// `CNI_PATH`
    pub path: Option<OsString>,
    /// `TWILL_CNI_DEBUG`: say on standard error what is passed over.
    pub debug: bool,
    /// Standard input.
    pub config: Vec<u8>,
}

impl RawRequest {
    /// Takes the variables from a source such as `std::env::var_os`; an empty one counts as
    /// missing. Standard input is read by the caller, for verbs that need it.
    pub fn from_env(var: impl Fn(&str) -> Option<OsString>) -> RawRequest {
        let get = |key| var(key).filter(|value| !value.is_empty());
        RawRequest {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
            path: get("CNI_PATH"),
            debug: get("TWILL_CNI_DEBUG").is_some(),
            config: Vec::new(),
        }
    }
}

/// The operations of the CNI specification 1.1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Verify an attachment.
    Check,
    /// Tell whether ADD can be served.
    Status,
    /// Remove what belongs to no attachment any more.
    Gc,
    /// Tell the versions.
    Version,
}

impl Verb {
    /// The version of the specification that the verb came with.
    pub fn since(self) -> Version {
        match self {
            Verb::Add | Verb::Del | Verb::Version => Version::V0_1_0,
            Verb::Check => Version::V0_4_0,
            Verb::Status | Verb::Gc => Version::V1_1_0,
        }
    }
}

impl Verb {
    /// The verb as `CNI_COMMAND` has it.
    pub fn text(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
            Verb::Version => "VERSION",
        }
    }
}

impl FromStr for Verb {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Verb, CniError> {
        let all = [
            Verb::Add,
            Verb::Del,
            Verb::Check,
            Verb::Status,
            Verb::Gc,
            Verb::Version,
        ];
        all.into_iter()
            .find(|verb| verb.text() == text)
            .ok_or_else(|| {
                let msg =
                    format!("CNI_COMMAND {text:?} is none of ADD, DEL, CHECK, STATUS, GC, VERSION");
                CniError::new(Code::InvalidEnvironment, msg)
            })
    }
}

/// What an attachment is known by: a container may have several interfaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The runtime's name for the container (a Kubernetes sandbox).
    pub container_id: ContainerId,
    /// The interface inside it.
    pub ifname: IfName,
}

/// A container's id: an ASCII letter or digit, then letters, digits, `_`, `.` and `-` (CNI
/// specification, section 2 "Parameters"). It is safe as part of a file's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks an id.
    pub fn new(text: &str) -> Option<ContainerId> {
        is_name(text).then(|| ContainerId(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The rule for container ids and for networks' names.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// The variables of an attachment's verbs. All that is wrong with them is told at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which attachment.
    pub identity: Identity,
    /// Where the container's namespace is, as given: DEL may come without.
    pub netns: Option<PathBuf>,
}

impl Target {
    /// Validates the variables. `netns_needed` for ADD and CHECK.
    pub fn of(raw: &RawRequest, netns_needed: bool) -> Result<Target, CniError> {
        let mut wrong = Vec::new();
        let container_id = match text(&raw.container_id) {
            None => {
                wrong.push("CNI_CONTAINERID is missing".to_owned());
                None
            }
            Some(text) => {
                let id = ContainerId::new(&text);
                if id.is_none() {
                    wrong.push(format!(
                        "CNI_CONTAINERID {text:?} may hold letters, digits, '_', '.' and '-' only, \
                         and starts with a letter or digit"
                    ));
                }
                id
            }
        };
        let ifname = match text(&raw.ifname).map(|text| IfName::new(&text)) {
            None => {
                wrong.push("CNI_IFNAME is missing".to_owned());
                None
            }
            Some(Err(error)) => {
                wrong.push(format!("CNI_IFNAME {error}"));
                None
            }
            Some(Ok(name)) => Some(name),
        };
        if netns_needed && raw.netns.is_none() {
            wrong.push("CNI_NETNS is missing".to_owned());
        }
        match (container_id, ifname) {
            (Some(container_id), Some(ifname)) if wrong.is_empty() => Ok(Target {
                identity: Identity {
                    container_id,
                    ifname,
                },
                netns: raw.netns.as_ref().map(PathBuf::from),
            }),
            _ => Err(CniError::new(Code::InvalidEnvironment, wrong.join("; "))),
        }
    }
}

fn text(value: &Option<OsString>) -> Option<String> {
    value
        .as_ref()
        .map(|value| value.to_string_lossy().into_owned())
}

/// The verb of a request.
pub fn verb(raw: &RawRequest) -> Result<Verb, CniError> {
    match text(&raw.command) {
        Some(command) => command.parse(),
        None => Err(CniError::new(
            Code::InvalidEnvironment,
            "CNI_COMMAND is missing",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(id: &str, ifname: &str, netns: &str) -> RawRequest {
        RawRequest::from_env(|key| {
            Some(OsString::from(match key {
                "CNI_COMMAND" => "ADD",
                "CNI_CONTAINERID" => id,
                "CNI_IFNAME" => ifname,
                "CNI_NETNS" => netns,
                _ => return None,
            }))
        })
    }

    #[test]
    fn a_whole_request_is_read() {
        let raw = raw("0c1d-2.e_f", "eth0", "/run/netns/x");
        assert_eq!(verb(&raw).unwrap(), Verb::Add);
        let target = Target::of(&raw, true).unwrap();
        assert_eq!(target.identity.container_id.as_str(), "0c1d-2.e_f");
        assert_eq!(target.netns.unwrap().to_str(), Some("/run/netns/x"));
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_with_the_variables_names() {
        let error = Target::of(&raw("", "", ""), true).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert_eq!(
            error.msg,
            "CNI_CONTAINERID is missing; CNI_IFNAME is missing; CNI_NETNS is missing"
        );
        let error = Target::of(&raw("../x", "averyveryverylongname", ""), false).unwrap_err();
        assert!(
            error.msg.contains("CNI_CONTAINERID \"../x\"")
                && error.msg.contains("CNI_IFNAME \"averyv")
        );
    }

    #[test]
    fn del_needs_no_namespace() {
        assert_eq!(
            Target::of(&raw("a", "eth0", ""), false).unwrap().netns,
            None
        );
    }

    #[test]
    fn hostile_ids_are_refused() {
        for id in [".", "..", "a/b", "-a", "_a", "a b", "é", "a\n"] {
            assert_eq!(ContainerId::new(id), None, "{id:?}");
        }
    }

    #[test]
    fn verbs() {
        assert_eq!("GC".parse::<Verb>().unwrap(), Verb::Gc);
        assert!("add".parse::<Verb>().unwrap_err().msg.contains("\"add\""));
        assert_eq!(
            verb(&RawRequest::default()).unwrap_err().msg,
            "CNI_COMMAND is missing"
        );
    }
}
