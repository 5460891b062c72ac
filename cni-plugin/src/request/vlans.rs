//! `vlan`, `vlanTrunk` and `preserveDefaultVlan` of the bridge plugin.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::error::CniError;
use crate::vlans::Vlans;

/// VLAN 0 is none, and 4095 is reserved (IEEE 802.1Q, table 9-2).
const ID: &str = "a VLAN from 1 to 4094";

/// Reads them.
pub(super) fn read(fields: &Fields<'_>) -> Result<Vlans, CniError> {
    let expected = "a VLAN from 1 to 4094, or 0 for none";
    let access = match fields.get::<u32>("vlan", expected)? {
        None | Some(0) => None,
        Some(id) => match u16::try_from(id) {
            Ok(id @ 1..=4094) => Some(id),
            _ => return Err(fields.wrong("vlan", &id.into(), expected)),
        },
    };
    let trunk = trunk(fields)?;
    if access.is_some() && !trunk.is_empty() {
        let expected = "none beside vlan: a port has tags or has not";
        let value = fields.value("vlanTrunk").unwrap_or(&Value::Null);
        return Err(fields.wrong("vlanTrunk", value, expected));
    }
    Ok(Vlans {
        access,
        trunk,
        only: !fields
            .get("preserveDefaultVlan", "true or false")?
            .unwrap_or(true),
    })
}

/// The runs of VLANs, in order and none of them twice.
fn trunk(fields: &Fields<'_>) -> Result<Vec<(u16, u16)>, CniError> {
    let expected = "a list of {\"id\": 100} and {\"minID\": 200, \"maxID\": 299}";
    let list: Vec<Map<String, Value>> = fields.get("vlanTrunk", expected)?.unwrap_or_default();
    let mut runs = Vec::new();
    for (index, object) in list.iter().enumerate() {
        let item = Fields::at(&format!("{}[{index}]", fields.name("vlanTrunk")), object);
        let id = |key| match item.get::<u32>(key, ID)?.map(|id| (id, u16::try_from(id))) {
            None => Ok(None),
            Some((_, Ok(id @ 1..=4094))) => Ok(Some(id)),
            Some((id, _)) => Err(item.wrong(key, &id.into(), ID)),
        };
        match (id("minID")?, id("maxID")?) {
            (None, None) => {}
            (Some(first), Some(last)) if first <= last => runs.push((first, last)),
            (Some(first), Some(last)) => {
                let expected = format!("a VLAN from minID {first} on");
                return Err(item.wrong("maxID", &last.into(), &expected));
            }
            (Some(_), None) => return Err(item.missing("maxID", "the last VLAN of the run")),
            (None, Some(_)) => return Err(item.missing("minID", "the first VLAN of the run")),
        }
        runs.extend(id("id")?.map(|id| (id, id)));
    }
    runs.sort_unstable();
    runs.dedup_by(|next, run| {
        let joins = next.0 <= run.1 + 1;
        if joins {
            run.1 = run.1.max(next.1);
        }
        joins
    });
    Ok(runs)
}
