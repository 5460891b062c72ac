//! Owns the command line: kube-proxy's flags, as they are given.

use std::path::PathBuf;

use agent::logging::LogArgs;
use clap::{ArgAction, Parser};

use super::ignored::Ignored;

/// Turns Services and EndpointSlices into NAT in the kernel, in place of kube-proxy.
///
/// What the file of --config says goes before flags, except --hostname-override; flags go before defaults.
#[derive(Clone, Debug, Parser)]
#[command(name = "twill-proxy", version = agent::metrics::VERSION)]
pub struct Args {
    /// The configuration file: a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Remove all rules of ours from the kernel, of every mode, those of kube-proxy, and the last good state in the
    /// folder of --snapshot-dir, and exit. With --proxy-mode: rules of that mode alone, which is how a kube-proxy that
    /// serves already in another way is left in peace
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true")]
    pub cleanup: bool,

    /// Set what needs all of root's rights (the kernel's switches), and exit
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true")]
    pub init_only: bool,

    /// Write the configuration that file, flags and defaults make to this file, and exit
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,

    /// Keep the last good state on disk, and serve by it after a reboot until the API server answers [default: true]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub snapshot: Option<bool>,

    /// Where that is kept [default: /var/lib/twill]
    #[arg(long, value_name = "FOLDER")]
    pub snapshot_dir: Option<PathBuf>,

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

    /// How pods' packets are told from others: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    /// [default: ClusterCIDR]
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,

    /// The bridge that pods' packets come from, in mode BridgeInterface: cni0 with twill-cni
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// How the names of interfaces begin that pods' packets come from, in mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// Serve only Services with the label service.kubernetes.io/service-proxy-name of this value
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,

    /// The mode: nftables, or iptables with kube-proxy's chains [default: nftables]
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

    /// In mode iptables: which bit of the packet mark says that a packet is to be masqueraded, 0 to 31 [default: 14]
    #[arg(long, value_name = "BIT")]
    pub iptables_masquerade_bit: Option<u8>,

    /// In mode iptables: node ports also answer at 127.0.0.1 [default: true]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub iptables_localhost_nodeports: Option<bool>,

    /// In mode iptables: how often everything is compared with the kernel [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub iptables_sync_period: Option<String>,

    /// In mode iptables: the least time between two changes of rules [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub iptables_min_sync_period: Option<String>,

    /// In mode iptables: name chains as kube-proxy 1.18 and before did [default: false]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub iptables_legacy_names: Option<bool>,

    /// In mode iptables: which of the kernel's two iptables, nft or legacy [default: the one that the host uses]
    #[arg(long, value_name = "VARIANT")]
    pub iptables_variant: Option<String>,

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

    /// The most connections that the kernel tracks, for each core; 0: as it is [default: 32768]
    #[arg(long, value_name = "N")]
    pub conntrack_max_per_core: Option<u32>,

    /// The most connections that the kernel tracks, at least [default: 131072]
    #[arg(long, value_name = "N")]
    pub conntrack_min: Option<u32>,

    /// How long the kernel remembers an idle TCP connection; 0s: as it is [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<String>,

    /// How long it remembers a TCP connection that one side has closed; 0s: as it is [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<String>,

    /// Take TCP packets outside of the window for valid
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub conntrack_tcp_be_liberal: Option<bool>,

    /// How long the kernel remembers a UDP flow without an answer; 0s: as it is [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<String>,

    /// How long it remembers a UDP flow with an answer; 0s: as it is [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<String>,

    /// This process's oom_score_adj, -1000 to 1000 [default: -999]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub oom_score_adj: Option<i32>,

    /// kube-proxy's name for --log-format
    #[arg(long, hide = true, value_name = "FORMAT")]
    pub logging_format: Option<String>,

    /// What changes nothing here
    #[command(flatten)]
    pub ignored: Ignored,

    /// How the log is written
    #[command(flatten)]
    pub log: LogArgs,
}
