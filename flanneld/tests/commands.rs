//! The pure half against the real kernel, in private namespaces: the text of each operation is a
//! command that does what the operation says; what is read back is what was desired; and what is
//! harmed by hand is seen and mended.

use std::io::Write;
use std::process::{Command, Stdio};

use flanneld::ByFamily;
use flanneld::backend::Own;
use flanneld::config::{Backend, IfaceChoice, Masquerade, Vxlan};
use flanneld::desired::{Inputs, desired};
use flanneld::diff::{Op, diff};
use flanneld::iface::{Seen, Uplink, Wishes, choose};
use flanneld::peers::Peer;
use flanneld::state::{Kernel, State};
use hostnet::netlink::route::Filter;
use hostnet::nft::{Nft, TableId};
use hostnet::sysctl::Sysctl;
use hostnet::testkit::{Ns, connect, require_root, require_tool};
use hostnet::vocab::{Family, Mac, Subnet, names};

/// A node with a card on a link of 1500 bytes.
struct Node {
    ns: Ns,
    _other: Ns,
}

impl Node {
    fn new() -> Node {
        require_root();
        require_tool("ip", "iproute2");
        require_tool("bridge", "iproute2");
        require_tool("nft", "nftables");
        require_tool("sysctl", "procps");
        let (ns, other) = (Ns::new("node"), Ns::new("other"));
        connect(&ns, "eth0", &other, "eth0");
        ns.addr("eth0", "192.0.2.1/24");
        ns.addr("eth0", "2001:db8::1/64");
        ns.route("default", "192.0.2.254");
        ns.route("default6", "2001:db8::ff");
        Node { ns, _other: other }
    }

    fn uplink(&self, family: Family) -> Uplink {
        let kernel = self.kernel(&State::default());
        let seen = Seen {
            links: &kernel.links,
            addrs: &kernel.addrs,
            routes: &kernel.routes,
        };
        let wishes = Wishes {
            flags: &IfaceChoice::default(),
            node_public: ByFamily::default(),
            overwrite: ByFamily::default(),
            networks: ByFamily::default(),
            least_mtu: 1350,
        };
        choose(family, seen, &wishes).unwrap()
    }

    fn desired(&self, backend: &Backend, families: &[Family]) -> State {
        let own = ByFamily::from_fn(|family| {
            families.contains(&family).then(|| Own {
                network: subnet(family, "10.244.0.0/16", "fd00:244::/48"),
                subnet: subnet(family, "10.244.1.0/24", "fd00:244:0:1::/64"),
                uplink: self.uplink(family),
                vtep: mac(1),
            })
        });
        let mut peers: Vec<Peer> = families.iter().flat_map(|family| peers(*family)).collect();
        if *backend == Backend::HostGw {
            // As `peers::select` leaves out what is behind a router.
            peers.retain(|peer| &*peer.node == "node-2");
        }
        desired(&Inputs {
            backend,
            masquerade: Some(Masquerade { fully_random: true }),
            no_masquerade: &[
                "192.168.0.0/16".parse().unwrap(),
                "fd00:9::/32".parse().unwrap(),
            ],
            own: &own,
            peers: &peers,
            former: None,
            gated: &[],
        })
    }

    /// Reads the kernel; of the switches those that `desired` has.
    fn kernel(&self, desired: &State) -> Kernel {
        let mut rtnl = self.ns.rtnl();
        let sysctls = desired.sysctls.keys().filter_map(|key| {
            let value = self.ns.run(|| Sysctl::default().get(key)).ok()?;
            Some((key.clone(), value))
        });
        let mut nft = self.ns.run(Nft::open).unwrap();
        let tables = Family::ALL
            .map(|family| TableId::new(family, names::TABLE_FLANNEL))
            .map(|id| nft.observe(&id).unwrap().table);
        Kernel {
            links: rtnl.links().unwrap(),
            addrs: rtnl.addrs(None).unwrap(),
            routes: rtnl.routes(Filter::default()).unwrap(),
            neighs: rtnl.neighs(None).unwrap(),
            fdb: rtnl.fdb(None).unwrap(),
            sysctls: sysctls.collect(),
            tables: tables.into_iter().flatten().collect(),
            ..Kernel::default()
        }
    }

