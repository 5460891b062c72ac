//! Whatever a runtime sends: the request is understood or refused with a code and a sentence, never
//! with a panic. What comes is random bytes, random JSON, and right configurations with some of
//! their values replaced.

use std::ffi::OsString;

use cni_plugin::attachment::Attachment;
use cni_plugin::error::CniError;
use cni_plugin::request::config::Config;
use cni_plugin::request::{self, Args, RawRequest, Target};
use hostnet::vocab::SubnetEnv;
use proptest::prelude::*;
use serde_json::{Value, json};

const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:3::1/64\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

/// All that is done with a request before anything is touched.
fn understand(bytes: &[u8], env: impl Fn(&str) -> Option<OsString>) -> Result<(), CniError> {
    let raw = RawRequest::from_env(env);
    request::verb(&raw)?;
    let config = Config::decode(bytes).map_err(|(error, _)| error)?;
    config.prev_result()?;
    config.valid_attachments()?;
    let settings = config.settings(&Args::parse(raw.args.as_deref())?)?;
    let target = Target::of(&raw, true)?;
    let env: SubnetEnv = ENV.parse().unwrap();
    let attachment = Attachment::new(target.identity, &settings, Some(&env))?;
    let addrs: Vec<_> = attachment
        .sets
        .iter()
        .filter_map(|set| set.candidates(None).next())
        .collect();
    assert_eq!(
        addrs.len(),
        attachment.sets.len(),
        "a set without an address"
    );
    let attachment = attachment.with_addresses(&addrs)?;
    attachment.kernel_routes();
    Ok(())
}

fn is_told(outcome: Result<(), CniError>) {
    if let Err(error) = outcome {
        assert!(!error.msg.is_empty());
        let text = error.to_json(cni_plugin::version::Version::LATEST);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert!(
            (1..=999).contains(&json["code"].as_u64().unwrap()),
            "{text}"
        );
    }
}

fn usual(key: &str) -> Option<OsString> {
    Some(OsString::from(match key {
        "CNI_COMMAND" => "ADD",
        "CNI_CONTAINERID" => "c1",
        "CNI_IFNAME" => "eth0",
        "CNI_NETNS" => "/run/netns/x",
        "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b",
        _ => return None,
    }))
}

fn right() -> [Value; 2] {
    let runtime = json!({
        "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "0.0.0.0"}],
        "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000, "egressBurst": 8000},
        "ips": ["10.9.0.7"], "mac": "02:00:00:00:00:01", "ipRanges": [[{"subnet": "10.8.0.0/24"}]]
    });
    let mut flannels = runtime.clone();
    flannels.as_object_mut().unwrap().remove("ipRanges");
    [
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "twill-cni", "bridge": "br0", "isGateway": true,
            "isDefaultGateway": true, "forceAddress": false, "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1500,
            "hairpinMode": false, "promiscMode": false, "vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": true,
            "macspoofchk": true, "enabledad": true, "disableContainerInterface": false, "portIsolation": true,
            "snat": true, "masqAll": true, "conditionsV4": [], "ingressRate": 80, "ingressBurst": 800,
            "args": {"cni": {"ips": ["fd09::5/64"], "mac": "02:00:00:00:00:02"}},
            "ipam": {"type": "host-local", "dataDir": "/x", "resolvConf": "", "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1", "mtu": 1400, "table": 7, "scope": 0}],
                     "ranges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.5", "rangeEnd": "10.9.0.9", "gateway": "10.9.0.254"}], [{"subnet": "fd09::/64"}]]},
            "runtimeConfig": runtime,
            "prevResult": {"interfaces": [{"name": "x"}], "ips": [{"address": "192.0.2.1/24"}], "routes": [], "dns": {}},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]
        }),
        json!({
            "cniVersion": "0.3.1", "name": "cbr0", "type": "twill-cni", "subnetFile": "/x", "dataDir": "/y", "stateDir": "/z",
            "delegate": {"hairpinMode": true, "isDefaultGateway": true, "mtu": 1400, "ipMasq": false},
            "ipam": {"routes": [{"dst": "198.51.100.0/24"}]},
            "runtimeConfig": {"portMappings": flannels["portMappings"], "bandwidth": flannels["bandwidth"]}
        }),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "0.0.0.0/0",
            "::/0",
            "10.9.0.0/31",
            "10.9.0.0/0",
            "255.255.255.255",
            "::1",
            "fd00::/127",
            "ff:ff:ff:ff:ff:ff",
            "../x",
            "eth0",
            "host-local",
            "dhcp",
            "1.0.0",
            "0.1.0",
            "sctp",
            "\u{0}"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Puts a value in place of the one that a walk of numbers leads to.
fn replace(at: &mut Value, walk: &[prop::sample::Index], with: &Value) {
    let Some((step, rest)) = walk.split_first() else {
        at.clone_from(with);
        return;
    };
    match at {
        Value::Object(map) if !map.is_empty() => {
            let n = step.index(map.len());
            if let Some(inner) = map.values_mut().nth(n) {
                replace(inner, rest, with);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let n = step.index(list.len());
            replace(&mut list[n], rest, with);
        }
        _ => at.clone_from(with),
    }
}

#[test]
fn the_right_ones_are_understood() {
    for config in right() {
        understand(config.to_string().as_bytes(), usual).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes(bytes: Vec<u8>) {
        is_told(understand(&bytes, usual));
    }

    #[test]
    fn random_json(config in any_json()) {
        is_told(understand(config.to_string().as_bytes(), usual));
    }

    #[test]
    fn right_ones_with_something_wrong(
        which in 0usize..2,
        wrong in prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 1..6), any_json()), 1..4)
    ) {
        let mut config = right()[which].clone();
        for (walk, value) in &wrong {
            replace(&mut config, walk, value);
        }
        is_told(understand(config.to_string().as_bytes(), usual));
    }

    #[test]
    fn right_ones_that_were_cut_or_have_bytes_replaced(
        which in 0usize..2, cut: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
    ) {
        let mut bytes = right()[which].to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        is_told(understand(&bytes, usual));
        bytes.truncate(cut.index(bytes.len()));
        is_told(understand(&bytes, usual));
    }

    #[test]
    fn random_variables(
        values in prop::collection::vec(prop::option::of(prop_oneof![".{0,20}", "[A-Z]{1,6}(=[^;]{0,6};?){0,3}"]), 6)
    ) {
        let keys = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH"];
        let env = |key: &str| {
            let index = keys.iter().position(|k| *k == key)?;
            values[index].clone().map(OsString::from)
        };
        // One at a time beside the usual ones, and all together.
        let config = right()[1].to_string();
        is_told(understand(config.as_bytes(), env));
        for only in keys {
            is_told(understand(config.as_bytes(), |key| if key == only { env(key) } else { usual(key) }));
        }
    }
}
