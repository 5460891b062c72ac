//! The configuration: what flags and file say, checked, with defaults put in. Nothing below this module
//! sees what was given.

mod args;
mod document;
mod file;
mod ignored;
mod mode;
mod reader;
mod reload;
mod sysctls;
#[cfg(test)]
mod tests;
mod values;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use agent::logging::LogArgs;
use serde_json::{Map, Value};

pub use args::Args;
pub use ignored::Ignored;
pub use mode::Mode;
pub use reader::Fault;
pub use reload::Reload;
pub use sysctls::Conntrack;

use crate::plan::{DetectLocal, NodePortAddresses, Settings};
use file::{File, OwnFile};
use mode::Given;
use values::DetectMode;

/// Where metrics are served by default: for this node only.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);
/// Where health is served by default: load balancers ask it from afar.
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10_256);
/// How often everything is compared with the kernel by default.
const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// Where the last good state is kept by default, and the name of its file.
const SNAPSHOT_DIR: &str = "/var/lib/twill";
const SNAPSHOT: &str = "twill-proxy";

/// Where the last good state is kept: in this folder, or the usual one.
pub fn snapshot_file(folder: Option<PathBuf>) -> PathBuf {
    folder.unwrap_or_else(|| SNAPSHOT_DIR.into()).join(SNAPSHOT)
}

/// kube-proxy's: of all processes the kernel shall kill it next to last.
const OOM_SCORE_ADJ: i32 = -999;

