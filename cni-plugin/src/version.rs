//! The versions of the CNI specification that are spoken.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A version of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Version {
    /// 0.1.0
    #[serde(rename = "0.1.0")]
    V0_1_0,
    /// 0.2.0
    #[serde(rename = "0.2.0")]
    V0_2_0,
    /// 0.3.0
    #[serde(rename = "0.3.0")]
    V0_3_0,
    /// 0.3.1
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The newest, in which errors are told where the configuration's version is not known.
    pub const LATEST: Version = Version::V1_1_0;

    /// The version of a configuration that names none: the reference library's rule.
    pub const UNNAMED: Version = Version::V0_1_0;

    fn text(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A version that is not spoken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cniVersion {0:?} is not supported: use one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
)]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Version, VersionError> {
        Version::ALL
            .into_iter()
            .find(|version| version.text() == text)
            .ok_or_else(|| VersionError(text.to_owned()))
    }
}

/// The answer to VERSION (CNI specification, section 2 "VERSION").
pub fn answer() -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        cni_version: Version,
        supported_versions: [Version; 7],
    }
    let answer = Answer {
        cni_version: Version::LATEST,
        supported_versions: Version::ALL,
    };
    serde_json::to_string(&answer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip_and_the_error_lists_them_all() {
        for version in Version::ALL {
            assert_eq!(version.to_string().parse(), Ok(version));
            assert_eq!(
                serde_json::to_string(&version).unwrap(),
                format!("{:?}", version.text())
            );
            assert!(
                VersionError(String::new())
                    .to_string()
                    .contains(version.text())
            );
        }
        assert_eq!(
            "1.2.0".parse::<Version>(),
            Err(VersionError("1.2.0".into()))
        );
    }
}
