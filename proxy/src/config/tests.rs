//! Tests of the configuration as a whole: file and flags in, settings or faults out.

use agent::logging::Format;
use clap::Parser;

use super::*;
use crate::plan::NodePortAddresses;
use proptest::prelude::*;

/// What kubeadm writes for kube-proxy, its empty values too.
const KUBEADM: &str = "
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ''
  burst: 0
  contentType: ''
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ''
  interfaceNamePrefix: ''
detectLocalMode: ''
enableProfiling: false
healthzBindAddress: ''
hostnameOverride: ''
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ''
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json: {infoBufferSize: '0'}
    text: {infoBufferSize: '0'}
  verbosity: 0
metricsBindAddress: ''
mode: ''
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ''
showHiddenMetricsForVersion: ''
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ''
  rootHnsEndpointName: ''
  sourceVip: ''
";

fn load(yaml: &str, flags: &[&str]) -> Result<Config, Error> {
    let args = Args::try_parse_from(["twill-proxy"].iter().chain(flags)).unwrap();
    Config::new(&args, Documents::parse(yaml).unwrap())
}

/// A file with these fields.
fn file(fields: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}\n"
    )
}

fn faults(result: Result<Config, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn kubeadms_file_needs_no_remark() {
    let config = load(KUBEADM, &["--hostname-override=K8s-Node-2"]).unwrap();
    assert_eq!(config.notes, ["clientConnection"; 0]);
    assert_eq!(config.hostname, "k8s-node-2");
    assert_eq!(
        config.client.kubeconfig,
        Some("/var/lib/kube-proxy/kubeconfig.conf".into())
    );
    let cluster = DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(
        config.settings,
        Settings {
            detect_local: cluster,
            ..Settings::default()
        }
    );
    assert_eq!(config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.sync_period, Duration::from_secs(30));
    assert_eq!(config.min_sync_period, Duration::ZERO);
    assert!(!config.bind_hard_fail);
}

#[test]
fn every_field_that_has_a_use_is_used() {
    let config = load(
        &file(
            "mode: nftables
bindAddress: 192.168.1.12
bindAddressHardFail: true
detectLocalMode: NodeCIDR
healthzBindAddress: '[::]:9256'
metricsBindAddress: 0.0.0.0
hostnameOverride: node-a
nodePortAddresses: [10.0.0.0/8]
nftables: {masqueradeAll: true, syncPeriod: 1m, minSyncPeriod: 100ms}
logging: {format: json, verbosity: 4}",
        ),
        &[],
    )
    .unwrap();
    assert_eq!(config.notes, ["x"; 0]);
    assert_eq!(config.hostname, "node-a");
    let expected = Settings {
        detect_local: DetectLocal::NodeCidr,
        node_port_addresses: NodePortAddresses::In(vec!["10.0.0.0/8".parse().unwrap()]),
        node_ip: Some("192.168.1.12".parse().unwrap()),
        masquerade_all: true,
    };
    assert_eq!(config.settings, expected);
    assert_eq!(config.metrics, Some("0.0.0.0:10249".parse().unwrap()));
    assert_eq!(config.healthz, Some("[::]:9256".parse().unwrap()));
    assert_eq!(config.sync_period, Duration::from_secs(60));
    assert_eq!(config.min_sync_period, Duration::from_millis(100));
    assert!(config.bind_hard_fail);
    assert_eq!((config.log.v, config.log.log_format), (4, Format::Json));
}

#[test]
fn flags_serve_where_the_file_is_silent() {
    let flags = [
        "--cluster-cidr=10.244.0.0/16,fd00::/48",
        "--metrics-bind-address=",
        "--healthz-bind-address=127.0.0.1",
        "--hostname-override=flag",
        "--masquerade-all",
        "--nodeport-addresses=primary",
        "--proxy-mode=nftables",
        "-v=5",
    ];
    let config = load(
        &file("clusterCIDR: 10.9.0.0/16\nhostnameOverride: file"),
        &flags,
    )
    .unwrap();
    let DetectLocal::ClusterCidr(networks) = &config.settings.detect_local else {
        panic!("{:?}", config.settings)
    };
    assert_eq!(
        networks,
        &["10.9.0.0/16".parse().unwrap()],
        "the file goes before the flag"
    );
    assert_eq!(config.hostname, "flag", "but not in this one");
    assert_eq!(config.metrics, None);
    assert_eq!(config.healthz, Some("127.0.0.1:10256".parse().unwrap()));
    assert!(config.settings.masquerade_all);
    assert_eq!(config.log.v, 5);
}

#[test]
fn all_faults_are_named_with_field_and_value() {
    let error = faults(load(
        &file(
            "mode: kernelspace
bindAddressHardFail: perhaps
clusterCIDR: 10.244.0.0/33
nodePortAddresses: [primary, 10.0.0.0/8]
nftables: {minSyncPeriod: soon, masqueradeAll: 3}
logging: {verbosity: loud}
clientConnection: 5",
        ),
        &["--healthz-bind-address=localhost:1"],
    ));
    insta::assert_snapshot!(error, @r#"
    the configuration cannot be used:
      mode: "kernelspace": this is a mode of another platform: want nftables or iptables
      bindAddressHardFail: "perhaps": want true or false
      clusterCIDR: "10.244.0.0/33": prefix length 33 is too long for 10.244.0.0: at most 32
      nodePortAddresses: ["primary", "10.0.0.0/8"]: "primary" stands alone, or not at all
      clientConnection: 5: want a mapping
      nftables.masqueradeAll: 3: want true or false
      nftables.minSyncPeriod: "soon": want a duration such as 30s, 1m30s or 500ms
      logging.verbosity: "loud": want a number from 0 to 255
      --healthz-bind-address: "localhost:1": want address:port, such as 127.0.0.1:10249 or [::1]:10249, or an address
    "#);
}

#[test]
fn a_least_period_longer_than_the_period_is_a_fault() {
    let error = faults(load(
        &file("nftables: {syncPeriod: 1s, minSyncPeriod: 2s}"),
        &[],
    ));
    assert!(
        error.contains("nftables.minSyncPeriod: 2s: must not be longer than syncPeriod, 1s"),
        "{error}"
    );
}

#[test]
fn another_kind_or_version_is_a_fault() {
    let error = faults(load(
        "apiVersion: kubeproxy.config.k8s.io/v2\nkind: KubeletConfiguration",
        &[],
    ));
    assert!(
        error.contains("apiVersion: \"kubeproxy.config.k8s.io/v2\": want"),
        "{error}"
    );
    assert!(
        error.contains("kind: \"KubeletConfiguration\": want \"KubeProxyConfiguration\""),
        "{error}"
    );
}

#[test]
fn what_has_no_effect_is_said() {
    let config = load(
        &file(
            "clusterCIDR: 10.244.0.0/16
mode: ipvs
ipvs: {scheduler: lc}
featureGates: {A: true}
clientConnection: {qps: 50}
nftables: {masqueradeBits: 3}
hello: world",
        ),
        &[],
    )
    .unwrap();
    insta::assert_snapshot!(config.notes.join("\n"), @r"
    nftables.masqueradeBits: unknown, ignored
    hello: unknown, ignored
    clientConnection.qps: has no effect here
    featureGates: has no effect here
    ipvs: has no effect here
    mode ipvs: nftables mode serves in its place
    ");
}

#[test]
fn without_a_cluster_cidr_it_is_said_what_is_lost() {
    let config = load(&file("hostnameOverride: x"), &[]).unwrap();
    assert_eq!(config.settings.detect_local, DetectLocal::Nothing);
    assert!(
        config.notes[0].contains("no cluster CIDR"),
        "{:?}",
        config.notes
    );
}

#[test]
fn files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        let path = dir.path().join("config.yaml");
        // A test's own file: torn writes do not matter.
        std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), text.as_bytes())
            .unwrap();
        let flag = format!("--config={}", path.display());
        let args = Args::try_parse_from(["twill-proxy", "--hostname-override=x", &flag]).unwrap();
        Config::load(&args).map(|config| config.hostname)
    };
    assert_eq!(load("").unwrap(), "x");
    assert_eq!(load("# nothing\n").unwrap(), "x");
    assert!(
        load("- a\n- b\n")
            .unwrap_err()
            .to_string()
            .contains("want a mapping")
    );
    assert!(
        load("mode: [")
            .unwrap_err()
            .to_string()
            .contains("config.yaml: ")
    );
    let args = Args::try_parse_from(["twill-proxy", "--config=/nowhere/config.yaml"]).unwrap();
    let error = Config::load(&args).unwrap_err().to_string();
    assert!(error.contains("--config /nowhere/config.yaml: "), "{error}");
}

