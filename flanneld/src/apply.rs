//! Writing to the kernel: the only place that does. Each operation can be done twice, and one that fails does not stop
//! the others: a peer's trouble is its own.

use std::collections::HashMap;

use hostnet::{
    netlink::{
        self, AbsentOk, Addr, FdbEntry, LinkKind, Neigh, Request, addr,
        link::{self, AddrGenMode, Change, Ipv4Conf, NewLink},
        neigh, route,
    },
    vocab::{IfName, Mac},
};

use crate::{
    diff::Op,
    forward,
    host::{Error, Host},
    state::{DeviceKind, Remote, Route, RouteKey, Vxlan},
};

/// An operation that could not be done.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {source}")]
pub struct Failure {
    /// The operation, as a command.
    pub op: String,
    /// The kind of object that it was to change.
    pub object: &'static str,
    /// Why.
    pub source: Error,
}

impl Host {
    /// Does the operations in order. Returns those that failed.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Failure> {
        let mut applying = Applying {
            host: self,
            indexes: HashMap::new(),
            batch: Vec::new(),
            failures: Vec::new(),
        };
        for op in ops {
            if let Err(source) = applying.op(op) {
                applying.failed(op, source);
            }
        }
        applying.flush();
        applying.failures
    }
}

/// A switch of a device that netlink can set: that needs no writable `/proc/sys`.
fn of_our_device(key: &str, value: &str) -> Option<(IfName, Change)> {
    let dev = key.strip_prefix("ipv4/conf/")?.strip_suffix("/rp_filter")?;
    let change = Change {
        ipv4: vec![(Ipv4Conf::RpFilter, value.parse().ok()?)],
        ..Change::default()
    };
    Some((dev.parse().ok()?, change))
}

/// How many requests are held before they are sent: that of many peers need not be in memory at one time.
const BATCH: usize = 100;

struct Applying<'a> {
    host: &'a mut Host,
    indexes: HashMap<IfName, u32>,
    /// Requests that go into one system call.
    batch: Vec<(&'a Op, Request)>,
    failures: Vec<Failure>,
}

impl<'a> Applying<'a> {
    fn op(&mut self, op: &'a Op) -> Result<(), Error> {
        let request = match op {
            Op::CreateLink {
                dev,
                kind,
                mac,
                mtu,
            } => return self.create(dev, kind, *mac, *mtu),
            Op::DeleteLink { dev } => {
                self.flush();
                self.indexes.remove(dev);
                self.host.rtnl.apply(link::delete(dev)).absent_ok()?;
                return Ok(());
            }
            Op::RenameLink { dev, to } => return self.rename(dev, to),
            Op::SetSysctl { key, value } => match of_our_device(key, value) {
                Some((dev, change)) => link::change(&dev, &change),
                None => {
                    self.flush();
                    self.host.sysctl.ensure(key, value)?;
                    return Ok(());
                }
            },
            Op::ChangeTable(changes) => {
                self.flush();
                return Ok(self.host.nft.apply(changes)?);
            }
            Op::Admit { table, rules } => {
                self.flush();
                let marks = forward::marks();
                let nft = &mut self.host.nft;
                return Ok(nft.set_marked_rules(table, forward::CHAIN, &marks, rules)?);
            }
            Op::SetVxlan { dev, vxlan } => link::set_vxlan(dev, &self.vxlan(vxlan)?),
            Op::SetMac { dev, mac } => link::change(
                dev,
                &Change {
                    mac: Some(*mac),
                    ..Change::default()
                },
            ),
            Op::SetMtu { dev, mtu } => link::change(
                dev,
                &Change {
                    mtu: Some(*mtu),
                    ..Change::default()
                },
            ),
            Op::SetUp { dev } => link::change(
                dev,
                &Change {
                    up: Some(true),
                    ..Change::default()
                },
            ),
            Op::AddAddr { dev, addr } => addr::replace(&Addr::new(self.index(dev)?, *addr)),
            Op::DeleteAddr { dev, addr } => addr::delete(&Addr::new(self.index(dev)?, *addr)),
            Op::SetNeigh { dev, addr, mac } => {
                neigh::replace(&Neigh::permanent(self.index(dev)?, *addr, *mac))
            }
            // A neighbour is found by its address alone.
            Op::DeleteNeigh { dev, addr } => {
                neigh::delete(&Neigh::permanent(self.index(dev)?, *addr, Mac::ZERO))
            }
            Op::SetFdb { dev, mac, dst } => neigh::fdb_replace(&self.fdb_entry(dev, *mac, *dst)?),
            Op::DeleteFdb { dev, mac, dst } => neigh::fdb_delete(&self.fdb_entry(dev, *mac, *dst)?),
            Op::SetRoute { key, route } => route::replace(&self.route(key, route)?),
            Op::DeleteRoute { key, route } => route::delete(&self.route(key, route)?),
        };
        self.batch.push((op, request));
        if self.batch.len() == BATCH {
            self.flush();
        }
        Ok(())
    }

