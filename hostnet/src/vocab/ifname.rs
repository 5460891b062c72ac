//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

/// The name of a network interface, valid for the kernel: 1 to 15 bytes, not `.` or `..`, without
/// slash, colon or white space (`dev_valid_name` in the kernel's net/core/dev.c).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(Box<str>);

/// A text that cannot name an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot name a network interface: {reason}")]
pub struct IfNameError {
    text: String,
    reason: &'static str,
}

impl IfName {
    /// The longest name in bytes: the kernel's IFNAMSIZ less the final zero.
    pub const MAX_LEN: usize = 15;

    /// Checks a name.
    pub fn new(name: &str) -> Result<IfName, IfNameError> {
        let reason = if name.is_empty() {
            "it is empty"
        } else if name.len() > IfName::MAX_LEN {
            "it is longer than 15 bytes"
        } else if name == "." || name == ".." {
            "it is a directory's name"
        } else if name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace() || b == 0x0b)
        {
            "it holds a slash, a colon or white space"
        } else {
            return Ok(IfName(name.into()));
        };
        Err(IfNameError {
            text: name.to_owned(),
            reason,
        })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IfName {
    type Err = IfNameError;

    fn from_str(text: &str) -> Result<IfName, IfNameError> {
        IfName::new(text)
    }
}

impl AsRef<str> for IfName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for IfName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for IfName {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for IfName {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

super::serde_as_text!(IfName, "a network interface's name of at most 15 bytes");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_kernels_rule() {
        for good in ["eth0", "flannel-v6.1", "123456789012345", "é"] {
            assert_eq!(IfName::new(good).unwrap(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "a\u{b}b",
            "a\0b",
            "1234567890123456",
        ] {
            let error = IfName::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
