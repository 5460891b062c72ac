//! CHECK: is the attachment still as ADD made it?

use std::path::Path;

use hostnet::netlink::route::{Filter, TABLE_MAIN};
use hostnet::netlink::{Addr, Link, Route, Rtnl};
use hostnet::nft::{Nft, diff};
use hostnet::sysctl::Sysctl;
use hostnet::vocab::Family;

use super::add::{foreign_ipam, open_pod};
use crate::error::{CniError, Code};
use crate::exec;
use crate::ipam::Store;
use crate::nat;
use crate::plan;
use crate::rebuild;
use crate::record::{Record, RecordRoute, Records};
use crate::request::config::Config;
use crate::request::{Args, RawRequest, Target, Verb};
use crate::shaping::Shaping;

/// Compares the kernel and the reservations with the record. All differences are told at once.
/// What plugins behind us added is none.
pub fn check(target: &Target, config: &Config, raw: &RawRequest) -> Result<(), CniError> {
    config.checked_result()?;
    let settings = config.settings(&Args::parse(raw.args.as_deref())?)?;
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
    node_side(&mut host, &record, &mut wrong)?;
    pod_side(&mut pod, &record, &mut wrong)?;
    rules(&record, &mut wrong)?;
    if let Some(shaping) = Shaping::of(&record) {
        wrong.extend(shaping.differences(&mut host)?);
    }
    match foreign_ipam(&settings.addressing, raw)? {
        Some(foreign) => foreign.forward(Verb::Check)?,
        None => {
            let store = Store::new(&config.place.ipam_dir, &config.place.network);
            for addr in record.addrs() {
                if !store.is_owner(identity, addr)? {
                    wrong.push(format!("the address {addr} is not reserved"));
                }
            }
        }
    }
    if !record.bridge_addresses.is_empty() {
        let families = record.addresses.iter().map(|a| a.address.family());
        let families: Vec<Family> = families.collect();
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

fn node_side(host: &mut Rtnl, record: &Record, wrong: &mut Vec<String>) -> Result<(), CniError> {
    let bridge = present(host, &record.bridge, wrong)?;
    let gateway = match record.gateway() {
        gateway if gateway == record.bridge => bridge.clone(),
        gateway if !record.bridge_addresses.is_empty() => present(host, &gateway, wrong)?,
        _ => None,
    };
    if let Some(gateway) = gateway {
        let addrs = host.addrs(Some(gateway.index))?;
        let has = |cidr| addrs.iter().any(|addr: &Addr| addr.cidr == cidr);
        let missing = record.bridge_addresses.iter().filter(|cidr| !has(**cidr));
        wrong.extend(missing.map(|cidr| format!("{} has not the address {cidr}", gateway.name)));
    }
    if let Some(bridge) = &bridge {
        let settings = plan::bridge_settings(bridge)?;
        if !record.vlans.is_empty() && !settings.vlan_filtering {
            wrong.push(format!("{} does not filter by VLAN", record.bridge));
        }
        let key = format!("ipv4/conf/{}/route_localnet", record.bridge);
        if nat::needs_route_localnet(record) && Sysctl::default().get(&key)? != "1" {
            wrong.push(format!("{key} is off"));
        }
    }
    if let Some(veth) = present(host, &record.veth, wrong)? {
        if bridge.is_some_and(|bridge| veth.master != Some(bridge.index)) {
            wrong.push(format!("{} is not on {}", record.veth, record.bridge));
        }
        let missing = record.vlans.outstanding(host, veth.index)?;
        wrong.extend(
            missing
                .iter()
                .map(|request| format!("missing: {}", request.what())),
        );
        let port = rebuild::port(record);
        if veth.port.is_some_and(|found| found != port) {
            wrong.push(format!(
                "{} has not hairpin {} and isolated {}{}",
                record.veth,
                port.hairpin,
                port.isolated,
                if port.locked { " and locked" } else { "" }
            ));
        }
    }
    Ok(())
}

/// Host ports and masquerade: the record's elements, and the chains that use them.
fn rules(record: &Record, wrong: &mut Vec<String>) -> Result<(), CniError> {
    let families = nat::families(record);
    if families.is_empty() {
        return Ok(());
    }
    let mut nft = Nft::open()?;
    for family in families {
        let id = nat::table_id(family);
        match nft.observe(&id)?.table {
            None => wrong.push(format!("the table {id} is gone")),
            Some(found) => {
                let missing = diff(Some(&found), nat::with_attachment(&found, family, record));
                let lines = missing.to_string();
                wrong.extend(lines.lines().map(|line| format!("missing: {line}")));
            }
        }
    }
    Ok(())
}

fn pod_side(pod: &mut Rtnl, record: &Record, wrong: &mut Vec<String>) -> Result<(), CniError> {
    let link = if record.pod_down {
        let link = pod.link(&record.if_name)?;
        if link.is_none() {
            wrong.push(format!("{} is gone", record.if_name));
        }
        link
    } else {
        present(pod, &record.if_name, wrong)?
    };
    let Some(link) = link else {
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
    for route in &record.routes {
        if !has_route(&present, route) {
            wrong.push(format!("the pod has not the route to {}", route.dst));
        }
    }
    Ok(())
}

fn has_route(present: &[Route], wanted: &RecordRoute) -> bool {
    let table = wanted.table.unwrap_or(TABLE_MAIN);
    let is_it = |route: &&Route| route.dst == wanted.dst && route.table == table;
    present.iter().filter(is_it).any(|r| r.gateway == wanted.gw)
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
