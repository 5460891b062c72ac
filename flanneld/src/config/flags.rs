//! The command line: flannel's flags and their `FLANNELD_*` variables, and a few of our own.
//!
//! [`Flags`] is what was given, as text and numbers; [`super::Config`] is what it means.

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use agent::{client, logging::LogArgs};
use clap::{ArgAction, Parser};
use hostnet::vocab::{annotations, names};

/// Where the last known peers are kept: in [`names::STATE_DIR`].
const SNAPSHOT: &str = "/var/lib/twill/flanneld.json";

/// Gives this node its pod subnet, and programs VXLAN and the routes to every other node's.
#[derive(Parser, Clone, Debug)]
#[command(name = "flanneld", version = agent::metrics::VERSION, args_override_self = true)]
pub struct Flags {
    /// Name of this node's Node object
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Keep subnets in the Kubernetes API: the only way here, accepted for flannel's manifests
    #[arg(long, env = "FLANNELD_KUBE_SUBNET_MGR", value_parser = go_bool, action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub kube_subnet_mgr: bool,
    /// URL of the API server [default: as the kubelet of this node has it, else the in-cluster variables]
    #[arg(long, env = "FLANNELD_KUBE_API_URL", value_name = "URL")]
    pub kube_api_url: Option<String>,
    /// kubeconfig to use, with its identity
    #[arg(long, env = "FLANNELD_KUBECONFIG_FILE", value_name = "FILE")]
    pub kubeconfig_file: Option<PathBuf>,
    /// The kubelet's kubeconfig, read for the API server's address and CA only; the first that is there is taken
    #[arg(long, env = "FLANNELD_KUBELET_KUBECONFIG", value_name = "FILE", default_values = client::KUBELET_KUBECONFIGS)]
    pub kubelet_kubeconfig: Vec<PathBuf>,
    /// Folder with the ServiceAccount's token and ca.crt
    #[arg(long, env = "FLANNELD_SERVICE_ACCOUNT_DIR", value_name = "DIR", default_value = client::SERVICE_ACCOUNT)]
    pub service_account_dir: PathBuf,
    /// Prefix of the annotations by which nodes find each other
    #[arg(long, env = "FLANNELD_KUBE_ANNOTATION_PREFIX", value_name = "PREFIX", default_value = annotations::DEFAULT_PREFIX)]
    pub kube_annotation_prefix: String,
    /// Namespace of the Leases that hold the subnets; the same on every node
    #[arg(
        long,
        env = "FLANNELD_LEASE_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "kube-system"
    )]
    pub lease_namespace: String,
    /// Renew the subnet's Lease this many minutes before it ends
    #[arg(long, env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN", value_name = "MINUTES", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=1439))]
    pub subnet_lease_renew_margin: u32,
    /// Set the Node's condition NetworkUnavailable to False once the network is up
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", value_parser = go_bool, action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub set_node_network_unavailable: bool,

    /// Interface (name or address) that nodes reach each other by; repeat for alternatives, the first that fits is taken
    #[arg(long, env = "FLANNELD_IFACE", value_name = "NAME|IP")]
    pub iface: Vec<String>,
    /// The same by regular expression on names and addresses, asked after --iface
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX")]
    pub iface_regex: Vec<String>,
    /// Take the interface by which this address is reached
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "IP")]
    pub iface_can_reach: Option<IpAddr>,
    /// IPv4 address that other nodes shall send to [default: the interface's]
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IP")]
    pub public_ip: Option<std::net::Ipv4Addr>,
    /// IPv6 address that other nodes shall send to [default: the interface's]
    #[arg(long, env = "FLANNELD_PUBLIC_IPV6", value_name = "IP")]
    pub public_ipv6: Option<std::net::Ipv6Addr>,

    /// The network's configuration
    #[arg(
        long,
        env = "FLANNELD_NET_CONFIG_PATH",
        value_name = "FILE",
        default_value = "/etc/kube-flannel/net-conf.json"
    )]
    pub net_config_path: PathBuf,
    /// Where the CNI plugin is told this node's subnet
    #[arg(long, env = "FLANNELD_SUBNET_FILE", value_name = "FILE", default_value = names::SUBNET_ENV)]
    pub subnet_file: PathBuf,
    /// Folder to write the CNI configuration 10-flannel.conflist to, once the subnet is held; empty: write none
    #[arg(
        long,
        env = "FLANNELD_CNI_CONF_DIR",
        value_name = "DIR",
        default_value = ""
    )]
    pub cni_conf_dir: String,
    /// File that keeps the last known peers, for a start while the API server is away; empty: keep none
    #[arg(long, env = "FLANNELD_SNAPSHOT_FILE", value_name = "FILE", default_value = SNAPSHOT)]
    pub snapshot_file: String,
    /// Folder of twill-cni's records, from which is put back what others take away of it; empty: leave that alone
    #[arg(long, env = "FLANNELD_ATTACHMENTS_DIR", value_name = "DIR", default_value = names::ATTACHMENTS_DIR)]
    pub attachments_dir: String,
    /// Masquerade what pods send out of the pod network
    #[arg(long, env = "FLANNELD_IP_MASQ", value_parser = go_bool, action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub ip_masq: bool,
    /// Let masquerade keep source ports where it can, instead of random ones
    #[arg(long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", value_parser = go_bool, action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub ip_masq_fully_random_disable: bool,

    /// Address of the health server
    #[arg(
        long,
        env = "FLANNELD_HEALTHZ_IP",
        value_name = "IP",
        default_value = "0.0.0.0"
    )]
    pub healthz_ip: IpAddr,
    /// Port of the health server (/healthz, /livez, /readyz); 0: none
    #[arg(
        long,
        env = "FLANNELD_HEALTHZ_PORT",
        value_name = "PORT",
        default_value_t = 8081
    )]
    pub healthz_port: u16,
    /// Address of the metrics server: from afar only if a monitor is to reach it
    #[arg(
        long,
        env = "FLANNELD_METRICS_IP",
        value_name = "IP",
        default_value = "127.0.0.1"
    )]
    pub metrics_ip: IpAddr,
    /// Port of the metrics server (/metrics); 0: none
    #[arg(
        long,
        env = "FLANNELD_METRICS_PORT",
        value_name = "PORT",
        default_value_t = 8082
    )]
    pub metrics_port: u16,
    /// Send packets to other nodes this often, at most to 16 at a time, and count which arrive; 0: never
    #[arg(
        long,
        env = "FLANNELD_PROBE_INTERVAL",
        value_name = "SECONDS",
        default_value_t = 0
    )]
    pub probe_interval: u32,

    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,

    /// Flags of flannel that are not for this daemon.
    #[command(flatten)]
    pub legacy: Legacy,

    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of running.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Command {
    /// Remove all that flanneld has made on this node: devices, routes, rules, files
    ///
    /// Stop flanneld first. Pods lose their way to other nodes. Flags that the daemon was given for its files go before
    /// the word: flanneld --subnet-file=/run/other/subnet.env cleanup
    Cleanup(Cleanup),
}

