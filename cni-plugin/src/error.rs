//! Failure as the runtime reads it: a code of the CNI specification, a sentence that says what to
//! do, and the causes.

use std::error::Error as StdError;

use serde::Serialize;

use crate::version::Version;

/// The codes of the CNI specification 1.1.0, section 5 "Error", and one of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's cniVersion is not supported.
    IncompatibleVersion = 1,
    /// The configuration asks for something that is not supported.
    UnsupportedField = 2,
    /// The container does not exist; the runtime need not clean up.
    UnknownContainer = 3,
    /// A `CNI_*` variable is missing or wrong.
    InvalidEnvironment = 4,
    /// A file could not be read or written.
    Io = 5,
    /// The configuration cannot be decoded.
    Decode = 6,
    /// The configuration is wrong.
    InvalidConfig = 7,
    /// The same call may succeed later.
    TryAgain = 11,
    /// STATUS: the next ADD would fail.
    NotAvailable = 50,
    /// STATUS: the next ADD would fail, and containers that stand may have no network.
    Limited = 51,
    /// The kernel refused a change (codes from 100 on are the plugin's own).
    Kernel = 100,
    /// CHECK: the attachment is not as ADD made it.
    Changed = 101,
    /// The IPAM plugin failed with a code of its own.
    Ipam = 102,
}

impl Code {
    /// The code with which to pass on another plugin's: its own if the specification has it.
    pub fn of_other(code: u32) -> Code {
        [
            Code::IncompatibleVersion,
            Code::UnsupportedField,
            Code::UnknownContainer,
            Code::InvalidEnvironment,
            Code::Io,
            Code::Decode,
            Code::InvalidConfig,
            Code::TryAgain,
            Code::NotAvailable,
            Code::Limited,
        ]
        .into_iter()
        .find(|known| *known as u32 == code)
        .unwrap_or(Code::Ipam)
    }
}

/// What went wrong. Its JSON form goes to standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// The specification's code.
    pub code: Code,
    /// What happened and what to do, in one sentence.
    pub msg: String,
    /// The causes, outermost first.
    pub details: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorJson<'a> {
    cni_version: Version,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl CniError {
    /// A failure without further causes.
    pub fn new(code: Code, msg: impl Into<String>) -> CniError {
        CniError {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// A failure told by an error with its chain of causes.
    pub fn of(code: Code, error: &dyn StdError) -> CniError {
        CniError {
            code,
            msg: error.to_string(),
            details: causes(error),
        }
    }

    /// The JSON text of the specification.
    pub fn to_json(&self, version: Version) -> String {
        let json = ErrorJson {
            cni_version: version,
            code: self.code as u32,
            msg: &self.msg,
            details: &self.details,
        };
        // Strings and numbers cannot fail to be written.
        serde_json::to_string(&json).unwrap_or_default()
    }

    /// Joins what went wrong in steps that all had to be tried; `None` if nothing did.
    pub fn join(errors: Vec<CniError>) -> Option<CniError> {
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        for other in errors {
            first.msg += &format!("; {}", other.msg);
            if !other.details.is_empty() {
                first.details += if first.details.is_empty() { "" } else { "; " };
                first.details += &other.details;
            }
        }
        Some(first)
    }
}

fn causes(error: &dyn StdError) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(cause) = source {
        if !text.is_empty() {
            text += ": ";
        }
        text += &cause.to_string();
        source = cause.source();
    }
    text
}

impl std::fmt::Display for CniError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.msg)
    }
}

impl StdError for CniError {}

impl From<hostnet::netlink::Error> for CniError {
    fn from(error: hostnet::netlink::Error) -> CniError {
        CniError::of(Code::Kernel, &error)
    }
}

impl From<hostnet::sysctl::SysctlError> for CniError {
    fn from(error: hostnet::sysctl::SysctlError) -> CniError {
        CniError::of(Code::Kernel, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_specifications_keys() {
        let io = std::io::Error::from_raw_os_error(2);
        let error = CniError {
            details: io.to_string(),
            ..CniError::new(Code::Io, "cannot read x")
        };
        assert_eq!(
            error.to_json(Version::V1_0_0),
            r#"{"cniVersion":"1.0.0","code":5,"msg":"cannot read x","details":"No such file or directory (os error 2)"}"#
        );
        let bare = CniError::new(Code::InvalidEnvironment, "CNI_IFNAME is missing");
        assert!(!bare.to_json(Version::V0_3_1).contains("details"));
    }

    #[test]
    fn joined_errors_are_all_told() {
        assert_eq!(CniError::join(vec![]), None);
        let joined = CniError::join(vec![
            CniError::new(Code::Kernel, "a"),
            CniError {
                details: "why".into(),
                ..CniError::new(Code::Io, "b")
            },
        ])
        .unwrap();
        assert_eq!(
            (joined.code, joined.msg.as_str(), joined.details.as_str()),
            (Code::Kernel, "a; b", "why")
        );
    }
}
