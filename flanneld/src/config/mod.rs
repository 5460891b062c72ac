//! What the user wants: flags and net-conf.json, read, checked, and brought into the form that the rest works with.

pub mod flags;
pub mod net_conf;
mod reader;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use agent::client;
use hostnet::vocab::{AnnotationKeys, Family, annotations::PrefixError};
use regex::Regex;

use crate::ByFamily;

pub use flags::Flags;
pub use net_conf::{Allocate, Backend, NetConf, Network, Vxlan};

/// How long a subnet's Lease lasts. As in flannel: a day.
pub const LEASE_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// Everything that was asked for, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of our Node object.
    pub node_name: String,
    /// How to find the API server.
    pub client: client::Options,
    /// The annotations' keys.
    pub annotations: AnnotationKeys,
    /// The Leases' namespace.
    pub lease_namespace: String,
    /// How long before its end a Lease is renewed.
    pub renew_margin: Duration,
    /// Whether to set the condition NetworkUnavailable.
    pub set_condition: bool,
    /// How to choose the interface.
    pub iface: IfaceChoice,
    /// Where subnet.env goes.
    pub subnet_file: PathBuf,
    /// Where the conflist goes, if anywhere.
    pub cni_conf_dir: Option<PathBuf>,
    /// Whether and how to masquerade.
    pub masquerade: Option<Masquerade>,
    /// Address of the health server.
    pub healthz: Option<SocketAddr>,
    /// Address of the metrics server.
    pub metrics: Option<SocketAddr>,
    /// How often packets are sent to other nodes, to see whether they arrive.
    pub probe_interval: Option<Duration>,
    /// Where the last good state is kept, if anywhere.
    pub snapshot_file: Option<PathBuf>,
    /// Where twill-cni's records are, if what it made shall be mended.
    pub attachments_dir: Option<PathBuf>,
    /// Where net-conf.json is.
    pub net_conf_file: PathBuf,
    /// The network's configuration.
    pub net: NetConf,
}

/// What the user said about the interface to other nodes.
#[derive(Clone, Debug, Default)]
pub struct IfaceChoice {
    /// Names or addresses, in the order of preference.
    pub names: Vec<String>,
    /// Patterns for names and addresses, asked after the names.
    pub patterns: Vec<Regex>,
    /// The interface by which this address is reached.
    pub can_reach: Option<IpAddr>,
    /// Addresses to publish in place of the interface's own.
    pub public: Vec<IpAddr>,
}

impl IfaceChoice {
    /// The address to publish for a family, if one was given.
    #[must_use]
    pub fn public_ip(&self, family: Family) -> Option<IpAddr> {
        self.public
            .iter()
            .copied()
            .find(|addr| Family::of(*addr) == family)
    }
}

/// How to masquerade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Choose source ports at random.
    pub fully_random: bool,
}

/// What is wrong with flags or net-conf.json.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Which Node is ours?
    #[error(
        "--node-name (or NODE_NAME) is not given: set it to the name of this node's Node object, in a manifest by `fieldRef: spec.nodeName`"
    )]
    NoNodeName,
    /// etcd is asked for.
    #[error(
        "{0}: subnets are kept in Kubernetes Lease objects here, not in etcd; take out the etcd flags and variables \
         (a cluster without Kubernetes needs flannel itself)"
    )]
    Etcd(String),
    /// etcd is asked for in another way.
    #[error("--kube-subnet-mgr=false: subnets are kept in Kubernetes here; take the flag out")]
    NoKubeSubnetMgr,
    /// The annotation prefix.
    #[error("--kube-annotation-prefix: {0}")]
    Prefix(#[from] PrefixError),
    /// A pattern.
    #[error("--iface-regex {pattern:?}: {source}")]
    Regex {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
    /// net-conf.json cannot be read.
    #[error("{path}: {source}; is the ConfigMap mounted? (--net-config-path)")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// net-conf.json asks for what a node that runs cannot become.
    #[error(
        "{path}: {what} cannot change while a node runs, since its pods have addresses in {was}: undo it, or delete the \
         Node objects one by one, so that each registers again, and restart flanneld there"
    )]
    Fixed {
        /// The file.
        path: PathBuf,
        /// The keys.
        what: &'static str,
        /// The networks that the node is in.
        was: String,
    },
    /// net-conf.json is wrong.
    #[error("{path}: {source}")]
    NetConf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: net_conf::Error,
    },
}

