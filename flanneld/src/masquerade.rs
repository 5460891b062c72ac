//! The nft table `twill-flannel`: which packets leave with this node's own address as their source.
//!
//! With N the network of all pods and P this node's own subnet, the first line that fits decides:
//!
//! | packet | source |
//! |---|---|
//! | marked by kube-proxy | kept: kube-proxy masquerades it itself |
//! | from P to N (pod to pod) | kept |
//! | from N to P (another node's pod to a pod here) | kept |
//! | from outside N to P (outside, or this host, to a pod here) | kept |
//! | from N to a network of `NoMasquerade` | kept |
//! | from N to outside N, but for multicast | this node's |
//! | from outside N to N (outside by way of this node to a pod elsewhere) | this node's, so that the answer comes back here |

use std::net::{Ipv4Addr, Ipv6Addr};

use hostnet::nft::{
    Chain, FieldType, Hook, Key, KeyType, NatFlags, Rule, Selector, Set, SetDecl, Table,
};
use hostnet::vocab::{Cidr, Family, Subnet, names};

use crate::backend::Own;
use crate::config::Masquerade;

/// After masquerade of services (95) and of host ports (98): what they decided on is not seen here.
const PRIORITY: i32 = 100;

/// The mark by which kube-proxy in iptables mode asks for masquerade (its `--iptables-masquerade-bit`
/// 14).
const KUBE_PROXY_MARK: u32 = 0x4000;

/// The set of `NoMasquerade`.
const EXCEPT: &str = "no-masquerade";

/// The table of one family. `except` may hold networks of both families; they must not overlap.
pub fn table(family: Family, own: &Own, except: &[Subnet], how: Masquerade) -> Table {
    let (saddr, daddr) = (Selector::Saddr(family), Selector::Daddr(family));
    let (network, pods) = (own.network, own.subnet);
    let nat = if how.fully_random {
        NatFlags::FULLY_RANDOM
    } else {
        NatFlags::NONE
    };
    let mut set = Set::new(
        SetDecl::set(EXCEPT, KeyType::of([FieldType::addr(family)]))
            .interval()
            .comment("NoMasquerade in net-conf.json"),
    );
    for except in except.iter().filter(|except| except.family() == family) {
        set.insert(Key::range(except.base(), except.last()), ());
    }
    let chain = Chain::nat(Hook::Postrouting, PRIORITY)
        .rule(
            Rule::new()
                .masked_eq(Selector::Mark, KUBE_PROXY_MARK, KUBE_PROXY_MARK)
                .return_()
                .comment("kube-proxy masquerades these"),
        )
        .rule(
            Rule::new()
                .within(saddr, pods)
                .within(daddr, network)
                .return_()
                .comment("pod to pod"),
        )
        .rule(
            Rule::new()
                .within(saddr, network)
                .within(daddr, pods)
                .return_()
                .comment("another node's pod to a pod here"),
        )
        .rule(
            Rule::new()
                .outside(saddr, network)
                .within(daddr, pods)
                .return_()
                .comment("outside to a pod here"),
        )
        .rule(
            Rule::new()
                .within(saddr, network)
                .in_set([daddr], EXCEPT)
                .return_()
                .comment("pod to an exception"),
        )
        .rule(
            Rule::new()
                .within(saddr, network)
                .outside(daddr, multicast(family))
                .masquerade(nat)
                .comment("pod to outside"),
        )
        .rule(
            Rule::new()
                .outside(saddr, network)
                .within(daddr, network)
                .masquerade(nat)
                .comment("outside by this node to a pod elsewhere"),
        );
    Table::new(family, names::TABLE_FLANNEL)
        .comment("flanneld: masquerade of the pod network")
        .set(set)
        .chain("postrouting", chain)
}

fn multicast(family: Family) -> Subnet {
    let net = match family {
        Family::V4 => Cidr::new(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        Family::V6 => Cidr::new(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    net.expect("both lengths are in their family's range")
        .subnet()
}

#[cfg(test)]
mod tests;
