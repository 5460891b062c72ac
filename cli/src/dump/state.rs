//! The kernel's state of a namespace, written down: all that a packet may meet. It answers what a live one answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cni_plugin::record::Record;
use hostnet::conntrack::Traffic;
use hostnet::netlink::link::Counters;
use hostnet::netlink::route::RouteKind;
use hostnet::netlink::{Addr, FdbEntry, Link, Neigh, Route};
use hostnet::nft::{
    AnyTable, BaseChain, Contents, Element, Key, Name, Proto, Rule, SetDecl, TableId,
};
use hostnet::vocab::Family;
use serde::{Deserialize, Serialize};

use crate::target::stranger;
use crate::view::{Result, View};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    base_chains: Vec<BaseChain>,
    tables: Vec<(AnyTable, Contents)>,
    links: Vec<Link>,
    counters: Vec<(u32, Counters)>,
    addrs: Vec<Addr>,
    routes: Vec<RouteFrom>,
    neighs: Vec<Neigh>,
    fdb: Vec<FdbEntry>,
    switches: BTreeMap<String, String>,
    sockets: Vec<(Proto, SocketAddr)>,
    records: Vec<Record>,
    /// The inside of pods, by container and interface; those whose namespace is gone are left out.
    inside: BTreeMap<String, State>,
}

/// A route, and the address that this namespace sends from by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct RouteFrom {
    route: Route,
    source: Option<IpAddr>,
}

fn place(pod: &Record) -> String {
    format!("{}/{}", pod.container_id, pod.if_name)
}

impl State {
    /// Reads all of a namespace, and the inside of its pods.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn take(view: &mut dyn View) -> Result<State> {
        let records = view.records()?;
        let mut state = State::of_namespace(view)?;
        for pod in &records {
            if let Some(mut inside) = view.inside(pod)? {
                let inside = State::of_namespace(&mut *inside)?;
                state.inside.insert(place(pod), inside);
            }
        }
        state.records = records;
        Ok(state)
    }

    fn of_namespace(view: &mut dyn View) -> Result<State> {
        let mut state = State {
            base_chains: view.base_chains()?,
            links: view.links()?,
            counters: view.counters()?,
            addrs: view.addrs()?,
            ..State::default()
        };
        for table in view.tables()? {
            let contents = view.contents(&table)?;
            state.tables.push((table, contents));
        }
        for route in view.routes()? {
            // A stranger stands for all that no other route leads to.
            let to = match route.dst.prefix() {
                0 => stranger(route.dst.family()),
                _ => route.dst.base(),
            };
            let source = view.source(to)?;
            state.routes.push(RouteFrom { route, source });
        }
        let mut switches = vec!["ipv4/ip_forward".to_owned()];
        for word in ["iptables", "ip6tables"] {
            switches.push(format!("bridge/bridge-nf-call-{word}"));
        }
        let links = state.links.clone();
        for name in links.iter().map(|link| link.name.as_str()).chain(["all"]) {
            switches.push(format!("ipv4/conf/{name}/forwarding"));
            switches.push(format!("ipv4/conf/{name}/rp_filter"));
            switches.push(format!("ipv6/conf/{name}/forwarding"));
        }
        for key in switches {
            if let Some(value) = view.switch(&key)? {
                state.switches.insert(key, value);
            }
        }
        for link in &links {
            state.neighs.extend(view.neighs(link.index)?);
            state.fdb.extend(view.fdb(link.index)?);
        }
        for proto in [Proto::TCP, Proto::UDP] {
            let sockets = view.sockets(proto)?.unwrap_or_default();
            state
                .sockets
                .extend(sockets.into_iter().map(|socket| (proto, socket)));
        }
        Ok(state)
    }

    /// Whether an address is one of the namespace's.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addrs.iter().any(|addr| addr.cidr.addr() == address)
    }
}

/// A [`View`] of what was written down.
#[derive(Clone, Debug)]
pub struct Recorded {
    state: State,
    rules: BTreeMap<(AnyTable, Name), Arc<[Rule]>>,
    sets: BTreeMap<(AnyTable, Name), Arc<SetDecl>>,
}

impl Recorded {
    /// Of a state.
    pub fn of(state: State) -> Recorded {
        let (mut rules, mut sets) = (BTreeMap::new(), BTreeMap::new());
        for (table, contents) in &state.tables {
            for (name, of) in &contents.chains {
                rules.insert((table.clone(), name.clone()), of.as_slice().into());
            }
            for set in &contents.sets {
                let name = set.decl.name.clone();
                sets.insert((table.clone(), name), Arc::clone(&set.decl));
            }
        }
        Recorded { state, rules, sets }
    }

    fn set(&self, table: &AnyTable, name: &str) -> &[(Key, Element)] {
        let tables = self.state.tables.iter().filter(|(of, _)| of == table);
        let mut sets = tables.flat_map(|(_, contents)| &contents.sets);
        let set = sets.find(|set| *set.decl.name == *name);
        set.map_or(&[], |set| &set.elements)
    }

