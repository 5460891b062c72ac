//! Owns the form of the configuration file: `KubeProxyConfiguration`, group kubeproxy.config.k8s.io/v1alpha1.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hostnet::vocab::Subnet;
use serde_json::{Map, Value};

use super::mode::Given;
use super::reader::{Fault, Reader};
use super::values::{self, DetectMode, Mode};
use crate::plan::NodePortAddresses;

/// What a file says. `None`: it does not say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct File {
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) hostname: Option<String>,
    pub(super) mode: Option<Mode>,
    pub(super) node_ip: Option<IpAddr>,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) healthz: Option<SocketAddr>,
    pub(super) bind_hard_fail: Option<bool>,
    pub(super) cluster_cidr: Option<Vec<Subnet>>,
    pub(super) detect_local: Option<DetectMode>,
    pub(super) node_port_addresses: Option<NodePortAddresses>,
    pub(super) masquerade_all: Option<bool>,
    pub(super) sync_period: Option<Duration>,
    pub(super) min_sync_period: Option<Duration>,
    pub(super) bridge_interface: Option<String>,
    pub(super) interface_prefix: Option<String>,
    pub(super) service_proxy_name: Option<String>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) conntrack: FileConntrack,
    pub(super) iptables: Given,
    pub(super) log_verbosity: Option<u8>,
    pub(super) log_format: Option<agent::logging::Format>,
}

/// The section `conntrack`. Here an empty value says something: 0 leaves a switch alone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FileConntrack {
    pub(super) max_per_core: Option<u32>,
    pub(super) min: Option<u32>,
    pub(super) tcp_established: Option<Duration>,
    pub(super) tcp_close_wait: Option<Duration>,
    pub(super) tcp_be_liberal: Option<bool>,
    pub(super) udp: Option<Duration>,
    pub(super) udp_stream: Option<Duration>,
}

/// What a file was found to be.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) file: File,
    pub(super) faults: Vec<Fault>,
    /// Fields that are not kube-proxy's.
    pub(super) unknown: Vec<String>,
    /// Fields that are kube-proxy's, and change nothing here.
    pub(super) unused: Vec<String>,
}

pub(super) const GROUP: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// What only twill-proxy knows: a document of its own, so that kube-proxy's stays one that kube-proxy takes.
const OWN_GROUP: &str = "twill.io/v1alpha1";
pub(super) const OWN_KIND: &str = "TwillProxyConfiguration";

/// What such a document says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OwnFile {
    pub(super) snapshot: Option<bool>,
    pub(super) snapshot_dir: Option<PathBuf>,
    pub(super) iptables: Given,
}

/// Reads a document of our own; with it the faults and the fields that nobody knows.
pub(super) fn read_own(document: Map<String, Value>) -> (OwnFile, Vec<Fault>, Vec<String>) {
    let mut r = Reader::new(document);
    kind(&mut r, OWN_GROUP, OWN_KIND);
    let mut file = OwnFile {
        snapshot: r.take("snapshot", "true or false"),
        snapshot_dir: r.parse("snapshotDir", values::text).map(PathBuf::from),
        iptables: Given::default(),
    };
    r.section("iptables", |r| {
        file.iptables.legacy_names = r.take("legacyNames", "true or false");
        file.iptables.variant = r.parse("variant", values::variant);
    });
    let (faults, unknown) = r.finish();
    (file, faults, unknown)
}

fn kind(r: &mut Reader, group: &str, kind: &str) {
    for (field, wanted) in [("apiVersion", group), ("kind", kind)] {
        let found: String = r.take(field, "a text").unwrap_or_default();
        if found != wanted {
            r.fault(
                field,
                format_args!("{found:?}"),
                format_args!("want {wanted:?}"),
            );
        }
    }
}

/// Fields of kube-proxy's whose job is not there (the kernel's, another platform's or another mode's), or
/// is done in another way.
const UNUSED: &[&str] = &[
    "configSyncPeriod",
    "enableProfiling",
    "featureGates",
    "ipvs",
    "portRange",
    "showHiddenMetricsForVersion",
    "udpIdleTimeout",
    "winkernel",
    "windowsRunAsService",
];

