//! A packet's way through this node, from what a [`View`] shows: pure but for its questions.
//!
//! ```text
//!  resolve  names to addresses: by the objects, else by what the kernel knows
//!  start    who sends: the inside of a pod and its port, or a device
//!  choose   prerouting or output: the rules that choose an endpoint, one way for each
//!  deliver  forward, route, postrouting; then neighbour, forwarding entry, port, the pod's inside
//!  back     how the answer finds its client
//!  compare  what the objects say of a place, and where the kernel has something else
//! ```

mod back;
mod choose;
mod compare;
mod deliver;
mod resolve;
mod start;

pub(crate) use resolve::{internal_ips, node};

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;

use cni_plugin::record::Record;
use hostnet::netlink::{Link, Route};
use hostnet::nft::Proto;
use hostnet::vocab::{Family, Subnet, SubnetEnv, names};
use serde::{Deserialize, Serialize};

use crate::objects::Cluster;
use crate::report::{Hop, Trace};
use crate::target::{From, To};
use crate::view::{Result, View};
use crate::walk::{Device, Packet, Step, kube};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who sends.
    pub from: From,
    /// Where to.
    pub to: To,
    /// The transport protocol.
    pub proto: Proto,
    /// The family, where names leave it open.
    pub family: Family,
    /// Whether pods' namespaces can be entered from where this runs.
    pub sees_pods: bool,
}

/// A network of pods: all nodes', and this node's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// All pods.
    pub network: Subnet,
    /// This node's.
    pub own: Subnet,
}

impl PodNetwork {
    /// Those that flanneld has written for twill-cni.
    pub fn of(env: &SubnetEnv) -> Vec<PodNetwork> {
        let families = env.families().filter_map(|family| {
            Some(PodNetwork {
                network: *family.networks.first()?,
                own: family.subnet.subnet(),
            })
        });
        families.collect()
    }
}

/// The pods' networks, as flanneld has written them for twill-cni; none where it has not run.
///
/// # Errors
/// The file cannot be read or understood.
pub fn networks(subnet_file: &Path) -> anyhow::Result<Vec<PodNetwork>> {
    let text = match std::fs::read_to_string(subnet_file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", subnet_file.display()))?,
    };
    let env: SubnetEnv = text
        .parse()
        .with_context(|| subnet_file.display().to_string())?;
    Ok(PodNetwork::of(&env))
}

/// Follows a packet.
///
/// # Errors
/// A name that is not there or not clear ([`target::Unclear`]), or the kernel cannot be read.
pub fn trace(
    view: &mut dyn View,
    cluster: &mut Cluster,
    networks: &[PodNetwork],
    question: &Question,
) -> anyhow::Result<Trace> {
    let records = view.records()?;
    let links = view.links()?;
    let mut tracer = Tracer {
        view,
        cluster,
        networks: networks.to_vec(),
        records,
        links,
        proto: question.proto,
        sees_pods: question.sees_pods,
    };
    let to = tracer.destination(question)?;
    let what = match &to.service {
        Some(service) => format!("Service {service}, "),
        None => String::new(),
    };
    let to_text = format!("{what}{} {}", question.proto, place(to.address, to.port));
    let mut start = tracer.start(&question.from, &to)?;
    if start.hops.iter().all(|hop| hop.fault.is_none()) {
        start
            .hops
            .extend(tracer.choose(&start.packet, &to, start.bridged)?);
    }
    let notes = tracer.cluster.notes();
    Ok(Trace {
        notes,
        ..Trace::new(start.label, to_text, start.hops)
    })
}

struct Tracer<'a> {
    view: &'a mut dyn View,
    cluster: &'a mut Cluster,
    networks: Vec<PodNetwork>,
    records: Vec<Record>,
    links: Vec<Link>,
    proto: Proto,
    sees_pods: bool,
}

/// Where a way begins.
struct Start {
    label: String,
    packet: Packet,
    hops: Vec<Hop>,
    /// The sender takes the destination for a neighbour on the bridge.
    bridged: bool,
}

impl Tracer<'_> {
    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    fn link_called(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name.as_str() == name)
    }

    fn device(&self, index: Option<u32>) -> Option<Device> {
        let link = self.link(index?)?;
        Some(Device {
            index: link.index,
            name: link.name.clone(),
        })
    }

    fn link_name(&self, index: u32) -> String {
        let link = self.link(index);
        link.map_or_else(|| format!("#{index}"), |link| link.name.to_string())
    }

    fn pod_at(&self, address: IpAddr) -> Option<&Record> {
        self.records
            .iter()
            .find(|record| record.addrs().contains(&address))
    }

    fn network_of(&self, address: IpAddr) -> Option<PodNetwork> {
        let mut networks = self.networks.iter();
        networks.find(|n| n.network.contains(address)).copied()
    }

    fn is_local(&mut self, address: IpAddr) -> Result<bool> {
        const LOCAL: u32 = 2;
        Ok(self.view.address_type(address)? == LOCAL)
    }

    /// As `ip route` shows it.
    fn route_text(&self, route: &Route) -> String {
        use hostnet::netlink::route::PROTOCOL_KERNEL;
        let mut text = match route.dst.prefix() {
            0 => "default".to_owned(),
            _ => route.dst.to_string(),
        };
        if let Some(gateway) = route.gateway {
            text += &format!(" via {gateway}");
        }
        if let Some(link) = route.link {
            text += &format!(" dev {}", self.link_name(link));
        }
        if route.protocol == PROTOCOL_KERNEL {
            text += " proto kernel";
        }
        if route.scope == hostnet::netlink::addr::Scope::LINK {
            text += " scope link";
        }
        if let Some(src) = route.src {
            text += &format!(" src {src}");
        }
        if route.onlink {
            text += " onlink";
        }
        text
    }
}

/// What a rule or element had to say.
fn step_hop(step: &Step) -> Hop {
    let at = step.set.as_ref().unwrap_or(&step.chain);
    let text = format!("{} {at}: {}", step.table, step.text);
    Hop::new("rules", text).of(step_object(step))
}

/// The object of an element, by the comment that its owner writes.
fn step_object(step: &Step) -> Option<String> {
    let comment = step.object.as_deref()?;
    Some(match &*step.table.name {
        names::TABLE_PROXY if step.set.is_some() => format!("Service {comment}"),
        // `CONTAINER/INTERFACE@NETWORK NAMESPACE/POD`
        names::TABLE_CNI if step.set.is_some() => match comment.split_once(' ') {
            Some((_, pod)) => format!("pod {pod}"),
            None => comment.to_owned(),
        },
        _ if kube::is_kube(&step.chain) => match kube::service_of(comment) {
            Some(service) => format!("Service {service}"),
            None => comment.to_owned(),
        },
        _ => comment.to_owned(),
    })
}

/// `10.96.0.10:53`, `[fd00::10]:53`.
fn place(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