#[test]
fn local_traffic_is_told_in_four_ways() {
    let detect = |fields: &str, flags: &[&str]| {
        let config = load(&file(fields), flags).unwrap();
        (config.settings.detect_local, config.notes.join("\n"))
    };
    let interface = |name: &str| (DetectLocal::Interface(name.into()), String::new());
    let bridge = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}";
    assert_eq!(detect(bridge, &[]), interface("cni0"));
    let prefix = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}";
    assert_eq!(detect(prefix, &[]), interface("veth*"));
    let flags = [
        "--detect-local-mode=BridgeInterface",
        "--pod-bridge-interface=cbr0",
        "--pod-interface-name-prefix=cali",
    ];
    assert_eq!(detect("", &flags), interface("cbr0"));
    let flags = [
        "--pod-interface-name-prefix=cali",
        "--pod-bridge-interface=cbr0",
    ];
    assert_eq!(
        detect("detectLocalMode: InterfaceNamePrefix", &flags),
        interface("cali*")
    );
    let (nothing, note) = detect("detectLocalMode: BridgeInterface", &[]);
    assert_eq!(nothing, DetectLocal::Nothing);
    assert!(note.contains("detectLocal.bridgeInterface"), "{note}");
}

#[test]
fn connection_tracking_is_kube_proxys_unless_it_is_said() {
    let conntrack = |fields: &str, flags: &[&str]| load(&file(fields), flags).unwrap().conntrack;
    assert_eq!(conntrack("", &[]), Conntrack::default());
    let given = conntrack(
        "conntrack: {maxPerCore: 0, min: 7, tcpEstablishedTimeout: 1h, tcpBeLiberal: true, udpTimeout: 30s}",
        &[
            "--conntrack-max-per-core=9",
            "--conntrack-tcp-timeout-close-wait=0s",
            "--conntrack-udp-timeout-stream=2m",
        ],
    );
    let wanted = Conntrack {
        max_per_core: 0,
        min: 7,
        tcp_established: Duration::from_secs(3600),
        tcp_close_wait: Duration::ZERO,
        tcp_be_liberal: true,
        udp: Duration::from_secs(30),
        udp_stream: Duration::from_secs(120),
    };
    assert_eq!(given, wanted);
}

