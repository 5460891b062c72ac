//! The rules that a packet meets when it comes in or is sent: which endpoint, or why none.

use hostnet::nft::{Hook, Key};
use hostnet::vocab::names;

use super::compare::ServiceObject;
use super::{Tracer, place, step_hop};
use crate::legacy;
use crate::report::Hop;
use crate::target::{Destination, proxy_table};
use crate::view::Result;
use crate::walk::{self, End, Packet, Step, Way, kube};

pub(super) const PROXY_RESTART: &str = "twill-proxy mends this within a second where it runs: \
     `kubectl -n kube-system rollout restart daemonset/twill-proxy`, and look at its log";

impl Tracer<'_> {
    pub(super) fn choose(
        &mut self,
        packet: &Packet,
        to: &Destination,
        bridged: bool,
    ) -> Result<Vec<Hop>> {
        let at = match packet.iif {
            Some(_) => Hook::Prerouting,
            None => Hook::Output,
        };
        let ways = walk::hook(self.view, packet, at)?;
        // What all ways have in common is told once.
        let common = common_steps(&ways);
        let mut hops: Vec<Hop> = ways[0].steps[..common].iter().map(step_hop).collect();
        let service = self.service(to, &ways);
        if let Some(service) = &service {
            hops.insert(0, service.hop(&ways, to));
        }
        if let [way] = &ways[..]
            && way.end == End::Pass
        {
            if let Some(fault) = self.untranslated(packet, to, at, &way.steps)? {
                hops.push(fault);
            } else {
                let packet = Packet {
                    mark: way.mark,
                    ..packet.clone()
                };
                hops.extend(self.deliver(&packet, bridged)?);
            }
            return Ok(hops);
        }
        for way in &ways {
            hops.push(self.way(packet, to, way, common, service.as_ref())?);
        }
        Ok(hops)
    }

    /// One of several outcomes.
    fn way(
        &mut self,
        packet: &Packet,
        to: &Destination,
        way: &Way,
        told: usize,
        service: Option<&ServiceObject>,
    ) -> Result<Hop> {
        let mut then: Vec<Hop> = way.steps[told..].iter().map(step_hop).collect();
        let packet = &Packet {
            mark: way.mark,
            ..packet.clone()
        };
        let mut hop = match &way.end {
            End::Dnat(address, port) => {
                let packet = packet.translated(*address, *port);
                then.extend(self.deliver(&packet, false)?);
                let pod = self.pod_at(*address).map(crate::target::name_of);
                let of = match (pod, &to.service) {
                    (Some(pod), _) => Some(format!("pod {pod}")),
                    (None, Some(service)) => Some(format!("an endpoint of Service {service}")),
                    (None, None) => None,
                };
                let hop = Hop::new("endpoint", place(packet.destination, packet.port));
                match service {
                    Some(service) => service.endpoint(hop, packet.destination, packet.port, of),
                    None => hop.of(of),
                }
            }
            End::Redirect(port) => {
                let port = port.unwrap_or(packet.port);
                Hop::new("redirect", format!("to port {port} of this node"))
            }
            End::Pass | End::Masquerade => {
                then.extend(self.deliver(packet, false)?);
                Hop::new("rules", "no rule translates it")
            }
            End::Reject | End::Drop => {
                let hop = refusal(to, way);
                match service {
                    Some(service) => service.why_none(hop),
                    None => hop,
                }
            }
        };
        hop.chance = Some(way.chance);
        hop.then = then;
        Ok(hop)
    }

    /// A packet to a Service that no rule translates.
    fn untranslated(
        &mut self,
        packet: &Packet,
        to: &Destination,
        at: Hook,
        steps: &[Step],
    ) -> Result<Option<Hop>> {
        let table = proxy_table(packet.family());
        let Some(service) = &to.service else {
            return Ok(None);
        };
        let what = place(to.address, to.port);
        let Some(vips) = self.view.declaration(&table, "vips")? else {
            if kube::is_mode(self.view, packet.family())? {
                return self.unchained(packet, service, steps);
            }
            let hop = Hop::new("rules", format!("{table} vips")).fault(
                format!("table {table} has no map of Services: twill-proxy has not run here"),
                PROXY_RESTART,
            );
            return Ok(Some(hop));
        };
        let node_ports = self.view.declaration(&table, "nodeport-ips")?;
        let is_node_port = match node_ports {
            Some(decl) => {
                let key = Key::from(to.address);
                self.view.element(&table, &decl, &key)?.is_some()
            }
            None => false,
        };
        let (map, key) = if is_node_port {
            ("nodeports", format!("{} . {}", self.proto, to.port))
        } else {
            let key = Key::from((to.address, self.proto, to.port));
            ("vips", vips.key.show(&key).to_string())
        };
        let chains = self.view.base_chains()?;
        let is_entered = chains
            .iter()
            .any(|chain| chain.table == table && chain.base.hook == at);
        let hop = Hop::new("rules", format!("{table} {map}: {key}"))
            .of(Some(format!("Service {service}")));
        let hop = if is_entered {
            hop.fault(
                format!("map {map} has no element for {what}, though other maps of the table know the Service"),
                PROXY_RESTART,
            )
        } else {
            hop.fault(
                format!("no packet enters table {table} here: its base chain is gone"),
                PROXY_RESTART,
            )
        };
        Ok(Some(hop))
    }
}

