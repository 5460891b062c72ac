//! The VLANs of an attachment (IEEE 802.1Q): which of them pass the pod's port, by the bridge's own
//! filter, and where the gateway stands if the pod is in one.

use std::ops::RangeInclusive;

use hostnet::netlink::link::{self, PortVlans};
use hostnet::netlink::{self, Request, Rtnl};
use hostnet::vocab::{IfName, IfNameError};
use serde::{Deserialize, Serialize};

/// The VLANs of a pod's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vlans {
    /// The VLAN that the pod is in; its frames have no tag (`vlan`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<u16>,
    /// The VLANs whose frames pass with their tags, the first and last of each run (`vlanTrunk`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunk: Vec<(u16, u16)>,
    /// No others pass, the bridge's default VLAN among them (`preserveDefaultVlan` is false).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only: bool,
}

impl Vlans {
    /// Whether the port is as any other.
    pub fn is_empty(&self) -> bool {
        self.access.is_none() && self.trunk.is_empty()
    }

    /// The link with the gateway's addresses: the bridge, or for a pod in a VLAN one that is a port
    /// in it, named as the bridge plugin names it.
    ///
    /// # Errors
    /// The name is too long.
    pub fn gateway(&self, bridge: &IfName) -> Result<IfName, IfNameError> {
        match self.access {
            None => Ok(bridge.clone()),
            Some(id) => IfName::new(&format!("{bridge}.{id}")),
        }
    }

    /// The VLANs of the gateway's port.
    pub fn of_gateway(&self) -> Vlans {
        Vlans {
            trunk: Vec::new(),
            ..self.clone()
        }
    }

    /// What has to be done for a port to have these, by its index. Empty if it has; one that is as
    /// any other is not looked at.
    ///
    /// # Errors
    /// The kernel does not tell what passes the port.
    pub fn outstanding(&self, rtnl: &mut Rtnl, port: u32) -> netlink::Result<Vec<Request>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.requests(port, &rtnl.port_vlans(port)?))
    }

    fn requests(&self, port: u32, present: &[PortVlans]) -> Vec<Request> {
        let access = self.access.map(PortVlans::access);
        let tagged = |ids: RangeInclusive<u16>| PortVlans {
            ids,
            untagged: false,
        };
        let runs = self
            .trunk
            .iter()
            .map(|(first, last)| tagged(*first..=*last));
        let wanted: Vec<PortVlans> = access.into_iter().chain(runs).collect();
        let surplus = present
            .iter()
            .filter(|vlans| self.only && !wanted.contains(vlans))
            .map(|vlans| link::delete_vlans(port, vlans));
        let missing = wanted
            .iter()
            .filter(|vlans| !present.contains(vlans))
            .map(|vlans| link::add_vlans(port, vlans));
        surplus.chain(missing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(vlans: &Vlans, present: &[PortVlans]) -> Vec<String> {
        let requests = vlans.requests(7, present);
        requests.iter().map(|r| r.what().to_owned()).collect()
    }

    #[test]
    fn a_port_gets_what_it_lacks_and_loses_what_it_must_not_have() {
        let default = PortVlans::access(1);
        let mut vlans = Vlans {
            access: Some(100),
            ..Vlans::default()
        };
        let add = "add VLAN 100-100 untagged of bridge port #7";
        assert_eq!(told(&vlans, std::slice::from_ref(&default)), [add]);
        vlans.only = true;
        let delete = "delete VLAN 1-1 untagged of bridge port #7";
        assert_eq!(told(&vlans, &[default]), [delete, add]);
        assert_eq!(told(&vlans, &[PortVlans::access(100)]), [""; 0]);
        assert_eq!(told(&Vlans::default(), &[PortVlans::access(1)]), [""; 0]);
        let trunk = Vlans {
            trunk: vec![(5, 5), (200, 299)],
            ..Vlans::default()
        };
        let present = [PortVlans {
            ids: 5..=5,
            untagged: false,
        }];
        assert_eq!(
            told(&trunk, &present),
            ["add VLAN 200-299 of bridge port #7"]
        );
    }

    #[test]
    fn the_gateway_stands_in_the_pods_vlan() {
        let bridge = IfName::new("cni0").unwrap();
        let mut vlans = Vlans::default();
        assert_eq!(vlans.gateway(&bridge), Ok(bridge.clone()));
        vlans.access = Some(100);
        assert_eq!(vlans.gateway(&bridge).unwrap().as_str(), "cni0.100");
        assert!(
            vlans
                .gateway(&IfName::new("a-long-bridge").unwrap())
                .is_err()
        );
    }
}
