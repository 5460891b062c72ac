//! The IPv6 twin of what a test says in IPv4: addresses, prefixes, devices, tables.

use std::net::Ipv4Addr;

/// The same text for IPv6.
pub(crate) fn six(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let is_part = |c: char| c.is_ascii_digit() || c == '.';
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (token, after) = rest.split_at(end);
        let Ok(address) = token.parse::<Ipv4Addr>() else {
            let other = end.max(rest.chars().next().map_or(0, char::len_utf8));
            out += &rest[..other];
            rest = &rest[other..];
            continue;
        };
        let twin = twin(address);
        rest = after;
        let digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        if after.strip_prefix(':').is_some_and(digit) {
            out += &format!("[{twin}]");
        } else {
            out += &twin;
        }
        if let Some(prefix) = after.strip_prefix('/').filter(|rest| digit(rest)) {
            let end = prefix.find(|c: char| !c.is_ascii_digit());
            let (bits, after) = prefix.split_at(end.unwrap_or(prefix.len()));
            out += match bits {
                "12" => "/96",
                "16" => "/48",
                "24" => "/64",
                _ => "/128",
            };
            rest = after;
        }
    }
    for (four, six) in [
        ("flannel.1", "flannel-v6.1"),
        ("ip twill-", "ip6 twill-"),
        ("ip wall", "ip6 wall"),
        ("ip nat", "ip6 nat"),
        ("ip filter", "ip6 filter"),
        ("ip daddr", "ip6 daddr"),
        ("ip saddr", "ip6 saddr"),
        ("ip route", "ip -6 route"),
        ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"),
        ("iptables -", "ip6tables -"),
        ("call-iptables", "call-ip6tables"),
        ("call_iptables", "call_ip6tables"),
    ] {
        out = out.replace(four, six);
    }
    out
}

fn twin(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    let twin = match (a, b) {
        (10, 244) => format!("fd00:244:0:{c}::{d}"),
        (10, 96) => format!("fd00:96::{c}:{d}"),
        (172, 30) => format!("fd00:30::{d}"),
        (198, 51) => format!("2001:db8::{d}"),
        (192, 0) => format!("2001:db8:2::{d}"),
        (203, 0) => format!("2001:db8:3::{d}"),
        _ => format!("fd00:{a}:{b}:{c}::{d}"),
    };
    // As programs write it.
    let parsed: std::net::Ipv6Addr = twin.parse().unwrap();
    parsed.to_string()
}

#[test]
fn what_is_said_of_four_is_said_of_six() {
    for (four, twin) in [
        ("10.96.0.10:80", "[fd00:96::10]:80"),
        ("10.96.0.10 . tcp . 80", "fd00:96::10 . tcp . 80"),
        (
            "ip route add 10.244.3.0/24 via 10.244.3.0 dev flannel.1",
            "ip -6 route add fd00:244:0:3::/64 via fd00:244:0:3:: dev flannel-v6.1",
        ),
        ("pod/default/a:8080", "pod/default/a:8080"),
        ("0e:00:00:00:03:00", "0e:00:00:00:03:00"),
    ] {
        assert_eq!(six(four), twin);
    }
}
