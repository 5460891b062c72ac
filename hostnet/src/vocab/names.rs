//! Names and numbers that more than one binary, or flannel and Twill, must agree upon.

use super::{Family, IfName};

/// The bridge that pods of a node share.
pub const BRIDGE: &str = "cni0";

/// The interface inside a pod, unless the runtime asks for another.
pub const POD_INTERFACE: &str = "eth0";

/// The nft table of `twill-cni` (families `ip` and `ip6`): host ports, masquerade of pods.
pub const TABLE_CNI: &str = "twill-cni";

/// The nft table of `flanneld` (families `ip` and `ip6`): masquerade of the pod network.
pub const TABLE_FLANNEL: &str = "twill-flannel";

/// The nft table of `twill-proxy` (families `ip` and `ip6`): services.
pub const TABLE_PROXY: &str = "twill-proxy";

/// The route protocol number (`rtm_protocol`) of routes that flanneld owns on devices that are
/// not its own. Routes on `flannel.N` carry protocol boot, as flannel's do.
pub const ROUTE_PROTOCOL: u8 = 84;

/// The label on Lease objects that hold a node's subnet.
pub const LABEL_SUBNET: &str = "twill.io/subnet";

/// The CNI network's name in flannel's conflist; host-local's directory is named after it.
pub const CNI_NETWORK: &str = "cbr0";

/// Where container runtimes look for CNI configurations, unless they are told otherwise.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";

/// Where container runtimes look for CNI plugins, unless they are told otherwise.
pub const CNI_BIN_DIR: &str = "/opt/cni/bin";

/// The file name of the conflist that flanneld writes, flannel's own.
pub const CONFLIST_FILE: &str = "10-flannel.conflist";

/// The CNI type of our plugin, which is also its file name.
pub const CNI_TYPE: &str = "twill-cni";

/// Where flanneld tells the plugin of the node's subnet.
pub const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// Where `twill-cni` keeps one record per attachment.
pub const ATTACHMENTS_DIR: &str = "/var/lib/cni/twill";

/// Where host-local, and so `twill-cni`, keeps its reservations, one directory per network.
pub const IPAM_DIR: &str = "/var/lib/cni/networks";

/// Where runtimes keep the network namespaces of containers.
pub const NETNS_DIR: &str = "/run/netns";

/// The directory of the daemons' snapshots.
pub const STATE_DIR: &str = "/var/lib/twill";

/// The VXLAN network identifier that flannel uses unless told otherwise.
pub const DEFAULT_VNI: u32 = 1;

/// The UDP port of VXLAN in flannel (the kernel's default, older than IANA's 4789).
pub const VXLAN_PORT: u16 = 8472;

/// The VXLAN device of a VNI: `flannel.1` for IPv4, `flannel-v6.1` for IPv6.
///
/// VNIs have 24 bits; the longest name, `flannel-v6.16777215`, is longer than the kernel allows,
/// so the error is the name's: IPv6 with a VNI above 9999.
pub fn vxlan_device(family: Family, vni: u32) -> Result<IfName, super::IfNameError> {
    IfName::new(&match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    })
}

/// What a VXLAN device is called while its successor on another UDP port has its name already, and some nodes still send
/// to the old port.
pub fn former_vxlan_device(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-old",
        Family::V6 => "flannel-v6-old",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vxlan_devices_are_named_as_flannels() {
        assert_eq!(vxlan_device(Family::V4, 1).unwrap(), "flannel.1");
        assert_eq!(vxlan_device(Family::V6, 1).unwrap(), "flannel-v6.1");
        assert!(vxlan_device(Family::V6, 10_000).is_err());
    }
}
