//! The demo tells the truth.

use std::process::Command;

#[test]
fn every_line_is_true() {
    integration::programs::binaries().unwrap();
    let demo = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["demo", "--lab", &format!("demo-{}", std::process::id())])
        .output()
        .unwrap();
    let told = String::from_utf8(demo.stdout).unwrap();
    let progress = String::from_utf8(demo.stderr).unwrap();
    assert!(demo.status.success(), "{progress}\n{told}");
    for line in [
        " ✓   10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink",
        " ✓   10.244.3.0/24 dev cni0 proto kernel scope link src 10.244.3.1",
        "All ",
    ] {
        assert!(told.contains(line), "{line:?} is not in\n{told}");
    }
    assert!(!told.contains('\x1b'), "no colours in a pipe");
}
