//! Doing the steps of a plan, and undoing them in reverse when one fails.

use std::time::{Duration, Instant};

use hostnet::netlink::link::{
    self, Bridge, BridgePort, Change, Ipv4Conf, Link, LinkKind, NewLink, NewPeer,
};
use hostnet::netlink::{AbsentOk, Addr, FdbEntry, Request, Route, Rtnl, addr, neigh, route};
use hostnet::netns::NetNs;
use hostnet::nft::Nft;
use hostnet::sysctl::Sysctl;
use hostnet::vocab::{Cidr, Family, IfName, Mac};

use crate::error::{CniError, Code};
use crate::nat::{self, Flows, Seen};
use crate::plan::{self, BridgeSpec, GatewaySpec, NETFILTER, Step};
use crate::rebuild;
use crate::record::{Record, Records};
use crate::request::Identity;
use crate::request::settings::ConfigRoute;
use crate::shaping::{self, Shaping};

/// How long to wait for a new port to forward. It takes the kernel a fraction of a millisecond;
/// what is slower than this will come up without us.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// The place where steps are done, and what was done there.
#[derive(Debug)]
pub struct Executor<'a> {
    host: &'a mut Rtnl,
    pod: &'a mut Rtnl,
    pod_ns: &'a NetNs,
    records: &'a Records,
    bridge: Option<Link>,
    /// The index of the VLAN's gateway, if the pod is in one.
    gateway: Option<u32>,
    nft: Option<(Nft, Seen)>,
    undo: Vec<Undo>,
}

/// How long duplicate address detection may take. The kernel asks once and waits a second unless
/// it is told otherwise.
const DAD_PATIENCE: Duration = Duration::from_secs(10);

/// Steps that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Why.
    pub error: CniError,
    /// Whether all that was done is undone. If not, the pod may still have its addresses.
    pub undone: bool,
}

/// How to take a step back.
#[derive(Clone, Debug)]
enum Undo {
    /// Delete the cable.
    Veth(IfName),
    /// Delete the bridge that we made, unless others use it by now.
    Bridge(u32),
    /// Take the address back, unless others use the bridge.
    BridgeAddr(Addr),
    /// Delete the gateway of a VLAN that we made on a bridge, unless others use that by now.
    Gateway(IfName, u32),
    /// Delete the device that shapes what the pod sends.
    Ifb(IfName),
    /// Take the attachment's host ports and masquerade away.
    Rules(Identity),
}

