//! Doing the steps of a plan, and undoing them in reverse when one fails.

use std::time::{Duration, Instant};

use hostnet::netlink::addr;
use hostnet::netlink::link::{self, Change, Ipv4Conf, Link, LinkKind, NewLink, NewPeer};
use hostnet::netlink::route;
use hostnet::netlink::{AbsentOk, Addr, Request, Route, Rtnl};
use hostnet::netns::NetNs;
use hostnet::sysctl::{Sysctl, SysctlError};
use hostnet::vocab::{Cidr, Family, IfName, Subnet};

use crate::error::{CniError, Code};
use crate::plan::{BridgeSpec, NETFILTER, Step};

/// How long to wait for a new port to forward. It takes the kernel a fraction of a millisecond;
/// what is slower than this will come up without us.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// The place where steps are done, and what was done there.
#[derive(Debug)]
pub struct Executor<'a> {
    host: &'a mut Rtnl,
    pod: &'a mut Rtnl,
    pod_ns: &'a NetNs,
    bridge: Option<Link>,
    undo: Vec<Undo>,
}

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
}

impl<'a> Executor<'a> {
    /// `bridge` as it was observed, if it is there.
    pub fn new(
        host: &'a mut Rtnl,
        pod: &'a mut Rtnl,
        pod_ns: &'a NetNs,
        bridge: Option<Link>,
    ) -> Executor<'a> {
        Executor {
            host,
            pod,
            pod_ns,
            bridge,
            undo: Vec::new(),
        }
    }

    /// Does all steps, and gives the bridge as it was observed or made. If one fails, those before
    /// are undone, and the error is the first one.
    pub fn run(mut self, steps: &[Step]) -> Result<Link, Failure> {
        let done = steps.iter().try_for_each(|step| self.step(step));
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
                netfilter,
                up,
            } => {
                let mut requests = Vec::new();
                let change = Change {
                    mac: *mac,
                    mtu: *mtu,
                    up: up.then_some(true),
                    ..Change::default()
                };
                if change != Change::default() {
                    requests.push(link::change(bridge, &change));
                }
                if *netfilter {
                    requests.push(link::set_bridge(bridge, &NETFILTER));
                }
                all(self.host, &requests)
            }
            Step::AddBridgeAddr { cidr, .. } => self.add_bridge_addr(*cidr),
            Step::CreateVeth { .. } => self.create_veth(step),
            Step::ConfigurePod {
                ifname,
                addrs,
                routes,
            } => self.configure_pod(ifname, addrs, routes),
            Step::OpenPort { veth, port } => {
                self.host.apply(link::set_port(veth, *port))?;
                self.await_port(veth)
            }
            Step::Forward(family) => {
                Sysctl::default().ensure(forwarding_key(*family), "1")?;
                Ok(())
            }
            Step::RemoveBridgeAddr(addr) => Ok(self.host.apply(addr::delete(addr)).absent_ok()?),
        }
    }

    fn create_bridge(&mut self, spec: &BridgeSpec) -> Result<(), CniError> {
        let new = NewLink {
            mac: Some(spec.mac),
            mtu: Some(spec.mtu),
            ..NewLink::new(spec.name.clone(), LinkKind::Bridge(NETFILTER))
        };
        let ours = match self.host.apply(link::create(&new)) {
            // Another ADD was faster, and makes it the same way.
            Err(error) if error.is_exists() => false,
            other => {
                other?;
                true
            }
        };
        let made = self
            .host
            .link(&spec.name)?
            .ok_or_else(|| bridge_gone(&spec.name))?;
        if ours {
            self.undo.push(Undo::Bridge(made.index));
            // A pod must not be able to give the node routes (CVE-2020-10749).
            ensure_if_there(&format!("ipv6/conf/{}/accept_ra", spec.name), "0")?;
        }
        self.host.apply(link::change(made.index, &UP))?;
        self.bridge = Some(made);
        Ok(())
    }

    fn add_bridge_addr(&mut self, cidr: Cidr) -> Result<(), CniError> {
        let addr = Addr::new(self.bridge_index()?, cidr);
        match self.host.apply(addr::add(&addr)) {
            Err(error) if error.is_exists() => Ok(()),
            other => {
                other?;
                self.undo.push(Undo::BridgeAddr(addr));
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
        routes: &[(Subnet, std::net::IpAddr)],
    ) -> Result<(), CniError> {
        let index = self
            .pod
            .link(ifname)?
            .ok_or_else(|| CniError::new(Code::Kernel, format!("{ifname} vanished from the pod")))?
            .index;
        let v6 = addrs.iter().any(|addr| addr.family() == Family::V6);
        let switches = || {
            // A pod must not take routes from another pod.
            ensure_if_there(&format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
            // Some runtimes turn it off in each new namespace.
            if v6 {
                ensure(&format!("ipv6/conf/{ifname}/disable_ipv6"), "0")
            } else {
                Ok(())
            }
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
            .map(|addr| addr::add(&Addr::new(index, *addr)))
            .collect();
        requests.push(link::change(index, &up));
        requests.extend(
            routes
                .iter()
                .map(|(dst, gateway)| route::add(&Route::new(*dst, Some(*gateway), Some(index)))),
        );
        all(self.pod, &requests)
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
            Undo::Veth(veth) => link::delete(veth),
            Undo::Bridge(index) if self.host.ports(*index)?.is_empty() => link::delete(*index),
            Undo::BridgeAddr(addr) if self.host.ports(addr.link)?.is_empty() => addr::delete(addr),
            Undo::Bridge(_) | Undo::BridgeAddr(_) => return Ok(()),
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

fn ensure(key: &str, value: &str) -> Result<(), CniError> {
    Ok(Sysctl::default().ensure(key, value).map(drop)?)
}

/// A kernel without IPv6 has no such switch.
fn ensure_if_there(key: &str, value: &str) -> Result<(), CniError> {
    match Sysctl::default().ensure(key, value) {
        Err(SysctlError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        other => Ok(other.map(drop)?),
    }
}
