use hostnet::nft;
use insta::assert_snapshot;

use super::*;
use crate::fixture::{own, subnet};

const RANDOM: Masquerade = Masquerade { fully_random: true };

fn listing(table: &Table) -> String {
    nft::diff(None, table.clone()).to_string()
}

#[test]
fn ipv4_with_exceptions() {
    let except = [
        subnet("192.168.0.0/16"),
        subnet("198.51.100.7/32"),
        subnet("fd00:1::/32"),
    ];
    assert_snapshot!(listing(&table(
        Family::V4,
        &own(Family::V4),
        &except,
        RANDOM
    )));
}

#[test]
fn ipv6_with_sequential_ports() {
    let how = Masquerade {
        fully_random: false,
    };
    assert_snapshot!(listing(&table(Family::V6, &own(Family::V6), &[], how)));
}
