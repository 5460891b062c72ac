//! What a person reads who runs the plugin by hand.

/// The version of the program.
pub const VERSION: &str = concat!("twill-cni ", env!("CARGO_PKG_VERSION"));

/// What it is and how it is used.
pub const HELP: &str = "\
twill-cni connects a container to the node's pod network: bridge cni0, a veth pair, addresses and
routes, host ports, masquerade and bandwidth. It is called by the container runtime, not by hand.

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
      { \"type\": \"twill-cni\",
        \"delegate\": { \"hairpinMode\": true, \"isDefaultGateway\": true },
        \"capabilities\": { \"portMappings\": true, \"bandwidth\": true } }
    ]
  }

There are two forms. In flannel's, addresses come from the node's subnet, and the bridge's keys
are in delegate. In that of the bridge plugin, they come from ipam, and the bridge's keys are at
the top. A configuration with delegate or subnetFile is flannel's, and so is one with neither
bridge keys nor ipam.subnet, ipam.ranges or another ipam.type.

Keys of both, with their defaults:

  stateDir        /var/lib/cni/twill, one record per attachment
  ipam.dataDir    /var/lib/cni/networks, reserved addresses, as host-local keeps them
  ipam.routes     [], beside those that follow from the rest:
                  [{\"dst\", \"gw\", \"mtu\", \"advmss\", \"priority\", \"table\", \"scope\"}]
  ipam.resolvConf none: a file whose name servers the result tells
  snat            true: the node's 127.0.0.1 and the pod itself reach its host ports
  masqAll         false: the pod sees the node as the source of all that comes by a host port
  ingressRate, ingressBurst, egressRate, egressBurst
                  none: bits per second and bits, for all pods, in place of what a pod asks for.
                  A burst of less than one packet counts as one packet.

Keys of flannel's form:

  subnetFile      /run/flannel/subnet.env, written by flanneld
  dataDir         /var/lib/cni/flannel, what flannel's plugin left

Keys of the bridge (in delegate, or at the top):

  bridge                     cni0
  isGateway                  the bridge has the gateway's address (flannel's form: true, else false)
  isDefaultGateway           false: pods' default route leads to the bridge
  forceAddress               false: take other addresses from the bridge
  ipMasq                     masquerade what pods send outside (flannel's form: if flanneld does
                             not, and not within the cluster; else false)
  ipMasqBackend              nftables, whatever is said
  mtu                        FLANNEL_MTU of subnet.env, or 1500
  hairpinMode                false; on for a pod with host ports
  promiscMode                false
  portIsolation              false
  macspoofchk                false: drop frames with another source MAC than the pod's
  enabledad                  false: wait until nobody else has the IPv6 addresses
  disableContainerInterface  false

Keys of ipam in the bridge plugin's form (host-local's):

  subnet, rangeStart, rangeEnd, gateway    one range
  ranges                     [[{\"subnet\", \"rangeStart\", \"rangeEnd\", \"gateway\"}, …], …]:
                             a pod gets an address of each inner list
  type                       host-local, which is built in; another is run from CNI_PATH

Other keys are passed over; with the variable TWILL_CNI_DEBUG set they are told on standard error.

The runtime may ask for more: runtimeConfig.portMappings, bandwidth, ips, ipRanges and mac,
args.cni.ips and mac, CNI_ARGS IP and MAC.

Commands of a person's, or of an image without a shell:

  twill-cni install --bin-dir DIR [--conf-dir DIR --conflist FILE] [--force]
      copies the program into DIR, and FILE under its own name where a folder is told. Files appear
      whole; a newer version is replaced with --force only; bridge and flannel are left alone.
  twill-cni uninstall --bin-dir DIR [--conf-dir DIR --conflist FILE]
                      [--state-dir DIR] [--data-dir DIR]
      removes them again; a configuration that does not name twill-cni stays. With the program go
      its tables, a cni0 that it made and that has no ports, its stateDir, and networks of
      ipam.dataDir without reservations; while pods have their attachments, it tells what stays
  twill-cni pause
      does nothing until it is killed: it holds a pod whose init containers have done the work

Options: --help, --version
";
