//! `twill-cni install` and `uninstall`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use hostnet::netlink::link;
use hostnet::testkit::{Ns, join_bridge};

use crate::runtime::{Node, SUBNET};

fn run(arguments: &[&str]) -> (bool, String, String) {
    run_in(&Ns::new("install"), arguments)
}

fn run_in(host: &Ns, arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twill-cni"));
    command.args(arguments).env_clear();
    let output = host.run(|| command.output()).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn put(path: &Path, contents: &str, mode: u32) {
    hostnet::atomic_file::replace(path, contents.as_bytes(), mode).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const CONFLIST: &str =
    r#"{"name": "cbr0", "cniVersion": "1.1.0", "plugins": [{"type": "twill-cni"}]}"#;

#[test]
fn it_brings_itself_and_takes_itself_away() {
    let dir = tempfile::tempdir().unwrap();
    let (bin, conf) = (dir.path().join("opt/cni/bin"), dir.path().join("net.d"));
    fs::create_dir_all(&bin).unwrap();
    put(&bin.join("bridge"), "the reference", 0o755);
    let (state, data) = (dir.path().join("twill"), dir.path().join("networks"));
    let source = dir.path().join("10-flannel.conflist");
    put(&source, CONFLIST, 0o600);
    let all = [
        "--bin-dir",
        text(&bin),
        "--conf-dir",
        text(&conf),
        "--conflist",
        text(&source),
        "--state-dir",
        text(&state),
        "--data-dir",
        text(&data),
    ];
    let install = |verb| run(&[&[verb][..], &all].concat());

    let (ok, stdout, stderr) = install("install");
    assert!(ok, "{stderr}");
    let program = bin.join("twill-cni");
    assert_eq!(
        stdout,
        format!(
            "wrote {}\nwrote {}\n",
            program.display(),
            conf.join("10-flannel.conflist").display()
        )
    );
    assert_eq!(
        fs::read(&program).unwrap(),
        fs::read(env!("CARGO_BIN_EXE_twill-cni")).unwrap()
    );
    assert_eq!(
        fs::metadata(&program).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert_eq!(
        fs::read_to_string(conf.join("10-flannel.conflist")).unwrap(),
        CONFLIST
    );
    assert_eq!(
        fs::read_to_string(bin.join("bridge")).unwrap(),
        "the reference"
    );
    // The copy runs, and a second time there is nothing to do.
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert!(version.stdout.starts_with(b"twill-cni "));
    let (ok, stdout, _) = install("install");
    assert!(
        ok && stdout
            .lines()
            .all(|line| line.ends_with("is there already")),
        "{stdout}"
    );

    let (ok, stdout, _) = install("uninstall");
    assert!(ok && stdout.contains("removed"), "{stdout}");
    assert!(!program.exists() && !conf.join("10-flannel.conflist").exists());
    assert!(bin.join("bridge").exists());
    let (ok, stdout, _) = install("uninstall");
    assert!(
        ok && stdout.lines().all(|line| line.ends_with("is not there")),
        "{stdout}"
    );
}

#[test]
fn a_newer_version_stays_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("twill-cni");
    let newer = "#!/bin/sh\necho twill-cni 99.0.0\n";
    put(&program, newer, 0o755);
    let (ok, _, stderr) = run(&["install", "--bin-dir", text(dir.path())]);
    assert!(
        !ok && stderr.contains("is twill-cni 99.0.0, newer than"),
        "{stderr}"
    );
    assert_eq!(fs::read_to_string(&program).unwrap(), newer);
    let (ok, ..) = run(&["install", "--bin-dir", text(dir.path()), "--force"]);
    assert!(ok);
    assert_ne!(fs::read(&program).unwrap(), newer.as_bytes());
    // An older one, or what is no version of ours, is replaced.
    put(&program, "#!/bin/sh\necho twill-cni 0.0.1\n", 0o755);
    assert!(run(&["install", "--bin-dir", text(dir.path())]).0);
}

#[test]
fn what_is_wrong_is_seen_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (bin, conf) = (dir.path().join("bin"), dir.path().join("conf"));
    let source = dir.path().join("x.conflist");
    for contents in [
        "{",
        "{}",
        r#"{"name":"n","plugins":[]}"#,
        r#"{"name":"n","plugins":[{}]}"#,
    ] {
        put(&source, contents, 0o600);
        let (ok, stdout, stderr) = run(&[
            "install",
            "--bin-dir",
            text(&bin),
            "--conf-dir",
            text(&conf),
            "--conflist",
            text(&source),
        ]);
        assert!(!ok && stdout.is_empty(), "{contents}");
        assert!(
            stderr.contains("x.conflist is not a network configuration list"),
            "{stderr}"
        );
        assert!(!bin.exists() && !conf.exists());
    }
    let (ok, _, stderr) = run(&["install"]);
    assert!(
        !ok && stderr.contains("--bin-dir or --conf-dir is missing"),
        "{stderr}"
    );
    // Another's configuration of that name stays.
    fs::create_dir_all(&conf).unwrap();
    put(
        &conf.join("x.conflist"),
        r#"{"name":"n","plugins":[{"type":"bridge"}]}"#,
        0o600,
    );
    let (ok, stdout, _) = run(&[
        "uninstall",
        "--conf-dir",
        text(&conf),
        "--conflist",
        "x.conflist",
    ]);
    assert!(
        ok && stdout.contains("it does not name twill-cni"),
        "{stdout}"
    );
    assert!(conf.join("x.conflist").exists());
}

/// Uninstalls from a node: what was told.
/// What goes with the program, and what it tells of that.
pub(crate) fn uninstall(node: &Node) -> String {
    let (ok, stdout, stderr) = run_in(
        &node.host,
        &[
            "uninstall",
            "--bin-dir",
            text(&node.path("bin")),
            "--state-dir",
            text(&node.path("twill")),
            "--data-dir",
            text(&node.path("networks")),
        ],
    );
    assert!(ok, "{stderr}");
    stdout
}

fn tables(node: &Node) -> String {
    node.host.sh("nft", &["list", "tables"])
}

const PORTS: &str = r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;

/// A node with host ports, so that each call uses the table.
fn node() -> Node {
    let mut node = Node::new();
    let ports: serde_json::Value = serde_json::from_str(PORTS).unwrap();
    node.set_extra(serde_json::json!({ "runtimeConfig": ports }));
    node
}

#[test]
fn a_node_is_as_it_was_after_its_last_pod() {
    let node = node();
    let foreign = "add table ip twill-cni-not; add table inet twill-cni";
    node.host.sh("nft", &[foreign]);
    let (before, tables_before) = (node.snapshot(), tables(&node));
    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    node.del("c1", &pod.path());
    node.put("networks/other/10.9.0.2", "c9\r\neth0");
    node.put("networks/other/lock", "");
    assert!(tables(&node).contains("table ip twill-cni\n"));
    assert!(node.host.find_link("cni0").is_some());

    let told = uninstall(&node);
    assert_eq!(before.changes(&node.snapshot()), [""; 0], "{told}");
    assert_eq!(tables(&node), tables_before);
    assert!(!node.path("twill").exists() && !node.path("networks/cbr0").exists());
    assert!(node.path("networks/other/lock").exists());
    for thing in [
        "the table ip twill-cni\n".to_owned(),
        "cni0\n".to_owned(),
        format!("{}\n", node.path("twill").display()),
        format!("{}\n", node.path("networks/cbr0").display()),
    ] {
        assert!(told.contains(&format!("removed {thing}")), "{told}");
    }
    assert_eq!(uninstall(&node).lines().count(), 1);
}

#[test]
fn what_a_pod_still_needs_stays_and_is_told() {
    let node = node();
    let pod = Ns::new("pod");
    let addr = node.add("c1", &pod).addr();
    let (before, tables_before, kept) = (node.snapshot(), tables(&node), node.kept());

    let told = uninstall(&node);
    assert_eq!(before.changes(&node.snapshot()), [""; 0]);
    assert_eq!(tables(&node), tables_before);
    assert_eq!(node.kept(), kept);
    assert!(!told.lines().any(|line| line.starts_with("removed")));
    let port = &node.ports()[0];
    for reason in [
        "left the table ip twill-cni: pod default/x (container c1) still".to_owned(),
        format!("left cni0: {port} is a port of it"),
        format!("cbr0: {addr} is reserved for container c1 interface eth0"),
        format!("left {}: pod default/x", node.path("twill").display()),
    ] {
        assert!(told.contains(&reason), "{reason}: {told}");
    }

    // Without its record it may be another plugin's: its reservation and its port count.
    node.del("c1", &pod.path());
    node.put(&format!("networks/cbr0/{addr}"), "c7\r\neth0");
    join_bridge(&node.host, "cni0", "foreign0", &pod, "other0");
    let told = uninstall(&node);
    assert!(told.contains("left cni0: foreign0 is a port"), "{told}");
    assert!(
        told.contains(&format!("{addr} is reserved for container c7")),
        "{told}"
    );
    assert_eq!(node.ports(), ["foreign0"]);
    assert!(node.path(&format!("networks/cbr0/{addr}")).exists());

    // Once they are gone, so is all.
    node.host
        .apply(link::delete(node.host.link("foreign0").index));
    fs::remove_file(node.path(&format!("networks/cbr0/{addr}"))).unwrap();
    uninstall(&node);
    assert!(node.host.find_link("cni0").is_none());
    assert!(!node.path("twill").exists() && !node.path("networks/cbr0").exists());
}

#[test]
fn what_a_boot_before_left_goes() {
    let node = node();
    let pod = Ns::new("pod");
    let addr = node.add("c1", &pod).addr();
    let record = fs::read_to_string(node.path("twill/c1-eth0.json")).unwrap();
    node.del("c1", &pod.path());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(record.contains(boot.trim()));
    node.put("twill/c1-eth0.json", &record.replace(boot.trim(), "before"));
    node.put(&format!("networks/cbr0/{addr}"), "c1\r\neth0");
    uninstall(&node);
    assert!(!node.path("twill").exists() && !node.path("networks/cbr0").exists());
}

#[test]
fn a_bridge_of_others_stays() {
    let node = Node::without_subnet();
    node.host.bridge("cni0");
    let before = node.snapshot();
    let told = uninstall(&node);
    assert!(
        told.contains("left cni0: twill-cni did not make it"),
        "{told}"
    );
    assert_eq!(before.changes(&node.snapshot()), [""; 0]);
    // One that ours was called upon is still not ours.
    node.set_subnet(SUBNET);
    let pod = Ns::new("pod");
    node.add("c1", &pod).result();
    node.del("c1", &pod.path());
    uninstall(&node);
    assert!(node.host.find_link("cni0").is_some());
}