    fn observed(&self, desired: &State) -> State {
        self.kernel(desired).ours()
    }

    /// Runs the operations' texts as a person would.
    fn run(&self, ops: &[Op]) {
        for op in ops {
            let text = op.to_string();
            match op {
                Op::ChangeTable(_) => self.nft(&text),
                _ => self.sh(&text),
            }
        }
    }

    fn sh(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        self.ns.sh(words[0], &words[1..]);
    }

    fn nft(&self, script: &str) {
        let status = self.ns.run(|| {
            let mut child = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(script.as_bytes()).unwrap();
            drop(stdin);
            child.wait().unwrap()
        });
        assert!(status.success(), "nft refused:\n{script}");
    }

    /// Brings the kernel to the desired state, and shows that it is there.
    fn reach(&self, desired: &State) -> Vec<Op> {
        let ops = diff(&self.observed(desired), desired);
        self.run(&ops);
        let observed = self.observed(desired);
        assert_eq!(texts(&diff(&observed, desired)), [] as [&str; 0]);
        assert!(observed == *desired, "{observed:#?}\nis not\n{desired:#?}");
        ops
    }
}

fn texts(ops: &[Op]) -> Vec<String> {
    ops.iter().map(Op::to_string).collect()
}

fn subnet(family: Family, v4: &str, v6: &str) -> Subnet {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
    .parse()
    .unwrap()
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// One peer on the link and one behind a router.
fn peers(family: Family) -> [Peer; 2] {
    let peer = |n, subnet, public: Subnet| Peer {
        node: format!("node-{n}").into(),
        subnet,
        public: public.base(),
        vtep: Some(mac(n)),
        port: None,
    };
    [
        peer(
            2,
            subnet(family, "10.244.2.0/24", "fd00:244:0:2::/64"),
            subnet(family, "192.0.2.2/32", "2001:db8::2/128"),
        ),
        peer(
            3,
            subnet(family, "10.244.3.0/24", "fd00:244:0:3::/64"),
            subnet(family, "198.51.100.3/32", "2001:db8:1::3/128"),
        ),
    ]
}

fn vxlan() -> Backend {
    Backend::Vxlan(Vxlan::default())
}

#[test]
fn each_backend_is_reached_by_its_commands_and_then_stands_still() {
    let direct = Vxlan {
        direct_routing: true,
        gbp: true,
        learning: true,
        mtu: Some(1400),
        ..Vxlan::default()
    };
    for backend in [
        vxlan(),
        Backend::Vxlan(direct),
        Backend::HostGw,
        Backend::Alloc,
    ] {
        for families in [&[Family::V4][..], &[Family::V6], &Family::ALL] {
            let node = Node::new();
            let desired = node.desired(&backend, families);
            node.reach(&desired);
            assert_eq!(node.reach(&desired), [], "{backend:?} {families:?}");
        }
    }
}

#[test]
fn one_backend_follows_another_and_leaves_nothing() {
    let node = Node::new();
    let other_vni = Backend::Vxlan(Vxlan {
        vni: 7,
        port: 4789,
        ..Vxlan::default()
    });
    let other_port = Backend::Vxlan(Vxlan {
        port: 4789,
        learning: true,
        ..Vxlan::default()
    });
    for backend in [vxlan(), other_port, other_vni, Backend::Alloc, vxlan()] {
        node.reach(&node.desired(&backend, &Family::ALL));
    }
    node.reach(&node.desired(&vxlan(), &[Family::V4]));
    node.reach(&State::default());
}

/// A name for the harm, the commands that do it, and what mends it.
type Harm = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

#[rustfmt::skip]
const HARMS: &[Harm] = &[
    ("device deleted", &["ip link del flannel.1"], &[
        "ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning",
        "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2",
        "ip link set flannel.1 up",
        "ip addr add 10.244.1.0/32 dev flannel.1",
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent",
        "bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 198.51.100.3 self permanent",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto boot onlink",
        "ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto boot onlink",
    ]),
    // The forwarding entries stay.
    ("device down", &["ip link set flannel.1 down"], &[
        "ip link set flannel.1 up",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto boot onlink",
        "ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto boot onlink",
    ]),
    // Setting it back costs the neighbours once more, so they come after it.
    ("MAC changed", &["ip link set flannel.1 address 02:00:00:00:00:63"], &[
        "ip link set flannel.1 address 02:00:00:00:00:01",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
    ]),
    ("MTU changed", &["ip link set flannel.1 mtu 1300"], &["ip link set flannel.1 mtu 1450"]),
    ("route deleted", &["ip route del 10.244.2.0/24"], &[
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto boot onlink",
    ]),
    ("route changed", &["ip route replace 10.244.2.0/24 via 10.244.3.0 dev flannel.1 onlink mtu 600"], &[
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto boot onlink",
    ]),
    ("route led elsewhere", &["ip route replace 10.244.2.0/24 via 192.0.2.9 dev eth0"], &[
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto boot onlink",
    ]),
    ("route added", &["ip route add 10.244.9.0/24 dev flannel.1 metric 5"], &[
        "ip route del 10.244.9.0/24 dev flannel.1 proto boot metric 5",
    ]),
    ("neighbour deleted", &["ip neigh del 10.244.2.0 dev flannel.1"], &[
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
    ]),
    ("neighbour changed", &["ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud stale"], &[
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
    ]),
    ("neighbour added", &["ip neigh add 10.244.9.0 lladdr 02:00:00:00:00:09 dev flannel.1"], &[
        "ip neigh del 10.244.9.0 dev flannel.1",
    ]),
    ("forwarding deleted", &["bridge fdb del 02:00:00:00:00:02 dev flannel.1"], &[
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent",
    ]),
    ("forwarding changed", &["bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.9"], &[
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent",
    ]),
    ("forwarding added", &[
        "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.8",
        "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.9",
    ], &[
        "bridge fdb del 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.8 self",
        "bridge fdb del 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.9 self",
    ]),
    // The last address takes the routes and neighbours with it.
    ("address deleted", &["ip addr del 10.244.1.0/32 dev flannel.1"], &[
        "ip addr add 10.244.1.0/32 dev flannel.1",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto boot onlink",
        "ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto boot onlink",
    ]),
    ("address added", &["ip addr add 10.9.9.9/24 dev flannel.1"], &[
        "ip addr del 10.9.9.9/24 dev flannel.1",
    ]),
    ("switch off", &["sysctl -qw net/ipv4/ip_forward=0"], &["sysctl -w net/ipv4/ip_forward=1"]),
    ("device replaced", &["ip link del flannel.1", "ip link add flannel.1 type bridge"], &[
        "ip link del flannel.1",
        "ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning",
        "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2",
        "ip link set flannel.1 up",
        "ip addr add 10.244.1.0/32 dev flannel.1",
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent",
        "bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 198.51.100.3 self permanent",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto boot onlink",
        "ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto boot onlink",
    ]),
    ("device of another VNI left over", &["ip link add flannel.9 type vxlan id 9 dstport 8472"], &[
        "ip link del flannel.9",
    ]),
    ("route of ours left over", &["ip route add 10.244.9.0/24 via 192.0.2.9 proto 84"], &[
        "ip route del 10.244.9.0/24 via 192.0.2.9 dev eth0 proto 84",
    ]),
    ("routes of others", &[
        "ip route add 10.9.0.0/16 via 192.0.2.9",
        "ip route add 10.244.9.0/24 dev flannel.1 table 100",
        "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0",
    ], &[]),
];

#[test]
fn every_harm_is_seen_and_mended_by_no_more_than_it_takes() {
    let node = Node::new();
    let desired = node.desired(&vxlan(), &[Family::V4]);
    node.reach(&desired);
    for (name, harm, mend) in HARMS {
        for command in *harm {
            node.sh(command);
        }
        assert_eq!(texts(&node.reach(&desired)), *mend, "{name}");
    }
}

#[test]
fn a_flushed_ruleset_is_mended() {
    let node = Node::new();
    let desired = node.desired(&vxlan(), &Family::ALL);
    node.reach(&desired);
    node.nft("flush ruleset");
    let tables = node.reach(&desired);
    assert_eq!(
        tables.len(),
        2,
        "one transaction for each family: {tables:?}"
    );
    node.nft("flush chain ip twill-flannel postrouting");
    node.nft("add element ip6 twill-flannel no-masquerade { fd00:77::/32 }");
    assert_eq!(node.reach(&desired).len(), 2);
}
