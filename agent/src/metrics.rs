//! Metrics: a registry that starts with who we are, written in the OpenMetrics text form.

use prometheus_client::{encoding::text::encode, metrics::info::Info, registry::Registry};

use crate::http::Reply;

/// The version of this workspace, which all binaries share.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A registry that holds `<prefix>_build_info{version="…"} 1`.
#[must_use]
pub fn registry(prefix: &str) -> Registry {
    let mut registry = Registry::default();
    let info = Info::new([("version", VERSION)]);
    registry.register(format!("{prefix}_build"), "The version that runs", info);
    registry
}

/// The answer to a request for `/metrics`.
#[must_use]
pub fn reply(registry: &Registry) -> Reply {
    let mut body = String::new();
    match encode(&mut body, registry) {
        Ok(()) => Reply {
            status: 200,
            content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            headers: Vec::new(),
            body,
        },
        Err(error) => Reply::text(500, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_told() {
        let body = reply(&registry("flanneld")).body;
        assert!(
            body.contains(&format!("flanneld_build_info{{version=\"{VERSION}\"}} 1\n")),
            "{body}"
        );
    }
}