impl Tracer<'_> {
    /// The same where Services are iptables chains: what refuses it may come later, in table `filter`.
    fn unchained(&mut self, packet: &Packet, service: &str, steps: &[Step]) -> Result<Option<Hop>> {
        let later = self.deliver(packet, false)?;
        if let Some(hop) = later.into_iter().find(|hop| hop.fault.is_some()) {
            return Ok(Some(hop));
        }
        let at = place(packet.destination, packet.port);
        let last = steps
            .iter()
            .rev()
            .find_map(|step| step.text.split("jump ").nth(1));
        let cause = match last {
            Some(chain) => format!("the rules end in chain {chain} without a translation"),
            None => format!(
                "no rule of {} or {} leads {at} to a chain of the Service's",
                kube::SERVICES,
                kube::NODE_PORTS
            ),
        };
        let table = kube::nat(packet.family());
        let hop = Hop::new("rules", format!("{table} {}", kube::SERVICES))
            .of(Some(format!("Service {service}")))
            .fault(cause, PROXY_RESTART);
        Ok(Some(hop))
    }
}

/// A packet that ends in the rules, and why.
fn refusal(to: &Destination, way: &Way) -> Hop {
    let verb = match way.end {
        End::Reject => "refused",
        _ => "dropped",
    };
    let hop = Hop::new("rules", verb);
    let Some(last) = way.steps.last() else {
        return hop.fault("a rule decides so", "`nft list ruleset`");
    };
    let service = to.service.as_deref();
    let slices = match service.map(|s| s.split(':').next().unwrap_or(s)) {
        Some(service) => match service.split_once('/') {
            Some((namespace, name)) => format!(
                "`kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name}`"
            ),
            None => "`kubectl get endpointslices`".to_owned(),
        },
        None => "`kubectl get endpointslices -A`".to_owned(),
    };
    if let Some((cause, remedy)) = of_kube(last) {
        return hop.fault(cause, remedy);
    }
    if *last.table.name != *names::TABLE_PROXY {
        return hop.fault(
            format!("{} in chain {} {}", last.text, last.table, last.chain),
            format!(
                "{}, and delete the rule, or put one that accepts before it",
                legacy::show(&last.table, &last.chain)
            ),
        );
    }
    if let Some(missing) = way.missing.iter().find(|missing| {
        let set = missing.set.as_deref().unwrap_or_default();
        set.contains("endpoints")
    }) {
        let map = missing.set.as_deref().unwrap_or_default();
        return hop.fault(
            format!(
                "map {map} has nothing at {}: a slot of the Service is empty",
                missing.text
            ),
            PROXY_RESTART,
        );
    }
    let has_step = |set: &str| {
        way.steps
            .iter()
            .any(|step| step.set.as_deref() == Some(set))
    };
    let guarded = way.missing.iter().any(|missing| {
        let set = missing.set.as_deref().unwrap_or_default();
        set.starts_with("sources")
    });
    if guarded {
        return hop.fault(
            "the Service lets only some sources in, and this is none of them",
            "add the client's network to spec.loadBalancerSourceRanges of the Service",
        );
    }
    if let (Some(service), true) = (
        service,
        has_step("cluster-ips") || has_step("service-networks"),
    ) {
        return hop.fault(
            format!(
                "map vips has no element for {}, though other maps of the table know Service {service}",
                place(to.address, to.port)
            ),
            PROXY_RESTART,
        );
    }
    if has_step("cluster-ips") {
        return hop.fault(
            format!(
                "{} is a cluster IP, and its Service has no such port",
                to.address
            ),
            "use a port of the Service: `kubectl get services -A -o wide`",
        );
    }
    if has_step("service-networks") {
        return hop.fault(
            format!("no Service has the address {}", to.address),
            "`kubectl get services -A -o wide` lists the addresses there are",
        );
    }
    match way.end {
        End::Reject => hop.fault("the Service has no endpoint that is ready", slices),
        _ => hop.fault(
            "the Service's traffic policy is Local, and no endpoint that is ready is on this node",
            format!("use another node, or set the traffic policy to Cluster; {slices}"),
        ),
    }
}

/// What a rule of kube-proxy's chains that refuses says: the cause and the remedy.
pub(super) fn of_kube(step: &Step) -> Option<(&'static str, &'static str)> {
    let is_kube = kube::is_kube(&step.chain);
    step.object
        .as_deref()
        .filter(|_| is_kube)
        .and_then(kube::refusal)
}

/// How many steps all ways begin with.
fn common_steps(ways: &[Way]) -> usize {
    let Some((first, rest)) = ways.split_first() else {
        return 0;
    };
    (0..first.steps.len())
        .take_while(|i| {
            rest.iter()
                .all(|way| way.steps.get(*i) == first.steps.get(*i))
        })
        .count()
}
