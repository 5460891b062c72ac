//! The lab itself: its parts reach each other, and it ends without a trace, however it ends.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use integration::keeper::Keeper;
use integration::lab::{Builder, Lab};
use integration::programs::binaries;
use integration::registry::{self, LabName};
use integration::{control_plane, wait};
use k8s_openapi::api::core::v1::Node;

/// A lab of two machines without Twill on them.
fn bare() -> Builder {
    Lab::builder()
        .node("one", &["10.244.1.0/24".parse().unwrap()])
        .node("two", &[])
        .daemons(&[])
}

#[test]
fn nodes_are_there_in_the_api_and_on_the_wire() {
    let lab = bare().up().unwrap();
    let nodes: Vec<Node> = lab.api().list(None).unwrap();
    let names: Vec<_> = nodes
        .iter()
        .filter_map(|node| node.metadata.name.as_deref())
        .collect();
    assert_eq!(names, ["one", "two"]);
    let spec = nodes[0].spec.as_ref().unwrap();
    assert_eq!(spec.pod_cidr.as_deref(), Some("10.244.1.0/24"));

    // Every node reaches the API server; the router leads outside, both ways.
    let server = (lab.control_plane().machine.name(), control_plane::PORT);
    assert_eq!(server, ("control-plane", 6443));
    for node in lab.nodes() {
        let route = node.machine().run("ip route get 198.51.100.10").unwrap();
        assert!(
            route.starts_with("198.51.100.10 via 172.30.0.1 dev eth0"),
            "{route}"
        );
    }

    // A node's own folders are empty, and what it writes stays in the lab.
    let node = lab.nodes()[0].machine();
    assert_eq!(
        node.run("ls /etc/cni/net.d /var/lib/twill")
            .unwrap()
            .lines()
            .count(),
        3
    );
    node.write("/usr/twill-lab-was-here", "a lab's file")
        .unwrap();
    assert_eq!(
        node.run("cat /usr/twill-lab-was-here").unwrap(),
        "a lab's file"
    );
    assert!(!Path::new("/usr/twill-lab-was-here").exists());
    assert_eq!(node.run("hostname").unwrap(), "one\n");
}

/// A name that no other test of this machine uses.
fn unique(name: &str) -> LabName {
    LabName::new(&format!("{name}-{}", std::process::id())).unwrap()
}

fn kill(pid: impl std::fmt::Display) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

fn wait_for_end(name: &LabName) {
    wait::until("end of the lab", wait::PATIENCE, || {
        Ok(wait::holds(!name.is_alive()?, "it is alive"))
    })
    .unwrap();
}

#[test]
fn what_a_killed_lab_leaves_is_swept_and_nothing_else() {
    let [dead, living] = ["dead", "living"].map(unique);
    let standing = bare().name(living.clone()).up().unwrap();
    let lab = bare().name(dead.clone()).up().unwrap();
    let pid = lab.nodes()[0].machine().keeper().pid();
    let node = lab.nodes()[0].machine().path("/");
    assert!(node.exists());
    lab.detach().unwrap();
    assert!(dead.is_alive().unwrap(), "a detached lab stays");

    kill(pid);
    wait_for_end(&dead);
    assert!(!node.exists(), "its machines went with it");
    assert!(dead.dir().exists());
    let swept = registry::sweep().unwrap();
    assert!(
        swept.contains(&dead) && !swept.contains(&living),
        "{swept:?}"
    );
    assert!(!dead.dir().exists());
    assert_eq!(
        standing.nodes()[1].machine().run("hostname").unwrap(),
        "two\n"
    );
    drop(standing);
    assert!(!living.dir().exists());
}

#[test]
fn a_lab_whose_starter_is_killed_goes_too() {
    binaries().unwrap();
    let name = unique("killed");
    let mut up = lab_command().args(["up", name.as_str()]).spawn().unwrap();
    wait::until("keeper", wait::PATIENCE, || Ok(Keeper::attach(&name))).unwrap();
    kill(up.id());
    up.wait().unwrap();
    wait_for_end(&name);
    assert!(!name.dir().exists(), "the keeper cleans up after itself");
}

#[test]
fn a_name_is_used_once() {
    let name = unique("once");
    let lab = bare().name(name.clone()).up().unwrap();
    let error = bare().name(name.clone()).up().err().unwrap().to_string();
    let expected = format!(
        "a lab named {name} is already up: end it with `lab down {name}`, or give yours another name"
    );
    assert_eq!(error, expected);
    assert_eq!(lab.nodes()[0].machine().run("hostname").unwrap(), "one\n");
}

fn lab_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Runs a command that must fail, in one line.
fn refusal(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn without_root_nothing_is_tried() {
    // In a user namespace of its own the process is nobody.
    let mut command = Command::new("unshare");
    command.args(["--user", env!("CARGO_BIN_EXE_lab"), "up", "test-rootless"]);
    let said = refusal(&mut command);
    assert!(said.contains("needs root"), "{said}");
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let said = refusal(lab_command().arg("up").env("PATH", "/nonexistent"));
    assert!(said.contains("`bridge` is missing"), "{said}");
    assert!(said.contains("apt-get install iproute2"), "{said}");
}

#[test]
fn control_plane_binaries_of_another_version_are_refused() {
    binaries().unwrap();
    let given = tempfile::tempdir().unwrap();
    for name in ["etcd", "kube-apiserver"] {
        let path = given.path().join(name);
        #[expect(clippy::disallowed_methods, reason = "a test's own file")]
        std::fs::write(&path, "#!/bin/sh\necho Kubernetes v1.2.3\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let name = unique("version");
    let mut command = lab_command();
    command
        .args(["up", name.as_str()])
        .env("KUBEBUILDER_ASSETS", given.path());
    let said = refusal(&mut command);
    assert!(
        said.contains("kube-apiserver is version v1.2.3, the lab needs v1."),
        "{said}"
    );
    assert!(!name.dir().exists());
}

#[test]
fn an_unknown_lab_is_told_and_how_to_start_it() {
    let said = refusal(lab_command().args(["exec", "--lab", "test-nowhere", "one"]));
    assert_eq!(
        said,
        "lab: no lab named test-nowhere is up: start it with `lab up test-nowhere`\n"
    );
}