#[test]
fn every_wrong_value_is_named() {
    let error = faults(load(
        &file(
            "conntrack: {maxPerCore: -1, min: many, tcpEstablishedTimeout: 1d, tcpBeLiberal: 1}
detectLocalMode: Bridge
detectLocal: {bridgeInterface: a/b, interfaceNamePrefix: waytoolonganinterface}
oomScoreAdj: 2000",
        ),
        &[
            "--oom-score-adj=-1001",
            "--conntrack-udp-timeout=x",
            "--logging-format=xml",
        ],
    ));
    let named = [
        "conntrack.maxPerCore: -1:",
        "conntrack.min: \"many\":",
        "conntrack.tcpEstablishedTimeout: \"1d\":",
        "conntrack.tcpBeLiberal: 1:",
        "detectLocalMode: \"Bridge\": want ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
        "detectLocal.bridgeInterface: \"a/b\":",
        "detectLocal.interfaceNamePrefix: \"waytoolonganinterface\":",
        "oomScoreAdj: 2000: want a number from -1000 to 1000",
        "--oom-score-adj: -1001:",
        "--conntrack-udp-timeout: \"x\":",
        "--logging-format: \"xml\":",
    ];
    for named in named {
        assert!(error.contains(named), "{named} in {error}");
    }
    assert_eq!(error.lines().count(), 1 + named.len(), "{error}");
}

