//! FROM and TO: what a person writes, and what it means on this node.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use cni_plugin::record::Record;
use hostnet::nft::{AnyTable, Comment, Datum, Key, Proto, TableId};
use hostnet::vocab::{Family, names};

use crate::view::View;
use crate::walk::kube;

/// Who sends, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A client that is no part of the cluster.
    Outside,
    /// A process of a node: of this one, if no name is given.
    Node(Option<String>),
    /// A pod.
    Pod(String),
    /// Whoever has this address.
    Address(IpAddr),
}

/// Where to, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// A Service, by `NAMESPACE/NAME`, at a port by number or name.
    Service(String, Option<String>),
    /// A pod.
    Pod(String, u16),
    /// A node's address.
    Node(String, u16),
    /// An address and port.
    Address(IpAddr, u16),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<From, String> {
        match text.split_once('/') {
            None if text == "outside" => Ok(From::Outside),
            None if text == "node" => Ok(From::Node(None)),
            Some(("node", node)) if !node.is_empty() && !node.contains('/') => {
                Ok(From::Node(Some(node.to_owned())))
            }
            Some(("pod", pod)) => Ok(From::Pod(qualified(pod)?)),
            _ => text.parse().map(From::Address).map_err(|_| {
                format!(
                    "{text:?} is none of `outside`, `node`, `node/NAME`, `pod/NAMESPACE/NAME` and an address"
                )
            }),
        }
    }
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<To, String> {
        if let Some(service) = text.strip_prefix("svc/") {
            return Ok(match service.split_once(':') {
                Some((name, port)) => To::Service(qualified(name)?, Some(port.to_owned())),
                None => To::Service(qualified(service)?, None),
            });
        }
        if let Some(pod) = text.strip_prefix("pod/") {
            let (pod, port) = pod
                .split_once(':')
                .ok_or("a pod needs a port: pod/NAMESPACE/NAME:PORT")?;
            return Ok(To::Pod(qualified(pod)?, parse_port(port)?));
        }
        if let Some(node) = text.strip_prefix("node/") {
            let (node, port) = node
                .split_once(':')
                .filter(|(node, _)| !node.is_empty() && !node.contains('/'))
                .ok_or("a node needs a name and a port: node/NAME:PORT")?;
            return Ok(To::Node(node.to_owned(), parse_port(port)?));
        }
        let needs = || {
            format!(
                "{text:?} is none of `svc/NAMESPACE/NAME[:PORT]`, `pod/NAMESPACE/NAME:PORT`, `node/NAME:PORT` and `ADDRESS:PORT` \
                 (`[ADDRESS]:PORT` for IPv6)"
            )
        };
        let (address, port) = text.rsplit_once(':').ok_or_else(needs)?;
        let address = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
            Some(v6) => v6.parse().map(IpAddr::V6).map_err(|_| needs())?,
            None => address.parse().map(IpAddr::V4).map_err(|_| needs())?,
        };
        Ok(To::Address(address, parse_port(port)?))
    }
}

fn qualified(name: &str) -> Result<String, String> {
    match name.split('/').collect::<Vec<_>>()[..] {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Ok(format!("{namespace}/{name}"))
        }
        _ => Err(format!("{name:?} is not NAMESPACE/NAME")),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{text:?} is no port: a number from 1 to 65535"))
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            From::Outside => f.write_str("outside"),
            From::Node(None) => f.write_str("node"),
            From::Node(Some(node)) => write!(f, "node/{node}"),
            From::Pod(pod) => write!(f, "pod/{pod}"),
            From::Address(address) => write!(f, "{address}"),
        }
    }
}

/// Where a packet is sent, by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The Service port that it is meant for, by the comments of our elements.
    pub service: Option<String>,
}

/// A name that is not there, or stands for several.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Nothing is called so.
    #[error("{what} {name} is not known{}", nearest(.near))]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// The name.
        name: String,
        /// The names most like it.
        near: Vec<String>,
    },
    /// It has several ports.
    #[error("Service {name} has several ports, say which: {}", .ports.join(", "))]
    Ports {
        /// The Service.
        name: String,
        /// How to write them.
        ports: Vec<String>,
    },
    /// A pod has no address of the family.
    #[error("pod {pod} has no {family} address")]
    Family {
        /// The pod.
        pod: String,
        /// The family.
        family: Family,
    },
}

