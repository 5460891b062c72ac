//! The image: nothing but the binaries, and the same bytes for the same binaries.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/image/build");
const NAMES: [&str; 3] = ["flanneld", "twill-cni", "twill-proxy"];

/// Builds an image of the binaries in `dir`.
fn build(dir: &Path, image: &Path) -> Output {
    Command::new(BUILD)
        .args([dir.as_os_str(), "1.2.3".as_ref(), image.as_os_str()])
        .output()
        .unwrap()
}

/// A file as if it was built now; its bytes never change.
fn binary(dir: &Path, name: &str) {
    let path = dir.join(name);
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    std::fs::write(&path, format!("the binary {name}")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
}

fn tar(arguments: &[&str]) -> String {
    let output = Command::new("tar").args(arguments).output().unwrap();
    assert!(output.status.success(), "tar {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_holds_the_binaries_alone_and_is_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let images = ["once.tar", "again.tar"].map(|name| {
        let image = dir.path().join(name);
        // The second time in another order, at another time.
        NAMES.iter().rev().for_each(|name| binary(dir.path(), name));
        let built = build(dir.path(), &image);
        assert!(built.status.success(), "{built:?}");
        image
    });
    let [once, again] = images.each_ref().map(|image| std::fs::read(image).unwrap());
    assert!(once == again);

    let image = images[0].to_str().unwrap();
    let unpacked = dir.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let inside = unpacked.to_str().unwrap();
    tar(&["--extract", "--file", image, "--directory", inside]);
    let read = |path: &str| std::fs::read(unpacked.join(path)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    assert_eq!(manifest[0]["RepoTags"], serde_json::json!(["twill:1.2.3"]));
    let config: Value =
        serde_json::from_slice(&read(manifest[0]["Config"].as_str().unwrap())).unwrap();
    let layer = manifest[0]["Layers"][0].as_str().unwrap();
    let digest = layer.strip_prefix("blobs/sha256/").unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{digest}"));
    let path = unpacked.join(layer);
    let listed = tar(&["--list", "--verbose", "--file", path.to_str().unwrap()]);
    let entries: Vec<_> = listed.lines().map(str::split_whitespace).collect();
    for (mut entry, name) in entries.iter().cloned().zip(NAMES) {
        assert_eq!(entry.next(), Some("-rwxr-xr-x"), "{listed}");
        assert!(entry.next_back() == Some(name), "{listed}");
    }
    assert_eq!(entries.len(), NAMES.len(), "{listed}");
}

#[test]
fn a_missing_binary_is_named_and_no_image_is_left() {
    let dir = tempfile::tempdir().unwrap();
    binary(dir.path(), NAMES[0]);
    let image = dir.path().join("image.tar");
    let built = build(dir.path(), &image);
    let said = String::from_utf8_lossy(&built.stderr).into_owned();
    assert!(!built.status.success());
    assert!(
        said.contains("twill-cni is not there") && said.contains("make dist"),
        "{said}"
    );
    assert!(!image.exists());
}
