//! `twill-proxy --cleanup`, as a node's uninstall runs it.

use std::fs;
use std::path::Path;
use std::process::Command;

use hostnet::testkit::Ns;

fn cleanup(node: &Ns, folder: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twill-proxy"));
    command
        .arg("--cleanup")
        .arg(format!("--snapshot-dir={}", folder.display()));
    let output = node.run(|| command.output()).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn put(file: &Path) {
    hostnet::atomic_file::replace(file, b"state", 0o600).unwrap();
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
