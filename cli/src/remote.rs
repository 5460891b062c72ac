//! The kernel of another node, as its flanneld sees it: each question of a [`View`] goes there, once, and its answer is
//! read from the kernel at that moment. No table is sent: where a packet goes is looked up element by element.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path};
use std::sync::Arc;

use cni_plugin::record::Record;
use hostnet::conntrack::Traffic;
use hostnet::netlink::link::Counters;
use hostnet::netlink::{Addr, FdbEntry, Link, Neigh, Route};
use hostnet::nft::{
    AnyTable, BaseChain, Contents, Element, Key, Name, Proto, Rule, SetDecl, TableId,
};
use hostnet::vocab::Family;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::far;
use crate::onward::{PORT, Place, Reach};
use crate::trace::PodNetwork;
use crate::view::{Error, Result, View};

/// A question that a node answers for another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// [`crate::trace::networks`].
    Networks,
    /// [`View::base_chains`].
    BaseChains,
    /// [`View::rules`].
    Rules(AnyTable, String),
    /// [`View::declaration`].
    Declaration(AnyTable, String),
    /// [`View::element`].
    Element(AnyTable, String, Key),
    /// [`View::elements`].
    Elements(AnyTable, String),
    /// [`View::links`].
    Links,
    /// [`View::counters`].
    Counters,
    /// [`View::addrs`].
    Addrs,
    /// [`View::routes_by`].
    RoutesBy(u32),
    /// [`View::route`].
    Route(IpAddr),
    /// [`View::source`].
    Source(IpAddr),
    /// [`View::neighs`].
    Neighs(u32),
    /// [`View::fdb`].
    Fdb(u32),
    /// [`View::switch`].
    Switch(String),
    /// [`View::sockets`].
    Sockets(Proto),
    /// [`View::records`].
    Records,
}

impl Ask {
    /// Its answer, in JSON.
    ///
    /// # Errors
    /// What is asked is not what it says, or the kernel cannot be read.
    pub fn answer(&self, view: &mut dyn View, networks: &[PodNetwork]) -> anyhow::Result<String> {
        fn json(answer: &(impl Serialize + ?Sized)) -> anyhow::Result<String> {
            Ok(serde_json::to_string(answer)?)
        }
        match self {
            Ask::Networks => json(&networks),
            Ask::BaseChains => json(&view.base_chains()?),
            Ask::Rules(table, chain) => json(&view.rules(table, chain)?[..]),
            Ask::Declaration(table, set) => json(&view.declaration(table, set)?.as_deref()),
            Ask::Element(table, set, key) => match view.declaration(table, set)? {
                Some(decl) => json(&view.element(table, &decl, key)?),
                None => json(&None::<()>),
            },
            Ask::Elements(table, set) => json(&view.elements(table, set)?),
            Ask::Links => json(&view.links()?),
            Ask::Counters => json(&view.counters()?),
            Ask::Addrs => json(&view.addrs()?),
            Ask::RoutesBy(link) => json(&view.routes_by(*link)?),
            Ask::Route(to) => json(&view.route(*to)?),
            Ask::Source(to) => json(&view.source(*to)?),
            Ask::Neighs(link) => json(&view.neighs(*link)?),
            Ask::Fdb(link) => json(&view.fdb(*link)?),
            Ask::Switch(key) => {
                let mut parts = Path::new(key).components();
                let is_below = parts.all(|part| matches!(part, Component::Normal(_)));
                anyhow::ensure!(is_below, "{key:?} is no switch");
                json(&view.switch(key)?)
            }
            Ask::Sockets(proto) => json(&view.sockets(*proto)?),
            Ask::Records => json(&view.records()?),
        }
    }
}

/// Another node.
pub struct Remote<'a> {
    node: Place,
    reach: &'a dyn Reach,
    /// What it has told, by what it was asked.
    told: BTreeMap<String, String>,
}

