//! What the kernel's table says about the slots of a service port.

use std::collections::BTreeMap;

use hostnet::nft::{Data, DataType, Datum, Key, Proto, Table};

use super::desired::PortSlots;
use super::layout::Map;
use super::slots::Slots;
use crate::plan::{At, Endpoint, FamilyRuleset, PortKey, ServicePort, Verdict, View};

/// Slots for all ports of a ruleset, in which endpoints stay where the table has them.
pub(super) fn slots(table: Option<&Table>, rules: &FamilyRuleset) -> BTreeMap<PortKey, PortSlots> {
    let of_port = |(key, port): (&PortKey, &std::sync::Arc<ServicePort>)| {
        let previous = match table {
            Some(table) => PortSlots {
                cluster: observed(table, key, port, View::Cluster),
                local: observed(table, key, port, View::Local),
            },
            None => PortSlots::default(),
        };
        (key.clone(), PortSlots::assign(&previous, port))
    };
    rules.ports.iter().map(of_port).collect()
}

/// The slots of a view, read at the first frontend that uses it: they are the same at all.
fn observed(table: &Table, key: &PortKey, port: &ServicePort, view: View) -> Slots {
    let uses = |verdict| verdict == Verdict::Balance(view);
    let frontend = port
        .frontends
        .iter()
        .find(|f| uses(f.inside) || uses(f.outside));
    let Some(frontend) = frontend else {
        return Slots::default();
    };
    let map = match frontend.at {
        At::NodePort => Map::NodePortEndpoints(view),
        _ => Map::Endpoints(view),
    };
    let Some(set) = table.sets.get(map.name()) else {
        return Slots::default();
    };
    let Some(DataType::Value(endpoint)) = &set.decl.data else {
        return Slots::default();
    };
    let proto = Proto(key.protocol.number());
    (0_u32..)
        .map_while(|slot| {
            let key = match frontend.at.address() {
                Some(address) => Key::from((address, proto, frontend.port, slot)),
                None => Key::from((proto, frontend.port, slot)),
            };
            let Data::Value(value) = set.elements.get(&key)?.data.as_ref()? else {
                return None;
            };
            match endpoint.decode(value)?[..] {
                [Datum::Addr(address), Datum::Port(port)] => Some(Endpoint {
                    address,
                    port,
                    local: false,
                }),
                _ => None,
            }
        })
        .collect()
}
