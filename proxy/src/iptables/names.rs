//! Owns the names of chains: those that all services share, and those that are hashes of a service port's name.

use std::borrow::Cow;

use data_encoding::BASE32;
use sha2::{Digest, Sha256};

use crate::plan::{Endpoint, PortKey};

/// The name of a chain. The kernel bears 28 bytes.
pub(super) type Chain = Cow<'static, str>;

/// In `nat` and `filter`: where service addresses are looked up.
pub(super) const SERVICES: &str = "KUBE-SERVICES";
/// In `nat`: node ports; in `filter`: health check ports.
pub(super) const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// In `nat`: whose mark is set is masqueraded.
pub(super) const POSTROUTING: &str = "KUBE-POSTROUTING";
/// In `nat`: sets that mark.
pub(super) const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// In `filter`: addresses for the outside that have no endpoints.
pub(super) const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
/// In `filter`: what goes to services may be forwarded.
pub(super) const FORWARD: &str = "KUBE-FORWARD";
/// In `filter`: who is not among a load balancer's sources.
pub(super) const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// In `filter`: packets that pretend to come from this node's loopback. Shared with the kubelet.
pub(super) const FIREWALL: &str = "KUBE-FIREWALL";
/// In all tables, empty: who flushes tables takes it along.
pub(super) const CANARY: &str = "KUBE-PROXY-CANARY";
/// The kubelet's canary, which tells that a kubelet keeps chains of its own here.
pub(super) const KUBELET_CANARY: &str = "KUBE-KUBELET-CANARY";

/// Shared chains that are a proxy's alone.
const SHARED: [&str; 8] = [
    SERVICES,
    NODE_PORTS,
    POSTROUTING,
    MARK_MASQ,
    EXTERNAL_SERVICES,
    FORWARD,
    PROXY_FIREWALL,
    CANARY,
];

/// All that a service port's chains may begin with, also in the other naming.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-XLB-",
    "KUBE-FW-",
    "KUBE-SEP-",
];

/// How many characters of the hash a name has.
const HASH: usize = 16;

/// After which kube-proxy chains and comments are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// Today's, since 1.19: `default/web` where a port has no name.
    #[default]
    Today,
    /// That of 1.18 and before: `default/web:` where a port has no name, two rules for each cluster IP in
    /// `KUBE-SERVICES`, and no chain `KUBE-EXT-`.
    Legacy,
}

impl Naming {
    /// The service port's name in comments and hashes.
    pub(super) fn port_name(self, key: &PortKey) -> Cow<'_, str> {
        let name = key.name.as_str();
        match self {
            Naming::Legacy if !name.contains(':') => format!("{name}:").into(),
            _ => name.into(),
        }
    }
}

/// The names of one service port's chains.
#[derive(Clone, Debug)]
pub(super) struct Chains {
    hash: String,
    hashed: String,
    external: &'static str,
}

impl Chains {
    pub(super) fn of(naming: Naming, key: &PortKey) -> Chains {
        let hashed = format!("{}{}", naming.port_name(key), key.protocol);
        Chains {
            hash: hash(&hashed),
            hashed,
            external: match naming {
                Naming::Today => "KUBE-EXT-",
                Naming::Legacy => "KUBE-XLB-",
            },
        }
    }

    /// All endpoints.
    pub(super) fn cluster(&self) -> Chain {
        format!("KUBE-SVC-{}", self.hash).into()
    }

    /// Endpoints of this node.
    pub(super) fn local(&self) -> Chain {
        format!("KUBE-SVL-{}", self.hash).into()
    }

    /// What comes from outside the cluster.
    pub(super) fn external(&self) -> Chain {
        format!("{}{}", self.external, self.hash).into()
    }

    /// Who may come in by a load balancer's address.
    pub(super) fn firewall(&self) -> Chain {
        format!("KUBE-FW-{}", self.hash).into()
    }

    /// One endpoint.
    pub(super) fn endpoint(&self, endpoint: &Endpoint) -> Chain {
        let hash = hash(&format!("{}{}", self.hashed, endpoint.socket()));
        format!("KUBE-SEP-{hash}").into()
    }
}

/// Whether a chain is one that all service ports share, and that nobody but a proxy has.
pub(super) fn is_shared(chain: &str) -> bool {
    SHARED.contains(&chain)
}

/// Whether a chain is one of a service port, whichever naming made it.
pub(super) fn is_of_port(chain: &str) -> bool {
    PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

fn hash(text: &str) -> String {
    let mut encoded = BASE32.encode(&Sha256::digest(text));
    encoded.truncate(HASH);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{PortName, Protocol};

    fn chains(naming: Naming, port: [&str; 3], protocol: Protocol) -> Chains {
        let name = PortName::new(port[0], port[1], port[2]);
        Chains::of(naming, &PortKey { name, protocol })
    }

    const HELLO: [&str; 3] = ["default", "hello-world-service", ""];

    #[test]
    fn named_ports_are_hashed_alike_in_both_namings() {
        for naming in [Naming::Today, Naming::Legacy] {
            let dns = |port| ["kube-system", "kube-dns", port];
            let svc = |port, protocol| chains(naming, port, protocol).cluster();
            assert_eq!(svc(dns("dns"), Protocol::Udp), "KUBE-SVC-TCOU7JCQXEZGVUNU");
            assert_eq!(
                svc(dns("dns-tcp"), Protocol::Tcp),
                "KUBE-SVC-ERIFXISQEP7F7OF4"
            );
            assert_eq!(
                svc(dns("metrics"), Protocol::Tcp),
                "KUBE-SVC-JD5MR3NA4I4DYORP"
            );
            assert_eq!(
                svc(["default", "kubernetes", "https"], Protocol::Tcp),
                "KUBE-SVC-NPX46M4PTMTKRN6Y"
            );
        }
    }

    #[test]
    fn a_port_without_a_name_had_a_colon_until_1_18() {
        let endpoint = Endpoint {
            address: "10.244.3.81".parse().unwrap(),
            port: 8080,
            local: true,
        };
        let legacy = chains(Naming::Legacy, HELLO, Protocol::Tcp);
        assert_eq!(legacy.cluster(), "KUBE-SVC-5MRENC7Q6ZQR6GKR");
        assert_eq!(legacy.endpoint(&endpoint), "KUBE-SEP-JNUJINTC6VOLRDUD");
        let today = chains(Naming::Today, HELLO, Protocol::Tcp);
        assert_eq!(today.cluster(), "KUBE-SVC-I6CTHWSTJGL5RHWT");
        assert_eq!(today.endpoint(&endpoint), "KUBE-SEP-UUDM7HWSCDOLYY2M");
    }

    #[test]
    fn all_chains_of_a_port_share_its_hash() {
        let today = chains(Naming::Today, HELLO, Protocol::Tcp);
        let names = [
            today.local(),
            today.external(),
            today.firewall(),
            chains(Naming::Legacy, HELLO, Protocol::Tcp).external(),
        ];
        assert_eq!(
            names,
            [
                "KUBE-SVL-I6CTHWSTJGL5RHWT",
                "KUBE-EXT-I6CTHWSTJGL5RHWT",
                "KUBE-FW-I6CTHWSTJGL5RHWT",
                "KUBE-XLB-5MRENC7Q6ZQR6GKR"
            ]
        );
        assert!(names.iter().all(|name| is_of_port(name)));
        assert!(
            ![SERVICES, FORWARD, FIREWALL, CANARY]
                .into_iter()
                .any(is_of_port)
        );
    }
}