impl Config {
    /// Checks the flags and reads net-conf.json. Returns warnings beside the configuration.
    ///
    /// # Errors
    /// The first thing that is wrong, with what to do.
    pub fn load(flags: &Flags) -> Result<(Self, Vec<String>), Error> {
        let refused = flags.legacy.refused();
        if !refused.is_empty() {
            return Err(Error::Etcd(refused.join(", ")));
        }
        if !flags.kube_subnet_mgr {
            return Err(Error::NoKubeSubnetMgr);
        }
        let ignored = flags
            .legacy
            .ignored()
            .into_iter()
            .map(|flag| format!("{flag} has no effect here"));
        let (net, mut warnings) = read_net_conf(&flags.net_config_path)?;
        warnings.extend(ignored);
        let patterns = flags.iface_regex.iter().map(|pattern| {
            Regex::new(pattern).map_err(|source| Error::Regex {
                pattern: pattern.clone(),
                source: Box::new(source),
            })
        });
        let public = flags
            .public_ip
            .map(IpAddr::from)
            .into_iter()
            .chain(flags.public_ipv6.map(IpAddr::from));
        let port = |ip: IpAddr, port: u16| (port != 0).then(|| SocketAddr::new(ip, port));
        let config = Self {
            node_name: flags
                .node_name
                .clone()
                .filter(|name| !name.is_empty())
                .ok_or(Error::NoNodeName)?,
            client: client::Options {
                server: flags.kube_api_url.clone(),
                kubeconfig: flags.kubeconfig_file.clone(),
                kubelet_kubeconfigs: flags.kubelet_kubeconfig.clone(),
                service_account: flags.service_account_dir.clone(),
                ..client::Options::new(concat!("flanneld/", env!("CARGO_PKG_VERSION")))
            },
            annotations: AnnotationKeys::new(&flags.kube_annotation_prefix)?,
            lease_namespace: flags.lease_namespace.clone(),
            renew_margin: Duration::from_secs(u64::from(flags.subnet_lease_renew_margin) * 60),
            set_condition: flags.set_node_network_unavailable,
            iface: IfaceChoice {
                names: flags.iface.clone(),
                patterns: patterns.collect::<Result<_, _>>()?,
                can_reach: flags.iface_can_reach,
                public: public.collect(),
            },
            subnet_file: flags.subnet_file.clone(),
            cni_conf_dir: Some(&flags.cni_conf_dir)
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from),
            masquerade: flags.ip_masq.then_some(Masquerade {
                fully_random: !flags.ip_masq_fully_random_disable,
            }),
            healthz: port(flags.healthz_ip, flags.healthz_port),
            metrics: port(flags.metrics_ip, flags.metrics_port),
            probe_interval: (flags.probe_interval != 0)
                .then(|| Duration::from_secs(flags.probe_interval.into())),
            snapshot_file: Some(&flags.snapshot_file)
                .filter(|file| !file.is_empty())
                .map(PathBuf::from),
            attachments_dir: Some(&flags.attachments_dir)
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from),
            net_conf_file: flags.net_config_path.clone(),
            net,
        };
        Ok((config, warnings))
    }

    /// Reads net-conf.json again. Returns the configuration that it makes of this one, with warnings; `None` if it says
    /// what is in force.
    ///
    /// # Errors
    /// The file cannot be read, is wrong, or asks for other networks than those that a running node is in.
    pub fn reload(&self) -> Result<Option<(Self, Vec<String>)>, Error> {
        let (net, warnings) = read_net_conf(&self.net_conf_file)?;
        if net == self.net {
            return Ok(None);
        }
        let networks =
            |net: &NetConf| ByFamily::from_fn(|family| Some(net.networks.get(family)?.network));
        let was = networks(&self.net);
        if networks(&net) != was {
            let was: Vec<String> = was.iter().map(|(_, network)| network.to_string()).collect();
            return Err(Error::Fixed {
                path: self.net_conf_file.clone(),
                what: "Network, IPv6Network, EnableIPv4 and EnableIPv6",
                was: was.join(" and "),
            });
        }
        Ok(Some((
            Self {
                net,
                ..self.clone()
            },
            warnings,
        )))
    }
}

