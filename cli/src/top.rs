//! Who uses which Service, by the kernel's table of connections: connections and bytes for each Service port and each of
//! its endpoints, as seen from this node.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hostnet::conntrack::Traffic;
use hostnet::nft::{Key, Proto};
use hostnet::vocab::Family;
use serde::Serialize;

use crate::table::{Table, size};
use crate::target::{name_of, proxy_table};
use crate::view::{Result, View};
use crate::walk::kube;

/// A Service port and one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// `NAMESPACE/NAME[:PORT]`, or the address where nothing names it.
    pub service: String,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// The pod, if it is of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The transport protocol.
    pub protocol: String,
    /// How many connections the kernel remembers.
    pub connections: u64,
    /// Bytes from clients; `None`: they are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// Bytes to clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
}

/// What is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// Most bytes first
    Bytes,
    /// Most connections first
    Connections,
    /// By name
    Name,
}

/// The Services in use, with their endpoints.
///
/// # Errors
/// The kernel cannot be read.
pub fn top(view: &mut dyn View, order: Order) -> Result<Vec<Use>> {
    // Of each destination and endpoint: connections, and bytes of both directions.
    type Counts = (u64, Option<[u64; 2]>);
    let mut counts: BTreeMap<(u8, SocketAddr, SocketAddr), Counts> = BTreeMap::new();
    for family in Family::ALL {
        view.traffic(family, &mut |flow: Traffic| {
            let (asked, answers) = (flow.original.dst, flow.reply.src);
            if asked == answers {
                return;
            }
            let count = counts
                .entry((flow.proto, asked, answers))
                .or_insert((0, None));
            count.0 += 1;
            if let Some([(_, from), (_, to)]) = flow.counted {
                let sums = count.1.get_or_insert([0, 0]);
                sums[0] += from;
                sums[1] += to;
            }
        })?;
    }
    let records = view.records()?;
    let mut names: BTreeMap<(u8, SocketAddr), Option<String>> = BTreeMap::new();
    let mut chained: Option<Vec<kube::Entrance>> = None;
    let mut uses: BTreeMap<(String, u8, SocketAddr), Use> = BTreeMap::new();
    for ((proto, asked, endpoint), (connections, bytes)) in counts {
        if let std::collections::btree_map::Entry::Vacant(unknown) = names.entry((proto, asked)) {
            let found = match service_at(view, Proto(proto), asked)? {
                None => chained_at(view, &mut chained, Proto(proto), asked)?,
                some => some,
            };
            unknown.insert(found);
        }
        let service = names[&(proto, asked)].clone();
        let service = service.unwrap_or_else(|| asked.to_string());
        let pod = records.iter().find(|r| r.addrs().contains(&endpoint.ip()));
        let key = (service.clone(), proto, endpoint);
        let of = uses.entry(key).or_insert_with(|| Use {
            service,
            endpoint,
            pod: pod.map(name_of),
            protocol: Proto(proto).to_string(),
            connections: 0,
            received: None,
            sent: None,
        });
        of.connections += connections;
        if let Some([from, to]) = bytes {
            *of.received.get_or_insert(0) += from;
            *of.sent.get_or_insert(0) += to;
        }
    }
    let mut uses: Vec<Use> = uses.into_values().collect();
    let bytes = |of: &Use| of.received.unwrap_or(0) + of.sent.unwrap_or(0);
    match order {
        Order::Bytes => uses.sort_by_key(|of| std::cmp::Reverse((bytes(of), of.connections))),
        Order::Connections => uses.sort_by_key(|of| std::cmp::Reverse((of.connections, bytes(of)))),
        Order::Name => {}
    }
    Ok(uses)
}

/// The Service at an address and port, by the comment of its element.
fn service_at(view: &mut dyn View, proto: Proto, at: SocketAddr) -> Result<Option<String>> {
    let table = proxy_table(Family::of(at.ip()));
    for (map, key) in [
        ("vips", Key::from((at.ip(), proto, at.port()))),
        ("nodeports", Key::from((proto, at.port()))),
    ] {
        let Some(decl) = view.declaration(&table, map)? else {
            continue;
        };
        let found = view.element(&table, &decl, &key)?;
        if let Some(comment) = found.and_then(|(_, element)| element.comment) {
            return Ok(Some(comment.as_str().to_owned()));
        }
    }
    Ok(None)
}

/// The same where Services are iptables chains, which are read once.
fn chained_at(
    view: &mut dyn View,
    known: &mut Option<Vec<kube::Entrance>>,
    proto: Proto,
    at: SocketAddr,
) -> Result<Option<String>> {
    if known.is_none() {
        let mut all = Vec::new();
        for family in Family::ALL {
            all.extend(kube::entrances(view, family)?);
        }
        *known = Some(all);
    }
    let is_it = |of: &&kube::Entrance| {
        let address: Option<IpAddr> = of.address;
        of.proto == proto && of.port == at.port() && address.is_none_or(|a| a == at.ip())
    };
    let found = known.iter().flatten().find(is_it);
    Ok(found.map(|of| of.service.clone()))
}

/// Uses as a table for people.
#[derive(Debug)]
pub struct UseTable<'a>(pub &'a [Use]);

impl fmt::Display for UseTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            "SERVICE",
            "ENDPOINT",
            "POD",
            "CONNECTIONS",
            "RECEIVED",
            "SENT",
        ]);
        for of in self.0 {
            let bytes = |n: Option<u64>| n.map_or("?".to_owned(), size);
            table.row([
                format!("{}/{}", of.service, of.protocol),
                of.endpoint.to_string(),
                of.pod.clone().unwrap_or_else(|| "-".to_owned()),
                of.connections.to_string(),
                bytes(of.received),
                bytes(of.sent),
            ]);
        }
        write!(f, "{table}")?;
        if self.0.iter().any(|of| of.received.is_none()) {
            writeln!(
                f,
                "bytes are not counted: `sysctl -w net.netfilter.nf_conntrack_acct=1` counts those of new connections"
            )?;
        }
        Ok(())
    }
}