/// How to clean up.
#[derive(clap::Args, Clone, Debug)]
pub struct Cleanup {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Folder that has the CNI configuration 10-flannel.conflist, which goes last, and only if it is for twill-cni
    #[arg(
        long = "conflist-dir",
        value_name = "DIR",
        default_value = names::CNI_CONF_DIR
    )]
    pub cni_conf_dir: PathBuf,
}

/// Flags of flannel that have no use here. Those of etcd are refused, the others change nothing, which is said.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Legacy {
    #[arg(long, env = "FLANNELD_ETCD_ENDPOINTS", hide = true)]
    etcd_endpoints: Option<String>,
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", hide = true)]
    etcd_prefix: Option<String>,
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", hide = true)]
    etcd_keyfile: Option<String>,
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", hide = true)]
    etcd_certfile: Option<String>,
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", hide = true)]
    etcd_cafile: Option<String>,
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", hide = true)]
    etcd_username: Option<String>,
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", hide = true)]
    etcd_password: Option<String>,
    #[arg(long, env = "FLANNELD_IPTABLES_RESYNC", hide = true)]
    iptables_resync: Option<String>,
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES", hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    iptables_forward_rules: Option<String>,
    #[arg(long, env = "FLANNELD_IP_BLACKHOLE_ROUTE", hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    ip_blackhole_route: Option<String>,
    #[arg(long, env = "FLANNELD_VMODULE", hide = true)]
    vmodule: Option<String>,
    #[arg(
        long = "log_backtrace_at",
        env = "FLANNELD_LOG_BACKTRACE_AT",
        hide = true
    )]
    log_backtrace_at: Option<String>,
}