#[test]
fn kube_proxys_other_flags_are_borne_and_named() {
    let flags = [
        "--ipvs-scheduler=rr",
        "--iptables-sync-period=30s",
        "--profiling",
        "--kube-api-qps=50",
        "--cluster-cidr=10.0.0.0/8",
    ];
    let notes = load(&file(""), &flags).unwrap().notes;
    assert_eq!(
        notes,
        [
            "--iptables-sync-period: has no effect here",
            "--ipvs-scheduler: has no effect here",
            "--kube-api-qps: has no effect here",
            "--profiling: has no effect here",
        ]
    );
}

/// What is written is read back as the same.
#[test]
fn the_document_of_a_configuration_makes_it_again() {
    let everything = "clusterCIDR: 10.244.0.0/16,fd00::/48
bindAddress: 192.168.1.12
bindAddressHardFail: true
clientConnection: {kubeconfig: /etc/kubeconfig}
conntrack: {maxPerCore: 1, min: 2, tcpBeLiberal: true, tcpCloseWaitTimeout: 90s, tcpEstablishedTimeout: 500ms, udpTimeout: 1.5s, udpStreamTimeout: 25h}
healthzBindAddress: '[::]:9256'
metricsBindAddress: 0.0.0.0
hostnameOverride: node-a
nodePortAddresses: [10.0.0.0/8, 'fd00::/8']
nftables: {masqueradeAll: true, syncPeriod: 1m, minSyncPeriod: 100ms}
oomScoreAdj: -5
serviceProxyName: mine
logging: {format: json, verbosity: 4}";
    for fields in [
        everything,
        "hostnameOverride: a",
        "hostnameOverride: a\ndetectLocalMode: NodeCIDR",
        "hostnameOverride: a\ndetectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
        "hostnameOverride: a\ndetectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
    ] {
        let document = load(&file(fields), &[]).unwrap().document();
        let yaml = serde_saphyr::to_string(&document).unwrap();
        let again = load(&yaml, &[]).unwrap();
        assert_eq!(again.document(), document, "{yaml}");
        assert!(
            !again.notes.iter().any(|note| note.contains("unknown")),
            "{:?}",
            again.notes
        );
    }
    let document = load(&file(everything), &[]).unwrap().document();
    let established = &document["conntrack"]["tcpEstablishedTimeout"];
    assert_eq!(established, "500ms");
    assert_eq!(document["conntrack"]["udpStreamTimeout"], "25h0m0s");
    assert_eq!(document["conntrack"]["udpTimeout"], "1.5s");
}

#[test]
fn our_own_settings_stand_in_a_document_of_their_own() {
    let snapshot = |yaml: &str, flags: &[&str]| load(yaml, flags).unwrap().snapshot;
    let usual = Some(PathBuf::from("/var/lib/twill/twill-proxy"));
    assert_eq!(snapshot(&file(""), &[]), usual);
    assert_eq!(snapshot(&file(""), &["--snapshot=false"]), None);
    let own = "---\napiVersion: twill.io/v1alpha1\nkind: TwillProxyConfiguration\n";
    let both = file("mode: nftables") + own + "snapshotDir: /data\n";
    assert_eq!(
        snapshot(&both, &["--snapshot-dir=/x"]),
        Some("/data/twill-proxy".into())
    );
    assert_eq!(snapshot(&(own.to_owned() + "snapshot: false\n"), &[]), None);
    let wrong = file("mode: x") + own + "snapshot: perhaps\n";
    let error = faults(load(&wrong, &[]));
    assert!(
        error.contains("snapshot: \"perhaps\"") && error.contains("mode: \"x\""),
        "{error}"
    );
    assert!(Documents::parse(&(file("") + "---\n" + &file(""))).is_err());
}

