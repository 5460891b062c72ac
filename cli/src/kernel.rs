//! The kernel's answers to the questions of a [`View`]. Each is asked once in a run: a table of thousands of elements
//! is never dumped to follow one packet, and what is asked again is remembered.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cni_plugin::record::{Record, Records};
use hostnet::conntrack::{Conntrack, Traffic};
use hostnet::netlink::link::Counters;
use hostnet::netlink::route::{self, TABLE_MAIN};
use hostnet::netlink::{Addr, FdbEntry, Link, Neigh, Route, Rtnl};
use hostnet::netns::NetNs;
use hostnet::nft::{
    AnyTable, BaseChain, Contents, Element, Key, Name, Nft, Proto, Rule, SetDecl, TableId,
};
use hostnet::sysctl::Sysctl;
use hostnet::vocab::{Family, names};

use crate::legacy::{self, Legacy};
use crate::saved::{self, Saved};
use crate::view::{Error, Result, View};

/// The kernel's state of one network namespace.
#[derive(Debug)]
pub struct Kernel {
    ns: NetNs,
    rtnl: Rtnl,
    nft: Nft,
    records: PathBuf,
    services: PathBuf,
    links: Option<Vec<Link>>,
    addrs: Option<Vec<Addr>>,
    chains: Option<Vec<BaseChain>>,
    rules: BTreeMap<(AnyTable, String), Arc<[Rule]>>,
    sets: BTreeMap<(AnyTable, String), Option<Arc<SetDecl>>>,
    legacy: Option<Legacy>,
}

impl Kernel {
    /// The namespace of the calling thread. `records` is the folder of twill-cni's records.
    ///
    /// # Errors
    /// There is no netlink socket, or no namespace can be opened.
    pub fn here(records: &Path) -> Result<Kernel> {
        Kernel::of(NetNs::current()?, records)
    }

    /// Another namespace.
    ///
    /// # Errors
    /// As [`Kernel::here`].
    pub fn of(ns: NetNs, records: &Path) -> Result<Kernel> {
        let rtnl = Rtnl::open_in(&ns)?;
        let nft = ns.run_in(Nft::open)??;
        Ok(Kernel {
            ns,
            rtnl,
            nft,
            records: records.to_owned(),
            services: Path::new(names::STATE_DIR).join(saved::FILE),
            links: None,
            addrs: None,
            chains: None,
            rules: BTreeMap::new(),
            sets: BTreeMap::new(),
            legacy: None,
        })
    }

    /// The same, with Services by another file of twill-proxy's.
    pub fn services(self, file: &Path) -> Kernel {
        Kernel {
            services: file.to_owned(),
            ..self
        }
    }

    fn legacy(&mut self) -> Result<&Legacy> {
        let legacy = match self.legacy.take() {
            Some(known) => known,
            None => self.ns.run_in(Legacy::read)?.map_err(Error::Legacy)?,
        };
        Ok(self.legacy.insert(legacy))
    }

    /// How many bytes of nf_tables have answered its questions.
    pub fn answered(&self) -> u64 {
        self.nft.answered()
    }
}

impl View for Kernel {
    fn base_chains(&mut self) -> Result<Vec<BaseChain>> {
        if self.chains.is_none() {
            let mut chains = self.nft.base_chains()?;
            chains.extend(self.legacy()?.base_chains.iter().cloned());
            self.chains = Some(chains);
        }
        Ok(self.chains.clone().unwrap_or_default())
    }

    fn chains(&mut self, table: &TableId) -> Result<Vec<Name>> {
        Ok(self.nft.chain_names(table)?)
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        Ok(self.rtnl.routes(route::Filter {
            table: Some(TABLE_MAIN),
            ..route::Filter::default()
        })?)
    }

    fn routes_by(&mut self, link: u32) -> Result<Vec<Route>> {
        Ok(self.rtnl.routes(route::Filter {
            family: None,
            table: Some(TABLE_MAIN),
            link: Some(link),
            protocol: None,
        })?)
    }

    fn rules(&mut self, table: &AnyTable, chain: &str) -> Result<Arc<[Rule]>> {
        let key = (table.clone(), chain.to_owned());
        if let Some(known) = self.rules.get(&key) {
            return Ok(Arc::clone(known));
        }
        let rules: Arc<[Rule]> = match legacy::name(table) {
            Some(_) => {
                let tables = &self.legacy()?.tables;
                let rules = tables.get(table).and_then(|chains| chains.get(chain));
                rules.cloned().unwrap_or_else(|| [].into())
            }
            None => self.nft.rules(table, chain)?.into(),
        };
        self.rules.insert(key, Arc::clone(&rules));
        Ok(rules)
    }

    fn declaration(&mut self, table: &AnyTable, set: &str) -> Result<Option<Arc<SetDecl>>> {
        let key = (table.clone(), set.to_owned());
        if let Some(known) = self.sets.get(&key) {
            return Ok(known.clone());
        }
        let decl = self.nft.declaration(table, set)?;
        self.sets.insert(key, decl.clone());
        Ok(decl)
    }

    fn element(
        &mut self,
        table: &AnyTable,
        set: &Arc<SetDecl>,
        key: &Key,
    ) -> Result<Option<(Key, Element)>> {
        Ok(self.nft.element(table, set, key)?)
    }

    fn tables(&mut self) -> Result<Vec<AnyTable>> {
        let mut tables = self.nft.all_tables()?;
        tables.extend(self.legacy()?.tables.keys().cloned());
        Ok(tables)
    }

