//! What all attachments of a node together need of it, as a pure function of their records, and
//! mending it: flanneld watches the records and the kernel, and has this put back what somebody
//! flushed, deleted or set down.
//!
//! ```no_run
//! use cni_plugin::rebuild::{self, Node};
//! use cni_plugin::record::Records;
//! use hostnet::netlink::Rtnl;
//! use hostnet::nft::Nft;
//! use hostnet::sysctl::Sysctl;
//!
//! let records = Records::new(hostnet::vocab::names::ATTACHMENTS_DIR.as_ref());
//! // In the host's namespace, at a start and whenever a record or something of the kernel changed:
//! let switches = Sysctl::default();
//! for done in rebuild::mend(&mut Rtnl::open()?, &mut Nft::open()?, &switches, &records)? {
//!     println!("put back: {done}");
//! }
//! // Or piece by piece:
//! let wanted = Node::desired(&records.list()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;

use hostnet::netlink::link::{self, Bridge, BridgePort, Change, Ipv4Conf, NewLink};
use hostnet::netlink::{Addr, FdbEntry, LinkKind, Request, Rtnl, addr, neigh};
use hostnet::nft::{Nft, Table, diff};
use hostnet::sysctl::Sysctl;
use hostnet::vocab::{Cidr, Family, IfName, Mac};

use crate::error::CniError;
use crate::exec;
use crate::nat;
use crate::plan::{self, GatewaySpec, NETFILTER};
use crate::record::{Record, Records};
use crate::shaping::Shaping;
use crate::vlans::Vlans;

/// What the attachments need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The table `twill-cni` of each family, IPv4 first. One that no attachment needs has no
    /// elements; it need not be made then, but is mended where it is there.
    pub tables: Vec<Table>,
    /// The bridges with their ports.
    pub bridges: Vec<BridgeState>,
    /// Bandwidth.
    pub shaping: Vec<Shaping>,
}

/// A bridge that attachments hang on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeState {
    /// Its name.
    pub name: IfName,
    /// The MAC to make it with, if it has to be made.
    pub mac: Mac,
    /// The MTU to make it with, in bytes: the largest of its attachments'.
    pub mtu: u32,
    /// The addresses that attachments rely upon.
    pub addrs: Vec<Cidr>,
    /// The gateways of VLANs, with theirs.
    pub gateways: Vec<(GatewaySpec, Vec<Cidr>)>,
    /// It filters by VLAN.
    pub vlan_filtering: bool,
    /// Packets from 127.0.0.0/8 may pass it, to host ports.
    pub route_localnet: bool,
    /// Its ports.
    pub ports: Vec<PortState>,
}

/// A port of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortState {
    /// The node's end of the cable.
    pub veth: IfName,
    /// Its manners.
    pub port: BridgePort,
    /// The only MAC that may send, if the port is locked.
    pub only: Option<Mac>,
    /// Its VLANs.
    pub vlans: Vlans,
}

impl Node {
    /// What these attachments need.
    pub fn desired(records: &[Record]) -> Node {
        let mut bridges: BTreeMap<&IfName, BridgeState> = BTreeMap::new();
        for record in records {
            let bridge = bridges
                .entry(&record.bridge)
                .or_insert_with(|| BridgeState {
                    name: record.bridge.clone(),
                    mac: plan::name_mac(&record.bridge),
                    mtu: 0,
                    addrs: Vec::new(),
                    gateways: Vec::new(),
                    vlan_filtering: false,
                    route_localnet: false,
                    ports: Vec::new(),
                });
            bridge.mtu = bridge.mtu.max(record.mtu);
            bridge.vlan_filtering |= !record.vlans.is_empty();
            bridge.add_gateway(record);
            bridge.route_localnet |= nat::needs_route_localnet(record);
            bridge.ports.push(PortState {
                veth: record.veth.clone(),
                port: port(record),
                only: record.locked.then_some(record.mac),
                vlans: record.vlans.clone(),
            });
        }
        let mut bridges: Vec<BridgeState> = bridges.into_values().collect();
        for bridge in &mut bridges {
            bridge.addrs.sort_unstable();
            bridge.addrs.dedup();
            if let Some(first) = bridge.addrs.first() {
                bridge.mac = Mac::for_ip(first.addr());
            }
        }
        Node {
            tables: Family::ALL.map(|family| nat::table(family, records)).into(),
            bridges,
            shaping: records.iter().filter_map(Shaping::of).collect(),
        }
    }
}

