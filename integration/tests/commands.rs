//! The `lab` command as a person uses it: up, look around, down.

use std::process::Command;

use integration::programs::binaries;
use integration::registry::LabName;

/// Runs `lab` and returns its exit code and what it printed.
fn lab(line: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(line)
        .output()
        .unwrap();
    let mut printed = String::from_utf8(output.stdout).unwrap();
    printed += &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), printed)
}

/// Ends the lab, also when the test fails.
struct Down(LabName);

impl Drop for Down {
    fn drop(&mut self) {
        lab(&["down", self.0.as_str()]);
    }
}

#[test]
fn a_person_looks_around() {
    binaries().unwrap();
    let name = format!("person-{}", std::process::id());
    let down = Down(LabName::new(&name).unwrap());
    let (code, told) = lab(&["up", &name, "--nodes", "2"]);
    assert_eq!(code, Some(0), "{told}");
    for line in [
        "machines and control plane",
        "daemons of 2 nodes",
        "Look around:",
    ] {
        assert!(told.contains(line), "{line:?} is not in\n{told}");
    }

    let (_, pods) = lab(&["pods", "--lab", &name]);
    let row = pods
        .lines()
        .find(|line| line.contains("web-k8s-node-1"))
        .unwrap();
    let columns: Vec<_> = row.split_whitespace().collect();
    let [namespace, pod, node, address, veth] = columns[..] else {
        panic!("{row}");
    };
    assert_eq!((namespace, node), ("default", "k8s-node-1"));
    assert!(address.starts_with("10.244.2."), "{row}");

    // On a node, in a pod, outside; exit codes come through.
    let exec = |target: &str, command: &[&str]| {
        lab(&[&["exec", "--lab", &name, target, "--"], command].concat())
    };
    let (_, link) = exec("k8s-node-1", &["ip", "-br", "link", "show", "dev", veth]);
    assert!(link.starts_with(&format!("{veth}@")), "{link}");
    let (_, inside) = exec(pod, &["ip", "-br", "address", "show", "dev", "eth0"]);
    assert!(inside.contains(&format!("{address}/24")), "{inside}");
    let (code, answer) = exec("outside", &["lab", "ask", "172.30.0.11:30080"]);
    assert_eq!(code, Some(0), "{answer}");
    assert!(answer.starts_with("hello-world from web-k8s-"), "{answer}");
    assert_eq!(exec("k8s-master", &["sh", "-c", "exit 7"]).0, Some(7));
    let (code, refused) = exec("k8s-node-9", &["true"]);
    assert_eq!(code, Some(1));
    assert!(
        refused.contains("k8s-node-9 is neither a machine (control-plane, "),
        "{refused}"
    );

    let (_, logs) = lab(&[
        "logs",
        "--lab",
        &name,
        "twill-proxy",
        "--node",
        "k8s-master",
    ]);
    assert!(
        logs.lines()
            .all(|line| line.starts_with("k8s-master/twill-proxy: ")),
        "{logs}"
    );
    assert!(!logs.is_empty());

    assert_eq!(lab(&["down", &name]), (Some(0), String::new()));
    assert!(!down.0.dir().exists());
    let (code, gone) = lab(&["down", &name]);
    assert_eq!(code, Some(1));
    assert!(gone.contains("is up"), "{gone}");
}