    fn contents(&mut self, table: &AnyTable) -> Result<Contents> {
        if legacy::name(table).is_none() {
            return Ok(self.nft.contents(table)?);
        }
        let chains = self.legacy()?.tables.get(table);
        let chains = chains.into_iter().flatten();
        Ok(Contents {
            chains: chains
                .map(|(name, rules)| (name.clone(), rules.to_vec()))
                .collect(),
            sets: Vec::new(),
        })
    }

    fn elements(&mut self, table: &AnyTable, set: &str) -> Result<Vec<(Key, Element)>> {
        match self.declaration(table, set)? {
            Some(decl) => Ok(self.nft.elements(table, &decl)?),
            None => Ok(Vec::new()),
        }
    }

    fn links(&mut self) -> Result<Vec<Link>> {
        if self.links.is_none() {
            self.links = Some(self.rtnl.links()?);
        }
        Ok(self.links.clone().unwrap_or_default())
    }

    fn counters(&mut self) -> Result<Vec<(u32, Counters)>> {
        Ok(self.rtnl.counters()?)
    }

    fn addrs(&mut self) -> Result<Vec<Addr>> {
        if self.addrs.is_none() {
            self.addrs = Some(self.rtnl.addrs(None)?);
        }
        Ok(self.addrs.clone().unwrap_or_default())
    }

    /// The kernel says which; the table says of which network, which the kernel's answer does not tell.
    fn route(&mut self, to: IpAddr) -> Result<Option<Route>> {
        let Some(taken) = self.rtnl.route_to(to)? else {
            return Ok(None);
        };
        let listed = self.rtnl.routes(route::Filter {
            family: Some(Family::of(to)),
            table: Some(TABLE_MAIN),
            link: taken.link,
            protocol: None,
        })?;
        let same = |route: &&Route| route.dst.contains(to) && route.gateway == taken.gateway;
        let of = listed.iter().filter(same);
        let of = of.max_by_key(|route| route.dst.prefix()).cloned();
        Ok(Some(of.unwrap_or(taken)))
    }

    fn source(&mut self, to: IpAddr) -> Result<Option<IpAddr>> {
        Ok(self.rtnl.route_to(to)?.and_then(|route| route.src))
    }

    fn neighs(&mut self, link: u32) -> Result<Vec<Neigh>> {
        Ok(self.rtnl.neighs(Some(link))?)
    }

    fn fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>> {
        let mut entries = self.rtnl.fdb(Some(link))?;
        entries.retain(|entry| entry.link == link);
        Ok(entries)
    }

    fn switch(&mut self, key: &str) -> Result<Option<String>> {
        Ok(self.ns.run_in(|| Sysctl::default().get(key).ok())?)
    }

    fn sockets(&mut self, proto: Proto) -> Result<Option<Vec<SocketAddr>>> {
        let name = match proto {
            Proto::TCP => "tcp",
            Proto::UDP => "udp",
            _ => return Ok(None),
        };
        let read = |suffix: &str| {
            let path = format!("/proc/thread-self/net/{name}{suffix}");
            fs::read_to_string(path).unwrap_or_default()
        };
        let tables = self.ns.run_in(|| [read(""), read("6")])?;
        let lines = tables.iter().flat_map(|table| table.lines().skip(1));
        Ok(Some(
            lines.filter_map(|line| waiting(line, proto)).collect(),
        ))
    }

    fn traffic(&mut self, family: Family, each: &mut dyn FnMut(Traffic)) -> Result<()> {
        Ok(self.ns.run_in(Conntrack::open)??.traffic(family, each)?)
    }

    fn records(&mut self) -> Result<Vec<Record>> {
        Ok(Records::new(&self.records).list()?)
    }

    fn saved_service(&mut self, name: &str) -> Option<Saved> {
        saved::service(&self.services, name)
    }

    fn inside(&mut self, pod: &Record) -> Result<Option<Box<dyn View + '_>>> {
        let ns = match NetNs::open(&pod.netns) {
            Err(error) if error.is_absent() => return Ok(None),
            other => other?,
        };
        Ok(Some(Box::new(Kernel::of(ns, &self.records)?)))
    }
}

/// Where the socket of a line of `/proc/net/{tcp,udp}{,6}` waits, if it does (proc(5)).
fn waiting(line: &str, proto: Proto) -> Option<SocketAddr> {
    // TCP_LISTEN, and of UDP sockets those that are not connected (TCP_CLOSE).
    let waiting = if proto == Proto::TCP { "0A" } else { "07" };
    let mut words = line.split_whitespace();
    let (local, state) = words.nth(1).zip(words.nth(1))?;
    let (address, port) = local.split_once(':')?;
    let address = socket_address(address)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (state == waiting).then(|| SocketAddr::new(address, port))
}

/// Words of 32 bits in the machine's order.
fn socket_address(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..hex.len() / 8)
        .map(|i| u32::from_str_radix(&hex[i * 8..i * 8 + 8], 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read_from_proc() {
        let tcp =
            "   0: 51F4F40A:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1 0";
        let at = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        // 10.244.244.81 in the order of a little-endian machine.
        assert_eq!(waiting(tcp, Proto::TCP), at("10.244.244.81:8080"));
        assert_eq!(waiting(tcp, Proto::UDP), None);
        let connected = tcp.replace(" 0A ", " 01 ");
        assert_eq!(waiting(&connected, Proto::TCP), None);
        let any6 = "  0: 00000000000000000000000000000000:0035 0:0000 07 0 0";
        assert_eq!(waiting(any6, Proto::UDP), at("[::]:53"));
        assert_eq!(waiting("", Proto::UDP), None);
    }
}
