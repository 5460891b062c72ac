//! Each backend with each family: pods of three nodes reach each other the way that the backend says, also after the
//! nodes' interfaces were down.

mod common;

use agent::sync::Pass;
use common::{TestNode, cluster};
use hostnet::{
    testkit::{ask_tcp, ask_udp, require_tool},
    vocab::Family,
};

/// The configuration's part for the backend, and whether packets go through the tunnel where nodes share a link.
const BACKENDS: [(&str, bool); 3] = [
    (r#"{"Type": "vxlan"}"#, true),
    (r#"{"Type": "vxlan", "DirectRouting": true}"#, false),
    (r#"{"Type": "host-gw"}"#, false),
];

fn conf(backend: &str, families: &[Family]) -> String {
    let has = |family| families.contains(&family);
    format!(
        r#"{{"EnableIPv4": {}, "Network": "10.244.0.0/16", "EnableIPv6": {}, "IPv6Network": "fd00::/48", "Backend": {backend}}}"#,
        has(Family::V4),
        has(Family::V6),
    )
}

/// The pod of `to` as others ask for it, and the address that it must see of the pod of `from`.
fn way(from: &TestNode, to: &TestNode, family: Family) -> (String, String) {
    match family {
        Family::V4 => (to.pod_v4(), format!("10.244.{}.2", from.number)),
        Family::V6 => (to.pod_v6(), format!("fd00:0:0:{}::2", from.number)),
    }
}

/// The route on `from` to the pods of `to`.
fn route(from: &TestNode, to: &TestNode, family: Family) -> String {
    let (flag, subnet) = match family {
        Family::V4 => ("-4", format!("10.244.{}.0/24", to.number)),
        Family::V6 => ("-6", format!("fd00:0:0:{}::/64", to.number)),
    };
    from.ns.sh("ip", &[flag, "route", "show", &subnet])
}

/// Pods of all nodes reach each other, and the routes are those of the backend.
fn all_reach_each_other(nodes: &[TestNode], family: Family, tunnel: bool, case: &str) {
    for (from, to) in nodes
        .iter()
        .flat_map(|from| nodes.iter().map(move |to| (from, to)))
        .filter(|(from, to)| from.number != to.number)
    {
        let (device, via) = match (family, tunnel) {
            (Family::V4, true) => ("flannel.1", format!("10.244.{}.0", to.number)),
            (Family::V6, true) => ("flannel-v6.1", format!("fd00:0:0:{}::", to.number)),
            (Family::V4, false) => ("eth0", format!("192.0.2.{}", to.number)),
            (Family::V6, false) => ("eth0", format!("2001:db8::{}", to.number)),
        };
        let route = route(from, to, family);
        assert!(
            route.contains(&format!(" via {via} dev {device} ")),
            "{case}: n{} to n{}: {route}",
            from.number,
            to.number
        );
        let (address, source) = way(from, to, family);
        for answer in [ask_tcp(&from.pod, &address), ask_udp(&from.pod, &address)] {
            let answer = answer
                .unwrap_or_else(|error| panic!("{case}: pod{} to {address}: {error}", from.number));
            assert_eq!(answer.server, format!("pod{}", to.number), "{case}");
            assert_eq!(answer.source.ip().to_string(), source, "{case}");
        }
    }
}

#[test]
fn pods_reach_each_other_as_the_backend_says_also_after_the_interface_was_down() {
    require_tool("ip", "iproute2");
    for families in [&[Family::V4][..], &[Family::V6], &Family::ALL] {
        for (backend, tunnel) in BACKENDS {
            let case = format!("{backend} {families:?}");
            let (_underlay, mut nodes) = cluster(3, &conf(backend, families), &[]);
            for &family in families {
                all_reach_each_other(&nodes, family, tunnel, &case);
            }

            let node = &mut nodes[0];
            assert_eq!(node.pass(Pass::Full).ops, [], "{case}: it stands still");
            node.ns.set_down("eth0");
            assert!(node.is_disturbed(), "{case}: the interface is down");
            // Without its address there is nothing to go by: what is left stays.
            let _ = node.try_pass(Pass::Full);
            node.ns.set_up("eth0");
            // What the kernel has taken along, and the host's network manager puts back.
            node.ns.addr("eth0", "2001:db8::1/64");
            node.ns.route("default", "192.0.2.254");
            node.ns.route("default6", "2001:db8::fffe");
            assert!(node.is_disturbed(), "{case}: the interface is back");
            node.pass(Pass::Full);
            node.is_disturbed();
            assert_eq!(node.pass(Pass::Full).ops, [], "{case}: it has settled");
            for &family in families {
                all_reach_each_other(&nodes, family, tunnel, &case);
            }
        }
    }
}
