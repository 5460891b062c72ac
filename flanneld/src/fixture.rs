//! A small cluster for tests: this node is 192.0.2.1 with subnet 10.244.1.0/24 (IPv6
//! 2001:db8::1 and fd00:244:0:1::/64); peer `n` has the same with its number.

use hostnet::vocab::{Family, Mac, Subnet};

use crate::ByFamily;
use crate::backend::Own;
use crate::iface::{Uplink, UplinkRoute};
use crate::peers::Peer;

pub(crate) fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

pub(crate) fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// Of each pair the text for the family.
fn of<'a>(family: Family, v4: &'a str, v6: &'a str) -> &'a str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

pub(crate) fn node_subnet(family: Family, n: u8) -> Subnet {
    subnet(of(
        family,
        &format!("10.244.{n}.0/24"),
        &format!("fd00:244:0:{n}::/64"),
    ))
}

/// Our place, behind a link of 1500 bytes that 192.0.2.0/24 and 2001:db8::/64 are on.
pub(crate) fn own(family: Family) -> Own {
    let route = |dst, direct| UplinkRoute {
        dst: subnet(dst),
        direct,
    };
    let addr: hostnet::vocab::Cidr = of(family, "192.0.2.1/24", "2001:db8::1/64")
        .parse()
        .unwrap();
    Own {
        network: subnet(of(family, "10.244.0.0/16", "fd00:244::/48")),
        subnet: node_subnet(family, 1),
        uplink: Uplink {
            name: "eth0".parse().unwrap(),
            mtu: 1500,
            addr,
            public: addr.addr(),
            routes: vec![
                route(of(family, "192.0.2.0/24", "2001:db8::/64"), true),
                route(of(family, "0.0.0.0/0", "::/0"), false),
            ],
        },
        vtep: mac(1),
    }
}

pub(crate) fn own_of(families: &[Family]) -> ByFamily<Own> {
    ByFamily::from_fn(|family| families.contains(&family).then(|| own(family)))
}

pub(crate) fn peer(family: Family, n: u8) -> Peer {
    Peer {
        node: format!("node-{n}").into(),
        subnet: node_subnet(family, n),
        public: of(family, &format!("192.0.2.{n}"), &format!("2001:db8::{n:x}"))
            .parse()
            .unwrap(),
        vtep: Some(mac(n)),
        port: None,
    }
}
