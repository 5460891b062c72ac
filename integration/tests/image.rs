//! The image: nothing but the binaries, and the same bytes for the same binaries.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/image/build");
const SBOM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/image/sbom");
const LOCK: &str = include_str!("../../Cargo.lock");
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
fn what_lies_below_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    NAMES.iter().for_each(|name| binary(dir.path(), name));
    let [below, image] = ["below.tar", "image.tar"].map(|name| dir.path().join(name));
    let inside = dir.path().to_str().unwrap();
    let archive = below.to_str().unwrap();
    tar(&[
        "--create",
        "--file",
        archive,
        "--directory",
        inside,
        NAMES[0],
    ]);
    let built = Command::new(BUILD)
        .args([dir.path().as_os_str(), "1.2.3-more".as_ref()])
        .args([&image, &below])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    let listed = tar(&["--list", "--file", image.to_str().unwrap()]);
    assert_eq!(listed.matches("blobs/sha256/").count(), 1 + 3, "{listed}");
    tar(&[
        "--extract",
        "--file",
        image.to_str().unwrap(),
        "--directory",
        inside,
    ]);
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let layers = manifest[0]["Layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2, "{manifest}");
    assert_eq!(
        read(layers[0].as_str().unwrap()),
        std::fs::read(&below).unwrap()
    );
    let config: Value =
        serde_json::from_slice(&read(manifest[0]["Config"].as_str().unwrap())).unwrap();
    let digests = config["rootfs"]["diff_ids"].as_array().unwrap();
    for (layer, digest) in layers.iter().zip(digests) {
        let named = layer.as_str().unwrap().replace("blobs/sha256/", "sha256:");
        assert_eq!(digest, &named);
    }
}

#[test]
fn what_is_linked_is_named_with_licence_and_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("twill.cdx.json");
    let made = Command::new(SBOM).arg("1.2.3").arg(&file).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let bill: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(bill["metadata"]["component"]["version"], "1.2.3");
    let components = bill["components"].as_array().unwrap();
    let ours = ["agent", "cli", "cni-plugin", "flanneld", "hostnet", "proxy"];
    for component in components {
        let text = |key: &str| component[key].as_str().unwrap();
        let (name, version) = (text("name"), text("version"));
        assert!(
            component["licenses"][0]["expression"].is_string(),
            "{component}"
        );
        let locked = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        let (_, after) = LOCK.split_once(&locked).expect(name);
        let checksum = after
            .lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.strip_prefix("checksum = "));
        assert_eq!(checksum.is_none(), ours.contains(&name), "{name}");
        let told = &component["hashes"][0]["content"];
        assert_eq!(told.as_str(), checksum.map(|sum| sum.trim_matches('"')));
    }
    let has = |name: &str| components.iter().any(|component| component["name"] == name);
    assert!(ours.iter().all(|name| has(name)) && has("kube") && has("rustls"));
    // Of tests, and of compiling.
    for name in ["integration", "proptest", "insta", "syn", "cc"] {
        assert!(!has(name), "{name}");
    }
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
