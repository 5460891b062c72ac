//! Who sends: where the packet enters this node's rules, and what it met before.

use std::net::IpAddr;

use cni_plugin::record::Record;
use hostnet::vocab::Family;

use super::compare::pod_of;
use super::{Start, Tracer};
use crate::report::Hop;
use crate::target::{self, Destination, From, ip_route, stranger};
use crate::walk::{Device, Packet};

impl Tracer<'_> {
    pub(super) fn start(&mut self, from: &From, to: &Destination) -> anyhow::Result<Start> {
        let family = Family::of(to.address);
        match from {
            From::Outside => Ok(self.client(stranger(family), "outside".to_owned(), to)?),
            From::Node(None) => Ok(self.process(None, to)?),
            From::Node(Some(name)) => {
                let address = self.node_address(name, family)?;
                anyhow::ensure!(
                    self.is_local(address)?,
                    "{name} is another node: run `twill trace node …` there"
                );
                Ok(self.process(None, to)?)
            }
            From::Pod(name) => {
                let record = self.record(name)?.clone();
                let source = target::pod_address(&record, family)?;
                Ok(self.pod(&record, source, to)?)
            }
            From::Address(source) => {
                anyhow::ensure!(
                    Family::of(*source) == family,
                    "{source} and {} are of different families",
                    to.address
                );
                if let Some(record) = self.pod_at(*source).cloned() {
                    Ok(self.pod(&record, *source, to)?)
                } else if self.is_local(*source)? {
                    Ok(self.process(Some(*source), to)?)
                } else {
                    Ok(self.client(*source, source.to_string(), to)?)
                }
            }
        }
    }

    fn packet(&self, source: IpAddr, to: &Destination, iif: Option<Device>) -> Packet {
        Packet {
            proto: self.proto,
            source,
            destination: to.address,
            port: to.port,
            mark: 0,
            original: None,
            iif,
            oif: None,
        }
    }

    fn client(
        &mut self,
        source: IpAddr,
        label: String,
        to: &Destination,
    ) -> crate::view::Result<Start> {
        let route = self.view.route(source)?;
        let iif = self.device(route.and_then(|route| route.link));
        let hop = match &iif {
            Some(device) => Hop::new("in", format!("{source} comes in by {}", device.name)),
            None => Hop::new("in", format!("{source} comes in")).fault(
                format!("this node has no route to {source}, so no answer can go there"),
                format!(
                    "`{} add default via GATEWAY`, or a route to the client's network",
                    ip_route(Family::of(source))
                ),
            ),
        };
        Ok(Start {
            label,
            packet: self.packet(source, to, iif),
            hops: vec![hop],
            bridged: false,
        })
    }

    fn process(&mut self, source: Option<IpAddr>, to: &Destination) -> crate::view::Result<Start> {
        let found = self.view.source(to.address)?;
        let family = Family::of(to.address);
        let hop = match found.or(source) {
            Some(source) => Hop::new("node", format!("a process sends from {source}")),
            None => Hop::new("node", "a process sends").fault(
                format!(
                    "this node has no route to {}: the kernel refuses before any rule is asked",
                    to.address
                ),
                format!("`{} add default via GATEWAY`: also what is translated later needs a route at first", ip_route(family)),
            ),
        };
        Ok(Start {
            label: "node".to_owned(),
            packet: self.packet(source.or(found).unwrap_or(family.unspecified()), to, None),
            hops: vec![hop],
            bridged: false,
        })
    }

    /// The inside of a pod, where packets from it begin.
    fn pod(
        &mut self,
        record: &Record,
        source: IpAddr,
        to: &Destination,
    ) -> crate::view::Result<Start> {
        let bridge = self.link_called(record.bridge.as_str()).cloned();
        let iif = bridge.map(|link| Device {
            index: link.index,
            name: link.name,
        });
        let (hop, bridged) = match self.sees_pods {
            true => self.within(record, source, to)?,
            // The subnet of its node is its own link's, by twill-cni's routes.
            false => (
                unseen(format!("{} {source}", record.if_name), record),
                self.networks.iter().any(|n| n.own.contains(to.address)),
            ),
        };
        Ok(Start {
            label: format!("pod/{}", target::name_of(record)),
            packet: self.packet(source, to, iif),
            hops: vec![hop, self.port(record)],
            bridged,
        })
    }

    /// What the packet meets in the pod, and whether it takes its destination for a neighbour.
    fn within(
        &mut self,
        record: &Record,
        source: IpAddr,
        to: &Destination,
    ) -> crate::view::Result<(Hop, bool)> {
        let Some(mut inside) = self.view.inside(record)? else {
            return Ok((gone(record), false));
        };
        let ifname = &record.if_name;
        let link = inside
            .links()?
            .into_iter()
            .find(|link| link.name == *ifname);
        let route = inside.route(to.address)?;
        let hop = Hop::new("pod", format!("{ifname} {source}")).of(Some(pod_of(record)));
        let fault = match (link, route) {
            (None, _) => hop.fault(
                format!("{ifname} is not in the pod"),
                "delete the pod: its network has to be made anew",
            ),
            (Some(link), _) if !link.up => hop.fault(
                format!("{ifname} is down in the pod"),
                format!(
                    "`nsenter --net={} ip link set {ifname} up`",
                    record.netns.display()
                ),
            ),
            (_, None) => hop.fault(
                format!("the pod has no route to {}", to.address),
                "delete the pod: its routes have to be made anew",
            ),
            (_, Some(route)) => {
                let via = match route.gateway {
                    Some(gateway) => format!("{} via {gateway}", to.address),
                    None => format!("{} is a neighbour", to.address),
                };
                let text = format!("{ifname} {source}, {via}");
                return Ok((Hop { text, ..hop }, route.gateway.is_none()));
            }
        };
        Ok((fault, false))
    }
}

/// The inside of a pod, from where it cannot be entered.
pub(super) fn unseen(text: String, record: &Record) -> Hop {
    let warning = "the inside of a pod is seen by `twill` on its node alone".to_owned();
    Hop {
        warnings: vec![warning],
        ..Hop::new("pod", text).of(Some(pod_of(record)))
    }
}

/// A pod whose namespace went.
pub(super) fn gone(record: &Record) -> Hop {
    let name = target::name_of(record);
    Hop::new("pod", record.netns.display().to_string())
        .of(Some(format!("pod {name}")))
        .fault(
            "the pod's network namespace is gone: it has ended, or its runtime lost it",
            format!(
                "delete the pod, or wait until the kubelet does: `kubectl delete pod of {name}`"
            ),
        )
}
