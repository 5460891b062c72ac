//! What `twill-proxy` does and ends: as a node's uninstall, an init container or a person runs it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use hostnet::testkit::Ns;

fn run(node: &Ns, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twill-proxy"));
    node.run(|| command.args(args).output()).unwrap()
}

fn succeed(node: &Ns, args: &[&str]) {
    let output = run(node, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn cleanup(node: &Ns, folder: &Path) {
    let folder = format!("--snapshot-dir={}", folder.display());
    succeed(node, &["--cleanup", &folder]);
}

fn put(file: &Path) {
    write(file, "state");
}

fn write(file: &Path, text: &str) {
    hostnet::atomic_file::replace(file, text.as_bytes(), 0o600).unwrap();
}

#[test]
fn the_last_good_state_goes_with_the_rules() {
    let node = Ns::new("node");
    let tables = || node.sh("nft", &["list", "tables"]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("twill");
    fs::create_dir(&folder).unwrap();
    for file in ["twill-proxy", "flanneld"] {
        put(&folder.join(file));
    }
    node.sh("nft", &["add table ip twill-proxy; add table ip foreign"]);
    cleanup(&node, &folder);
    assert_eq!(tables(), "table ip foreign\n");
    assert!(!folder.join("twill-proxy").exists());
    assert_eq!(fs::read(folder.join("flanneld")).unwrap(), b"state");

    // Nothing is there to remove, and then only an empty folder.
    cleanup(&node, &folder);
    assert!(folder.join("flanneld").exists());
    fs::remove_file(folder.join("flanneld")).unwrap();
    put(&folder.join("twill-proxy"));
    cleanup(&node, &folder);
    assert!(!folder.exists() && dir.path().exists());
    cleanup(&node, &folder);
}

#[test]
fn a_wrong_configuration_ends_it_with_all_faults_named() {
    let node = Ns::new("node");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let yaml = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
                kind: KubeProxyConfiguration\n\
                mode: userspace\n\
                clusterCIDR: 10.244.0.0/160\n\
                healthzBindAddress: nowhere\n\
                nftables: {syncPeriod: soon}\n";
    write(&file, yaml);
    let output = run(&node, &[&format!("--config={}", file.display())]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    for fault in [
        "mode",
        "userspace",
        "clusterCIDR",
        "healthzBindAddress",
        "nftables.syncPeriod",
    ] {
        assert!(said.contains(fault), "{fault} is not in {said}");
    }
    assert_eq!(node.sh("nft", &["list", "tables"]), "");
}

#[test]
fn the_configuration_in_force_is_written_to_a_file_that_makes_it_again() {
    let node = Ns::new("node");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let to = |name: &str| format!("--write-config-to={}", path(name).display());
    succeed(
        &node,
        &[
            "--cluster-cidr=10.244.0.0/16",
            "--hostname-override=me",
            &to("first"),
        ],
    );
    let config = format!("--config={}", path("first").display());
    succeed(&node, &[&config, &to("second")]);
    let [first, second] = ["first", "second"].map(|name| fs::read_to_string(path(name)).unwrap());
    assert!(first.contains("clusterCIDR: 10.244.0.0/16"), "{first}");
    assert_eq!(first, second);
}

#[test]
fn an_init_container_sets_switches_and_no_rules() {
    let node = Ns::new("node");
    let established = "netfilter/nf_conntrack_tcp_timeout_established";
    let args = [
        "--init-only",
        "--cluster-cidr=10.244.0.0/16",
        "--conntrack-tcp-timeout-established=1h",
    ];
    succeed(&node, &args);
    assert_eq!(node.sysctl(established), "3600");
    assert_eq!(node.sh("nft", &["list", "tables"]), "");
}
