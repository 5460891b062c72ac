//! What a person reads who runs the plugin by hand.

/// The version of the program.
pub const VERSION: &str = concat!("twill-cni ", env!("CARGO_PKG_VERSION"));

/// What it is and how it is used.
pub const HELP: &str = "\
twill-cni connects a container to the node's pod network: bridge cni0, a veth pair, an address
and routes. It is called by the container runtime, not by hand.

The runtime calls it as the CNI specification says (https://www.cni.dev/docs/spec/):

  CNI_COMMAND      ADD, DEL, CHECK, STATUS, GC or VERSION
  CNI_CONTAINERID  the container's id
  CNI_NETNS        the path of its network namespace
  CNI_IFNAME       the interface to make inside, usually eth0

with the network configuration on standard input, one entry of a list such as
/etc/cni/net.d/10-flannel.conflist:

  {
    \"name\": \"cbr0\",
    \"cniVersion\": \"1.1.0\",
    \"plugins\": [
      { \"type\": \"twill-cni\", \"delegate\": { \"hairpinMode\": true, \"isDefaultGateway\": true } }
    ]
  }

Keys, with their defaults:

  subnetFile                  /run/flannel/subnet.env, written by flanneld
  stateDir                    /var/lib/cni/twill, one record per attachment
  dataDir                     /var/lib/cni/flannel, what flannel's plugin left
  ipam.dataDir                /var/lib/cni/networks, reserved addresses, as host-local keeps them
  ipam.routes                 [], beside those to the cluster's networks
  delegate.bridge             cni0
  delegate.isGateway          true: the bridge has the gateway's address
  delegate.isDefaultGateway   false: pods' default route leads to the bridge
  delegate.hairpinMode        false
  delegate.portIsolation      false
  delegate.mtu                FLANNEL_MTU of subnet.env

Options: --help, --version
";