/// Reads a document. `flag`: the mode, where the document does not say.
pub(super) fn read(document: Map<String, Value>, flag: Option<Mode>) -> Read {
    let mut r = Reader::new(document);
    let mut unused = Vec::new();
    kind(&mut r, GROUP, KIND);
    let mut file = File {
        hostname: r.parse("hostnameOverride", values::text),
        mode: r.parse("mode", values::mode),
        node_ip: r.parse("bindAddress", values::address),
        metrics: r.parse("metricsBindAddress", |text| {
            values::listen(text, super::METRICS.port())
        }),
        healthz: r.parse("healthzBindAddress", |text| {
            values::listen(text, super::HEALTHZ.port())
        }),
        bind_hard_fail: r.take("bindAddressHardFail", "true or false"),
        cluster_cidr: r.parse("clusterCIDR", values::cluster_cidr),
        detect_local: r.parse("detectLocalMode", values::detect_local),
        node_port_addresses: node_port_addresses(&mut r),
        service_proxy_name: r.parse("serviceProxyName", values::text),
        oom_score_adj: oom_score_adj(&mut r),
        ..File::default()
    };
    r.section("clientConnection", |r| {
        file.kubeconfig = r.parse("kubeconfig", values::text).map(PathBuf::from);
        unused.extend(r.skip(&["acceptContentTypes", "burst", "contentType", "qps"]));
    });
    // Each mode has a section of its own.
    let (section, other) = match file.mode.or(flag) {
        Some(Mode::Iptables) => ("iptables", "nftables"),
        _ => ("nftables", "iptables"),
    };
    r.section(section, |r| {
        file.masquerade_all = r.take("masqueradeAll", "true or false");
        file.sync_period = r
            .parse("syncPeriod", values::duration)
            .filter(|period| !period.is_zero());
        file.min_sync_period = r.parse("minSyncPeriod", values::duration);
        if section == "iptables" {
            file.iptables.localhost_node_ports = r.take("localhostNodePorts", "true or false");
            file.iptables.masquerade_bit = masquerade_bit(r);
        } else {
            unused.extend(r.skip(&["masqueradeBit"]));
        }
    });
    unused.extend(r.skip(&[other]));
    r.section("detectLocal", |r| {
        file.bridge_interface = r.parse("bridgeInterface", values::bridge);
        file.interface_prefix = r.parse("interfaceNamePrefix", values::interface_prefix);
    });
    r.section("conntrack", |r| {
        let number = "a number of connections, or 0";
        file.conntrack = FileConntrack {
            max_per_core: r.take("maxPerCore", number),
            min: r.take("min", number),
            tcp_established: r.parse("tcpEstablishedTimeout", values::duration),
            tcp_close_wait: r.parse("tcpCloseWaitTimeout", values::duration),
            tcp_be_liberal: r.take("tcpBeLiberal", "true or false"),
            udp: r.parse("udpTimeout", values::duration),
            udp_stream: r.parse("udpStreamTimeout", values::duration),
        };
    });
    r.section("logging", |r| {
        file.log_verbosity = r.take("verbosity", "a number from 0 to 255");
        file.log_format = r.parse("format", values::log_format);
        unused.extend(r.skip(&["flushFrequency", "options", "vmodule"]));
    });
    unused.extend(r.skip(UNUSED));
    let (faults, unknown) = r.finish();
    Read {
        file,
        faults,
        unknown,
        unused,
    }
}

fn masquerade_bit(r: &mut Reader) -> Option<u8> {
    let bit: u8 = r.take("masqueradeBit", "a number from 0 to 31")?;
    values::mark_bit(bit)
        .inspect_err(|reason| r.fault("masqueradeBit", bit, reason))
        .ok()
}

fn oom_score_adj(r: &mut Reader) -> Option<i32> {
    let score: i32 = r.take("oomScoreAdj", "a number from -1000 to 1000")?;
    values::oom_score_adj(score)
        .inspect_err(|reason| r.fault("oomScoreAdj", score, reason))
        .ok()
}

fn node_port_addresses(r: &mut Reader) -> Option<NodePortAddresses> {
    let name = "nodePortAddresses";
    let texts: Vec<String> = r.take(name, "a list of networks")?;
    if texts.is_empty() {
        return None;
    }
    values::node_port_addresses(&texts)
        .inspect_err(|reason| r.fault(name, format_args!("{texts:?}"), reason))
        .ok()
}
