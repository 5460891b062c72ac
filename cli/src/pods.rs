//! Which pod is behind which veth, and the other way round: from twill-cni's records, and what the kernel has of them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use cni_plugin::record::Record;
use hostnet::netlink::Link;
use hostnet::netlink::link::Counters;
use serde::Serialize;

use crate::table::{Table, size};
use crate::target::{name_of, unknown};
use crate::view::View;

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// `NAMESPACE/NAME`, or the container where the runtime did not tell.
    pub pod: String,
    /// Its interface.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's end of its cable.
    pub veth: String,
    /// The bridge, and how the port is.
    pub bridge: String,
    /// `up`, or what is wrong with the port.
    pub state: String,
    /// Settings of the port that are not usual: `isolated`, `locked`, `no hairpin`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<&'static str>,
    /// The node's ports that lead to it: `8080→80/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<String>,
    /// What it has sent: packets and bytes.
    pub sent: [u64; 2],
    /// What it has received: packets and bytes.
    pub received: [u64; 2],
    /// Packets that were dropped on its cable.
    pub dropped: u64,
}

impl Pod {
    fn of(record: &Record, links: &[Link], counters: &BTreeMap<u32, Counters>) -> Pod {
        let called = |name: &str| links.iter().find(|link| link.name.as_str() == name);
        let link = called(record.veth.as_str());
        let bridge = called(record.bridge.as_str()).map(|link| link.index);
        let state = match link {
            None => "veth is gone",
            Some(link) if !link.up => "down",
            Some(link) if link.master.is_none() || link.master != bridge => "not on the bridge",
            Some(link) if !link.carrier => "no carrier",
            Some(_) => "up",
        };
        let port = link.and_then(|link| link.port);
        let settings = port.map(|port| {
            let settings = [
                (port.isolated, "isolated"),
                (port.locked, "locked"),
                (!port.hairpin, "no hairpin"),
            ];
            settings
                .into_iter()
                .filter(|(is, _)| *is)
                .map(|(_, word)| word)
                .collect()
        });
        let counted = link
            .and_then(|link| counters.get(&link.index))
            .copied()
            .unwrap_or_default();
        let host_ports = record.ports.iter().map(|port| {
            let at = port.at().map_or(String::new(), |at| format!("{at}:"));
            format!(
                "{at}{}→{}/{}",
                port.host_port, port.container_port, port.protocol
            )
        });
        Pod {
            pod: name_of(record),
            interface: record.if_name.to_string(),
            addresses: record.addrs(),
            veth: record.veth.to_string(),
            bridge: record.bridge.to_string(),
            state: state.to_owned(),
            settings: settings.unwrap_or_default(),
            host_ports: host_ports.collect(),
            sent: [counted.rx_packets, counted.rx_bytes],
            received: [counted.tx_packets, counted.tx_bytes],
            dropped: counted.dropped,
        }
    }

    /// Whether a person means it: by its name with or without namespace, an address, the veth, or the container.
    fn is_called(&self, record: &Record, name: &str) -> bool {
        let short = self.pod.rsplit('/').next();
        self.pod == name
            || short == Some(name)
            || self.veth == name
            || (name.len() >= 6 && record.container_id.starts_with(name))
            || name
                .parse()
                .is_ok_and(|address| self.addresses.contains(&address))
    }
}

/// The pods of this node in the order of their names; with `which`, those that are meant.
///
/// # Errors
/// Nothing is called so ([`crate::target::Unclear::Unknown`]), or the kernel cannot be read.
pub fn pods(view: &mut dyn View, which: Option<&str>) -> anyhow::Result<Vec<Pod>> {
    let (records, links) = (view.records()?, view.links()?);
    let counters: BTreeMap<u32, Counters> = view.counters()?.into_iter().collect();
    let mut pods: Vec<(Pod, &Record)> = records
        .iter()
        .map(|record| (Pod::of(record, &links, &counters), record))
        .collect();
    if let Some(name) = which {
        let words = |pod: &Pod| {
            let addresses = pod.addresses.iter().map(IpAddr::to_string);
            addresses
                .chain([pod.pod.clone(), pod.veth.clone()])
                .collect::<Vec<_>>()
        };
        let known: Vec<String> = pods.iter().flat_map(|(pod, _)| words(pod)).collect();
        pods.retain(|(pod, record)| pod.is_called(record, name));
        if pods.is_empty() {
            return Err(unknown("pod", name, known.iter().map(String::as_str)).into());
        }
    }
    let mut pods: Vec<Pod> = pods.into_iter().map(|(pod, _)| pod).collect();
    pods.sort_by(|a, b| (&a.pod, &a.interface).cmp(&(&b.pod, &b.interface)));
    Ok(pods)
}

/// Pods as a table for people.
#[derive(Debug)]
pub struct PodTable<'a>(pub &'a [Pod]);

impl fmt::Display for PodTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            "POD",
            "ADDRESSES",
            "VETH",
            "PORT OF",
            "STATE",
            "HOST PORTS",
            "SENT",
            "RECEIVED",
            "DROPPED",
        ]);
        for pod in self.0 {
            let addresses: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
            let mut state = vec![pod.state.as_str()];
            state.extend(&pod.settings);
            let ports = match pod.host_ports.as_slice() {
                [] => "-".to_owned(),
                ports => ports.join(","),
            };
            table.row([
                pod.pod.clone(),
                addresses.join(","),
                pod.veth.clone(),
                pod.bridge.clone(),
                state.join(", "),
                ports,
                size(pod.sent[1]),
                size(pod.received[1]),
                pod.dropped.to_string(),
            ]);
        }
        write!(f, "{table}")
    }
}
