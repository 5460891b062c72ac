//! Names to addresses: by the objects where they can be seen, else by what the kernel of this node knows.

use std::net::IpAddr;

use cni_plugin::record::Record;
use hostnet::vocab::Family;
use k8s_openapi::api::core::v1::{Node, Pod, Service};

use super::{Question, Tracer};
use crate::objects::{Cluster, Known};
use crate::target::{self, Destination, From, To, Unclear};

impl Tracer<'_> {
    pub(super) fn destination(&mut self, question: &Question) -> anyhow::Result<Destination> {
        let plain = |address, port| Destination {
            address,
            port,
            service: None,
        };
        let family = question.family;
        Ok(match &question.to {
            To::Address(address, port) => plain(*address, *port),
            To::Node(name, port) => plain(self.node_address(name, family)?, *port),
            To::Pod(pod, port) => plain(self.pod_address(pod, family)?, *port),
            To::Service(name, port) => {
                match self.service_by_object(question, name, port.as_deref())? {
                    Some(found) => found,
                    None => {
                        let is_outside = question.from == From::Outside;
                        let port = port.as_deref();
                        target::service(self.view, family, question.proto, name, port, is_outside)?
                    }
                }
            }
        })
    }

    /// A pod of this node.
    pub(super) fn record(&mut self, name: &str) -> anyhow::Result<&Record> {
        let is_it = |record: &Record| record.pod.as_deref() == Some(name);
        if !self.records.iter().any(is_it)
            && let Known::There(pod) = self.object::<Pod>(name)
        {
            let node = pod.spec.and_then(|spec| spec.node_name);
            anyhow::bail!(match node {
                Some(node) =>
                    format!("pod {name} is not on this node: run `twill trace` on {node}"),
                None => format!("pod {name} is on no node yet: `kubectl describe pod` says why"),
            });
        }
        Ok(target::pod(&self.records, name)?)
    }

    fn pod_address(&mut self, name: &str, family: Family) -> anyhow::Result<IpAddr> {
        if let Some(record) = self.records.iter().find(|r| r.pod.as_deref() == Some(name)) {
            return Ok(target::pod_address(record, family)?);
        }
        match self.object::<Pod>(name) {
            Known::There(pod) => {
                let ips = pod.status.and_then(|status| status.pod_ips);
                let ips = ips
                    .into_iter()
                    .flatten()
                    .filter_map(|ip| ip.ip.parse().ok());
                let mut ips = ips.filter(|ip: &IpAddr| Family::of(*ip) == family);
                Ok(ips.next().ok_or_else(|| Unclear::Family {
                    pod: name.to_owned(),
                    family,
                })?)
            }
            Known::Absent => Err(self.nearest::<Pod>("pod", name)),
            Known::Unseen => Ok(target::pod_address(
                target::pod(&self.records, name)?,
                family,
            )?),
        }
    }

    pub(super) fn node_address(&mut self, name: &str, family: Family) -> anyhow::Result<IpAddr> {
        let node = node(self.cluster, name, "the node's address")?;
        internal_ip(&node, family)
            .ok_or_else(|| anyhow::anyhow!("node {name} has no {family} InternalIP"))
    }

    /// `None` if objects are not seen.
    fn service_by_object(
        &mut self,
        question: &Question,
        name: &str,
        port: Option<&str>,
    ) -> anyhow::Result<Option<Destination>> {
        let service = match self.object::<Service>(name) {
            Known::There(service) => service,
            Known::Absent => return Err(self.nearest::<Service>("Service", name)),
            Known::Unseen => return Ok(None),
        };
        let spec = service.spec.unwrap_or_default();
        let proto = question.proto.to_string();
        let ports = spec.ports.unwrap_or_default();
        let of_proto = |p: &&k8s_openapi::api::core::v1::ServicePort| {
            p.protocol
                .as_deref()
                .unwrap_or("TCP")
                .eq_ignore_ascii_case(&proto)
        };
        let is_meant = |p: &&k8s_openapi::api::core::v1::ServicePort| match port {
            Some(text) => {
                p.name.as_deref() == Some(text)
                    || p.port.to_string() == text
                    || p.node_port
                        .is_some_and(|node_port| node_port.to_string() == text)
            }
            None => true,
        };
        let meant: Vec<_> = ports.iter().filter(of_proto).filter(is_meant).collect();
        let [one] = meant[..] else {
            let flag = |p: &k8s_openapi::api::core::v1::ServicePort| match p.protocol.as_deref() {
                Some("UDP") => " --udp",
                Some("SCTP") => " --sctp",
                _ => "",
            };
            let ports = ports
                .iter()
                .map(|p| format!("svc/{name}:{}{}", p.port, flag(p)));
            return Err(Unclear::Ports {
                name: name.to_owned(),
                ports: ports.collect(),
            }
            .into());
        };
        let label = match one.name.as_deref() {
            None | Some("") => name.to_owned(),
            Some(port) => format!("{name}:{port}"),
        };
        let place = |address, port: i32| -> anyhow::Result<Option<Destination>> {
            Ok(Some(Destination {
                address,
                port: u16::try_from(port)?,
                service: Some(label.clone()),
            }))
        };
        if question.from == From::Outside
            && let Some(node_port) = one.node_port
            && let Some(address) = target::node_port_address(self.view, question.family)?
        {
            return place(address, node_port);
        }
        let ips = spec.cluster_ips.or(spec.cluster_ip.map(|ip| vec![ip]));
        let ips = ips.into_iter().flatten().filter_map(|ip| ip.parse().ok());
        let mut ips = ips.filter(|ip: &IpAddr| Family::of(*ip) == question.family);
        match ips.next() {
            Some(address) => place(address, one.port),
            None => anyhow::bail!(
                "Service {name} has no {} cluster IP: trace to one of its pods",
                question.family
            ),
        }
    }

    fn object<K>(&mut self, name: &str) -> Known<K>
    where
        K: kube::Resource<DynamicType = ()> + serde::de::DeserializeOwned,
    {
        match name.split_once('/') {
            Some((namespace, name)) => self.cluster.get(Some(namespace), name),
            None => Known::Unseen,
        }
    }

    /// The error of a name that is not there, with those that are most like it.
    fn nearest<K>(&mut self, what: &'static str, name: &str) -> anyhow::Error
    where
        K: kube::Resource<DynamicType = ()> + serde::de::DeserializeOwned,
    {
        let all = self.cluster.list::<K>(None, None).unwrap_or_default();
        let names = all.iter().filter_map(|object| {
            let meta = object.meta();
            Some(format!(
                "{}/{}",
                meta.namespace.as_ref()?,
                meta.name.as_ref()?
            ))
        });
        let names: Vec<String> = names.collect();
        target::unknown(what, name, names.iter().map(String::as_str)).into()
    }
}

/// A node by its name; `instead` is what to do where the API server is not seen.
///
/// # Errors
/// There is none of the name, or nodes cannot be seen from here.
pub(crate) fn node(cluster: &mut Cluster, name: &str, instead: &str) -> anyhow::Result<Node> {
    match cluster.get::<Node>(None, name) {
        Known::There(node) => Ok(node),
        Known::Absent => {
            let all = cluster.list::<Node>(None, None).unwrap_or_default();
            let names = all.iter().filter_map(|node| node.metadata.name.as_deref());
            Err(target::unknown("node", name, names).into())
        }
        Known::Unseen => anyhow::bail!(
            "node {name}: nodes are known to the API server alone, and it is not seen from here: \
             --kubeconfig, or {instead}"
        ),
    }
}

/// Its addresses in the nodes' network, one of each family that it has.
pub(crate) fn internal_ips(node: &Node) -> impl Iterator<Item = IpAddr> {
    let address = |family: Family| internal_ip(node, family);
    Family::ALL.into_iter().filter_map(address)
}

pub(super) fn internal_ip(node: &Node, family: Family) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().filter(|a| a.type_ == "InternalIP");
    internal
        .filter_map(|a| a.address.parse().ok())
        .find(|ip| Family::of(*ip) == family)
}
