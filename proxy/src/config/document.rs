//! Owns the way back: the configuration in force as a `KubeProxyConfiguration`, for `--write-config-to` and `/configz`.

use std::time::Duration;

use serde_json::{Value, json};

use super::file::{GROUP, KIND};
use super::{Config, Mode};
use crate::plan::{DetectLocal, NodePortAddresses};

impl Config {
    /// The document, with every field that has an effect.
    pub fn document(&self) -> Value {
        let settings = &self.settings;
        let listen = |address: Option<std::net::SocketAddr>| {
            address.map(|a| a.to_string()).unwrap_or_default()
        };
        let networks = |networks: &[hostnet::vocab::Subnet]| -> Vec<String> {
            networks.iter().map(ToString::to_string).collect()
        };
        let (mode, cidr, bridge, prefix) = match &settings.detect_local {
            DetectLocal::Nothing => ("ClusterCIDR", String::new(), "", ""),
            DetectLocal::ClusterCidr(list) => ("ClusterCIDR", networks(list).join(","), "", ""),
            DetectLocal::NodeCidr => ("NodeCIDR", String::new(), "", ""),
            DetectLocal::Interface(name) => match name.strip_suffix('*') {
                Some(prefix) => ("InterfaceNamePrefix", String::new(), "", prefix),
                None => ("BridgeInterface", String::new(), &**name, ""),
            },
        };
        let conntrack = &self.conntrack;
        let section = json!({
            "masqueradeAll": settings.masquerade_all,
            "minSyncPeriod": duration(self.min_sync_period),
            "syncPeriod": duration(self.sync_period),
        });
        let mut document = json!({
            "apiVersion": GROUP,
            "kind": KIND,
            "bindAddress": settings.node_ip.map_or("0.0.0.0".into(), |ip| ip.to_string()),
            "bindAddressHardFail": self.bind_hard_fail,
            "clientConnection": {
                "kubeconfig": self.client.kubeconfig.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            },
            "clusterCIDR": cidr,
            "conntrack": {
                "maxPerCore": conntrack.max_per_core,
                "min": conntrack.min,
                "tcpBeLiberal": conntrack.tcp_be_liberal,
                "tcpCloseWaitTimeout": duration(conntrack.tcp_close_wait),
                "tcpEstablishedTimeout": duration(conntrack.tcp_established),
                "udpStreamTimeout": duration(conntrack.udp_stream),
                "udpTimeout": duration(conntrack.udp),
            },
            "detectLocal": {"bridgeInterface": bridge, "interfaceNamePrefix": prefix},
            "detectLocalMode": mode,
            "healthzBindAddress": listen(self.healthz),
            "hostnameOverride": self.hostname,
            "logging": {
                "format": match self.log.log_format {
                    agent::logging::Format::Text => "text",
                    agent::logging::Format::Json => "json",
                },
                "verbosity": self.log.v,
            },
            "metricsBindAddress": listen(self.metrics),
            "mode": self.mode.as_str(),
            self.mode.as_str(): section,
            "nodePortAddresses": match &settings.node_port_addresses {
                NodePortAddresses::Primary => vec!["primary".to_owned()],
                NodePortAddresses::In(list) => networks(list),
            },
            "oomScoreAdj": self.oom_score_adj,
            "serviceProxyName": self.service_proxy_name.clone().unwrap_or_default(),
        });
        if let Mode::Iptables { options, .. } = &self.mode {
            document["iptables"]["localhostNodePorts"] = options.localhost_node_ports.into();
            document["iptables"]["masqueradeBit"] = options.masquerade_bit.into();
        }
        document
    }
}

/// As Go writes it: `1h0m0s`, `1m30s`, `500ms`, `0s`.
fn duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    if seconds == 0 && millis > 0 {
        return format!("{millis}ms");
    }
    let fraction = match millis {
        0 => String::new(),
        millis => format!(".{millis:03}").trim_end_matches('0').to_owned(),
    };
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = format!("{}{fraction}s", seconds % 60);
    match (hours, minutes) {
        (0, 0) => rest,
        (0, _) => format!("{minutes}m{rest}"),
        _ => format!("{hours}h{minutes}m{rest}"),
    }
}
