//! Tests of the configuration as a whole: file and flags in, settings or faults out.

use agent::logging::Format;
use clap::Parser;

use super::*;
use crate::plan::NodePortAddresses;

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
    let document = serde_saphyr::from_str::<Value>(yaml).unwrap();
    Config::new(&args, document.as_object().cloned())
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
      mode: "kernelspace": this is a mode of another platform: want nftables
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
conntrack: {maxPerCore: 1}
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
    conntrack: has no effect here
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
