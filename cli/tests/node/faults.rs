//! Each hop broken in turn, in both families: it is named, alone, with its remedy, and a real connection fails.

use cli::report::Arrival;
use hostnet::testkit::ask_tcp;
use hostnet::vocab::Family;

use crate::B;
use crate::world::{Mode, World, run};

/// What is broken, who sends where (by name, and by address for the real connection), and what is to be said: the
/// stage, a part of the cause, a part of the remedy.
type Row = (
    &'static str,
    &'static [(&'static str, &'static str)],
    [&'static str; 3],
    [&'static str; 3],
);

const WEB: [&str; 3] = [B, "svc/default/web", "10.96.0.10:80"];
const WEB_OUT: [&str; 3] = ["outside", "svc/default/web", "172.30.0.12:30080"];
const FAR: [&str; 3] = [B, "svc/default/far", "10.96.0.11:80"];
const POD: [&str; 3] = [B, "pod/default/a:8080", "10.244.2.5:8080"];
const POD_OUT: [&str; 3] = ["outside", "pod/default/a:8080", "10.244.2.5:8080"];

const FAULTS: &[Row] = &[
    (
        "element of vips",
        &[(
            "node",
            "nft delete element ip twill-proxy vips { 10.96.0.10 . tcp . 80 }",
        )],
        WEB,
        [
            "rules",
            "map vips has no element for 10.96.0.10:80",
            "twill-proxy",
        ],
    ),
    (
        "element of nodeports",
        &[(
            "node",
            "nft delete element ip twill-proxy nodeports { tcp . 30080 }",
        )],
        WEB_OUT,
        [
            "rules",
            "map nodeports has no element for 172.30.0.12:30080",
            "twill-proxy",
        ],
    ),
    (
        "slot",
        &[(
            "node",
            "nft delete element ip twill-proxy endpoints { 10.96.0.10 . tcp . 80 . 0 }",
        )],
        WEB,
        [
            "rules",
            "map endpoints has nothing at 10.96.0.10 . tcp . 80 . 0",
            "twill-proxy",
        ],
    ),
    (
        "base chain",
        &[("node", "nft delete chain ip twill-proxy prerouting")],
        WEB,
        ["rules", "its base chain is gone", "twill-proxy"],
    ),
    (
        "no endpoint",
        &[],
        [B, "svc/default/none", "10.96.0.12:80"],
        ["rules", "no endpoint that is ready", "service-name=none"],
    ),
    (
        "source ranges",
        &[],
        ["outside", "203.0.113.5:80", "203.0.113.5:80"],
        [
            "rules",
            "lets only some sources in",
            "loadBalancerSourceRanges",
        ],
    ),
    (
        "local policy",
        &[],
        ["outside", "svc/default/local", "172.30.0.12:30081"],
        ["rules", "policy is Local", "Cluster"],
    ),
    (
        "no such port",
        &[],
        ["outside", "10.96.0.10:81", "10.96.0.10:81"],
        ["rules", "has no such port", "a port of the Service"],
    ),
    (
        "no such address",
        &[],
        ["outside", "10.96.99.99:80", "10.96.99.99:80"],
        [
            "rules",
            "no Service has the address 10.96.99.99",
            "kubectl get services",
        ],
    ),
    (
        "forwarding",
        &[("node", "sysctl -q -w net.ipv4.ip_forward=0")],
        POD_OUT,
        ["forward", "does not forward", "net.ipv4.ip_forward=1"],
    ),
    (
        "foreign rule",
        &[
            ("node", "nft add table ip wall"),
            (
                "node",
                "nft add chain ip wall gate { type filter hook forward priority 0 ; }",
            ),
            ("node", "nft add rule ip wall gate ip daddr 10.244.2.5 drop"),
        ],
        POD_OUT,
        [
            "forward",
            "chain ip wall gate drops it: ip daddr 10.244.2.5 drop",
            "nft -a list chain ip wall gate",
        ],
    ),
    (
        "foreign policy",
        &[
            ("node", "nft add table inet wall"),
            (
                "node",
                "nft add chain inet wall gate { type filter hook forward priority 0 ; policy drop ; }",
            ),
        ],
        POD_OUT,
        [
            "forward",
            "chain inet wall gate drops it: policy drop",
            "nft add rule inet wall gate ip daddr 10.244.0.0/16 accept",
        ],
    ),
    (
        "foreign input",
        &[
            ("node", "nft add table ip wall"),
            (
                "node",
                "nft add chain ip wall early { type filter hook prerouting priority -300 ; }",
            ),
            ("node", "nft add rule ip wall early tcp dport 30080 drop"),
        ],
        WEB_OUT,
        [
            "rules",
            "in chain ip wall early",
            "nft -a list chain ip wall early",
        ],
    ),
    (
        "route to a peer",
        &[("node", "ip route del 10.244.3.0/24")],
        FAR,
        ["route", "the route to 10.244.3.0/24 is missing", "flanneld"],
    ),
    (
        "tunnel down",
        &[("node", "ip link set flannel.1 down")],
        FAR,
        ["route", "flannel.1 is down", "ip link set flannel.1 up"],
    ),
    (
        "peer's neighbour",
        &[("node", "ip neighbour del 10.244.3.0 dev flannel.1")],
        FAR,
        ["neighbour", "no neighbour 10.244.3.0", "flanneld"],
    ),
    (
        "forwarding entry",
        &[("node", "bridge fdb del 0e:00:00:00:03:00 dev flannel.1")],
        FAR,
        [
            "fdb",
            "no forwarding entry for 0e:00:00:00:03:00",
            "flanneld",
        ],
    ),
    (
        "wrong forwarding entry",
        &[(
            "node",
            "bridge fdb replace 0e:00:00:00:03:00 dst 172.30.0.12 dev flannel.1",
        )],
        FAR,
        ["fdb", "this node itself", "flanneld"],
    ),
    (
        "peer not reached",
        &[
            (
                "node",
                "bridge fdb replace 0e:00:00:00:03:00 dst 203.0.113.77 dev flannel.1",
            ),
            ("node", "ip route del default"),
        ],
        FAR,
        [
            "tunnel",
            "no route to the other node, 203.0.113.77",
            "ip route",
        ],
    ),
    (
        "veth down",
        &[("node", "ip link set vetha down")],
        POD_OUT,
        ["port", "vetha is down", "ip link set vetha up"],
    ),
    (
        "veth no port",
        &[("node", "ip link set vetha nomaster")],
        POD_OUT,
        [
            "port",
            "vetha is no port of cni0",
            "ip link set vetha master cni0",
        ],
    ),
    (
        "veth gone",
        &[("node", "ip link del vetha")],
        POD_OUT,
        ["port", "vetha is gone", "delete the pod"],
    ),
    (
        "sender's veth",
        &[("node", "ip link set vethb down")],
        FAR,
        ["port", "vethb is down", "ip link set vethb up"],
    ),
    (
        "isolated ports",
        &[
            ("node", "bridge link set dev vetha isolated on"),
            ("node", "bridge link set dev vethb isolated on"),
        ],
        POD,
        ["port", "both isolated", "isolated off"],
    ),
    (
        "pod's end down",
        &[("a", "ip link set eth0 down")],
        POD_OUT,
        ["port", "no carrier", "ip link set eth0 up"],
    ),
    (
        "pod's address",
        &[("a", "ip address flush dev eth0")],
        POD_OUT,
        ["pod", "does not have 10.244.2.5 any more", "delete the pod"],
    ),
    (
        "pod's route",
        &[("b", "ip route del default")],
        FAR,
        ["pod", "no route to 10.96.0.11", "delete the pod"],
    ),
    (
        "nobody listens",
        &[],
        ["outside", "10.244.2.5:8081", "10.244.2.5:8081"],
        [
            "pod",
            "nothing in the pod listens at tcp port 8081",
            "targetPort",
        ],
    ),
    (
        "endpoint gone",
        &[],
        ["outside", "10.244.2.99:8080", "10.244.2.99:8080"],
        [
            "port",
            "no pod of this node has the address 10.244.2.99",
            "endpointslices",
        ],
    ),
    (
        "bridge down",
        &[("node", "ip link set cni0 down")],
        POD_OUT,
        ["route", "cni0 is down", "ip link set cni0 up"],
    ),
    (
        "bridge's address",
        &[("node", "ip address flush dev cni0")],
        POD_OUT,
        [
            "route",
            "the route to 10.244.2.0/24 is missing",
            "twill-cni",
        ],
    ),
    (
        "wrong neighbour",
        &[(
            "node",
            "ip neighbour replace 10.244.2.5 lladdr 0e:00:00:00:00:99 dev cni0 nud permanent",
        )],
        POD_OUT,
        [
            "neighbour",
            "an earlier pod's",
            "ip neighbour del 10.244.2.5 dev cni0",
        ],
    ),
    (
        "nothing on the node",
        &[],
        ["outside", "172.30.0.12:9", "172.30.0.12:9"],
        [
            "socket",
            "no process of this node listens",
            "start the server",
        ],
    ),
    (
        "bridge netfilter",
        &[("node", "sysctl -q -w net.bridge.bridge-nf-call-iptables=0")],
        WEB,
        [
            "back",
            "bridge netfilter is off for cni0",
            "ip link set cni0 type bridge nf_call_iptables 1",
        ],
    ),
    (
        "the node's route",
        &[("node", "ip route del default")],
        ["node", "svc/default/web", "10.96.0.10:80"],
        ["node", "no route to 10.96.0.10", "ip route add default"],
    ),
];

/// The same where Services are iptables chains.
const CHAINED: &[Row] = &[
    (
        "no endpoint, from a pod",
        &[],
        [B, "svc/default/none", "10.96.0.12:80"],
        ["forward", "no endpoint that is ready", "endpointslices"],
    ),
    (
        "no endpoint, from the node",
        &[],
        ["node", "svc/default/none", "10.96.0.12:80"],
        ["rules", "no endpoint that is ready", "endpointslices"],
    ),
    (
        "source ranges",
        &[],
        ["outside", "203.0.113.5:80", "203.0.113.5:80"],
        [
            "forward",
            "lets only some sources in",
            "loadBalancerSourceRanges",
        ],
    ),
    (
        "local policy",
        &[],
        ["outside", "svc/default/local", "172.30.0.12:30081"],
        ["input", "policy is Local", "Cluster"],
    ),
    (
        "the Service's chain",
        &[("node", "iptables -t nat -F KUBE-SVC-LOLE4ISW44XBNF3G")],
        WEB,
        [
            "rules",
            "end in chain KUBE-SVC-LOLE4ISW44XBNF3G without a translation",
            "twill-proxy",
        ],
    ),
    (
        "way into the chains",
        &[("node", "iptables -t nat -F PREROUTING")],
        WEB,
        ["rules", "leads 10.96.0.10:80 to a chain", "twill-proxy"],
    ),
    (
        "foreign rule of iptables",
        &[(
            "node",
            "iptables -I FORWARD -d 10.244.2.5 -p tcp -m conntrack --ctstate NEW -j DROP",
        )],
        WEB_OUT,
        [
            "forward",
            "chain ip filter FORWARD drops it",
            "nft -a list chain ip filter FORWARD",
        ],
    ),
    (
        "several ports",
        &[(
            "node",
            "iptables -I FORWARD -p tcp -m multiport --dports 1:9,8080 -j REJECT",
        )],
        WEB_OUT,
        [
            "forward",
            "chain ip filter FORWARD drops it",
            "nft -a list chain ip filter FORWARD",
        ],
    ),
    (
        "route to a peer",
        &[("node", "ip route del 10.244.3.0/24")],
        FAR,
        ["route", "the route to 10.244.3.0/24 is missing", "flanneld"],
    ),
];

#[test]
fn each_broken_hop_is_named_alone_with_its_remedy() {
    named(Family::V4, Mode::Nft, FAULTS);
}

#[test]
fn each_broken_hop_of_ipv6_too() {
    named(Family::V6, Mode::Nft, FAULTS);
}

#[test]
fn each_broken_hop_of_iptables_mode_too() {
    for family in Family::ALL {
        named(family, Mode::Iptables, CHAINED);
    }
}

fn named(family: Family, mode: Mode, rows: &[Row]) {
    let mut wrong = Vec::new();
    for (what, broken, [from, to, address], [stage, cause, remedy]) in rows {
        let world = World::of(family, mode);
        if !broken.is_empty() {
            let told = world.trace(from, to);
            assert_eq!(told.arrives, Arrival::Yes, "{what}, before: {told}");
        }
        for (place, line) in *broken {
            let ns = match *place {
                "a" => &world.a,
                "b" => &world.b,
                _ => &world.node,
            };
            run(ns, &world.say(line));
        }
        let told = world.trace(from, to);
        let faults = told.faults();
        let is_named = match &faults[..] {
            [(at, fault)] => {
                at == stage
                    && fault.cause.contains(&world.say(cause))
                    && fault.remedy.contains(&world.say(remedy))
            }
            _ => false,
        };
        if !is_named || told.arrives != Arrival::No {
            wrong.push(format!("{family} {what}: {told}"));
        }
        if let Ok(answer) = ask_tcp(world.sender(from), &world.say(address)) {
            wrong.push(format!("{family} {what}: {} answers", answer.server));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