fn nearest(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!("; is it {}?", near.join(" or ")),
    }
}

/// An address that is nobody's (RFC 5737, RFC 3849): a client somewhere.
pub fn stranger(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The command that shows and sets routes of a family.
pub fn ip_route(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip route",
        Family::V6 => "ip -6 route",
    }
}

/// The table of twill-proxy.
pub fn proxy_table(family: Family) -> AnyTable {
    TableId::new(family, names::TABLE_PROXY).into()
}

/// An address and port of a Service, as an element shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entrance {
    service: String,
    port_name: String,
    proto: u8,
    port: u16,
    /// `None` for a node port.
    address: Option<IpAddr>,
}

impl Entrance {
    /// Whether a person means it by this number or name of a port.
    fn is_at(&self, port: &str) -> bool {
        self.port_name == port || self.port.to_string() == port
    }
}

/// The maps that lead packets to Services, and those that tell of the same Services: there one that was lost can still be
/// named.
const MAPS: [&[&str]; 2] = [
    &["vips", "nodeports"],
    &[
        "masq-vips",
        "endpoints",
        "masq-nodeports",
        "nodeport-endpoints",
    ],
];

/// The entrances of Services. The second maps, which are larger, are read only if the first are not enough.
fn entrances(
    view: &mut dyn View,
    family: Family,
    is_enough: impl Fn(&BTreeSet<Entrance>) -> bool,
) -> crate::view::Result<BTreeSet<Entrance>> {
    let table = proxy_table(family);
    let mut all = BTreeSet::new();
    if view.declaration(&table, "vips")?.is_none() {
        let chained = kube::entrances(view, family)?.into_iter().map(|of| {
            let (service, port_name) = of.service.split_once(':').unwrap_or((&of.service, ""));
            Entrance {
                service: service.to_owned(),
                port_name: port_name.to_owned(),
                proto: of.proto.0,
                port: of.port,
                address: of.address,
            }
        });
        return Ok(chained.collect());
    }
    for sets in MAPS {
        if is_enough(&all) {
            break;
        }
        for set in sets {
            let Some(decl) = view.declaration(&table, set)? else {
                continue;
            };
            for (key, element) in view.elements(&table, set)? {
                let (Some(comment), Some(key)) = (&element.comment, decl.key.decode(&key)) else {
                    continue;
                };
                let (address, proto, port) = match &key[..] {
                    [
                        Datum::Addr(address),
                        Datum::Proto(proto),
                        Datum::Port(port),
                        ..,
                    ] => (Some(*address), proto, port),
                    [Datum::Proto(proto), Datum::Port(port), ..] => (None, proto, port),
                    _ => continue,
                };
                let text = comment.as_str();
                let (service, port_name) = text.split_once(':').unwrap_or((text, ""));
                all.insert(Entrance {
                    service: service.to_owned(),
                    port_name: port_name.to_owned(),
                    proto: proto.0,
                    port: *port,
                    address,
                });
            }
        }
    }
    Ok(all)
}

/// The entrances of a Service that twill-proxy remembers, if the kernel has each of them still; two elements are looked up
/// for each port then, and no map is read.
fn remembered(
    view: &mut dyn View,
    family: Family,
    name: &str,
) -> crate::view::Result<Option<BTreeSet<Entrance>>> {
    let table = proxy_table(family);
    let Some(saved) = view.saved_service(name) else {
        return Ok(None);
    };
    let mut own = saved.cluster_ips.into_iter();
    let address = own.find(|address| Family::of(*address) == family);
    let (Some(address), Some(vips), Some(node_ports)) = (
        address,
        view.declaration(&table, "vips")?,
        view.declaration(&table, "nodeports")?,
    ) else {
        return Ok(None);
    };
    let mut all = BTreeSet::new();
    for port in saved.ports {
        let proto = Proto::from(port.protocol);
        let label = match port.name.as_str() {
            "" => name.to_owned(),
            port => format!("{name}:{port}"),
        };
        let comment = Some(Comment::new(&label));
        let mut entrances = vec![(&vips, Some(address), port.port)];
        entrances.extend(port.node_port.map(|port| (&node_ports, None, port)));
        for (map, address, number) in entrances {
            let key = match address {
                Some(address) => Key::from((address, proto, number)),
                None => Key::from((proto, number)),
            };
            match view.element(&table, map, &key)? {
                Some((_, element)) if element.comment == comment => {}
                _ => return Ok(None),
            }
            all.insert(Entrance {
                service: name.to_owned(),
                port_name: port.name.clone(),
                proto: proto.0,
                port: number,
                address,
            });
        }
    }
    Ok(Some(all))
}

