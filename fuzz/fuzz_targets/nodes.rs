//! Nodes and Leases as whoever may write to the API can make them: each becomes a peer that can be
//! programmed, or is skipped with a reason.
#![no_main]

use agent::watch::Delta;
use flanneld::ByFamily;
use flanneld::backend::Own;
use flanneld::config::{Backend, Vxlan};
use flanneld::iface::Uplink;
use flanneld::index::Index;
use flanneld::peers::{Past, select};
use hostnet::vocab::annotations::DEFAULT_PREFIX;
use hostnet::vocab::{AnnotationKeys, Cidr, Family, Mac};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|text: &str| {
    let Ok(objects) = serde_json::from_str::<Vec<Value>>(text) else {
        return;
    };
    let keys = AnnotationKeys::new(DEFAULT_PREFIX).expect("the usual keys");
    let mut index = Index::new("own", keys);
    for object in objects {
        if let Ok(lease) = serde_json::from_value(object.clone())
            && object["kind"] == "Lease"
        {
            index.lease(Delta::Upsert(lease));
        } else if let Ok(node) = serde_json::from_value(object) {
            index.node(Delta::Upsert(node));
        }
    }
    let own = own();
    let backend = Backend::Vxlan(Vxlan::default());
    let selection = select(index.others(), "own", &own, &backend, Past::default());
    for (n, peer) in selection.peers.iter().enumerate() {
        let place = own.get(peer.subnet.family()).expect("a family of ours");
        assert!(place.network.contains_subnet(peer.subnet), "{peer:?}");
        assert!(!place.subnet.overlaps(peer.subnet), "{peer:?}");
        assert_ne!(peer.public, place.uplink.public, "{peer:?}");
        assert!(
            !peer.public.is_unspecified()
                && !peer.public.is_loopback()
                && !peer.public.is_multicast(),
            "{peer:?}"
        );
        assert!(peer.vtep.is_some_and(|mac| mac.is_unicast()), "{peer:?}");
        let others = &selection.peers[n + 1..];
        assert!(
            !others
                .iter()
                .any(|other| other.subnet.overlaps(peer.subnet)),
            "{peer:?}"
        );
    }
});

/// The place of the node that judges.
fn own() -> ByFamily<Own> {
    ByFamily::from_fn(|family| {
        let (network, subnet, addr): (_, _, Cidr) = match family {
            Family::V4 => (
                "10.244.0.0/16",
                "10.244.1.0/24",
                "192.0.2.1/24".parse().ok()?,
            ),
            Family::V6 => (
                "fd00:244::/48",
                "fd00:244:0:1::/64",
                "2001:db8::1/64".parse().ok()?,
            ),
        };
        Some(Own {
            network: network.parse().ok()?,
            subnet: subnet.parse().ok()?,
            uplink: Uplink {
                name: "eth0".parse().ok()?,
                mtu: 1500,
                addr,
                public: addr.addr(),
                routes: Vec::new(),
            },
            vtep: Mac([2, 0, 0, 0, 0, 1]),
        })
    })
}