impl<'a> Remote<'a> {
    /// A node, and the way to ask it.
    pub fn new(node: Place, reach: &'a dyn Reach) -> Remote<'a> {
        Remote {
            node,
            reach,
            told: BTreeMap::new(),
        }
    }

    /// The pods' networks there.
    ///
    /// # Errors
    /// It does not answer.
    pub fn networks(&mut self) -> Result<Vec<PodNetwork>> {
        self.ask(&Ask::Networks)
    }

    fn ask<T: DeserializeOwned>(&mut self, ask: &Ask) -> Result<T> {
        let target = far::view_target(ask);
        let failed = |why: String| Error::Remote(self.node.to_string(), why);
        let body = match self.told.get(&target) {
            Some(body) => body,
            None => {
                let body = self.reach.get(&self.node, PORT, &target).map_err(failed)?;
                self.told.entry(target).or_insert(body)
            }
        };
        serde_json::from_str(body)
            .map_err(|error| failed(format!("its answer is not understood: {error}")))
    }

    fn not_asked<T>(&self) -> Result<T> {
        let why = "this is seen by `twill` on the node alone".to_owned();
        Err(Error::Remote(self.node.to_string(), why))
    }
}

impl View for Remote<'_> {
    fn base_chains(&mut self) -> Result<Vec<BaseChain>> {
        self.ask(&Ask::BaseChains)
    }

    fn chains(&mut self, _: &TableId) -> Result<Vec<Name>> {
        self.not_asked()
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        self.not_asked()
    }

    fn routes_by(&mut self, link: u32) -> Result<Vec<Route>> {
        self.ask(&Ask::RoutesBy(link))
    }

    fn rules(&mut self, table: &AnyTable, chain: &str) -> Result<Arc<[Rule]>> {
        let rules: Vec<Rule> = self.ask(&Ask::Rules(table.clone(), chain.to_owned()))?;
        Ok(rules.into())
    }

    fn declaration(&mut self, table: &AnyTable, set: &str) -> Result<Option<Arc<SetDecl>>> {
        let decl: Option<SetDecl> = self.ask(&Ask::Declaration(table.clone(), set.to_owned()))?;
        Ok(decl.map(Arc::new))
    }

    fn element(
        &mut self,
        table: &AnyTable,
        set: &Arc<SetDecl>,
        key: &Key,
    ) -> Result<Option<(Key, Element)>> {
        self.ask(&Ask::Element(
            table.clone(),
            set.name.to_string(),
            key.clone(),
        ))
    }

    fn tables(&mut self) -> Result<Vec<AnyTable>> {
        self.not_asked()
    }

    fn contents(&mut self, _: &AnyTable) -> Result<Contents> {
        self.not_asked()
    }

    fn elements(&mut self, table: &AnyTable, set: &str) -> Result<Vec<(Key, Element)>> {
        self.ask(&Ask::Elements(table.clone(), set.to_owned()))
    }

    fn links(&mut self) -> Result<Vec<Link>> {
        self.ask(&Ask::Links)
    }

    fn counters(&mut self) -> Result<Vec<(u32, Counters)>> {
        self.ask(&Ask::Counters)
    }

    fn addrs(&mut self) -> Result<Vec<Addr>> {
        self.ask(&Ask::Addrs)
    }

    fn route(&mut self, to: IpAddr) -> Result<Option<Route>> {
        self.ask(&Ask::Route(to))
    }

    fn source(&mut self, to: IpAddr) -> Result<Option<IpAddr>> {
        self.ask(&Ask::Source(to))
    }

    fn neighs(&mut self, link: u32) -> Result<Vec<Neigh>> {
        self.ask(&Ask::Neighs(link))
    }

    fn fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>> {
        self.ask(&Ask::Fdb(link))
    }

    fn switch(&mut self, key: &str) -> Result<Option<String>> {
        self.ask(&Ask::Switch(key.to_owned()))
    }

    fn sockets(&mut self, proto: Proto) -> Result<Option<Vec<SocketAddr>>> {
        self.ask(&Ask::Sockets(proto))
    }

    fn traffic(&mut self, _: Family, _: &mut dyn FnMut(Traffic)) -> Result<()> {
        self.not_asked()
    }

    fn records(&mut self) -> Result<Vec<Record>> {
        self.ask(&Ask::Records)
    }

    /// A daemon enters no pod.
    fn inside(&mut self, _: &Record) -> Result<Option<Box<dyn View + '_>>> {
        self.not_asked()
    }
}