/// The configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this Node.
    pub hostname: String,
    /// How to find the API server.
    pub client: agent::client::Options,
    /// What rules depend on.
    pub settings: Settings,
    /// Serve only Services with this value of the label `service.kubernetes.io/service-proxy-name`; `None`:
    /// those without it.
    pub service_proxy_name: Option<String>,
    /// Which packet filter carries the rules.
    pub mode: Mode,
    /// What is asked of connection tracking.
    pub conntrack: Conntrack,
    /// This process's `oom_score_adj`.
    pub oom_score_adj: i32,
    /// The file that the last good state is kept in, if any.
    pub snapshot: Option<PathBuf>,
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
        let documents = args.config.as_ref().map(read_file).transpose()?;
        Self::new(args, documents.unwrap_or_default())
    }

    /// From flags and the documents of the file.
    fn new(args: &Args, documents: Documents) -> Result<Self, Error> {
        let mut faults = Vec::new();
        let mut notes = Vec::new();
        let mut file = File::default();
        let mut own = OwnFile::default();
        if let Some(document) = documents.own {
            let (read, found, unknown) = file::read_own(document);
            own = read;
            faults.extend(found);
            notes.extend((unknown.iter()).map(|field| format!("{field}: unknown, ignored")));
        }
        let mode_flag = Flags {
            faults: &mut faults,
        }
        .parse("--proxy-mode", &args.proxy_mode, values::mode);
        if let Some(document) = documents.kube_proxy {
            let read = file::read(document, mode_flag);
            file = read.file;
            faults.extend(read.faults);
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

        let mode = file.mode.or(mode_flag);
        if mode == Some(values::Mode::Ipvs) {
            notes.push("mode ipvs: nftables mode serves in its place".to_owned());
        }
        let is_iptables = mode == Some(values::Mode::Iptables);
        let given = flags.iptables(args, &file, &own);
        if is_iptables {
            let mut period = |flag, text| {
                flags
                    .parse(flag, text, values::duration)
                    .filter(|period| !period.is_zero())
            };
            let full = period("--iptables-sync-period", &args.iptables_sync_period);
            let least = period("--iptables-min-sync-period", &args.iptables_min_sync_period);
            file.sync_period = file.sync_period.or(full);
            file.min_sync_period = file.min_sync_period.or(least);
        } else {
            notes.extend(of_iptables(args).map(|flag| format!("{flag}: has no effect here")));
        }
        let detect_local = flags.detect_local(args, &mut file, &mut notes);
        let conntrack = flags.conntrack(args, &file.conntrack);
        let oom_score_adj = file
            .oom_score_adj
            .or_else(|| flags.check("--oom-score-adj", args.oom_score_adj, values::oom_score_adj));
        notes.extend(
            (args.ignored.given().iter()).map(|flag| format!("{flag}: has no effect here")),
        );
        let node_port_addresses = |text: &str| {
            let texts: Vec<_> = text.split(',').map(str::trim).collect();
            values::node_port_addresses(&texts)
        };
        let node_ports = (file.node_port_addresses).or(flags.parse(
            "--nodeport-addresses",
            &args.nodeport_addresses,
            node_port_addresses,
        ));
        let mode = match is_iptables {
            true => given.mode(),
            false => Mode::Nftables,
        };
        let settings = Settings {
            detect_local,
            node_port_addresses: match &mode {
                // kube-proxy's default of each mode.
                Mode::Iptables { .. } => {
                    node_ports.unwrap_or_else(|| NodePortAddresses::In(Vec::new()))
                }
                Mode::Nftables => node_ports.unwrap_or_default(),
            },
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
                format_args!("{}.minSyncPeriod", mode.as_str()),
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
        let log_format = (file.log_format).or(flags.parse(
            "--logging-format",
            &args.logging_format,
            values::log_format,
        ));
        if !faults.is_empty() {
            return Err(Error::Faults(faults));
        }

        let mut log = args.log.clone();
        if log.v == 0 {
            log.v = file.log_verbosity.unwrap_or(0);
        }
        if let Some(format) = log_format {
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
            mode,
            service_proxy_name: file
                .service_proxy_name
                .or(args.service_proxy_name.clone())
                .filter(|name| !name.is_empty()),
            conntrack,
            oom_score_adj: oom_score_adj.unwrap_or(OOM_SCORE_ADJ),
            snapshot: own
                .snapshot
                .or(args.snapshot)
                .unwrap_or(true)
                .then(|| snapshot_file(own.snapshot_dir.or(args.snapshot_dir.clone()))),
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

impl Config {
    /// Says what is to be said of it, and sets the kernel's switches for connection tracking.
    pub fn tell(&self) {
        for note in &self.notes {
            tracing::warn!("configuration: {note}");
        }
        for warning in self.conntrack.apply() {
            tracing::warn!("connection tracking: {warning}");
        }
    }
}

/// Understands flags, and collects what is wrong with them beside what is wrong with the file.
struct Flags<'a> {
    faults: &'a mut Vec<Fault>,
}

impl Flags<'_> {
    /// How pods' packets are told from others. A way that lacks what it needs is none, which is said, as
    /// kube-proxy does.
    fn detect_local(
        &mut self,
        args: &Args,
        file: &mut File,
        notes: &mut Vec<String>,
    ) -> DetectLocal {
        let mode = self.parse(
            "--detect-local-mode",
            &args.detect_local_mode,
            values::detect_local,
        );
        let cidr = self.parse("--cluster-cidr", &args.cluster_cidr, values::cluster_cidr);
        let bridge = self.parse(
            "--pod-bridge-interface",
            &args.pod_bridge_interface,
            values::bridge,
        );
        let prefix = self.parse(
            "--pod-interface-name-prefix",
            &args.pod_interface_name_prefix,
            values::interface_prefix,
        );
        let mode = (file.detect_local.take().or(mode)).unwrap_or(DetectMode::ClusterCidr);
        let (found, missing) = match mode {
            DetectMode::NodeCidr => return DetectLocal::NodeCidr,
            DetectMode::ClusterCidr => (
                (file.cluster_cidr.take().or(cidr)).map(DetectLocal::ClusterCidr),
                "no cluster CIDR",
            ),
            DetectMode::Bridge => (
                (file.bridge_interface.take().or(bridge))
                    .map(|name| DetectLocal::Interface(name.into())),
                "no name of a bridge (detectLocal.bridgeInterface)",
            ),
            DetectMode::Prefix => (
                (file.interface_prefix.take().or(prefix))
                    .map(|prefix| DetectLocal::Interface(format!("{prefix}*").into())),
                "no prefix of interfaces (detectLocal.interfaceNamePrefix)",
            ),
        };
        found.unwrap_or_else(|| {
            notes.push(format!(
                "{missing}: connections from outside to cluster IPs are not masqueraded"
            ));
            DetectLocal::Nothing
        })
    }

    /// The choices of iptables mode.
    fn iptables(&mut self, args: &Args, file: &File, own: &OwnFile) -> Given {
        let bit = args.iptables_masquerade_bit;
        let bit = self.check("--iptables-masquerade-bit", bit, values::mark_bit);
        let variant = self.parse(
            "--iptables-variant",
            &args.iptables_variant,
            values::variant,
        );
        Given {
            legacy_names: own.iptables.legacy_names.or(args.iptables_legacy_names),
            masquerade_bit: file.iptables.masquerade_bit.or(bit),
            localhost_node_ports: (file.iptables.localhost_node_ports)
                .or(args.iptables_localhost_nodeports),
            variant: own.iptables.variant.or(variant),
        }
    }

    fn conntrack(&mut self, args: &Args, file: &file::FileConntrack) -> Conntrack {
        let mut duration =
            |name: &str, text: &Option<String>| self.parse(name, text, values::duration);
        let usual = Conntrack::default();
        let (established, close_wait, udp, udp_stream) = (
            duration(
                "--conntrack-tcp-timeout-established",
                &args.conntrack_tcp_timeout_established,
            ),
            duration(
                "--conntrack-tcp-timeout-close-wait",
                &args.conntrack_tcp_timeout_close_wait,
            ),
            duration("--conntrack-udp-timeout", &args.conntrack_udp_timeout),
            duration(
                "--conntrack-udp-timeout-stream",
                &args.conntrack_udp_timeout_stream,
            ),
        );
        Conntrack {
            max_per_core: (file.max_per_core.or(args.conntrack_max_per_core))
                .unwrap_or(usual.max_per_core),
            min: file.min.or(args.conntrack_min).unwrap_or(usual.min),
            tcp_established: (file.tcp_established.or(established))
                .unwrap_or(usual.tcp_established),
            tcp_close_wait: (file.tcp_close_wait.or(close_wait)).unwrap_or(usual.tcp_close_wait),
            tcp_be_liberal: (file
                .tcp_be_liberal
                .filter(|on| *on)
                .or(args.conntrack_tcp_be_liberal))
            .unwrap_or(usual.tcp_be_liberal),
            udp: file.udp.or(udp).unwrap_or(usual.udp),
            udp_stream: file.udp_stream.or(udp_stream).unwrap_or(usual.udp_stream),
        }
    }

    fn check<T: Copy + std::fmt::Display, E: std::fmt::Display>(
        &mut self,
        flag: &str,
        value: Option<T>,
        check: impl FnOnce(T) -> Result<T, E>,
    ) -> Option<T> {
        let value = value?;
        check(value)
            .inspect_err(|reason| self.faults.push(Fault::new(flag, value, reason)))
            .ok()
    }

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

/// Flags of iptables mode that are given.
fn of_iptables(args: &Args) -> impl Iterator<Item = &'static str> {
    [
        (
            "--iptables-legacy-names",
            args.iptables_legacy_names.is_some(),
        ),
        (
            "--iptables-localhost-nodeports",
            args.iptables_localhost_nodeports.is_some(),
        ),
        (
            "--iptables-masquerade-bit",
            args.iptables_masquerade_bit.is_some(),
        ),
        (
            "--iptables-min-sync-period",
            args.iptables_min_sync_period.is_some(),
        ),
        (
            "--iptables-sync-period",
            args.iptables_sync_period.is_some(),
        ),
        ("--iptables-variant", args.iptables_variant.is_some()),
    ]
    .into_iter()
    .filter(|(_, given)| *given)
    .map(|(flag, _)| flag)
}

/// What a file holds: kube-proxy's document, and one with what only twill-proxy knows.
#[derive(Debug, Default)]
struct Documents {
    kube_proxy: Option<Map<String, Value>>,
    own: Option<Map<String, Value>>,
}

fn read_file(path: &PathBuf) -> Result<Documents, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    Documents::parse(&text).map_err(|reason| Error::Yaml {
        path: path.clone(),
        reason,
    })
}

impl Documents {
    fn parse(text: &str) -> Result<Documents, String> {
        let all: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| e.to_string())?;
        let mut documents = Documents::default();
        for document in all {
            let Value::Object(fields) = document else {
                return Err("want a mapping: apiVersion, kind and fields".into());
            };
            let kind = fields.get("kind").and_then(Value::as_str);
            let (place, kind) = match kind {
                Some(file::OWN_KIND) => (&mut documents.own, file::OWN_KIND),
                _ => (&mut documents.kube_proxy, file::KIND),
            };
            if place.replace(fields).is_some() {
                return Err(format!("want one document of kind {kind}, not two"));
            }
        }
        Ok(documents)
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