/// Any mapping, of known fields mostly, with values of any kind.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9:/.,-]{0,20}".prop_map(Value::from),
        Just(Value::from("NodeCIDR")),
        Just(Value::from("nftables")),
        Just(Value::from("10.0.0.0/8")),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let fields = prop_oneof![
            prop::sample::select(vec![
                "bindAddress",
                "conntrack",
                "detectLocal",
                "bridgeInterface",
                "min",
                "maxPerCore",
                "nftables",
                "syncPeriod",
                "minSyncPeriod",
                "masqueradeAll",
                "nodePortAddresses",
                "mode",
                "detectLocalMode",
                "clusterCIDR",
                "logging",
                "verbosity",
                "oomScoreAdj",
                "clientConnection",
                "kubeconfig",
                "metricsBindAddress",
                "hostnameOverride",
            ])
            .prop_map(String::from),
            "[a-zA-Z]{1,6}".prop_map(String::from),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(fields, inner, 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_file_makes_it_panic_and_faults_name_fields(document in any_value()) {
        let args = Args::try_parse_from(["twill-proxy", "--hostname-override=x"]).unwrap();
        let mut fields = document.as_object().cloned().unwrap_or_default();
        fields.insert("apiVersion".into(), "kubeproxy.config.k8s.io/v1alpha1".into());
        fields.insert("kind".into(), "KubeProxyConfiguration".into());
        let documents = Documents {
            own: document.get("conntrack").and_then(Value::as_object).cloned(),
            kube_proxy: Some(fields),
        };
        match Config::new(&args, documents) {
            Ok(config) => drop(config.document()),
            Err(Error::Faults(faults)) => {
                prop_assert!(faults.iter().all(|fault| !fault.field.is_empty() && !fault.reason.is_empty()));
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

#[tokio::test]
async fn a_file_that_changes_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let write = |fields: &str| {
        hostnet::atomic_file::replace(&path, file(fields).as_bytes(), 0o644).unwrap();
    };
    write("hostnameOverride: a");
    let flag = format!("--config={}", path.display());
    let args = Args::try_parse_from(["twill-proxy", &flag]).unwrap();
    let mut reload = Reload::watch(&args);
    // What cannot be used is passed over.
    write("mode: kernelspace");
    let next = reload.next();
    let waiting = tokio::time::timeout(Duration::from_millis(100), next).await;
    assert!(waiting.is_err());
    write("nftables: {masqueradeAll: true}\nhostnameOverride: a");
    let config = tokio::time::timeout(Duration::from_secs(60), reload.next()).await;
    assert!(config.unwrap().settings.masquerade_all);
}

#[test]
fn iptables_mode_has_a_section_and_names_of_its_own() {
    use crate::config::Mode;
    use crate::iptables::{Naming, Options, Variant};

    let text = file(
        "clusterCIDR: 10.244.0.0/16
mode: iptables
iptables: {masqueradeAll: true, masqueradeBit: 17, localhostNodePorts: false, syncPeriod: 10s}
nodePortAddresses: []
---
apiVersion: twill.io/v1alpha1
kind: TwillProxyConfiguration
iptables: {legacyNames: true, variant: legacy}",
    );
    let config = load(&text, &["--iptables-min-sync-period=2s"]).unwrap();
    let options = Options {
        naming: Naming::Legacy,
        masquerade_bit: 17,
        localhost_node_ports: false,
        ..Options::default()
    };
    let variant = Some(Variant::Legacy);
    assert_eq!(config.mode, Mode::Iptables { options, variant });
    assert!(config.settings.masquerade_all);
    assert!(config.settings.node_port_addresses.needs_interfaces());
    assert_eq!(
        (
            config.sync_period.as_secs(),
            config.min_sync_period.as_secs()
        ),
        (10, 2)
    );
    assert_eq!(config.notes, [""; 0]);
    assert_eq!(config.document()["iptables"]["masqueradeBit"], 17);

    let flags = [
        "--proxy-mode=iptables",
        "--iptables-legacy-names",
        "--cluster-cidr=10.0.0.0/8",
    ];
    let config = load("", &flags).unwrap();
    assert!(
        matches!(config.mode, Mode::Iptables { options, .. } if options.naming == Naming::Legacy)
    );
    let error = load(
        &file("mode: iptables\niptables: {masqueradeBit: 32}"),
        &["--iptables-variant=old"],
    )
    .unwrap_err()
    .to_string();
    for named in [
        "iptables.masqueradeBit: 32: want a number from 0 to 31",
        "--iptables-variant: \"old\": want nft or legacy",
    ] {
        assert!(error.contains(named), "{named} in {error}");
    }
}
