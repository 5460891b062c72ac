//! The demo tells the truth.

use std::process::Command;

#[test]
fn every_line_is_true() {
    let told = tell("nftables");
    assert!(told.contains("nft list map ip twill-proxy vips"));
}

#[test]
fn every_line_is_true_of_the_chains_of_old() {
    let told = tell("iptables");
    assert!(told.contains("-j KUBE-SVC-5MRENC7Q6ZQR6GKR"));
}

fn tell(mode: &str) -> String {
    integration::programs::binaries().unwrap();
    let name = format!("demo-{}-{}", &mode[..3], std::process::id());
    let demo = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["demo", "--lab", &name, "--mode", mode])
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
    told
}
