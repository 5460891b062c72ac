//! A Kubernetes client that finds the API server without kube-proxy, and follows it when it moves.
//!
//! The cluster IP of `kubernetes` works only once a service proxy runs, and what gives the node its network must not
//! wait for that. So the address is taken from the first that answers ([`find`]): explicit flags; the kubelet's own
//! kubeconfig on this node (address and CA only: the identity stays the ServiceAccount's); the in-cluster variables.

mod find;
mod follow;

use std::path::PathBuf;

use kube::{Client, config::KubeconfigError};

pub use find::{Found, Origin, find};

/// Where a kubelet's kubeconfig lies: on nodes of kubeadm's (and kind's), of k3s and RKE2; of the latter two in a pod,
/// where their folder is mounted in the place of kubeadm's, and on the node itself.
pub const KUBELET_KUBECONFIGS: [&str; 4] = [
    "/etc/kubernetes/kubelet.conf",
    "/etc/kubernetes/kubelet.kubeconfig",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
];
/// Where a pod finds the token and CA of its ServiceAccount.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What the user said about the API server, and where to look if nothing was said.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its URL, given explicitly (`--kube-api-url`, `--master`).
    pub server: Option<String>,
    /// A kubeconfig, given explicitly: address, CA and identity.
    pub kubeconfig: Option<PathBuf>,
    /// Where the kubelet's kubeconfig may lie on this node; the first that is there counts, for address and CA only.
    pub kubelet_kubeconfigs: Vec<PathBuf>,
    /// The folder with `token` and `ca.crt`.
    pub service_account: PathBuf,
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub in_cluster: Option<(String, String)>,
    /// The name this daemon gives itself in requests, e.g. `flanneld/0.1.0`.
    pub user_agent: String,
}

impl Options {
    /// Options with nothing said explicitly: the usual paths, and the in-cluster variables of this process.
    #[must_use]
    pub fn new(user_agent: impl Into<String>) -> Self {
        let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            server: None,
            kubeconfig: None,
            kubelet_kubeconfigs: KUBELET_KUBECONFIGS.map(PathBuf::from).into(),
            service_account: SERVICE_ACCOUNT.into(),
            in_cluster: var("KUBERNETES_SERVICE_HOST").zip(var("KUBERNETES_SERVICE_PORT")),
            user_agent: user_agent.into(),
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No way to the API server was found.
    #[error(
        "no API server known: no explicit address or kubeconfig given, the kubelet has no kubeconfig at {}, and \
         KUBERNETES_SERVICE_HOST and _PORT are not set; give the address by flag", listed(.kubelet)
    )]
    NotFound {
        /// Where the kubelet's kubeconfig was looked for.
        kubelet: Vec<PathBuf>,
    },
    /// The address is no URL.
    #[error(
        "API server address {value:?} (from {origin}): {source}; want e.g. https://10.0.0.1:6443"
    )]
    Address {
        /// Where the address came from.
        origin: Origin,
        /// The address as given.
        value: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A kubeconfig cannot be used.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// There is an address, but nothing to identify with.
    #[error("API server {server} (from {origin}): no ServiceAccount token at {token}: {source}")]
    NoIdentity {
        /// Where the address came from.
        origin: Origin,
        /// The address.
        server: String,
        /// The token file that was looked for.
        token: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The HTTP client cannot be made of the configuration found (certificates that cannot be read, mostly).
    #[error("client for API server {server} (from {origin}): {source}")]
    Build {
        /// Where the address came from.
        origin: Origin,
        /// The address.
        server: String,
        /// What is wrong.
        source: Box<kube::Error>,
    },
}

fn listed(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
    paths.join(" or ")
}

/// Finds the API server, logs which way was taken, and returns a client. The client follows the files it was made
/// from: when the address or the CA in them changes, requests go to the new one (tokens are re-read as they rotate).
///
/// # Errors
/// See [`Error`]. That the server does not answer is not an error here: it may come later.
pub fn connect(options: &Options) -> Result<Client, Error> {
    let found = find(options)?;
    tracing::info!(server = %found.config.cluster_url, origin = %found.origin, "API server found");
    follow::client(options.clone(), found)
}

/// Says what an error of a request means to the person who runs the daemon: a refused permission names verb and
/// resource, a certificate is told apart from a server that cannot be reached.
#[must_use]
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            format!(
                "the API server does not accept our token: {}; is the ServiceAccount still there?",
                status.message
            )
        }
        kube::Error::Api(status) if status.is_forbidden() => {
            format!(
                "missing permission: {}; apply the RBAC of the manifests",
                status.message
            )
        }
        kube::Error::Api(status) => format!("{} (HTTP {})", status.message, status.code),
        other => {
            let text = crate::chain(other);
            if text.contains("certificate") {
                format!("the API server's certificate is not trusted: {text}")
            } else {
                format!("the API server cannot be reached: {text}")
            }
        }
    }
}
