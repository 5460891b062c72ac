//! From the decision where to go, to there: this node's own sockets, or forward, route and postrouting, then what is
//! below: neighbour, forwarding entry, bridge port, the inside of the pod.

use std::net::{IpAddr, SocketAddr};

use cni_plugin::record::Record;
use hostnet::netlink::{Link, LinkKind, Route};
use hostnet::nft::Hook;
use hostnet::vocab::{Cidr, Family, Mac, Subnet, names};
use k8s_openapi::api::core::v1::Node;

use super::choose::of_kube;
use super::compare::{name_of, pod_of, with_address, with_mac};
use super::start::{gone, unseen};
use super::{Tracer, place, step_hop};
use crate::legacy;
use crate::objects::Known;
use crate::report::{Hop, Onward};
use crate::target::{self, ip_route};
use crate::view::Result;
use crate::walk::{self, End, Packet};

pub(super) const FLANNELD: &str = "flanneld mends this within a second where it runs and knows the node: \
     `kubectl -n kube-system rollout restart daemonset/flanneld`, and look at its log and at the Leases";

impl Tracer<'_> {
    pub(super) fn deliver(&mut self, packet: &Packet, bridged: bool) -> Result<Vec<Hop>> {
        if self.is_local(packet.destination)? {
            return self.socket(packet);
        }
        let mut hops = Vec::new();
        let route = self.view.route(packet.destination)?;
        let hop = match &route {
            Some(route) => Hop::new("route", self.route_text(route)),
            None => Hop::new("route", packet.destination.to_string()),
        };
        let holder = self.peer_of(packet.destination);
        let (said, peer) = match &holder {
            Known::There((node, said)) => (Some(said), Some(node)),
            _ => (None, None),
        };
        let hop = hop.of(said);
        let fault = self.route_fault(packet.destination, route.as_ref());
        let fault = fault.map(|(cause, remedy)| match holder {
            Known::Absent => (
                format!("{cause}; no node holds that subnet: there is no Lease of it, and no podCIDR"),
                "the pod's node has left the cluster, and its EndpointSlice stays: `kubectl get nodes`, \
                 `kubectl get endpointslices -A`"
                    .to_owned(),
            ),
            _ => (cause, remedy),
        });
        let (hop, is_lost) = match fault {
            Some((cause, remedy)) if !bridged => (hop.fault(cause, remedy), true),
            _ => (hop, false),
        };
        if packet.iif.is_some() && !bridged {
            hops.push(self.forwarding(packet)?);
        }
        if !bridged {
            hops.push(hop);
        }
        let Some(route) = route.filter(|_| !is_lost) else {
            return Ok(hops);
        };
        let packet = Packet {
            oif: self.device(route.link),
            ..packet.clone()
        };
        if packet.iif.is_some() {
            hops.extend(self.filter(&packet, Hook::Forward)?);
        }
        if hops.iter().any(|hop| hop.fault.is_some()) {
            return Ok(hops);
        }
        let (hop, is_masqueraded) = self.masquerade(&packet)?;
        hops.push(hop);
        let packet = match self.view.source(packet.destination)? {
            Some(own) if is_masqueraded => Packet {
                source: own,
                ..packet
            },
            _ => packet,
        };
        let is_here = self.pod_at(packet.destination).is_some();
        hops.extend(self.leave(&packet, &route, peer)?);
        if is_here && hops.iter().all(|hop| hop.fault.is_none()) {
            hops.push(self.back(&packet, bridged)?);
        }
        Ok(hops)
    }

    fn socket(&mut self, packet: &Packet) -> Result<Vec<Hop>> {
        let mut hops = self.filter(packet, Hook::Input)?;
        if hops.iter().any(|hop| hop.fault.is_some()) {
            return Ok(hops);
        }
        let at = place(packet.destination, packet.port);
        let hop = Hop::new("socket", format!("{} {at} on this node", packet.proto));
        let listens = self
            .view
            .listens(packet.proto, packet.destination, packet.port)?;
        hops.push(if listens {
            hop
        } else {
            hop.fault(
                "no process of this node listens there, and no rule leads elsewhere",
                "start the server, or, if this should be a node port or host port, look at the Service or the pod",
            )
        });
        Ok(hops)
    }

    /// Foreign chains may drop what passes.
    fn filter(&mut self, packet: &Packet, at: Hook) -> Result<Vec<Hop>> {
        let ways = walk::hook(self.view, packet, at)?;
        let Some(way) = ways.first() else {
            return Ok(Vec::new());
        };
        let (stage, verb) = match at {
            Hook::Input => ("input", "taken in"),
            _ => ("forward", "let through"),
        };
        let warnings = way.unsure.iter().map(|step| {
            format!(
                "{} {} may drop it by a rule that cannot be evaluated here: {}",
                step.table, step.chain, step.text
            )
        });
        let warnings: Vec<String> = warnings.collect();
        if !matches!(way.end, End::Drop | End::Reject) {
            let hop = Hop {
                warnings,
                ..Hop::new(stage, format!("{verb} by all chains"))
            };
            return Ok(if hop.warnings.is_empty() {
                Vec::new()
            } else {
                vec![hop]
            });
        }
        let Some(last) = way.steps.last() else {
            return Ok(Vec::new());
        };
        let (table, chain) = (&last.table, &last.chain);
        if let Some((cause, remedy)) = of_kube(last) {
            let hop = step_hop(last).fault(cause, remedy);
            return Ok(vec![Hop {
                stage: stage.into(),
                ..hop
            }]);
        }
        let ip = match packet.family() {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let whom = self.network_of(packet.destination);
        let whom = whom.map_or(packet.destination.to_string(), |n| n.network.to_string());
        let remedy = if let (Some(name), true) = (legacy::name(table), last.text == "policy drop") {
            let program = match packet.family() {
                Family::V4 => "iptables-legacy",
                Family::V6 => "ip6tables-legacy",
            };
            format!("`{program} -t {name} -A {chain} -d {whom} -j ACCEPT` and the same with -s")
        } else if last.text == "policy drop" {
            format!(
                "`nft add rule {table} {chain} {ip} daddr {whom} accept` and the same with saddr; in iptables' FORWARD \
                 flanneld does this by itself where it runs"
            )
        } else {
            format!(
                "{}, and delete the rule, or put one that accepts before it",
                legacy::show(table, chain)
            )
        };
        Ok(vec![step_hop(last).fault(
            format!("chain {table} {chain} drops it: {}", last.text),
            remedy,
        )]
        .into_iter()
        .map(|hop| Hop {
            stage: stage.into(),
            ..hop
        })
        .collect())
    }

    fn forwarding(&mut self, packet: &Packet) -> Result<Hop> {
        let device = packet
            .iif
            .as_ref()
            .map_or("all", |d| d.name.as_str())
            .to_owned();
        let (key, set) = match packet.family() {
            Family::V4 => (
                format!("ipv4/conf/{device}/forwarding"),
                "net.ipv4.ip_forward".to_owned(),
            ),
            Family::V6 => (
                "ipv6/conf/all/forwarding".to_owned(),
                "net.ipv6.conf.all.forwarding".to_owned(),
            ),
        };
        let value = self.view.switch(&key)?;
        let hop = Hop::new(
            "forward",
            format!("{key} = {}", value.as_deref().unwrap_or("?")),
        );
        Ok(if value.as_deref() == Some("0") {
            hop.fault(
                "this node does not forward packets",
                format!("`sysctl -w {set}=1`; look in /etc/sysctl.d for who sets it to 0"),
            )
        } else {
            hop
        })
    }

    /// Why a packet to an address is lost by its route.
    pub(super) fn route_fault(
        &self,
        to: IpAddr,
        route: Option<&Route>,
    ) -> Option<(String, String)> {
        let network = self.network_of(to);
        let own = network.is_some_and(|network| network.own.contains(to));
        let remedy = if own {
            "`ip link set cni0 up` and `ip address show dev cni0`; twill-cni gives the bridge its address again with \
             the next pod, flanneld at once"
        } else {
            FLANNELD
        };
        let Some(route) = route else {
            let general = || format!("`{} add default via GATEWAY`", ip_route(Family::of(to)));
            let remedy = network.map_or_else(general, |_| remedy.to_owned());
            return Some((format!("there is no route to {to}"), remedy));
        };
        let network = network?;
        let kind = route
            .link
            .and_then(|index| self.link(index))
            .map(|link| &link.kind);
        let is_bridge = matches!(kind, Some(LinkKind::Bridge(_)));
        let is_lost = match own {
            true => !is_bridge,
            false => route.dst.prefix() <= network.network.prefix() || is_bridge,
        };
        let subnet = if own {
            network.own
        } else {
            subnet_like(network.own, to)
        };
        let carries = |link: &&Link| match own {
            true => link.name.as_str() == names::BRIDGE,
            false => matches!(link.kind, LinkKind::Vxlan(_)),
        };
        let down = self.links.iter().filter(carries).find(|link| !link.up);
        if let Some(link) = down.filter(|_| is_lost) {
            let name = &link.name;
            return Some((
                format!("{name} is down, and its routes with it"),
                format!(
                    "`ip link set {name} up`; its routes come back by themselves where the daemons run"
                ),
            ));
        }
        is_lost.then(|| {
            let cause = format!(
                "the route to {subnet} is missing, so a packet to pod {to} takes `{}`",
                self.route_text(route)
            );
            (cause, remedy.to_owned())
        })
    }

    /// What becomes of the source, and whether it changes.
    fn masquerade(&mut self, packet: &Packet) -> Result<(Hop, bool)> {
        let ways = walk::hook(self.view, packet, Hook::Postrouting)?;
        let Some(way) = ways.first() else {
            return Ok((
                Hop::new("source", format!("stays {}", packet.source)),
                false,
            ));
        };
        let why = || {
            let of_element = |step: &&walk::Step| step.set.is_some() && step.object.is_some();
            let named = way.steps.iter().rev().find(of_element);
            let said = way.steps.last().map(|step| match &step.object {
                Some(comment) if step.set.is_none() => {
                    format!("{} {}: {comment}", step.table, step.chain)
                }
                _ => format!("{} {}", step.table, step.chain),
            });
            (said.unwrap_or_default(), named.and_then(super::step_object))
        };
        let is_masqueraded = way.end == End::Masquerade;
        let hop = match way.end {
            End::Masquerade => {
                let (why, object) = why();
                let text = format!("{} becomes this node's address ({why})", packet.source);
                Hop::new("masquerade", text).of(object)
            }
            End::Drop | End::Reject => {
                let (why, _) = why();
                Hop::new("source", packet.source.to_string()).fault(
                    format!("{why} drops it"),
                    "`nft list ruleset`, and delete the rule",
                )
            }
            _ => Hop::new("source", format!("stays {}", packet.source)),
        };
        Ok((hop, is_masqueraded))
    }

    /// The node whose pod has an address, if that is another node.
    fn peer_of(&mut self, to: IpAddr) -> Known<(Node, String)> {
        match self.network_of(to) {
            Some(network) if !network.own.contains(to) => self.holder(subnet_like(network.own, to)),
            _ => Known::Unseen,
        }
    }

    fn leave(&mut self, packet: &Packet, route: &Route, peer: Option<&Node>) -> Result<Vec<Hop>> {
        let Some(link) = route.link.and_then(|index| self.link(index)).cloned() else {
            return Ok(Vec::new());
        };
        if !link.up {
            let hop = Hop::new("link", link.name.to_string()).fault(
                format!("{} is down", link.name),
                format!("`ip link set {} up`", link.name),
            );
            return Ok(vec![hop]);
        }
        match &link.kind {
            LinkKind::Vxlan(vxlan) => {
                let next = route.gateway.unwrap_or(packet.destination);
                self.by_tunnel(packet, &link, vxlan.port, next, peer)
            }
            LinkKind::Bridge(_) => self.by_bridge(packet, &link),
            _ => {
                let next = route.gateway.unwrap_or(packet.destination);
                let mut hop = Hop::new("out", format!("leaves by {} to {next}", link.name));
                if !link.carrier {
                    hop = hop.fault(
                        format!("{} has no carrier", link.name),
                        "plug in the cable, or look at the switch's port",
                    );
                }
                Ok(vec![hop])
            }
        }
    }

    fn by_tunnel(
        &mut self,
        packet: &Packet,
        link: &Link,
        port: u16,
        next: IpAddr,
        peer: Option<&Node>,
    ) -> Result<Vec<Hop>> {
        let device = &link.name;
        let neighs = self.view.neighs(link.index)?;
        let mac_of = |addr: IpAddr| neighs.iter().find(|n| n.addr == addr).and_then(|n| n.mac);
        let hop = Hop::new("neighbour", format!("{next} dev {device}"));
        let Some(mac) = mac_of(next) else {
            let cause = format!("{device} has no neighbour {next}, and nobody answers there");
            return Ok(vec![hop.fault(cause, FLANNELD)]);
        };
        let hop = Hop::new("neighbour", format!("{next} lladdr {mac} dev {device}"));
        let family = packet.family();
        let mut hops = vec![match peer {
            Some(node) => with_mac(hop, node, mac, family),
            None => hop,
        }];
        if hops[0].fault.is_some() {
            return Ok(hops);
        }
        let fdb = self.view.fdb(link.index)?;
        let to_node = |mac: Mac| fdb.iter().find(|e| e.mac == mac).and_then(|e| e.dst);
        let Some(node) = to_node(mac) else {
            let hop = Hop::new("fdb", format!("{mac} dev {device}"));
            let cause = format!("{device} has no forwarding entry for {mac}");
            hops.push(hop.fault(cause, FLANNELD));
            return Ok(hops);
        };
        let hop = Hop::new("fdb", format!("{mac} dst {node} dev {device}"));
        // Of two peers at one address one is wrong.
        let same = neighs.iter().find(|other| {
            other.addr != next
                && other
                    .mac
                    .is_some_and(|m| m != mac && to_node(m) == Some(node))
        });
        if self.is_local(node)? {
            let cause = format!("the forwarding entry leads to {node}, which is this node itself");
            hops.push(hop.fault(cause, FLANNELD));
            return Ok(hops);
        }
        if let Some(other) = same {
            let cause = format!(
                "the forwarding entry leads to {node}, where the pods of {} are too: one of the two is wrong",
                other.addr
            );
            hops.push(hop.fault(cause, FLANNELD));
            return Ok(hops);
        }
        let hop = match peer {
            Some(peer) => with_address(hop, peer, node),
            None => hop,
        };
        let is_elsewhere = hop.fault.is_some();
        hops.push(hop);
        if is_elsewhere {
            return Ok(hops);
        }
        let underlay = self.view.route(node)?;
        hops.push(match underlay {
            Some(route) => Hop::new(
                "tunnel",
                format!("UDP {port} to {node}: {}", self.route_text(&route)),
            ),
            None => Hop::new("tunnel", format!("UDP {port} to {node}")).fault(
                format!("this node has no route to the other node, {node}"),
                format!(
                    "`{} show`: the nodes' own network is not Twill's",
                    ip_route(Family::of(node))
                ),
            ),
        });
        if let (Some(peer), Some(hop)) = (peer, hops.last_mut()) {
            hop.object = Some(format!("node {}", name_of(peer)));
        }
        if hops.iter().all(|hop| hop.fault.is_none()) {
            let to = place(packet.destination, packet.port);
            let from = packet.source;
            let text =
                format!("goes on at the node that has {node}: there, `twill trace {from} {to}`");
            hops.push(Hop {
                onward: Some(Onward {
                    node,
                    from,
                    to: SocketAddr::new(packet.destination, packet.port),
                }),
                ..Hop::new("there", text).of(peer.map(|peer| format!("node {}", name_of(peer))))
            });
        }
        Ok(hops)
    }

    fn by_bridge(&mut self, packet: &Packet, bridge: &Link) -> Result<Vec<Hop>> {
        let to = packet.destination;
        let neighs = self.view.neighs(bridge.index)?;
        let neigh = neighs
            .iter()
            .find(|neigh| neigh.addr == to)
            .and_then(|n| n.mac);
        let Some(record) = self.pod_at(to).cloned() else {
            let hop = Hop::new("port", format!("{to} on {}", bridge.name));
            if self.records.is_empty() {
                let warning =
                    "twill-cni has no records here: which port leads there is not known".to_owned();
                return Ok(vec![Hop {
                    warnings: vec![warning],
                    ..hop
                }]);
            }
            return Ok(vec![hop.fault(
                format!("no pod of this node has the address {to}"),
                "the pod has ended, and its Service has not heard of it: `kubectl get endpointslices -A` and \
                 `kubectl get pods -A -o wide`; is kube-controller-manager running?",
            )]);
        };
        let mut hops = Vec::new();
        if let Some(mac) = neigh {
            let hop = Hop::new(
                "neighbour",
                format!("{to} lladdr {mac} dev {}", bridge.name),
            );
            hops.push(if mac == record.mac {
                hop
            } else {
                hop.fault(
                    format!(
                        "the pod has {}, so {mac} is somebody else's or an earlier pod's",
                        record.mac
                    ),
                    format!("`ip neighbour del {to} dev {}`", bridge.name),
                )
            });
        }
        let mut port = self.port(&record);
        let sender = packet
            .original
            .is_none()
            .then(|| self.pod_at(packet.source))
            .flatten();
        if let (Some(sender), None) = (sender.cloned(), &port.fault)
            && self.is_isolated(&sender)
            && self.is_isolated(&record)
            && sender != record
        {
            port = port.fault(
                format!("{} and {} are both isolated ports of {}: they never speak with each other", sender.veth, record.veth, bridge.name),
                format!("`bridge link set dev {} isolated off`, or take portIsolation out of the conflist", record.veth),
            );
        }
        hops.push(port);
        if hops.iter().all(|hop| hop.fault.is_none()) {
            let hop = self.inside(packet, &record)?;
            hops.push(self.with_pod(hop, &record, to));
        }
        Ok(hops)
    }

    fn is_isolated(&self, record: &Record) -> bool {
        let link = self.link_called(record.veth.as_str());
        link.and_then(|link| link.port)
            .is_some_and(|port| port.isolated)
    }

    /// The node's end of a pod's cable.
    pub(super) fn port(&self, record: &Record) -> Hop {
        let (veth, bridge) = (&record.veth, &record.bridge);
        let object = Some(format!("pod {}", target::name_of(record)));
        let hop = Hop::new("port", format!("{veth} of {bridge}")).of(object);
        let Some(link) = self.link_called(veth.as_str()) else {
            return hop.fault(
                format!("{veth} is gone"),
                "delete the pod: its cable has to be made anew",
            );
        };
        let master = self.link_called(bridge.as_str()).map(|link| link.index);
        if !link.up {
            hop.fault(
                format!("{veth} is down"),
                format!("`ip link set {veth} up`"),
            )
        } else if link.master.is_none() || link.master != master {
            hop.fault(
                format!("{veth} is no port of {bridge}"),
                format!("`ip link set {veth} master {bridge}`"),
            )
        } else if !link.carrier {
            hop.fault(
                format!("{veth} has no carrier: the pod's end is down"),
                format!(
                    "`nsenter --net={} ip link set {} up`",
                    record.netns.display(),
                    record.if_name
                ),
            )
        } else {
            hop
        }
    }

    /// Where the packet ends.
    fn inside(&mut self, packet: &Packet, record: &Record) -> Result<Hop> {
        let (proto, to, port) = (packet.proto, packet.destination, packet.port);
        if !self.sees_pods {
            return Ok(unseen(place(to, port), record));
        }
        let Some(mut inside) = self.view.inside(record)? else {
            return Ok(gone(record));
        };
        let (ifname, at) = (&record.if_name, place(to, port));
        let hop = Hop::new("pod", format!("{ifname} {proto} {at}")).of(Some(pod_of(record)));
        if !inside.addrs()?.iter().any(|addr| addr.cidr.addr() == to) {
            return Ok(hop.fault(
                format!("the pod's {ifname} does not have {to} any more"),
                "delete the pod: its network has to be made anew",
            ));
        }
        Ok(if inside.listens(proto, to, port)? {
            hop
        } else {
            hop.fault(
                format!("nothing in the pod listens at {proto} port {port}"),
                "compare the Service's targetPort with what the program listens at; it must listen at the pod's \
                 address, not at 127.0.0.1",
            )
        })
    }
}

/// The subnet of the node that has an address, where all nodes' are as long as ours.
fn subnet_like(own: Subnet, address: IpAddr) -> Subnet {
    Cidr::new(address, own.prefix()).map_or(own, Cidr::subnet)
}