impl BridgeState {
    /// The addresses that an attachment relies upon, where they stand.
    fn add_gateway(&mut self, record: &Record) {
        let (link, addrs) = (record.gateway(), &record.bridge_addresses);
        if link == self.name {
            self.addrs.extend(addrs);
        } else if let Some((spec, known)) = self.gateways.iter_mut().find(|(g, _)| g.link == link) {
            spec.mtu = spec.mtu.max(record.mtu);
            known.extend(
                addrs
                    .iter()
                    .filter(|addr| !known.contains(addr))
                    .collect::<Vec<_>>(),
            );
        } else if let Some(first) = addrs.first() {
            let spec = GatewaySpec {
                link,
                mac: Mac::for_ip(first.addr()),
                mtu: record.mtu,
                vlans: record.vlans.of_gateway(),
            };
            self.gateways.push((spec, addrs.clone()));
        }
    }
}

/// How an attachment's port of the bridge shall be.
pub fn port(record: &Record) -> BridgePort {
    BridgePort {
        hairpin: record.hairpin,
        isolated: record.isolated,
        locked: record.locked,
    }
}

/// Puts back what is missing or different: tables, bridges with their addresses and ports,
/// bandwidth. Returns what was done, in words; empty if all was right. A cable that is gone is
/// not laid again: its pod has to be made anew.
///
/// To be called in the host's namespace; `sysctl` are its switches where they can be written. What ADD and DEL do at the same moment is not in the way
/// of it: they write the record first, and take it away last.
///
/// # Errors
/// All that could not be done, joined. What could be done is done.
pub fn mend(
    rtnl: &mut Rtnl,
    nft: &mut Nft,
    sysctl: &Sysctl,
    records: &Records,
) -> Result<Vec<String>, CniError> {
    let mut done = Vec::new();
    let mut errors = Vec::new();
    let mut take = |outcome: Result<Vec<String>, CniError>| match outcome {
        Ok(more) => done.extend(more),
        Err(error) => errors.push(error),
    };
    for family in Family::ALL {
        take(mend_table(nft, family, records));
    }
    let node = Node::desired(&records.list()?);
    for bridge in &node.bridges {
        take(mend_bridge(rtnl, sysctl, bridge));
    }
    for shaping in &node.shaping {
        take(shaping.apply(rtnl));
    }
    CniError::join(errors).map_or(Ok(done), Err)
}