impl<'a> Executor<'a> {
    /// `bridge` as it was observed, if it is there, and the handle on nf_tables with what was seen
    /// by it, if one is open.
    pub fn new(
        host: &'a mut Rtnl,
        pod: &'a mut Rtnl,
        pod_ns: &'a NetNs,
        records: &'a Records,
        bridge: Option<Link>,
        nft: Option<(Nft, Seen)>,
    ) -> Executor<'a> {
        Executor {
            host,
            pod,
            pod_ns,
            records,
            bridge,
            gateway: None,
            nft,
            undo: Vec::new(),
        }
    }

    /// Does all steps, and gives the bridge as it was observed or made. If one fails, or what
    /// `still_wanted` says afterwards, those before are undone, and the error is the first one.
    pub fn run(
        mut self,
        steps: &[Step],
        still_wanted: impl FnOnce() -> Result<(), CniError>,
    ) -> Result<Link, Failure> {
        let done = steps.iter().try_for_each(|step| self.step(step));
        let done = done.and_then(|()| still_wanted());
        let bridge = done.and_then(|()| self.bridge.clone().ok_or_else(no_bridge));
        bridge.map_err(|mut error| {
            let left = self.undo_all();
            for undoing in &left {
                error.details += if error.details.is_empty() { "" } else { "; " };
                error.details += &format!("and to undo: {undoing}");
            }
            Failure {
                error,
                undone: left.is_empty(),
            }
        })
    }

    fn step(&mut self, step: &Step) -> Result<(), CniError> {
        match step {
            Step::CreateBridge(spec) => self.create_bridge(spec),
            Step::AlterBridge {
                bridge,
                mac,
                mtu,
                settings,
                promisc,
                up,
            } => {
                let change = Change {
                    mac: *mac,
                    mtu: *mtu,
                    promisc: promisc.then_some(true),
                    up: up.then_some(true),
                    ..Change::default()
                };
                if change != Change::default() {
                    self.host.apply(link::change(bridge, &change))?;
                }
                if let Some(settings) = settings {
                    let done = self.host.apply(link::set_bridge(bridge, settings));
                    done.map_err(|error| no_vlans(error, settings))?;
                }
                Ok(())
            }
            Step::Gateway(spec) => self.gateway(spec),
            Step::AddBridgeAddr { cidr, .. } => self.add_bridge_addr(*cidr),
            Step::CreateVeth { .. } => self.create_veth(step),
            Step::ConfigurePod {
                ifname,
                addrs,
                routes,
                dad,
            } => self.configure_pod(ifname, addrs, routes, *dad),
            Step::OpenPort {
                veth,
                port,
                only,
                vlans,
                wait,
            } => {
                self.set_port(veth, *port, *only)?;
                if !vlans.is_empty() {
                    let found = self.host.link(veth)?.ok_or_else(|| gone(veth))?;
                    let requests = vlans.outstanding(self.host, found.index)?;
                    all(self.host, &requests)?;
                }
                if *wait { self.await_port(veth) } else { Ok(()) }
            }
            Step::Shape(shaping) => self.shape(shaping),
            Step::Publish(record) => self.publish(record),
            Step::Forward(family) => {
                Sysctl::default().ensure(forwarding_key(*family), "1")?;
                Ok(())
            }
            Step::RemoveBridgeAddr(addr) => Ok(self.host.apply(addr::delete(addr)).absent_ok()?),
        }
    }

    fn create_bridge(&mut self, spec: &BridgeSpec) -> Result<(), CniError> {
        let settings = Bridge {
            vlan_filtering: spec.vlan_filtering,
            ..NETFILTER
        };
        let new = NewLink {
            mac: Some(spec.mac),
            mtu: Some(spec.mtu),
            ..NewLink::new(spec.name.clone(), LinkKind::Bridge(settings))
        };
        let ours = match self.host.apply(link::create(&new)) {
            // Another ADD was faster, and makes it the same way.
            Err(error) if error.is_exists() => false,
            other => {
                other.map_err(|error| no_vlans(error, &settings))?;
                true
            }
        };
        let made = self
            .host
            .link(&spec.name)?
            .ok_or_else(|| bridge_gone(&spec.name))?;
        if ours {
            self.undo.push(Undo::Bridge(made.index));
            bridge_switches(&Sysctl::default(), &spec.name)?;
        }
        let up = Change {
            promisc: spec.promisc.then_some(true),
            ..UP
        };
        self.host.apply(link::change(made.index, &up))?;
        self.bridge = Some(made);
        Ok(())
    }

    fn gateway(&mut self, spec: &GatewaySpec) -> Result<(), CniError> {
        let bridge = self.bridge_index()?;
        let before = self.host.link(&spec.link)?.is_some();
        let link = ensure_gateway(self.host, &Sysctl::default(), bridge, spec, &mut Vec::new());
        if !before {
            self.undo.push(Undo::Gateway(spec.link.clone(), bridge));
        }
        self.gateway = Some(link?.index);
        Ok(())
    }

    fn add_bridge_addr(&mut self, cidr: Cidr) -> Result<(), CniError> {
        let index = self.gateway.map_or_else(|| self.bridge_index(), Ok)?;
        let addr = Addr::new(index, cidr);
        match self.host.apply(addr::add(&addr)) {
            Err(error) if error.is_exists() => Ok(()),
            other => {
                other?;
                // With the gateway of a VLAN go its addresses.
                if self.gateway.is_none() {
                    self.undo.push(Undo::BridgeAddr(addr));
                }
                Ok(())
            }
        }
    }

    fn create_veth(&mut self, step: &Step) -> Result<(), CniError> {
        let Step::CreateVeth {
            veth,
            mac,
            bridge,
            ifname,
            pod_mac,
            mtu,
        } = step
        else {
            return Ok(());
        };
        let master = self.bridge_index()?;
        let peer = NewPeer {
            mac: Some(*pod_mac),
            mtu: Some(*mtu),
            ..NewPeer::new(ifname.clone(), self.pod_ns.clone())
        };
        let new = NewLink {
            mac: Some(*mac),
            mtu: Some(*mtu),
            master: Some(master),
            up: true,
            ..NewLink::veth(veth.clone(), peer)
        };
        if let Err(error) = self.host.apply(link::create(&new)) {
            // A failed ADD that made the bridge takes it away again if it sees no port.
            return match self.host.link(master) {
                Ok(None) => Err(bridge_gone(bridge)),
                _ => Err(error.into()),
            };
        }
        self.undo.push(Undo::Veth(veth.clone()));
        Ok(())
    }

    fn configure_pod(
        &mut self,
        ifname: &IfName,
        addrs: &[Cidr],
        routes: &[ConfigRoute],
        dad: bool,
    ) -> Result<(), CniError> {
        let index = self
            .pod
            .link(ifname)?
            .ok_or_else(|| CniError::new(Code::Kernel, format!("{ifname} vanished from the pod")))?
            .index;
        let v6 = addrs.iter().any(|addr| addr.family() == Family::V6);
        let pod = Sysctl::default();
        let switches = || -> Result<(), CniError> {
            // A pod must not take routes from another pod.
            set_if_there(&pod, &format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
            if !v6 {
                return Ok(());
            }
            // Nor wait a second for its link-local address, which no other has.
            if !dad {
                set_if_there(&pod, &format!("ipv6/conf/{ifname}/accept_dad"), "0")?;
            }
            // Who sets the interface down and up again keeps its addresses.
            set_if_there(&pod, &format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1")?;
            // Some runtimes turn it off in each new namespace.
            Ok(pod
                .ensure(format!("ipv6/conf/{ifname}/disable_ipv6"), "0")
                .map(drop)?)
        };
        self.pod_ns
            .run_in(switches)
            .map_err(|error| CniError::of(Code::Kernel, &error))??;
        // Neighbours that knew another MAC for the address hear of the new one.
        let up = Change {
            ipv4: vec![(Ipv4Conf::ArpNotify, 1)],
            ..UP
        };
        let mut requests: Vec<Request> = addrs
            .iter()
            .map(|cidr| {
                let addr = Addr::new(index, *cidr);
                let nodad = addr.nodad && !dad;
                addr::add(&Addr { nodad, ..addr })
            })
            .collect();
        requests.push(link::change(index, &up));
        requests.extend(routes.iter().map(|wanted| {
            let mut route = Route::new(wanted.dst, wanted.gw, Some(index));
            route.mtu = wanted.mtu;
            route.advmss = wanted.advmss;
            route.metric = wanted.priority.unwrap_or(route.metric);
            route.table = wanted.table.unwrap_or(route.table);
            route.scope = wanted.kernel_scope().unwrap_or(route.scope);
            route::add(&route)
        }));
        all(self.pod, &requests)?;
        if dad && v6 {
            self.await_dad(index)?;
        }
        Ok(())
    }

    /// Until the kernel knows that nobody else has the addresses.
    fn await_dad(&mut self, index: u32) -> Result<(), CniError> {
        let start = Instant::now();
        loop {
            let open = self.pod.unconfirmed(index)?;
            if let Some((addr, _)) = open.iter().find(|(_, failed)| *failed) {
                let msg = format!("somebody on the network has the address {addr} already");
                return Err(CniError::new(Code::TryAgain, msg));
            }
            if open.is_empty() {
                return Ok(());
            }
            if start.elapsed() > DAD_PATIENCE {
                let msg = "duplicate address detection does not come to an end: try again";
                return Err(CniError::new(Code::TryAgain, msg));
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "it lasts a second, and the kernel tells only who listened before"
            )]
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn set_port(
        &mut self,
        veth: &IfName,
        port: BridgePort,
        only: Option<Mac>,
    ) -> Result<(), CniError> {
        let Some(mac) = only else {
            return Ok(self.host.apply(link::set_port(veth, port))?);
        };
        let found = self.host.link(veth)?.ok_or_else(|| gone(veth))?;
        // A port that is locked learns nothing: the pod's MAC has to be known before.
        self.host
            .apply(neigh::fdb_replace(&FdbEntry::port(found.index, mac)))?;
        self.host.apply(link::set_port(veth, port))?;
        let found = self.host.link(veth)?.ok_or_else(|| gone(veth))?;
        match found.port {
            Some(port) if port.locked => Ok(()),
            // An older kernel passes over what it does not know.
            _ => {
                let msg = "macspoofchk needs bridge ports that can be locked (Linux 5.18), which \
                           this kernel does not have";
                Err(CniError::new(Code::InvalidConfig, msg))
            }
        }
    }

    fn shape(&mut self, shaping: &Shaping) -> Result<(), CniError> {
        if let Some((ifb, _)) = &shaping.egress {
            self.undo.push(Undo::Ifb(ifb.clone()));
        }
        shaping.apply(self.host).map(drop)
    }

    /// The rules first: among them is the guard that makes the switch harmless.
    fn publish(&mut self, record: &Record) -> Result<(), CniError> {
        let (nft, seen) = match &mut self.nft {
            Some(open) => open,
            none => none.insert((Nft::open()?, Seen::default())),
        };
        self.undo.extend(record.identity().map(Undo::Rules));
        nat::publish(nft, record, self.records, std::mem::take(seen))?;
        if nat::needs_route_localnet(record) {
            let bridge = self.bridge_index()?;
            let key = format!("ipv4/conf/{}/route_localnet", record.bridge);
            if Sysctl::default().get(key)? != "1" {
                self.host.apply(rebuild::route_localnet(bridge))?;
            }
        }
        if !record.ports.is_empty() {
            let addrs = self.host.addrs(None)?;
            let local: Vec<_> = addrs.iter().map(|addr| addr.cidr.addr()).collect();
            nat::forget(record, Flows::NotToIt, &local)?;
        }
        Ok(())
    }

    /// Until the port forwards, what the pod sends first is lost, and what is lost is sent again
    /// after a second at the earliest.
    fn await_port(&mut self, veth: &IfName) -> Result<(), CniError> {
        let start = Instant::now();
        loop {
            let port = self.host.link(veth)?;
            // The first port brings the bridge's own carrier.
            let bridge = match &self.bridge {
                Some(bridge) if bridge.operational => None,
                Some(bridge) => self.host.link(bridge.index)?,
                None => None,
            };
            let ready = port.is_none_or(|link| link.operational)
                && bridge.is_none_or(|link| link.operational);
            if ready || start.elapsed() > PORT_PATIENCE {
                return Ok(());
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "before Linux 6.8 looking does not make the kernel act, and a subscription costs more"
            )]
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn bridge_index(&self) -> Result<u32, CniError> {
        match &self.bridge {
            Some(bridge) => Ok(bridge.index),
            None => Err(no_bridge()),
        }
    }

    fn undo_all(&mut self) -> Vec<CniError> {
        let mut left = Vec::new();
        while let Some(undo) = self.undo.pop() {
            if let Err(error) = self.undo_one(&undo) {
                left.push(error);
            }
        }
        left
    }

    fn undo_one(&mut self, undo: &Undo) -> Result<(), CniError> {
        let request = match undo {
            Undo::Ifb(name) => return shaping::remove_ifb(self.host, name),
            Undo::Rules(identity) => {
                return match &mut self.nft {
                    Some((nft, _)) => nat::withdraw(nft, identity).map(drop),
                    None => Ok(()),
                };
            }
            Undo::Veth(veth) => link::delete(veth),
            Undo::Bridge(index) if self.host.ports(*index)?.is_empty() => link::delete(*index),
            Undo::BridgeAddr(addr) if self.host.ports(addr.link)?.is_empty() => addr::delete(addr),
            Undo::Gateway(name, bridge) if self.host.ports(*bridge)?.len() < 2 => {
                link::delete(name)
            }
            Undo::Bridge(_) | Undo::BridgeAddr(_) | Undo::Gateway(..) => return Ok(()),
        };
        Ok(self.host.apply(request).absent_ok()?)
    }
}

const UP: Change = Change {
    up: Some(true),
    mac: None,
    mtu: None,
    master: None,
    promisc: None,
    addr_gen_mode: None,
    ipv4: Vec::new(),
};

/// Has the gateway of a VLAN stand on a bridge, by its index, and says in `done` what that took.
pub(crate) fn ensure_gateway(
    rtnl: &mut Rtnl,
    sysctl: &Sysctl,
    bridge: u32,
    spec: &GatewaySpec,
    done: &mut Vec<String>,
) -> Result<Link, CniError> {
    let link = match rtnl.link(&spec.link)? {
        Some(link) => link,
        None => {
            let port = IfName::new(&plan::gateway_port(&spec.link))?;
            let peer = NewPeer {
                mac: Some(plan::name_mac(&port)),
                name: port,
                mtu: Some(spec.mtu),
                ns: None,
            };
            let new = NewLink {
                mac: Some(spec.mac),
                mtu: Some(spec.mtu),
                ..NewLink::veth(spec.link.clone(), peer)
            };
            let create = link::create(&new);
            done.push(create.what().to_owned());
            rtnl.apply(create)?;
            bridge_switches(sysctl, &spec.link)?;
            rtnl.link(&spec.link)?.ok_or_else(|| gone(&spec.link))?
        }
    };
    let Some(port) = link.peer.filter(|peer| peer.netns_id.is_none()) else {
        let msg = format!("{} is there, and not the gateway of a VLAN", spec.link);
        return Err(CniError::new(Code::InvalidConfig, msg));
    };
    let found = rtnl.link(port.index)?.ok_or_else(|| gone(&spec.link))?;
    let mut requests = Vec::new();
    if found.master != Some(bridge) || !found.up {
        let change = Change {
            master: Some(bridge),
            ..UP
        };
        all(rtnl, &[link::change(port.index, &change)])?;
        done.push(format!("connect {} with the bridge", spec.link));
    }
    if !link.up {
        requests.push(link::change(link.index, &UP));
    }
    requests.extend(spec.vlans.outstanding(rtnl, port.index)?);
    done.extend(requests.iter().map(|request| request.what().to_owned()));
    all(rtnl, &requests)?;
    Ok(link)
}

/// The error of a bridge that cannot be set so: of a kernel whose bridges know no VLANs.
fn no_vlans(error: hostnet::netlink::Error, settings: &Bridge) -> CniError {
    // EOPNOTSUPP.
    if !settings.vlan_filtering || !error.is_errno(&[95]) {
        return error.into();
    }
    let msg = "vlan and vlanTrunk need bridges that filter by VLAN, which this kernel does not have \
               (CONFIG_BRIDGE_VLAN_FILTERING)";
    CniError {
        details: error.to_string(),
        ..CniError::new(Code::InvalidConfig, msg)
    }
}

/// Switches of a new bridge, before it is set up.
pub(crate) fn bridge_switches(sysctl: &Sysctl, bridge: &IfName) -> Result<(), CniError> {
    // A pod must not be able to give the node routes (CVE-2020-10749).
    set_if_there(sysctl, &format!("ipv6/conf/{bridge}/accept_ra"), "0")?;
    // Neighbours are asked from the link-local address. While that is being checked for
    // duplicates, nothing from outside reaches a pod.
    set_if_there(sysctl, &format!("ipv6/conf/{bridge}/accept_dad"), "0")
}

/// The families that the node forwards now.
pub fn forwarded(families: &[Family]) -> Result<Vec<Family>, CniError> {
    let mut forwarded = Vec::new();
    for family in families {
        if Sysctl::default().get(forwarding_key(*family))? == "1" {
            forwarded.push(*family);
        }
    }
    Ok(forwarded)
}

fn forwarding_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4/ip_forward",
        Family::V6 => "ipv6/conf/all/forwarding",
    }
}

fn gone(name: &IfName) -> CniError {
    CniError::new(Code::Kernel, format!("{name} vanished at the same moment"))
}

fn no_bridge() -> CniError {
    CniError::new(Code::Kernel, "the plan made no bridge")
}

fn bridge_gone(name: &IfName) -> CniError {
    let msg = format!("the bridge {name} was removed at the same moment: try again");
    CniError::new(Code::TryAgain, msg)
}

fn all(rtnl: &mut Rtnl, requests: &[Request]) -> Result<(), CniError> {
    let outcomes = rtnl.apply_all(requests);
    let errors = outcomes
        .into_iter()
        .filter_map(Result::err)
        .map(CniError::from)
        .collect();
    CniError::join(errors).map_or(Ok(()), Err)
}

/// Sets a switch of an interface that has just been made. A kernel without IPv6 has no such switch.
fn set_if_there(sysctl: &Sysctl, key: &str, value: &str) -> Result<(), CniError> {
    Ok(sysctl.set(key, value).map(drop)?)
}
