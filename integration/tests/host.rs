//! The machine that a lab runs on stays as it is.

use std::path::Path;

use hostnet::netns::NetNs;
use integration::snapshot::Snapshot;
use integration::{Lab, PodSpec};

/// What a container network would leave on a host.
const TRACES: &[&str] = &[
    "/etc/cni",
    "/etc/kube-flannel",
    "/host",
    "/opt/cni",
    "/opt/twill",
    "/run/flannel",
    "/run/netns",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/lib/twill",
];

fn host() -> Snapshot {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    // Other tests mount in the folder for temporary files.
    let temporary = std::env::temp_dir().display().to_string();
    let mounts: Vec<_> = mounts
        .lines()
        .filter(|line| !line.contains(&temporary))
        .collect();
    let traces: Vec<_> = TRACES
        .iter()
        .filter(|path| Path::new(path).exists())
        .collect();
    Snapshot::of(&NetNs::current().unwrap())
        .unwrap()
        .with("mounts", mounts.join("\n"))
        .with("traces", format!("{traces:?}"))
        .with(
            "modules",
            std::fs::read_to_string("/proc/modules").unwrap_or_default(),
        )
}

#[test]
fn a_whole_lab_changes_nothing_on_the_host() {
    let before = host();
    let lab = Lab::builder()
        .node("one", &["10.244.1.0/24".parse().unwrap()])
        .up()
        .unwrap();
    let pod = lab.run_pod(PodSpec::new("pod", "one")).unwrap();
    let name = lab.nodes()[0].machine().keeper().name().clone();
    let during = before.changes_to(&host());
    assert!(during.is_empty(), "while the lab is up:\n{during}");
    drop(pod);
    drop(lab);
    let after = before.changes_to(&host());
    assert!(after.is_empty(), "after the lab:\n{after}");
    assert!(!name.dir().exists());
}
