//! The annotations on Node objects by which flannel nodes, and so ours, tell each other where
//! they are.

use serde::{Deserialize, Serialize};

use super::Mac;

/// The prefix unless `--kube-annotation-prefix` says otherwise.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";

/// The full keys under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationKeys {
    /// `vxlan`, `host-gw`, …
    pub backend_type: String,
    /// [`BackendData`] of the IPv4 device, or `null`.
    pub backend_data: String,
    /// [`BackendData`] of the IPv6 device.
    pub backend_v6_data: String,
    /// The UDP port that a vxlan node listens on: ours alone, flannel takes it from its own configuration.
    pub backend_port: String,
    /// The node's underlay IPv4 address.
    pub public_ip: String,
    /// The node's underlay IPv6 address.
    pub public_ipv6: String,
    /// Always `true` on a node that flannel serves.
    pub kube_subnet_manager: String,
    /// Set by a user: the address that peers shall use in place of `public-ip`.
    pub public_ip_overwrite: String,
    /// Set by a user: the address that peers shall use in place of `public-ipv6`.
    pub public_ipv6_overwrite: String,
    /// Set by a user: the address by which flanneld picks its interface.
    pub node_public_ip: String,
    /// Set by a user: the IPv6 address by which flanneld picks its interface.
    pub node_public_ipv6: String,
}

/// A prefix under which no annotation can stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{prefix:?} cannot be an annotation prefix: expected a domain name of two or more labels in lower case, \
     such as flannel.example.com, and at most one slash, such as example.com/flannel"
)]
pub struct PrefixError {
    prefix: String,
}

impl AnnotationKeys {
    /// Makes the keys under a prefix: `example.com` gives `example.com/backend-data`, a prefix
    /// that holds a slash, `example.com/flannel` or `example.com/flannel-`, gives
    /// `example.com/flannel-backend-data`, as flannel has it.
    pub fn new(prefix: &str) -> Result<AnnotationKeys, PrefixError> {
        let error = || PrefixError {
            prefix: prefix.to_owned(),
        };
        let (domain, name) = prefix.split_once('/').unwrap_or((prefix, ""));
        let word = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        };
        if !domain.contains('.') || !domain.split('.').all(word) || !(name.is_empty() || word(name))
        {
            return Err(error());
        }
        let dash = if name.is_empty() || name.ends_with('-') {
            ""
        } else {
            "-"
        };
        let key = |suffix: &str| format!("{domain}/{name}{dash}{suffix}");
        Ok(AnnotationKeys {
            backend_type: key("backend-type"),
            backend_data: key("backend-data"),
            backend_v6_data: key("backend-v6-data"),
            backend_port: key("backend-port"),
            public_ip: key("public-ip"),
            public_ipv6: key("public-ipv6"),
            kube_subnet_manager: key("kube-subnet-manager"),
            public_ip_overwrite: key("public-ip-overwrite"),
            public_ipv6_overwrite: key("public-ipv6-overwrite"),
            node_public_ip: key("node-public-ip"),
            node_public_ipv6: key("node-public-ipv6"),
        })
    }
}

/// What a vxlan node publishes of its device: `{"VNI":1,"VtepMAC":"…"}`. Flannel compares the
/// text, so keys keep this order and no spaces are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendData {
    /// The VXLAN network identifier; absent in what the oldest flannels wrote.
    #[serde(rename = "VNI", skip_serializing_if = "Option::is_none", default)]
    pub vni: Option<u32>,
    /// The address of the node's VTEP, the inner destination of what is sent to it.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: Mac,
}

/// A `backend-data` annotation that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("backend data {text:?} cannot be read")]
pub struct BackendDataError {
    text: String,
    #[source]
    source: serde_json::Error,
}

impl BackendData {
    /// Reads an annotation's value; keys that are not known are passed over.
    pub fn parse(text: &str) -> Result<BackendData, BackendDataError> {
        serde_json::from_str(text).map_err(|source| BackendDataError {
            // A peer's annotation may be as long as the API allows; a log line shall not be.
            text: text.chars().take(128).collect(),
            source,
        })
    }

    /// The value as flannel writes it.
    pub fn render(&self) -> String {
        match self.vni {
            Some(vni) => format!("{{\"VNI\":{vni},\"VtepMAC\":\"{}\"}}", self.vtep_mac),
            None => format!("{{\"VtepMAC\":\"{}\"}}", self.vtep_mac),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_under_the_usual_prefix() {
        let keys = AnnotationKeys::new(DEFAULT_PREFIX).unwrap();
        assert_eq!(keys.backend_data, "flannel.alpha.coreos.com/backend-data");
        assert_eq!(
            keys.public_ipv6_overwrite,
            "flannel.alpha.coreos.com/public-ipv6-overwrite"
        );
    }

    #[test]
    fn keys_under_a_prefix_with_a_slash() {
        for prefix in ["example.com/flannel", "example.com/flannel-"] {
            let keys = AnnotationKeys::new(prefix).unwrap();
            assert_eq!(keys.backend_data, "example.com/flannel-backend-data");
        }
        assert_eq!(
            AnnotationKeys::new("example.com/").unwrap().public_ip,
            "example.com/public-ip"
        );
    }

    #[test]
    fn bad_prefixes_are_named() {
        for bad in [
            "",
            "example",
            "/x",
            "example.com/a/b",
            "Example.com",
            "example..com",
            "example.com/ü",
        ] {
            let error = AnnotationKeys::new(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn backend_data_is_flannels_text() {
        let text = r#"{"VNI":1,"VtepMAC":"9e:a1:5c:00:00:01"}"#;
        let data = BackendData::parse(text).unwrap();
        assert_eq!(
            data,
            BackendData {
                vni: Some(1),
                vtep_mac: Mac([0x9e, 0xa1, 0x5c, 0, 0, 1])
            }
        );
        assert_eq!(data.render(), text);
        assert_eq!(serde_json::to_string(&data).unwrap(), text);
        let old = BackendData::parse(r#"{"VtepMAC":"9e:a1:5c:00:00:01"}"#).unwrap();
        assert_eq!(old.vni, None);
    }

    #[test]
    fn hostile_backend_data_is_an_error() {
        for bad in [
            "",
            "null",
            "{}",
            r#"{"VNI":-1,"VtepMAC":"9e:a1:5c:00:00:01"}"#,
            r#"{"VNI":1,"VtepMAC":"9e:a1:5c:00:00:01:02:03"}"#,
        ] {
            BackendData::parse(bad).unwrap_err();
        }
        let long = "x".repeat(100_000);
        assert!(BackendData::parse(&long).unwrap_err().to_string().len() < 200);
    }

    proptest! {
        #[test]
        fn no_backend_data_makes_it_panic_and_what_is_read_is_written_alike(
            number in "-?[0-9]{0,12}", mac in "[0-9a-fA-F:.x-]{0,20}|([0-9a-f]{2}:){5}[0-9a-f]{2}", rest in "\\PC{0,8}",
        ) {
            let text = format!("{{\"VNI\":{number},\"VtepMAC\":\"{mac}\"{rest}}}");
            if let Ok(data) = BackendData::parse(&text) {
                prop_assert_eq!(BackendData::parse(&data.render()).unwrap(), data);
            }
        }
    }
}
