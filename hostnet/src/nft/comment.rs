//! Comments, as `nft list` shows them beside tables, chains, sets, rules and elements.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `NFTNL_UDATA_COMMENT_MAXLEN`: nft refuses to load a longer one.
const MAX_LEN: usize = 128;

/// A comment that nft can list and load again.
///
/// A text of more than 128 bytes is cut, and ends in `~` and eight digits of a hash of the whole, so that
/// two long texts stay apart. Quotes, which nft cannot escape, and control characters become `?`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Comment(Arc<str>);

impl Comment {
    /// Makes a comment of any text.
    pub fn new(text: &str) -> Comment {
        let clean = text.replace(|c: char| c == '"' || c.is_control(), "?");
        if clean.len() <= MAX_LEN {
            return Comment(clean.into());
        }
        let cut = clean.floor_char_boundary(MAX_LEN - 9);
        Comment(format!("{}~{:08x}", &clean[..cut], fnv1a(text)).into())
    }

    /// One that the kernel holds, as it is.
    pub(super) fn observed(text: &str) -> Comment {
        Comment(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// FNV-1a of 32 bits: the same in every build, unlike the standard library's hashers.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, b| {
        (hash ^ u32::from(b)).wrapping_mul(0x0100_0193)
    })
}

impl From<&str> for Comment {
    fn from(text: &str) -> Comment {
        Comment::new(text)
    }
}

impl From<String> for Comment {
    fn from(text: String) -> Comment {
        Comment::new(&text)
    }
}

impl fmt::Debug for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// As nft writes it: `comment "text"`.
impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "comment \"{}\"", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_comment_is_cut_and_stays_unique() {
        let namespace = "n".repeat(63);
        let service = "s".repeat(63);
        let a = Comment::new(&format!("{namespace}/{service}:http-one"));
        let b = Comment::new(&format!("{namespace}/{service}:http-two"));
        assert_eq!(a.as_str().len(), 128);
        assert_ne!(a, b);
        assert!(a.as_str().starts_with(&format!("{namespace}/sss")));
    }

    #[test]
    fn a_comment_of_128_bytes_is_kept() {
        let text = "x".repeat(128);
        assert_eq!(Comment::new(&text).as_str(), text);
    }

    #[test]
    fn what_nft_cannot_read_back_is_replaced() {
        assert_eq!(Comment::new("a \"b\"\nc").as_str(), "a ?b??c");
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        let cut = Comment::new(&"ä".repeat(100));
        assert!(cut.as_str().len() <= 128);
    }
}
