//! The lab itself: its parts reach each other, and it ends without a trace, however it ends.

use std::path::Path;
use std::process::Command;

use integration::control_plane;
use integration::lab::{Builder, Lab};
use integration::wait;
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

#[test]
fn a_lab_ends_with_its_keeper_even_when_that_is_killed() {
    let lab = bare().up().unwrap();
    let keeper = lab.nodes()[0].machine().keeper();
    let (name, pid) = (keeper.name().clone(), keeper.pid());
    Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    wait::until("end of the lab", wait::PATIENCE, || {
        Ok(wait::holds(!name.is_alive()?, "it is alive"))
    })
    .unwrap();
    drop(lab);
    assert!(!name.dir().exists());
}
