//! What an administrator reads: the table of the worked example in `nft`'s words.

use std::io::Write as _;

use hostnet::testkit::{Ns, require_tool};

use super::super::NftBackend;
use crate::backend::{Applied, Backend};
use crate::fixtures::{SEED, cluster_cidr, index, plan};
use crate::plan::{DetectLocal, Ruleset, Settings};

#[test]
fn the_worked_example_is_readable_and_loads_again() {
    require_tool("nft", "nftables");
    let plan = plan(&mut index(SEED), &cluster_cidr("10.244.0.0/16"));
    let node = Ns::new("node");
    let mut backend = node.run(NftBackend::open).unwrap();
    backend.replace(&plan).unwrap();
    let listing = node.sh("nft", &["list", "table", "ip", "twill-proxy"]);
    insta::assert_snapshot!(listing);

    let everything = node.sh("nft", &["list", "ruleset"]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(everything.as_bytes()).unwrap();
    let copy = Ns::new("copy");
    copy.sh("nft", &["-f", file.path().to_str().unwrap()]);
    assert_eq!(copy.sh("nft", &["list", "ruleset"]), everything);

    // A node whose saved ruleset was loaded at boot is right already.
    let mut backend = copy.run(NftBackend::open).unwrap();
    assert_eq!(backend.replace(&plan).unwrap(), Applied::default());
}

/// Ranges of sources and of the service network, for both families.
const RANGES: &str = "
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/12, 'fd00:96::/108']}
---
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.1.1, 'fd00:96::1']
  externalTrafficPolicy: Local
  loadBalancerSourceRanges: [10.0.0.0/8, 192.0.2.7/32, '2001:db8::/33', '2001:db9::1/128', 172.16.0.0/13]
  sessionAffinity: ClientIP
  ports: [{port: 80, nodePort: 30001}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {ip: '2001:db8::1'}]}}
---
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.3.1], nodeName: k8s-node-2}, {addresses: [10.244.1.1], nodeName: k8s-node-1}]
";

#[test]
fn ranges_load_again_and_go() {
    let settings = Settings {
        detect_local: DetectLocal::Interface("cni0".into()),
        ..Settings::default()
    };
    let plan = plan(&mut index(RANGES), &settings);
    let node = Ns::new("node");
    let mut backend = node.run(NftBackend::open).unwrap();
    backend.replace(&plan).unwrap();
    let restarted = node.run(NftBackend::open).unwrap().replace(&plan).unwrap();
    assert_eq!(restarted, Applied::default());
    let listing = node.sh("nft", &["list", "ruleset"]);
    for line in [
        "elements = { 10.96.0.0/12 }",
        "203.0.113.1 . tcp . 80 . 172.16.0.0/13 comment \"shop/web\" : goto aff-svl-shop/web/tcp",
        "2001:db8::1 . tcp . 80 . 2001:db8::/33 comment \"shop/web\" : goto refuse",
        "iif 0 return",
    ] {
        assert!(listing.contains(line), "{line} in {listing}");
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(listing.as_bytes()).unwrap();
    let copy = Ns::new("copy");
    copy.sh("nft", &["-f", file.path().to_str().unwrap()]);
    let mut backend = copy.run(NftBackend::open).unwrap();
    assert_eq!(backend.replace(&plan).unwrap(), Applied::default());
    backend.replace(&Ruleset::default()).unwrap();
    backend.tick().unwrap();
    assert!(!backend.tick().unwrap().unfinished);
    let listing = copy.sh("nft", &["list", "ruleset"]);
    assert!(!listing.contains("elements ="), "{listing}");
}