    fn create(
        &mut self,
        dev: &IfName,
        kind: &DeviceKind,
        mac: Option<Mac>,
        mtu: u32,
    ) -> Result<(), Error> {
        self.flush();
        let DeviceKind::Vxlan(vxlan) = kind else {
            return Ok(());
        };
        let local = vxlan.local;
        let vxlan = self.vxlan(vxlan)?;
        let new = NewLink {
            mac,
            mtu: Some(mtu),
            ..NewLink::new(dev.clone(), LinkKind::Vxlan(vxlan))
        };
        self.indexes.remove(dev);
        self.host.rtnl.apply(link::create(&new))?;
        if local.is_some_and(|local| local.is_ipv4()) {
            // With a link-local address the device for IPv4 would send router solicitations and group reports into
            // a tunnel where nobody listens. A kernel without IPv6 has nothing to switch off.
            let quiet = Change {
                addr_gen_mode: Some(AddrGenMode::None),
                ..Change::default()
            };
            let _ = self.host.rtnl.apply(link::change(dev, &quiet));
        }
        Ok(())
    }

    fn rename(&mut self, dev: &IfName, to: &IfName) -> Result<(), Error> {
        self.flush();
        let index = self.index(dev)?;
        self.indexes.remove(dev);
        let set_up = |up| {
            let change = Change {
                up: Some(up),
                ..Change::default()
            };
            link::change(index, &change)
        };
        match self.host.rtnl.apply(link::rename(index, to)) {
            // A kernel before 6.2: it loses its routes, which its successor gets next.
            Err(error) if error.is_busy() => {
                self.host.rtnl.apply(set_up(false))?;
                self.host.rtnl.apply(link::rename(index, to))?;
                self.host.rtnl.apply(set_up(true))?;
            }
            other => other?,
        }
        self.indexes.insert(to.clone(), index);
        Ok(())
    }

    fn fdb_entry(&mut self, dev: &IfName, mac: Mac, dst: Remote) -> Result<FdbEntry, Error> {
        Ok(FdbEntry {
            port: dst.port,
            ..FdbEntry::vxlan(self.index(dev)?, mac, dst.addr)
        })
    }

    fn vxlan(&mut self, vxlan: &Vxlan) -> Result<link::Vxlan, Error> {
        let parent = vxlan.parent.as_ref();
        Ok(link::Vxlan {
            vni: vxlan.vni,
            port: vxlan.port,
            local: vxlan.local,
            device: parent.map(|parent| self.index(parent)).transpose()?,
            learning: vxlan.learning,
            gbp: vxlan.gbp,
        })
    }

    fn route(&mut self, key: &RouteKey, route: &Route) -> Result<netlink::Route, Error> {
        let link = self.index(&route.dev)?;
        Ok(netlink::Route {
            onlink: route.onlink,
            protocol: route.protocol,
            src: route.src,
            mtu: route.mtu,
            metric: key.metric,
            ..netlink::Route::new(key.dst, route.gateway, Some(link))
        })
    }

    fn index(&mut self, dev: &IfName) -> Result<u32, Error> {
        if let Some(index) = self.indexes.get(dev) {
            return Ok(*index);
        }
        let index = link::index(dev).ok_or_else(|| Error::NoDevice(dev.clone()))?;
        self.indexes.insert(dev.clone(), index);
        Ok(index)
    }

    /// Sends what waits, before something that cannot be in one system call with it.
    fn flush(&mut self) {
        let (ops, requests): (Vec<&Op>, Vec<Request>) =
            std::mem::take(&mut self.batch).into_iter().unzip();
        for (op, outcome) in ops.into_iter().zip(self.host.rtnl.apply_all(&requests)) {
            let removes = matches!(
                op,
                Op::DeleteAddr { .. }
                    | Op::DeleteNeigh { .. }
                    | Op::DeleteFdb { .. }
                    | Op::DeleteRoute { .. }
            );
            let outcome = if removes {
                outcome.absent_ok()
            } else {
                outcome
            };
            if let Err(error) = outcome {
                self.failed(op, error.into());
            }
        }
    }

    fn failed(&mut self, op: &Op, source: Error) {
        self.failures.push(Failure {
            op: op.to_string(),
            object: op.object(),
            source,
        });
    }
}