/// Makes the table of a family what the records say. Without a need for one none is made.
fn mend_table(nft: &mut Nft, family: Family, records: &Records) -> Result<Vec<String>, CniError> {
    const ATTEMPTS: u32 = 100;
    let mut attempt = 1;
    loop {
        // The table is read before the records: what is in it by then has its record already.
        let observed = nft.observe(&nat::table_id(family))?;
        let all = records.list()?;
        let mut desired = nat::table(family, &all);
        // Bridges that once let packets from 127.0.0.0/8 pass go on doing so.
        let opened = all.iter().map(|record| &record.bridge).filter(|bridge| {
            let key = format!("ipv4/conf/{bridge}/route_localnet");
            Sysctl::default().get(key).is_ok_and(|value| value == "1")
        });
        nat::guard_bridges(&mut desired, opened, observed.table.as_ref());
        let is_empty = desired.sets.values().all(|set| set.elements.is_empty());
        if observed.table.is_none() && is_empty {
            return Ok(Vec::new());
        }
        let changes = diff(observed.table.as_ref(), desired);
        match nft.apply_at(observed.generation, &changes) {
            Ok(()) if changes.is_empty() => return Ok(Vec::new()),
            Ok(()) => {
                let what = format!("{} changes of table {}", changes.ops.len(), changes.table);
                return Ok(vec![what]);
            }
            Err(error) if error.is_surprise() && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

fn mend_bridge(
    rtnl: &mut Rtnl,
    sysctl: &Sysctl,
    wanted: &BridgeState,
) -> Result<Vec<String>, CniError> {
    let mut requests: Vec<Request> = Vec::new();
    let mut done = Vec::new();
    let settings = Bridge {
        vlan_filtering: wanted.vlan_filtering,
        ..NETFILTER
    };
    let bridge = match rtnl.link(&wanted.name)? {
        Some(link) => link,
        None => {
            let new = NewLink {
                mac: Some(wanted.mac),
                mtu: Some(wanted.mtu),
                ..NewLink::new(wanted.name.clone(), LinkKind::Bridge(settings))
            };
            let create = link::create(&new);
            done.push(create.what().to_owned());
            match rtnl.apply(create) {
                Err(error) if error.is_exists() => {}
                other => other?,
            }
            let name = &wanted.name;
            exec::bridge_switches(sysctl, name)?;
            let Some(link) = rtnl.link(name)? else {
                return Ok(done);
            };
            link
        }
    };
    let found = plan::bridge_settings(&bridge)?;
    if !bridge.up {
        let up = Change {
            up: Some(true),
            ..Change::default()
        };
        requests.push(link::change(bridge.index, &up));
    }
    // Filtering that others turned on stays.
    let settings = Bridge {
        vlan_filtering: wanted.vlan_filtering || found.vlan_filtering,
        ..settings
    };
    if found != settings {
        rtnl.apply(link::set_bridge(bridge.index, &settings))?;
        done.push(format!("set the switches of {}", wanted.name));
    }
    requests.extend(missing_addrs(rtnl, bridge.index, &wanted.addrs)?);
    for (spec, addrs) in &wanted.gateways {
        let link = exec::ensure_gateway(rtnl, sysctl, bridge.index, spec, &mut done)?;
        requests.extend(missing_addrs(rtnl, link.index, addrs)?);
    }
    for PortState {
        veth, port, only, ..
    } in &wanted.ports
    {
        let Some(veth) = rtnl.link(veth)? else {
            continue;
        };
        let change = Change {
            up: (!veth.up).then_some(true),
            master: (veth.master != Some(bridge.index)).then_some(bridge.index),
            ..Change::default()
        };
        if change != Change::default() {
            requests.push(link::change(veth.index, &change));
        }
        if change.master.is_some() || veth.port != Some(*port) {
            requests.extend(only.map(|mac| neigh::fdb_replace(&FdbEntry::port(veth.index, mac))));
            requests.push(link::set_port(veth.index, *port));
        }
    }
    let key = format!("ipv4/conf/{}/route_localnet", wanted.name);
    if wanted.route_localnet && Sysctl::default().get(key)? != "1" {
        requests.push(route_localnet(bridge.index));
    }
    let mut errors = apply_all(rtnl, &requests, &mut done);
    // A port has VLANs once it is on the bridge, the default one to begin with.
    for PortState { veth, vlans, .. } in &wanted.ports {
        if !vlans.is_empty()
            && let Some(veth) = rtnl.link(veth)?
        {
            let requests = vlans.outstanding(rtnl, veth.index)?;
            errors.extend(apply_all(rtnl, &requests, &mut done));
        }
    }
    CniError::join(errors).map_or(Ok(done), Err)
}

/// Does what is asked for, tells of it, and returns what went wrong.
fn apply_all(rtnl: &mut Rtnl, requests: &[Request], done: &mut Vec<String>) -> Vec<CniError> {
    let mut errors = Vec::new();
    for (request, outcome) in requests.iter().zip(rtnl.apply_all(requests)) {
        match outcome {
            Ok(()) => done.push(request.what().to_owned()),
            Err(error) if error.is_exists() => {}
            Err(error) => errors.push(error.into()),
        }
    }
    errors
}

/// What gives a link the addresses that it lacks.
fn missing_addrs(rtnl: &mut Rtnl, link: u32, wanted: &[Cidr]) -> Result<Vec<Request>, CniError> {
    let present = rtnl.addrs(Some(link))?;
    let missing = (wanted.iter()).filter(|cidr| !present.iter().any(|a| a.cidr == **cidr));
    Ok(missing
        .map(|cidr| addr::add(&Addr::new(link, *cidr)))
        .collect())
}

/// Lets packets from and to 127.0.0.0/8 pass a bridge. The guard of the table has to be in.
pub(crate) fn route_localnet(bridge: u32) -> Request {
    let change = Change {
        ipv4: vec![(Ipv4Conf::RouteLocalnet, 1)],
        ..Change::default()
    };
    link::change(bridge, &change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    #[test]
    fn a_bridge_has_what_its_attachments_need() {
        let mut b = record("b");
        b.veth = IfName::new("veth2").unwrap();
        b.mtu = 1500;
        b.snat = true;
        b.ports = serde_json::from_str(r#"[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]"#)
            .unwrap();
        let node = Node::desired(&[record("a"), b]);
        assert_eq!(node.bridges.len(), 1);
        let bridge = &node.bridges[0];
        assert_eq!((bridge.mtu, bridge.route_localnet), (1500, true));
        assert_eq!(bridge.mac.to_string(), "0a:58:0a:f4:03:01");
        assert_eq!((bridge.addrs.len(), bridge.ports.len()), (1, 2));
        assert!(node.shaping.is_empty());
        assert!(Node::desired(&[]).bridges.is_empty());
    }
}