    /// The longest that leads there, and of those the one with the least metric.
    fn longest(&self, to: IpAddr) -> Option<&RouteFrom> {
        let routes = self.state.routes.iter();
        let leading = routes.filter(|of| of.route.dst.contains(to));
        let found = leading.max_by_key(|of| (of.route.dst.prefix(), u32::MAX - of.route.metric))?;
        (found.route.kind == RouteKind::Unicast).then_some(found)
    }
}

impl View for Recorded {
    fn base_chains(&mut self) -> Result<Vec<BaseChain>> {
        Ok(self.state.base_chains.clone())
    }

    fn chains(&mut self, table: &TableId) -> Result<Vec<Name>> {
        let table = AnyTable::from(table.clone());
        let of_it = self.rules.keys().filter(|(of, _)| *of == table);
        Ok(of_it.map(|(_, name)| name.clone()).collect())
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        let routes = self.state.routes.iter();
        Ok(routes.map(|of| of.route.clone()).collect())
    }

    fn routes_by(&mut self, link: u32) -> Result<Vec<Route>> {
        let mut routes = self.routes()?;
        routes.retain(|route| route.link == Some(link));
        Ok(routes)
    }

    fn rules(&mut self, table: &AnyTable, chain: &str) -> Result<Arc<[Rule]>> {
        let found = self.rules.get(&(table.clone(), chain.into()));
        Ok(found.cloned().unwrap_or_else(|| [].into()))
    }

    fn declaration(&mut self, table: &AnyTable, set: &str) -> Result<Option<Arc<SetDecl>>> {
        Ok(self.sets.get(&(table.clone(), set.into())).cloned())
    }

    fn element(
        &mut self,
        table: &AnyTable,
        set: &Arc<SetDecl>,
        key: &Key,
    ) -> Result<Option<(Key, Element)>> {
        Ok(set.find(self.set(table, &set.name), key))
    }

    fn tables(&mut self) -> Result<Vec<AnyTable>> {
        let tables = self.state.tables.iter();
        Ok(tables.map(|(table, _)| table.clone()).collect())
    }

    fn contents(&mut self, table: &AnyTable) -> Result<Contents> {
        let mut tables = self.state.tables.iter();
        let found = tables.find(|(of, _)| of == table);
        Ok(found
            .map(|(_, contents)| contents.clone())
            .unwrap_or_default())
    }

    fn elements(&mut self, table: &AnyTable, set: &str) -> Result<Vec<(Key, Element)>> {
        Ok(self.set(table, set).to_vec())
    }

    fn links(&mut self) -> Result<Vec<Link>> {
        Ok(self.state.links.clone())
    }

    fn counters(&mut self) -> Result<Vec<(u32, Counters)>> {
        Ok(self.state.counters.clone())
    }

    fn addrs(&mut self) -> Result<Vec<Addr>> {
        Ok(self.state.addrs.clone())
    }

    fn route(&mut self, to: IpAddr) -> Result<Option<Route>> {
        Ok(self.longest(to).map(|of| of.route.clone()))
    }

    fn source(&mut self, to: IpAddr) -> Result<Option<IpAddr>> {
        if self.state.has(to) {
            return Ok(Some(to));
        }
        Ok(self.longest(to).and_then(|of| of.source))
    }

    fn neighs(&mut self, link: u32) -> Result<Vec<Neigh>> {
        let neighs = self.state.neighs.iter();
        Ok(neighs.filter(|neigh| neigh.link == link).copied().collect())
    }

    fn fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>> {
        let fdb = self.state.fdb.iter();
        Ok(fdb.filter(|entry| entry.link == link).copied().collect())
    }

    fn switch(&mut self, key: &str) -> Result<Option<String>> {
        Ok(self.state.switches.get(key).cloned())
    }

    fn sockets(&mut self, proto: Proto) -> Result<Option<Vec<SocketAddr>>> {
        let of_it = self.state.sockets.iter().filter(|(of, _)| *of == proto);
        let is_known = matches!(proto, Proto::TCP | Proto::UDP);
        Ok(is_known.then(|| of_it.map(|(_, socket)| *socket).collect()))
    }

    /// Connections are not written down: they tell who speaks with whom.
    fn traffic(&mut self, _: Family, _: &mut dyn FnMut(Traffic)) -> Result<()> {
        Ok(())
    }

    fn records(&mut self) -> Result<Vec<Record>> {
        Ok(self.state.records.clone())
    }

    fn inside(&mut self, pod: &Record) -> Result<Option<Box<dyn View + '_>>> {
        let inside = self.state.inside.get(&place(pod)).cloned();
        Ok(inside.map(|state| Box::new(Recorded::of(state)) as Box<dyn View>))
    }
}
