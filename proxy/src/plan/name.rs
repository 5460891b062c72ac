//! Owns the name of a service port, as people and rules know it.

use std::fmt;
use std::sync::Arc;

use crate::index::ObjectName;

/// `namespace/service:port`, or `namespace/service` where the port has no name (kube-proxy's form since
/// 1.19, in comments and in the hashes of chain names). One shared string: a ruleset holds many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName(Arc<str>);

impl PortName {
    /// From its parts; `port` is empty for a port without a name.
    pub fn new(namespace: &str, service: &str, port: &str) -> Self {
        let colon = if port.is_empty() { "" } else { ":" };
        Self([namespace, "/", service, colon, port].concat().into())
    }

    /// `namespace/service`: the part that names the Service.
    pub fn service(&self) -> &str {
        self.0
            .split_once(':')
            .map_or(&self.0, |(service, _)| service)
    }

    /// The Service.
    pub fn object(&self) -> ObjectName {
        let (namespace, name) = self.service().split_once('/').unwrap_or_default();
        ObjectName::new(namespace, name)
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_named_port_has_a_colon() {
        assert_eq!(
            PortName::new("kube-system", "kube-dns", "dns-tcp").as_str(),
            "kube-system/kube-dns:dns-tcp"
        );
        assert_eq!(
            PortName::new("default", "hello-world-service", "").as_str(),
            "default/hello-world-service"
        );
    }
}