/// Reads and checks a net-conf.json, with its warnings prefixed by the file's name.
///
/// # Errors
/// The file cannot be read, or is wrong.
pub fn read_net_conf(path: &Path) -> Result<(NetConf, Vec<String>), Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })?;
    let (conf, warnings) = NetConf::parse(&text).map_err(|source| Error::NetConf {
        path: path.into(),
        source,
    })?;
    Ok((
        conf,
        warnings
            .into_iter()
            .map(|warning| format!("{}: {warning}", path.display()))
            .collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::io::Write;

    fn load(args: &[&str], conf: &str) -> Result<(Config, Vec<String>), Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(conf.as_bytes()).unwrap();
        let path = format!("--net-config-path={}", file.path().display());
        let flags = ["flanneld", "--node-name=n1", &path]
            .into_iter()
            .chain(args.iter().copied());
        Config::load(&Flags::try_parse_from(flags).unwrap())
    }

    const CONF: &str = r#"{"Network": "10.244.0.0/16"}"#;

    #[test]
    fn a_changed_file_is_taken_if_it_is_right_and_leaves_the_networks() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(CONF.as_bytes()).unwrap();
        let path = format!("--net-config-path={}", file.path().display());
        let flags = ["flanneld", "--node-name=n1", &path];
        let (config, _) = Config::load(&Flags::try_parse_from(flags).unwrap()).unwrap();
        let reload = |text: &str| {
            std::fs::File::create(file.path())
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            config.reload()
        };
        assert!(
            reload(r#"{ "Network":"10.244.0.0/16" }"#)
                .unwrap()
                .is_none()
        );
        let (new, warnings) =
            reload(r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}, "X": 1}"#)
                .unwrap()
                .unwrap();
        assert_eq!((new.net.backend, warnings.len()), (Backend::HostGw, 1));
        for (text, part) in [
            (
                r#"{"Network": "10.244.0.0/16", "Backend": {"Port": 66000}}"#,
                "Backend.Port: 66000",
            ),
            (
                r#"{"Network": "10.99.0.0/16"}"#,
                "pods have addresses in 10.244.0.0/16",
            ),
            ("", "not JSON"),
        ] {
            let error = agent::chain(&reload(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn flags_become_a_configuration() {
        let (config, warnings) = load(
            &[
                "--ip-masq",
                "--healthz-port=0",
                "--public-ip=192.0.2.1",
                "--iface-regex=^eth",
                "--iptables-resync=5",
            ],
            CONF,
        )
        .unwrap();
        assert_eq!(warnings, ["--iptables-resync has no effect here"]);
        assert_eq!(
            (config.healthz, config.metrics),
            (None, Some("127.0.0.1:8082".parse().unwrap()))
        );
        assert_eq!(config.masquerade, Some(Masquerade { fully_random: true }));
        assert_eq!(
            config.iface.public_ip(Family::V4),
            Some("192.0.2.1".parse().unwrap())
        );
        assert_eq!(config.iface.public_ip(Family::V6), None);
        assert_eq!(config.cni_conf_dir, None);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_remedy() {
        for (args, parts) in [
            (
                &["--etcd-endpoints=http://x:2379", "--etcd-prefix=/x"][..],
                ["--etcd-endpoints, --etcd-prefix", "Lease"],
            ),
            (
                &["--kube-subnet-mgr=false"],
                ["--kube-subnet-mgr=false", "take the flag out"],
            ),
            (&["--node-name="], ["NODE_NAME", "spec.nodeName"]),
            (&["--iface-regex=("], ["--iface-regex", "("]),
            (
                &["--kube-annotation-prefix=x"],
                ["--kube-annotation-prefix", "\"x\""],
            ),
        ] {
            let error = load(args, CONF).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{part:?} in {error:?}");
            }
        }
        let error = load(&["--net-config-path=/nowhere.json"], CONF)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nowhere.json") && error.contains("--net-config-path"),
            "{error}"
        );
        let error = load(&[], "{}").unwrap_err().to_string();
        assert!(error.contains("Network is missing"), "{error}");
    }
}
