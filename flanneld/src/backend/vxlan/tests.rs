use super::*;
use crate::backend::{least_mtu, pod_mtu};
use crate::config::Backend;
use crate::fixture::{mac, own_of};

#[test]
fn the_mtu_is_the_underlays_less_the_true_overhead() {
    let conf = Vxlan::default();
    assert_eq!(mtu(&conf, Family::V4, 1500), 1450);
    assert_eq!(mtu(&conf, Family::V6, 1500), 1430);
    let set = Vxlan {
        mtu: Some(1400),
        ..conf
    };
    assert_eq!(mtu(&set, Family::V4, 1500), 1350);
    // The kernel refuses more than the link carries.
    assert_eq!(mtu(&set, Family::V4, 1300), 1250);
    assert_eq!(mtu(&set, Family::V4, 0), 0);
}

#[test]
fn pods_of_two_families_get_the_lesser_mtu() {
    let backend = Backend::Vxlan(Vxlan::default());
    assert_eq!(pod_mtu(&backend, &own_of(&[Family::V4])), Some(1450));
    assert_eq!(pod_mtu(&backend, &own_of(&Family::ALL)), Some(1430));
    assert_eq!(pod_mtu(&Backend::HostGw, &own_of(&Family::ALL)), Some(1500));
    assert_eq!(pod_mtu(&backend, &own_of(&[])), None);
    assert_eq!(least_mtu(&backend, Family::V6), 1350);
    assert_eq!(least_mtu(&Backend::HostGw, Family::V4), 68);
}

#[test]
fn the_mac_that_peers_know_is_kept() {
    let kept = |published, there| vtep_mac("node-1", Family::V4, 1, published, there);
    assert_eq!(kept(Some(mac(7)), Some(mac(8))), mac(7));
    assert_eq!(kept(None, Some(mac(8))), mac(8));
    // What no device can have is not kept.
    assert_eq!(kept(Some(Mac([0xff; 6])), Some(mac(8))), mac(8));
    assert_eq!(kept(Some(Mac::ZERO), Some(Mac::ZERO)), kept(None, None));
}

#[test]
fn a_new_mac_is_the_same_each_time_and_one_for_each_device() {
    let new = |node, family, vni| vtep_mac(node, family, vni, None, None);
    let ours = new("node-1", Family::V4, 1);
    assert_eq!(ours.to_string(), "92:4b:c2:8c:01:37");
    for other in [
        new("node-2", Family::V4, 1),
        new("node-1", Family::V6, 1),
        new("node-1", Family::V4, 2),
    ] {
        assert_ne!(other, ours);
        assert!(other.is_unicast());
        assert_eq!(other.0[0] & 3, 2, "unicast and locally administered");
    }
}
