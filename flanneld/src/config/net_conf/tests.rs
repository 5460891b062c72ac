use hostnet::vocab::names;
use proptest::prelude::*;

use super::*;

fn good(text: &str) -> NetConf {
    let (conf, warnings) = NetConf::parse(text).unwrap();
    assert_eq!(warnings, Vec::<String>::new(), "{text}");
    conf
}

fn warnings(text: &str) -> Vec<String> {
    NetConf::parse(text).unwrap().1
}

fn errors(text: &str) -> Vec<String> {
    match NetConf::parse(text).unwrap_err() {
        Error::Values(errors) => errors.iter().map(ToString::to_string).collect(),
        other => vec![other.to_string()],
    }
}

/// A configuration for 10.244.0.0/16 with these keys more.
fn with(keys: &str) -> String {
    format!(r#"{{"Network": "10.244.0.0/16", {keys}}}"#)
}

fn with_backend(keys: &str) -> String {
    with(&format!(r#""Backend": {{"Type": "vxlan", {keys}}}"#))
}

#[test]
fn flannels_usual_configuration() {
    let conf = good(
        r#"{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#,
    );
    assert_eq!(conf.backend, Backend::Vxlan(Vxlan::default()));
    assert_eq!(conf.allocate, Allocate::Auto);
    assert!(conf.networks.v6.is_none());
    let net = conf.networks.v4.unwrap();
    assert_eq!(net.subnet_len, 24);
    assert_eq!(net.subnet_min.to_string(), "10.244.1.0/24");
    assert_eq!(net.subnet_max.to_string(), "10.244.255.0/24");
    // No backend, and a backend without a type, are vxlan.
    assert_eq!(good(r#"{"Network": "10.244.0.0/16"}"#), conf);
    assert_eq!(good(&with(r#""Backend": {}"#)), conf);
    assert_eq!(good(&with(r#""Backend": null"#)), conf);
}

#[test]
fn every_key_is_read() {
    let conf = good(
        r#"{
            "EnableIPv4": true, "Network": "10.0.0.0/8",
            "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0",
            "EnableIPv6": true, "IPv6Network": "fd00::/48",
            "IPv6SubnetLen": 64, "IPv6SubnetMin": "fd00:0:0:10::", "IPv6SubnetMax": "fd00:0:0:ff::",
            "Backend": {"Type": "VXLAN", "VNI": 9999, "Port": 4789, "MTU": 1400,
                        "GBP": true, "Learning": true, "DirectRouting": true},
            "Allocate": "never",
            "NoMasquerade": ["192.168.0.0/16", "fd00:1::/32", "192.168.7.0/24"]
        }"#,
    );
    let nets = conf.networks;
    let shown = |net: Network| {
        format!(
            "{} {} {} {}",
            net.network, net.subnet_len, net.subnet_min, net.subnet_max
        )
    };
    assert_eq!(
        shown(nets.v4.unwrap()),
        "10.0.0.0/8 20 10.10.0.0/20 10.99.0.0/20"
    );
    assert_eq!(
        shown(nets.v6.unwrap()),
        "fd00::/48 64 fd00:0:0:10::/64 fd00:0:0:ff::/64"
    );
    let vxlan = Vxlan {
        vni: 9999,
        port: 4789,
        mtu: Some(1400),
        gbp: true,
        learning: true,
        direct_routing: true,
    };
    assert_eq!(conf.backend, Backend::Vxlan(vxlan));
    assert_eq!(conf.allocate, Allocate::Never);
    // A network inside another is dropped: nf_tables takes no overlapping intervals.
    let except: Vec<String> = conf.no_masquerade.iter().map(ToString::to_string).collect();
    assert_eq!(except, ["192.168.0.0/16", "fd00:1::/32"]);
}

#[test]
fn subnet_lengths_follow_the_network() {
    let len = |network: &str| {
        good(&format!(r#"{{"Network": "{network}"}}"#))
            .networks
            .v4
            .unwrap()
            .subnet_len
    };
    assert_eq!(len("10.244.0.0/16"), 24);
    assert_eq!(len("10.244.0.0/22"), 24);
    assert_eq!(len("10.244.0.0/23"), 25);
    assert_eq!(len("10.244.0.0/28"), 30);
    let len = |network: &str| {
        let text =
            format!(r#"{{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "{network}"}}"#);
        good(&text).networks.v6.unwrap().subnet_len
    };
    assert_eq!(len("fd00::/48"), 64);
    assert_eq!(len("fd00::/62"), 64);
    assert_eq!(len("fd00::/63"), 65);
    assert_eq!(len("::/0"), 64);
}

#[test]
fn zero_leaves_the_port_and_the_mtu_to_the_default() {
    let conf = good(&with_backend(r#""Port": 0, "MTU": 0"#));
    assert_eq!(conf.backend, Backend::Vxlan(Vxlan::default()));
}

#[test]
fn keys_in_another_case_are_read_as_go_reads_them() {
    let conf = good(r#"{"network": "10.244.0.0/16", "backend": {"type": "host-gw"}}"#);
    assert_eq!(conf.backend, Backend::HostGw);
}

#[test]
fn what_has_no_effect_is_a_warning_that_names_it() {
    assert_eq!(
        warnings(&with(
            r#""Netwrok": "x", "Backend": {"Type": "host-gw", "VNI": 5}"#
        )),
        [
            "unknown key Backend.VNI has no effect",
            "unknown key Netwrok has no effect"
        ]
    );
    assert_eq!(
        warnings(&with(r#""EnableNFTables": false"#)),
        ["EnableNFTables false has no effect: the rules are in nftables"]
    );
    assert_eq!(
        warnings(&with(r#""IPv6Network": "fd00::/48""#)),
        ["IPv6Network has no effect: EnableIPv6 is not true"]
    );
    assert_eq!(
        warnings(r#"{"Network": "10.244.7.7/16"}"#),
        ["Network 10.244.7.7/16 is read as 10.244.0.0/16"]
    );
}

#[test]
fn every_wrong_value_is_told_at_once() {
    let text = r#"{
        "Network": "10.244.0.0", "SubnetLen": "24", "EnableIPv6": true, "Allocate": "maybe",
        "Backend": {"Type": "vxlan", "VNI": 16777216, "Port": 66000, "GBP": "yes"}
    }"#;
    assert_eq!(
        errors(text),
        [
            r#"SubnetLen: "24" is not allowed: expected a number from 1 to 30"#,
            r#"Network: "10.244.0.0" is not allowed: expected an IPv4 network such as 10.244.0.0/16"#,
            "IPv6Network is missing: expected an IPv6 network such as fd00:10:244::/56, since IPv6 is in use",
            "Backend.VNI: 16777216 is not allowed: expected a number from 0 to 9999999",
            "Backend.Port: 66000 is not allowed: expected a number from 0 to 65535",
            r#"Backend.GBP: "yes" is not allowed: expected true or false"#,
            r#"Allocate: "maybe" is not allowed: expected "auto", "always" or "never""#,
        ]
    );
}

#[test]
fn each_wrong_value_names_what_is_allowed() {
    let one = |text: &str| {
        let errors = errors(text);
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors[0].clone()
    };
    for (text, expected) in [
        (
            r#"{"Network": "10.244.0.0/29"}"#.to_owned(),
            "Network: 10.244.0.0/29 is not allowed: expected /28 or shorter, to be cut into subnets",
        ),
        (
            r#"{"Network": "fd00::/48"}"#.to_owned(),
            r#"Network: "fd00::/48" is not allowed: expected an IPv4 network such as 10.244.0.0/16"#,
        ),
        (
            with(r#""SubnetLen": 17"#),
            "SubnetLen: 17 is not allowed: expected a number from 18 to 30 in 10.244.0.0/16",
        ),
        (
            with(r#""SubnetLen": 31"#),
            "SubnetLen: 31 is not allowed: expected a number from 1 to 30",
        ),
        (
            with(r#""SubnetMin": "10.244.1.1""#),
            r#"SubnetMin: "10.244.1.1" is not allowed: expected the first address of a /24 in 10.244.0.0/16"#,
        ),
        (
            with(r#""SubnetMax": "10.245.0.0""#),
            r#"SubnetMax: "10.245.0.0" is not allowed: expected the first address of a /24 in 10.244.0.0/16"#,
        ),
        (
            with(r#""SubnetMin": "10.244.9.0", "SubnetMax": "10.244.8.0""#),
            "SubnetMax: 10.244.8.0 is not allowed: expected 10.244.9.0 or higher, from SubnetMin",
        ),
        (
            with(r#""Backend": "vxlan""#),
            r#"Backend: "vxlan" is not allowed: expected an object such as {"Type": "vxlan"}"#,
        ),
        (
            with(r#""Backend": {"Type": "wireguard", "PSK": "x"}"#),
            r#"Backend.Type: "wireguard" is not allowed: expected "vxlan", "host-gw" or "alloc"; no other backend is built in"#,
        ),
        (
            with_backend(r#""MTU": 117"#),
            "Backend.MTU: 117 is not allowed: expected 0 or a number from 118 to 65535",
        ),
        (
            with_backend(r#""VNI": -1"#),
            "Backend.VNI: -1 is not allowed: expected a number from 0 to 9999999",
        ),
        (
            with(r#""EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"VNI": 10000}"#),
            "Backend.VNI: 10000 is not allowed: expected a number from 0 to 9999",
        ),
        (
            with(r#""EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"MTU": 1349}"#),
            "Backend.MTU: 1349 is not allowed: expected 0 or a number from 1350 to 65535",
        ),
        (
            with(r#""NoMasquerade": ["10.0.0.0/8", "x"]"#),
            r#"NoMasquerade: "x" is not allowed: expected networks such as ["192.168.0.0/16", "fd00::/8"]"#,
        ),
        (
            r#"{"EnableIPv4": false}"#.to_owned(),
            "EnableIPv4: false is not allowed: without EnableIPv6 there is no network at all",
        ),
        ("[]".to_owned(), "expected a JSON object {…}"),
        ("{".to_owned(), "not JSON"),
    ] {
        assert_eq!(one(&text), expected, "{text}");
    }
}

#[test]
fn every_vni_that_is_allowed_gives_a_device_name() {
    for (networks, family) in [
        (good(r#"{"Network": "10.0.0.0/8"}"#).networks, Family::V4),
        (
            good(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#)
                .networks,
            Family::V6,
        ),
    ] {
        let highest = *vnis(&networks).end();
        assert!(names::vxlan_device(family, highest).is_ok());
        assert!(names::vxlan_device(family, highest + 1).is_err());
    }
}

proptest! {
    #[test]
    fn any_network_that_is_read_holds_its_subnets(
        base in any::<u32>(), prefix in 0u8..=32, len in 0u32..=33,
    ) {
        let addr = std::net::Ipv4Addr::from_bits(base);
        let text = format!(r#"{{"Network": "{addr}/{prefix}", "SubnetLen": {len}}}"#);
        if let Ok((conf, _)) = NetConf::parse(&text) {
            let v4 = conf.networks.v4.unwrap();
            prop_assert!(v4.network.contains_subnet(v4.subnet_min));
            prop_assert!(v4.network.contains_subnet(v4.subnet_max));
            prop_assert!(v4.subnet_min <= v4.subnet_max);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = NetConf::parse(&text);
    }

    #[test]
    fn no_json_makes_it_panic_and_what_is_read_can_work(
        top in prop::collection::vec((prop::sample::select(TOP), value()), 0..8),
        backend in prop::collection::vec((prop::sample::select(BACKEND), value()), 0..6),
    ) {
        let object = |pairs: Vec<(&str, Value)>| -> serde_json::Map<String, Value> {
            pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
        };
        let mut conf = object(top);
        conf.insert("Network".to_owned(), "10.244.0.0/16".into());
        conf.insert("Backend".to_owned(), object(backend).into());
        if let Ok((conf, _)) = NetConf::parse(&Value::Object(conf).to_string()) {
            prop_assert!(!conf.networks.is_empty());
            if let Backend::Vxlan(vxlan) = conf.backend {
                prop_assert_ne!(vxlan.port, 0);
                for (family, _) in conf.networks.iter() {
                    prop_assert!(hostnet::vocab::names::vxlan_device(family, vxlan.vni).is_ok());
                    prop_assert!(vxlan.mtu.is_none_or(|mtu| mtu >= least_mtu(&conf.backend, family)));
                }
            }
            // nf_tables refuses intervals that overlap.
            for (index, one) in conf.no_masquerade.iter().enumerate() {
                prop_assert!(conf.no_masquerade[..index].iter().all(|other| !other.overlaps(*one)));
            }
        }
    }
}

const TOP: &[&str] = &[
    "EnableIPv4",
    "EnableIPv6",
    "IPv6Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "EnableNFTables",
    "Allocate",
    "NoMasquerade",
    "unknown",
];
const BACKEND: &[&str] = &[
    "Type",
    "VNI",
    "Port",
    "MTU",
    "GBP",
    "Learning",
    "DirectRouting",
    "unknown",
];

/// Any JSON, mostly of the kinds that a key may have.
fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,20}",
        (any::<u32>(), 0u8..40)
            .prop_map(|(bits, len)| format!("{}/{len}", std::net::Ipv4Addr::from_bits(bits))),
        (any::<u128>(), 0u8..140)
            .prop_map(|(bits, len)| format!("{}/{len}", std::net::Ipv6Addr::from_bits(bits))),
        prop::sample::select(vec![
            "vxlan",
            "host-gw",
            "alloc",
            "auto",
            "10.244.4.0",
            "fd00::/48"
        ])
        .prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u32..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(Value::from)
    })
}
