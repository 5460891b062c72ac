//! Owns the forms of single values, shared by the file and the flags.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use agent::logging::Format;
use hostnet::vocab::{IfName, Subnet};

use crate::iptables::Variant;
use crate::plan::NodePortAddresses;

/// Which mode was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// nf_tables.
    Nftables,
    /// IPVS, in whose place nf_tables serve.
    Ipvs,
    /// kube-proxy's chains.
    Iptables,
}

/// How pods' packets shall be told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DetectMode {
    /// By the cluster's pod networks.
    ClusterCidr,
    /// By the node's pod networks.
    NodeCidr,
    /// By the bridge that they come in by.
    Bridge,
    /// By how the name of the interface begins.
    Prefix,
}

/// Any text.
pub(super) fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// A mode by kube-proxy's names.
pub(super) fn mode(text: &str) -> Result<Mode, &'static str> {
    match text {
        "nftables" => Ok(Mode::Nftables),
        "ipvs" => Ok(Mode::Ipvs),
        "iptables" => Ok(Mode::Iptables),
        "kernelspace" => Err("this is a mode of another platform: want nftables or iptables"),
        _ => Err("want nftables or iptables"),
    }
}

/// One of the kernel's two iptables.
pub(super) fn variant(text: &str) -> Result<Variant, &'static str> {
    [Variant::Nft, Variant::Legacy]
        .into_iter()
        .find(|variant| variant.as_str() == text)
        .ok_or("want nft or legacy")
}

/// A bit of the packet mark.
pub(super) fn mark_bit(bit: u8) -> Result<u8, &'static str> {
    if bit < 32 {
        Ok(bit)
    } else {
        Err("want a number from 0 to 31")
    }
}

/// A way to tell local traffic, by kube-proxy's names.
pub(super) fn detect_local(text: &str) -> Result<DetectMode, &'static str> {
    match text {
        "ClusterCIDR" => Ok(DetectMode::ClusterCidr),
        "NodeCIDR" => Ok(DetectMode::NodeCidr),
        "BridgeInterface" => Ok(DetectMode::Bridge),
        "InterfaceNamePrefix" => Ok(DetectMode::Prefix),
        _ => Err("want ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"),
    }
}

/// The name of an interface.
pub(super) fn bridge(text: &str) -> Result<String, String> {
    match IfName::new(text) {
        Ok(_) if !text.ends_with('*') => Ok(text.to_owned()),
        Ok(_) => Err("want a name; how names begin is what InterfaceNamePrefix is for".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// How the names of interfaces begin.
pub(super) fn interface_prefix(text: &str) -> Result<String, String> {
    bridge(text.trim_end_matches('*'))
}

/// A score of the kernel's, as proc(5) has it.
pub(super) fn oom_score_adj(score: i32) -> Result<i32, &'static str> {
    match score {
        -1000..=1000 => Ok(score),
        _ => Err("want a number from -1000 to 1000"),
    }
}

/// A form of log lines.
pub(super) fn log_format(text: &str) -> Result<Format, &'static str> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("want text or json"),
    }
}

/// An address.
pub(super) fn address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse()
        .map_err(|_| "want an address such as 10.0.0.1 or fd00::1")
}

/// A duration as Go writes it: `30s`, `1m30s`, `1h`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "want a duration such as 30s, 1m30s or 500ms".to_owned();
    let mut rest = text;
    let mut seconds = 0.0;
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        seconds += number.parse::<f64>().map_err(|_| wrong())? * factor;
        rest = tail;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// One or two comma-separated networks, of which two have different families.
pub(super) fn cluster_cidr(text: &str) -> Result<Vec<Subnet>, String> {
    let networks = networks(text.split(','))?;
    match networks.as_slice() {
        [_] => Ok(networks),
        [a, b] if a.family() != b.family() => Ok(networks),
        _ => Err("want one network, or two of different families, with a comma between".into()),
    }
}

/// Networks, or the single word `primary`.
pub(super) fn node_port_addresses<S: AsRef<str>>(texts: &[S]) -> Result<NodePortAddresses, String> {
    match texts {
        [] => Ok(NodePortAddresses::Primary),
        [word] if word.as_ref() == "primary" => Ok(NodePortAddresses::Primary),
        _ if texts.iter().any(|text| text.as_ref() == "primary") => {
            Err("\"primary\" stands alone, or not at all".into())
        }
        _ => networks(texts.iter().map(AsRef::as_ref)).map(NodePortAddresses::In),
    }
}

/// Host bits are borne and cut off, as kube-proxy does.
fn networks<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<Subnet>, String> {
    texts
        .map(|text| {
            let cidr: hostnet::vocab::Cidr = text.trim().parse().map_err(|e| format!("{e}"))?;
            Ok(cidr.subnet())
        })
        .collect()
}

/// Where to listen: `address:port`, `:port`, or an address, to which `port` is added. An empty text is
/// dealt with before: it means not to listen.
pub(super) fn listen(text: &str, port: u16) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    match text.strip_prefix(':').map(str::parse) {
        Some(Ok(port)) => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        _ => Err("want address:port, such as 127.0.0.1:10249 or [::1]:10249, or an address".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let ms = |n| Ok(Duration::from_millis(n));
        for (text, expected) in [
            ("0s", ms(0)),
            ("0", ms(0)),
            ("30s", ms(30_000)),
            ("1m30s", ms(90_000)),
            ("1h0m0s", ms(3_600_000)),
            ("1.5s", ms(1_500)),
            ("500ms", ms(500)),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
        for wrong in ["", "30", "s", "-3s", "3 s", "3d", "1..5s", "1e3s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places_to_listen_at() {
        for (text, expected) in [
            ("127.0.0.1:10249", "127.0.0.1:10249"),
            ("0.0.0.0", "0.0.0.0:10249"),
            ("::1", "[::1]:10249"),
            ("[::]", "[::]:10249"),
            ("[::1]:1", "[::1]:1"),
            (":9", "0.0.0.0:9"),
        ] {
            assert_eq!(
                listen(text, 10_249),
                Ok(expected.parse().unwrap()),
                "{text}"
            );
        }
        for wrong in ["localhost:1", "1.2.3:4", "1.2.3.4:70000", ":"] {
            assert!(listen(wrong, 1).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_of_the_cluster() {
        let two = cluster_cidr("10.244.0.0/16, fd00::/48").unwrap();
        assert_eq!(two.len(), 2);
        assert!(cluster_cidr("10.244.0.0/16,10.245.0.0/16").is_err());
        assert!(cluster_cidr("10.244.0.0").is_err());
        assert_eq!(
            cluster_cidr("10.244.1.1/16").unwrap(),
            cluster_cidr("10.244.0.0/16").unwrap()
        );
    }

    #[test]
    fn where_node_ports_answer() {
        assert_eq!(
            node_port_addresses::<&str>(&[]),
            Ok(NodePortAddresses::Primary)
        );
        assert_eq!(
            node_port_addresses(&["primary"]),
            Ok(NodePortAddresses::Primary)
        );
        assert!(node_port_addresses(&["primary", "10.0.0.0/8"]).is_err());
        assert!(node_port_addresses(&["10.0.0.1"]).is_err());
        let both = NodePortAddresses::In(vec![
            "10.0.0.0/8".parse().unwrap(),
            "fd00::/8".parse().unwrap(),
        ]);
        assert_eq!(node_port_addresses(&["10.0.0.0/8", "fd00::/8"]), Ok(both));
    }
}
