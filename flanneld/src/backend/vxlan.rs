//! The vxlan backend: each family has one device; each peer a neighbour, a forwarding entry and a
//! route, of the same shape as flannel's.

use hostnet::vocab::Family;

/// What VXLAN puts around a packet in bytes: the inner Ethernet header (14), VXLAN (8), UDP (8) and
/// the outer IP header (20, or 40 for IPv6).
pub fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}