/// The addresses in a set of twill-proxy's.
fn addresses(view: &mut dyn View, family: Family, set: &str) -> crate::view::Result<Vec<IpAddr>> {
    let table = proxy_table(family);
    let decl = view.declaration(&table, set)?;
    let elements = view.elements(&table, set)?;
    let decode = |key| decl.as_ref()?.key.decode(key)?.into_iter().next();
    let data = elements.iter().filter_map(|(key, _)| decode(key));
    Ok(data
        .filter_map(|datum| match datum {
            Datum::Addr(address) => Some(address),
            _ => None,
        })
        .collect())
}

/// An address of this node at which node ports answer; where they answer at all of them, that by which the node speaks
/// to the outside.
///
/// # Errors
/// The kernel cannot be read.
pub fn node_port_address(
    view: &mut dyn View,
    family: Family,
) -> crate::view::Result<Option<IpAddr>> {
    match addresses(view, family, "nodeport-ips")?.first() {
        Some(address) => Ok(Some(*address)),
        None => view.source(stranger(family)),
    }
}

/// Finds a Service's address: from outside its node port if it has one, else its cluster IP.
///
/// # Errors
/// [`Unclear`], or the kernel cannot be read.
pub fn service(
    view: &mut dyn View,
    family: Family,
    proto: Proto,
    name: &str,
    port: Option<&str>,
    from_outside: bool,
) -> anyhow::Result<Destination> {
    let is_enough = |all: &BTreeSet<Entrance>| {
        let mut own = all.iter().filter(|entrance| entrance.service == name);
        own.any(|entrance| {
            entrance.proto == proto.0
                && port.is_none_or(|port| entrance.is_at(port))
                && entrance.address.is_none() == from_outside
        })
    };
    // Last of all whole maps are read.
    let all = match remembered(view, family, name)? {
        Some(all) => all,
        None => entrances(view, family, is_enough)?,
    };
    let mut own: Vec<&Entrance> = all.iter().filter(|e| e.service == name).collect();
    if own.is_empty() {
        let known = all.iter().map(|entrance| entrance.service.as_str());
        return Err(unknown("Service", name, known).into());
    }
    own.retain(|entrance| entrance.proto == proto.0);
    if let Some(port) = port {
        own.retain(|entrance| entrance.is_at(port));
    }
    let port_names: BTreeSet<&str> = own.iter().map(|e| e.port_name.as_str()).collect();
    if port_names.len() != 1 {
        let of = all
            .iter()
            .filter(|e| e.service == name && e.address.is_some());
        let ports: BTreeSet<String> = of
            .map(|e| {
                let flag = match Proto(e.proto) {
                    Proto::TCP => "",
                    Proto::UDP => " --udp",
                    _ => " --sctp",
                };
                format!("svc/{name}:{}{flag}", e.port)
            })
            .collect();
        return Err(Unclear::Ports {
            name: name.to_owned(),
            ports: ports.into_iter().collect(),
        }
        .into());
    }
    let label = |entrance: &Entrance| match entrance.port_name.as_str() {
        "" => entrance.service.clone(),
        port => format!("{}:{port}", entrance.service),
    };
    let node_port = own.iter().find(|entrance| entrance.address.is_none());
    let node_address = node_port_address(view, family)?;
    if from_outside && let (Some(entrance), Some(address)) = (node_port, node_address) {
        return Ok(Destination {
            address,
            port: entrance.port,
            service: Some(label(entrance)),
        });
    }
    let table = proxy_table(family);
    let cluster_ips = view.declaration(&table, "cluster-ips")?;
    let with_address = || own.iter().filter(|entrance| entrance.address.is_some());
    let mut chosen = with_address().next();
    for entrance in with_address() {
        if let (Some(set), Some(address)) = (&cluster_ips, entrance.address)
            && view.element(&table, set, &address.into())?.is_some()
        {
            chosen = Some(entrance);
            break;
        }
    }
    match chosen.and_then(|entrance| Some((entrance, entrance.address?))) {
        Some((entrance, address)) => Ok(Destination {
            address,
            port: entrance.port,
            service: Some(label(entrance)),
        }),
        None => Err(unknown("Service", name, std::iter::empty()).into()),
    }
}

