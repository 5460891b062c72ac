//! The configuration: what flags and file say, checked, with defaults put in. Nothing below this module
//! sees what was given.

mod args;
mod file;
mod reader;
#[cfg(test)]
mod tests;
mod values;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use agent::logging::LogArgs;
use serde_json::{Map, Value};

pub use args::Args;
pub use reader::Fault;

use crate::plan::{DetectLocal, Settings};
use file::File;
use values::{DetectMode, Mode};

/// Where metrics are served by default: for this node only.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);
/// Where health is served by default: load balancers ask it from afar.
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10_256);
/// How often everything is compared with the kernel by default.
const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// The configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this Node.
    pub hostname: String,
    /// How to find the API server.
    pub client: agent::client::Options,
    /// What rules depend on.
    pub settings: Settings,
    /// How often everything is compared with the kernel.
    pub sync_period: Duration,
    /// The least time between two passes.
    pub min_sync_period: Duration,
    /// Where to serve metrics, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Where to serve health, if anywhere.
    pub healthz: Option<SocketAddr>,
    /// A port that cannot be had ends the process.
    pub bind_hard_fail: bool,
    /// How to log.
    pub log: LogArgs,
    /// What is to be said of the configuration once the log is there.
    pub notes: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("--config {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not YAML, or no mapping.
    #[error("--config {path}: {reason}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// Values that cannot be used: all of them.
    #[error("the configuration cannot be used:{}", .0.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Faults(Vec<Fault>),
    /// This host has no name that could be the Node's.
    #[error("the host's name cannot be read: {0}; give the Node's with --hostname-override")]
    Hostname(std::io::Error),
}

impl Config {
    /// From flags and the file that they name.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(args: &Args) -> Result<Self, Error> {
        let document = args.config.as_ref().map(read_file).transpose()?.flatten();
        Self::new(args, document)
    }

    /// From flags and the document of the file.
    fn new(args: &Args, document: Option<Map<String, Value>>) -> Result<Self, Error> {
        let mut faults = Vec::new();
        let mut notes = Vec::new();
        let mut file = File::default();
        if let Some(document) = document {
            let read = file::read(document);
            file = read.file;
            faults = read.faults;
            notes.extend(
                read.unknown
                    .iter()
                    .map(|field| format!("{field}: unknown, ignored")),
            );
            notes.extend(
                read.unused
                    .iter()
                    .map(|field| format!("{field}: has no effect here")),
            );
        }
        let mut flags = Flags {
            faults: &mut faults,
        };

        let mode = file
            .mode
            .or(flags.parse("--proxy-mode", &args.proxy_mode, values::mode));
        if mode == Some(Mode::Ipvs) {
            notes.push("mode ipvs: nftables mode serves in its place".to_owned());
        }
        let cluster_cidr = (file.cluster_cidr).or(flags.parse(
            "--cluster-cidr",
            &args.cluster_cidr,
            values::cluster_cidr,
        ));
        let detect = (file.detect_local).or(flags.parse(
            "--detect-local-mode",
            &args.detect_local_mode,
            values::detect_local,
        ));
        let detect_local = match (detect, cluster_cidr) {
            (Some(DetectMode::NodeCidr), _) => DetectLocal::NodeCidr,
            (_, Some(networks)) => DetectLocal::ClusterCidr(networks),
            (_, None) => {
                notes.push(
                    "no cluster CIDR: connections from outside to cluster IPs are not masqueraded"
                        .to_owned(),
                );
                DetectLocal::Nothing
            }
        };
        let node_port_addresses = |text: &str| {
            let texts: Vec<_> = text.split(',').map(str::trim).collect();
            values::node_port_addresses(&texts)
        };
        let settings = Settings {
            detect_local,
            node_port_addresses: (file.node_port_addresses)
                .or(flags.parse(
                    "--nodeport-addresses",
                    &args.nodeport_addresses,
                    node_port_addresses,
                ))
                .unwrap_or_default(),
            node_ip: (file.node_ip)
                .or(flags.parse("--bind-address", &args.bind_address, values::address))
                .filter(|address| !address.is_unspecified()),
            masquerade_all: file.masquerade_all.or(args.masquerade_all).unwrap_or(false),
        };
        let sync_period = file.sync_period.unwrap_or(SYNC_PERIOD);
        let min_sync_period = file.min_sync_period.unwrap_or_default();
        if min_sync_period > sync_period {
            let reason = format!("must not be longer than syncPeriod, {sync_period:?}");
            flags.faults.push(Fault::new(
                "nftables.minSyncPeriod",
                format_args!("{min_sync_period:?}"),
                reason,
            ));
        }
        let metrics = flags.listen(
            "--metrics-bind-address",
            &args.metrics_bind_address,
            METRICS,
        );
        let healthz = flags.listen(
            "--healthz-bind-address",
            &args.healthz_bind_address,
            HEALTHZ,
        );
        if !faults.is_empty() {
            return Err(Error::Faults(faults));
        }

        let mut log = args.log.clone();
        if log.v == 0 {
            log.v = file.log_verbosity.unwrap_or(0);
        }
        if let Some(format) = file.log_format {
            log.log_format = format;
        }
        Ok(Self {
            hostname: hostname(
                args.hostname_override
                    .as_deref()
                    .or(file.hostname.as_deref()),
            )?,
            client: agent::client::Options {
                server: args.master.clone(),
                kubeconfig: file.kubeconfig.or(args.kubeconfig.clone()),
                ..agent::client::Options::new(concat!("twill-proxy/", env!("CARGO_PKG_VERSION")))
            },
            settings,
            sync_period,
            min_sync_period,
            metrics: file.metrics.or(metrics),
            healthz: file.healthz.or(healthz),
            bind_hard_fail: file
                .bind_hard_fail
                .or(args.bind_address_hard_fail)
                .unwrap_or(false),
            log,
            notes,
        })
    }
}

/// Understands flags, and collects what is wrong with them beside what is wrong with the file.
struct Flags<'a> {
    faults: &'a mut Vec<Fault>,
}

impl Flags<'_> {
    /// An empty flag is as good as none.
    fn parse<T, E: std::fmt::Display>(
        &mut self,
        flag: &str,
        text: &Option<String>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = text.as_deref().filter(|text| !text.is_empty())?;
        parse(text)
            .inspect_err(|reason| {
                self.faults
                    .push(Fault::new(flag, format_args!("{text:?}"), reason))
            })
            .ok()
    }

    /// Where to listen: an empty flag says nowhere.
    fn listen(
        &mut self,
        flag: &str,
        text: &Option<String>,
        default: SocketAddr,
    ) -> Option<SocketAddr> {
        match text.as_deref() {
            None => Some(default),
            Some("") => None,
            Some(_) => self.parse(flag, text, |text| values::listen(text, default.port())),
        }
    }
}

/// The first document of the file; `None` if it is empty.
fn read_file(path: &PathBuf) -> Result<Option<Map<String, Value>>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    let yaml = |reason: String| Error::Yaml {
        path: path.clone(),
        reason,
    };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).map_err(|e| yaml(e.to_string()))?;
    match documents.into_iter().next() {
        None => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields)),
        Some(_) => Err(yaml("want a mapping: apiVersion, kind and fields".into())),
    }
}

/// The Node's name: what is given, else the host's; in lower case, as kubelets register it.
fn hostname(given: Option<&str>) -> Result<String, Error> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(Error::Hostname)?,
    };
    Ok(name.trim().to_lowercase())
}
