//! The worked example by `twill trace`: word for word, in both modes; and the same again from dumps, when the cluster is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration::Lab;
use integration::demo::{self, Demo, Mode};
use integration::machine::Machine;
use integration::testing::ask;
use integration::traffic::Transport;
use serde_json::json;
use tempfile::TempDir;

/// What is said to be secret, and must be in no dump.
const SECRET: &str = "hush-7c1e";

/// The packets: where from, and what `twill` is asked there.
const TRACES: [(&str, &str); 6] = [
    (
        "k8s-node-2",
        "trace outside svc/default/hello-world-service",
    ),
    (
        "k8s-master",
        "trace outside svc/default/hello-world-service",
    ),
    ("k8s-node-1", "trace node 10.106.183.112:4000"),
    (
        "k8s-node-2",
        "trace pod/default/neighbour svc/default/hello-world-service",
    ),
    (
        "k8s-node-2",
        "trace pod/default/neighbour svc/kube-system/kube-dns:dns --udp",
    ),
    ("k8s-node-2", "trace node 10.106.183.112:4001"),
];

#[test]
fn in_maps() {
    the_example_is_told_word_for_word(Mode::Nftables, "nftables");
}

#[test]
fn in_chains_with_the_names_of_old() {
    the_example_is_told_word_for_word(Mode::Iptables, "iptables");
}

fn the_example_is_told_word_for_word(mode: Mode, name: &str) {
    let lab = demo::nodes(Lab::builder(), mode).unwrap().up().unwrap();
    let _demo = Demo::start(&lab, mode).unwrap();
    with_secrets(&lab);
    for node in lab.nodes() {
        node.machine().write(REACH, &reach(&lab)).unwrap();
        // So that all have asked for their neighbours.
        for (transport, address) in [
            (Transport::Tcp, "10.106.183.112:4000"),
            (Transport::Udp, "10.96.0.10:53"),
        ] {
            let address = address.parse().unwrap();
            ask(node.name(), node.machine().netns(), transport, address);
        }
    }
    let live = TRACES.map(|(node, line)| text(&twill(lab.node(node).unwrap().machine(), line)));
    let told = TRACES.iter().zip(&live);
    let told = told.map(|((node, line), told)| format!("{node}# twill {line}\n{}", plain(told)));
    insta::assert_snapshot!(name, told.collect::<Vec<_>>().join("\n"));

    // Each node is written down; then there is no cluster any more.
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = lab
        .nodes()
        .iter()
        .map(|node| node.name().to_owned())
        .collect();
    for node in lab.nodes() {
        let output = twill(node.machine(), "support-dump /tmp/dump.tar.gz");
        assert!(output.status.success(), "{}", text(&output));
        let file = node.machine().path("/tmp/dump.tar.gz");
        std::fs::copy(file, dump(&folder, node.name())).unwrap();
        tells_no_secrets(&dump(&folder, node.name()));
    }
    let program = integration::programs::binaries().unwrap().join("twill");
    drop(lab);
    for ((node, line), live) in TRACES.iter().zip(&live) {
        let mut command = Command::new(&program);
        command.args(line.split_whitespace());
        let others = names.iter().filter(|name| name != node);
        for name in std::iter::once(&(*node).to_owned()).chain(others) {
            command.arg("--from-dump").arg(dump(&folder, name));
        }
        let told = text(&command.output().unwrap());
        assert_eq!(told, *live, "{node} {line}");
    }
    what_the_objects_of_a_dump_make_is_rendered(&dump(&folder, &names[0]), mode);
}

/// What is in an archive, each file by its name.
fn files(archive: &Path) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar")
        .arg("xzf")
        .arg(archive)
        .arg("-C")
        .arg(folder.path())
        .status();
    assert!(unpacked.unwrap().success());
    let list = Command::new("find")
        .arg(".")
        .args(["-type", "f"])
        .current_dir(folder.path())
        .output();
    let names = String::from_utf8(list.unwrap().stdout).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    names
        .lines()
        .map(|name| (name.trim_start_matches("./").to_owned(), read(name)))
        .collect()
}

fn tells_no_secrets(archive: &Path) {
    let files = files(archive);
    for name in [
        "about.json",
        "objects.json",
        "node/kernel.json",
        "node/files/run/flannel/subnet.env",
        "daemons/k8s-node-1/flanneld.metrics.txt",
        "daemons/k8s-node-2/twill-proxy.healthz.txt",
    ] {
        assert!(files.contains_key(name), "no {name} in {:?}", files.keys());
    }
    assert!(
        files["objects.json"].contains("\"teller\""),
        "the pod is there"
    );
    for (name, text) in &files {
        // What is secret, and each bearer of a token that the lab has.
        for secret in [SECRET, "eyJ", "PRIVATE KEY"] {
            assert!(!text.contains(secret), "{name} has {secret}");
        }
    }
}

fn what_the_objects_of_a_dump_make_is_rendered(archive: &Path, mode: Mode) {
    let (mode, said) = match mode {
        Mode::Nftables => ("nftables", "10.244.3.81 . 8080"),
        Mode::Iptables => ("iptables", "--to-destination 10.244.3.81:8080"),
    };
    let proxy = integration::programs::binaries()
        .unwrap()
        .join("twill-proxy");
    let output = Command::new(proxy)
        .args([
            "render",
            "--node",
            "k8s-master",
            "--mode",
            mode,
            "--cluster-cidr=10.244.0.0/16",
            "--objects",
        ])
        .arg(archive)
        .output()
        .unwrap();
    let told = text(&output);
    assert!(output.status.success() && told.contains(said), "{told}");
}

/// Where each machine has the command that asks others.
const REACH: &str = "/tmp/reach";

/// Asks a node by name or address, as `ssh NODE curl URL` would.
fn reach(lab: &Lab) -> String {
    let cases = lab.nodes().iter().map(|node| {
        let pid = node.machine().pid();
        format!(
            "{} | {}) exec nsenter --net=/proc/{pid}/ns/net curl -sf $2 ;;\n",
            node.name(),
            node.ip()
        )
    });
    format!("case $1 in\n{}esac\nexit 1\n", cases.collect::<String>())
}

fn twill(machine: &Machine, line: &str) -> Output {
    let mut command = machine.command("/opt/twill/twill");
    command.args(line.split_whitespace());
    command.args(["--reach", &format!("sh {REACH} {{node}} {{url}}")]);
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

/// Without what is another each time: hardware addresses, and names that are made of containers' ids.
fn plain(told: &str) -> String {
    let words = told.split_inclusive([' ', '\n']).map(|word| {
        let (bare, end) = word.split_at(word.trim_end().len());
        let is_mac = bare.len() == 17 && bare.bytes().filter(|byte| *byte == b':').count() == 5;
        match bare {
            _ if is_mac => format!("MAC{end}"),
            _ if bare.starts_with("veth") => format!("VETH{end}"),
            _ => word.to_owned(),
        }
    });
    words.collect()
}

fn dump(folder: &TempDir, node: &str) -> PathBuf {
    folder.path().join(format!("{node}.tar.gz"))
}

/// Gives the cluster what no dump may tell: a Secret, and a pod with an environment.
fn with_secrets(lab: &Lab) {
    lab.api()
        .apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "default"},
            "stringData": {"password": SECRET},
        }))
        .unwrap();
    lab.api()
        .apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "teller", "namespace": "default", "annotations": {"note": SECRET}},
            "spec": {"containers": [{
                "name": "teller", "image": "teller", "args": [SECRET],
                "env": [{"name": "PASSWORD", "value": SECRET}],
            }]},
        }))
        .unwrap();
}