/// Finds a pod of this node by `NAMESPACE/NAME`, or any other of its records by container id.
///
/// # Errors
/// [`Unclear::Unknown`] with the nearest names.
pub fn pod<'a>(records: &'a [Record], name: &str) -> Result<&'a Record, Unclear> {
    let found = records
        .iter()
        .find(|record| record.pod.as_deref() == Some(name));
    found.ok_or_else(|| {
        let known = records.iter().filter_map(|record| record.pod.as_deref());
        unknown("pod", name, known)
    })
}

/// The pod's address of a family.
///
/// # Errors
/// [`Unclear::Family`].
pub fn pod_address(record: &Record, family: Family) -> Result<IpAddr, Unclear> {
    let mut addrs = record.addrs().into_iter();
    addrs
        .find(|addr| Family::of(*addr) == family)
        .ok_or_else(|| Unclear::Family {
            pod: name_of(record),
            family,
        })
}

/// What a person calls an attachment.
pub fn name_of(record: &Record) -> String {
    let container = || format!("container {}", record.container_id);
    record.pod.clone().unwrap_or_else(container)
}

/// An error with the three names most like it.
pub fn unknown<'a>(
    what: &'static str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> Unclear {
    let known: BTreeSet<&str> = known.collect();
    let mut near: Vec<(usize, &str)> = known.into_iter().map(|k| (distance(name, k), k)).collect();
    near.sort_unstable();
    near.retain(|(distance, _)| *distance <= name.len() / 2 + 1);
    Unclear::Unknown {
        what,
        name: name.to_owned(),
        near: near
            .into_iter()
            .take(3)
            .map(|(_, k)| k.to_owned())
            .collect(),
    }
}

/// How many letters have to be put in, left out or changed (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_understood_or_refused_with_the_forms() {
        let to = |text: &str| text.parse::<To>();
        let web = || "default/web".to_owned();
        assert_eq!(to("svc/default/web"), Ok(To::Service(web(), None)));
        let http = Some("http".to_owned());
        assert_eq!(to("svc/default/web:http"), Ok(To::Service(web(), http)));
        assert_eq!(to("pod/default/web:80"), Ok(To::Pod(web(), 80)));
        let v6 = "fd00::1".parse().unwrap();
        assert_eq!(to("[fd00::1]:80"), Ok(To::Address(v6, 80)));
        for bad in [
            "",
            "web",
            "svc/web",
            "svc/a/b/c",
            "pod/a/b",
            "node/a",
            "node/a/b:1",
            "1.2.3.4",
            "1.2.3.4:0",
            "fd00::1:80",
        ] {
            assert!(to(bad).is_err(), "{bad}");
        }
        assert_eq!("node".parse(), Ok(From::Node(None)));
        assert_eq!("node/one".parse(), Ok(From::Node(Some("one".to_owned()))));
        assert_eq!(to("node/one:80"), Ok(To::Node("one".to_owned(), 80)));
        assert_eq!("pod/default/web".parse(), Ok(From::Pod(web())));
        let error = "nod".parse::<From>().unwrap_err();
        assert!(error.contains("pod/NAMESPACE/NAME"), "{error}");
    }

    #[test]
    fn unknown_names_bring_the_nearest() {
        let known = ["default/web", "default/wep-2", "kube-system/kube-dns"];
        let error = unknown("Service", "default/wbe", known.into_iter());
        assert_eq!(
            error.to_string(),
            "Service default/wbe is not known; is it default/web or default/wep-2?"
        );
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
