//! Owns the command line: kube-proxy's flags, as they are given.

use std::path::PathBuf;

use agent::logging::LogArgs;
use clap::{ArgAction, Parser};

/// Turns Services and EndpointSlices into NAT in the kernel, in place of kube-proxy.
///
/// What the file of --config says goes before flags, except --hostname-override; flags go before defaults.
#[derive(Clone, Debug, Parser)]
#[command(name = "twill-proxy", version = agent::metrics::VERSION)]
pub struct Args {
    /// The configuration file: a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Remove all rules of ours from the kernel, and exit
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true")]
    pub cleanup: bool,

    /// The API server's URL, instead of the one that the kubelet of this node uses
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,

    /// A kubeconfig: address of the API server, and identity
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The name of this Node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// The pods' networks, one of each family, with a comma between: packets from elsewhere to a cluster
    /// IP are masqueraded
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,

    /// How pods' packets are told from others: ClusterCIDR or NodeCIDR [default: ClusterCIDR]
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,

    /// The mode: nftables [default: nftables]
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,

    /// This node's primary address, instead of the Node object's
    #[arg(long, value_name = "ADDRESS")]
    pub bind_address: Option<String>,

    /// Where node ports answer: networks with commas between, or `primary` [default: primary]
    #[arg(long, value_name = "CIDRS")]
    pub nodeport_addresses: Option<String>,

    /// Masquerade all connections to cluster IPs
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub masquerade_all: Option<bool>,

    /// Where to serve metrics; empty: nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_bind_address: Option<String>,

    /// Where to serve /healthz and /livez; empty: nowhere [default: 0.0.0.0:10256]
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<String>,

    /// Exit where a port cannot be had, instead of trying again
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub bind_address_hard_fail: Option<bool>,

    /// How the log is written
    #[command(flatten)]
    pub log: LogArgs,
}
