//! CHECK: is the attachment still as ADD made it?

use std::path::Path;

use hostnet::netlink::route::Filter;
use hostnet::netlink::{Addr, Link, Route, Rtnl};

use super::add::open_pod;
use crate::error::{CniError, Code};
use crate::exec;
use crate::ipam::Store;
use crate::plan;
use crate::record::{Record, Records};
use crate::request::Target;
use crate::request::config::{Config, ConfigRoute};

/// Compares the kernel and the reservations with the record, and the routes with the result of
/// ADD. All differences are told at once. What plugins behind us added is none.
pub fn check(target: &Target, config: &Config) -> Result<(), CniError> {
    let prev = config.prev_result()?;
    let settings = config.settings()?;
    let identity = &target.identity;
    let records = Records::new(&config.place.state_dir);
    let record = records.read(identity)?.ok_or_else(|| {
        let msg = format!(
            "there is no record of container {} with interface {} ({}): another plugin attached \
             it, or none did",
            identity.container_id,
            identity.ifname,
            records.path(identity).display()
        );
        CniError::new(Code::Changed, msg)
    })?;
    let mut pod = Rtnl::open_in(&open_pod(target.netns.as_deref().unwrap_or(Path::new("")))?)?;
    let mut host = Rtnl::open()?;

    let mut wrong = Vec::new();
    node_side(&mut host, &record, settings.gateway, &mut wrong)?;
    pod_side(&mut pod, &record, &prev.routes, &mut wrong)?;
    let store = Store::new(&config.place.ipam_dir, &config.place.network);
    for a in &record.addresses {
        if !store.is_owner(identity, a.address.addr())? {
            wrong.push(format!("the address {} is not reserved", a.address.addr()));
        }
    }
    if settings.gateway {
        let families: Vec<_> = record
            .addresses
            .iter()
            .map(|a| a.address.family())
            .collect();
        let forwarded = exec::forwarded(&families)?;
        let off = families.iter().filter(|family| !forwarded.contains(family));
        wrong.extend(off.map(|family| format!("the node does not forward {family}")));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(CniError::new(Code::Changed, wrong.join("; ")))
    }
}

fn node_side(
    host: &mut Rtnl,
    record: &Record,
    gateway: bool,
    wrong: &mut Vec<String>,
) -> Result<(), CniError> {
    let bridge = present(host, &record.bridge, wrong)?;
    if let Some(bridge) = &bridge {
        plan::bridge_settings(bridge)?;
        let addrs = host.addrs(Some(bridge.index))?;
        let missing = record.addresses.iter().filter(|a| {
            let ours = |addr: &Addr| {
                addr.cidr.addr() == a.gateway && addr.cidr.prefix() == a.address.prefix()
            };
            gateway && !addrs.iter().any(ours)
        });
        wrong.extend(
            missing.map(|a| format!("{} has not the address {}", record.bridge, a.gateway)),
        );
    }
    if let Some(veth) = present(host, &record.veth, wrong)? {
        if bridge.is_some_and(|bridge| veth.master != Some(bridge.index)) {
            wrong.push(format!("{} is not on {}", record.veth, record.bridge));
        }
        if veth
            .port
            .is_some_and(|p| (p.hairpin, p.isolated) != (record.hairpin, record.isolated))
        {
            wrong.push(format!(
                "{} has not hairpin {} and isolated {}",
                record.veth, record.hairpin, record.isolated
            ));
        }
    }
    Ok(())
}

fn pod_side(
    pod: &mut Rtnl,
    record: &Record,
    routes: &[ConfigRoute],
    wrong: &mut Vec<String>,
) -> Result<(), CniError> {
    let Some(link) = present(pod, &record.if_name, wrong)? else {
        return Ok(());
    };
    if link.mac != Some(record.mac) {
        wrong.push(format!("{} has not the MAC {}", record.if_name, record.mac));
    }
    if link.mtu != record.mtu {
        wrong.push(format!(
            "{} has the MTU {}, not {}",
            record.if_name, link.mtu, record.mtu
        ));
    }
    let addrs = pod.addrs(Some(link.index))?;
    for a in &record.addresses {
        if !addrs.iter().any(|addr| addr.cidr == a.address) {
            wrong.push(format!(
                "{} has not the address {}",
                record.if_name, a.address
            ));
        }
    }
    let present = pod.routes(Filter {
        link: Some(link.index),
        ..Filter::default()
    })?;
    for route in routes {
        if !has_route(&present, record, route) {
            wrong.push(format!("the pod has not the route to {}", route.dst));
        }
    }
    Ok(())
}

/// A route of the result without a next hop leads to the gateway of its family, or to the pod's
/// own subnet.
fn has_route(present: &[Route], record: &Record, wanted: &ConfigRoute) -> bool {
    let of_family = |a: &&crate::record::RecordAddress| a.address.family() == wanted.dst.family();
    let gateway = wanted
        .gw
        .or(record.addresses.iter().find(of_family).map(|a| a.gateway));
    let own = record
        .addresses
        .iter()
        .any(|a| a.address.subnet() == wanted.dst);
    present
        .iter()
        .any(|route| route.dst == wanted.dst && (own || route.gateway == gateway))
}

/// A link that must be there and up.
fn present(
    rtnl: &mut Rtnl,
    name: &hostnet::vocab::IfName,
    wrong: &mut Vec<String>,
) -> Result<Option<Link>, CniError> {
    let link = rtnl.link(name)?;
    match &link {
        None => wrong.push(format!("{name} is gone")),
        Some(link) if !link.up => wrong.push(format!("{name} is down")),
        Some(_) => {}
    }
    Ok(link)
}