impl Legacy {
    /// The flags of etcd that were given, by name.
    pub(super) fn refused(&self) -> Vec<&'static str> {
        given(&[
            ("--etcd-endpoints", &self.etcd_endpoints),
            ("--etcd-prefix", &self.etcd_prefix),
            ("--etcd-keyfile", &self.etcd_keyfile),
            ("--etcd-certfile", &self.etcd_certfile),
            ("--etcd-cafile", &self.etcd_cafile),
            ("--etcd-username", &self.etcd_username),
            ("--etcd-password", &self.etcd_password),
        ])
    }

    /// The flags without effect that were given, by name.
    pub(super) fn ignored(&self) -> Vec<&'static str> {
        given(&[
            ("--iptables-resync", &self.iptables_resync),
            ("--iptables-forward-rules", &self.iptables_forward_rules),
            ("--ip-blackhole-route", &self.ip_blackhole_route),
            ("--vmodule", &self.vmodule),
            ("--log_backtrace_at", &self.log_backtrace_at),
        ])
    }
}

fn given(flags: &[(&'static str, &Option<String>)]) -> Vec<&'static str> {
    flags
        .iter()
        .filter(|(_, value)| value.is_some())
        .map(|(name, _)| *name)
        .collect()
}

/// A truth value as Go's flags read it, so that `--ip-masq=T` of an old manifest keeps working.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("want true or false".into()),
    }
}

/// Rewrites `-long-flag` to `--long-flag`: Go's flags take either, so flannel's users write either.
pub fn normalize(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let long = |arg: &OsString| {
        let rest = arg.to_str()?.strip_prefix('-')?;
        let name = rest.split('=').next()?;
        (!rest.starts_with('-')
            && name.len() > 2
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || "-_46".contains(c)))
        .then(|| format!("--{rest}").into())
    };
    args.into_iter()
        .map(|arg| long(&arg).unwrap_or(arg))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Flags {
        let args = normalize(
            std::iter::once("flanneld")
                .chain(args.iter().copied())
                .map(OsString::from),
        );
        Flags::try_parse_from(args).unwrap()
    }

    #[test]
    fn the_command_is_well_formed() {
        Flags::command().debug_assert();
        assert!(SNAPSHOT.starts_with(names::STATE_DIR));
    }

    #[test]
    fn the_arguments_of_flannels_manifest_are_read() {
        let flags = parse(&[
            "--ip-masq",
            "--kube-subnet-mgr",
            "--iface=eth0",
            "--iface=eth1",
        ]);
        assert!(flags.ip_masq && flags.kube_subnet_mgr);
        assert_eq!(flags.iface, ["eth0", "eth1"]);
        assert!(flags.legacy.refused().is_empty() && flags.legacy.ignored().is_empty());
    }

    #[test]
    fn gos_ways_of_writing_flags_are_read() {
        let flags = parse(&[
            "-ip-masq=T",
            "-iface",
            "eth0",
            "-v=4",
            "-kube-subnet-mgr=1",
            "-iptables-forward-rules",
        ]);
        assert!(flags.ip_masq);
        assert_eq!(
            (flags.iface.as_slice(), flags.log.v),
            (&["eth0".to_owned()][..], 4)
        );
        assert_eq!(flags.legacy.ignored(), ["--iptables-forward-rules"]);
        assert!(!parse(&["--ip-masq=false"]).ip_masq);
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_allowed() {
        for (arg, want) in [
            ("--ip-masq=maybe", "true or false"),
            ("--subnet-lease-renew-margin=1440", "1..=1439"),
            ("--healthz-port=66000", "0..=65535"),
            ("--public-ip=fd00::1", "IPv4"),
        ] {
            let error = Flags::try_parse_from(["flanneld", arg])
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(want) && error.contains(arg.split('=').next().unwrap()),
                "{error}"
            );
        }
    }

    #[test]
    fn each_flag_but_logging_has_its_variable() {
        for arg in Flags::command().get_arguments() {
            let (Some(long), Some(env)) = (arg.get_long(), arg.get_env()) else {
                continue;
            };
            let want = match long {
                "node-name" => "NODE_NAME".into(),
                "log-filter" => "TWILL_LOG".into(),
                _ => format!("FLANNELD_{}", long.to_uppercase().replace('-', "_")),
            };
            assert_eq!(env.to_str(), Some(want.as_str()), "--{long}");
        }
    }
}
