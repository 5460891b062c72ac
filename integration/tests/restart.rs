//! Daemons die and come back: no packet is lost, and the kernel is not touched.

use std::net::SocketAddr;

use integration::machine::Machine;
use integration::monitor::Monitor;
use integration::snapshot::Snapshot;
use integration::testing::{NODES, lab, pod, service, vip};
use integration::traffic::{Stream, Transport};
use integration::{Daemon, wait};
use nix::sys::signal::Signal;

#[test]
fn killed_daemons_cost_nothing() {
    for (daemon, node_port) in Daemon::ALL.into_iter().zip(30201..) {
        kill_and_restart(daemon, node_port);
    }
}

/// Kills a daemon on all nodes with streams running through each of its kinds of work, starts
/// it again, and compares.
fn kill_and_restart(daemon: Daemon, node_port: u16) {
    let app = daemon.name();
    let backend = pod(app, NODES[2]);
    let service = service(app, node_port, &[&backend]);
    let client = pod(&format!("{app}-client"), NODES[1]);
    let outside = SocketAddr::from((lab().nodes()[0].ip(), node_port));
    let mut streams: Vec<_> = Transport::ALL
        .into_iter()
        .flat_map(|transport| {
            let start = |netns, target| Stream::start(netns, transport, target).unwrap();
            [
                start(client.netns(), vip(&service)),
                start(client.netns(), backend.address()),
                start(lab().outside().netns(), outside),
            ]
        })
        .collect();
    let mut flow = |when: &str| {
        for stream in &mut streams {
            let flowing = stream.wait_for(100, wait::PATIENCE);
            flowing.unwrap_or_else(|error| panic!("{when}: {error:#}"));
        }
    };
    flow("before");
    for node in lab().nodes() {
        settle(node.machine());
    }
    let before: Vec<_> = lab()
        .nodes()
        .iter()
        .map(|node| {
            let netns = node.machine().netns();
            (Snapshot::of(netns).unwrap(), Monitor::start(netns).unwrap())
        })
        .collect();

    for node in lab().nodes() {
        node.stop(daemon, Signal::SIGKILL).unwrap();
    }
    flow("while it is dead");
    for node in lab().nodes() {
        node.start(daemon).unwrap();
    }
    for node in lab().nodes() {
        node.wait_ready(daemon).unwrap();
    }
    flow("after its return");

    for (node, (before, monitor)) in lab().nodes().iter().zip(before) {
        let events = monitor.finish().unwrap();
        assert_eq!(events, Vec::<String>::new(), "on {}", node.name());
        let changes = before.changes_to(&Snapshot::of(node.machine().netns()).unwrap());
        assert!(changes.is_empty(), "on {}:\n{changes}", node.name());
    }
    for stream in streams {
        let report = stream.finish().unwrap();
        assert!(report.lost.is_empty(), "{report:?}");
    }
    lab().unexpose(&service).unwrap();
    lab().delete_pod(client).unwrap();
    lab().delete_pod(backend).unwrap();
}

/// Waits until the kernel has seen that nobody else has the new devices' link-local addresses:
/// the end of that is a change too.
fn settle(machine: &Machine) {
    wait::until("end of duplicate address detection", wait::PATIENCE, || {
        let tentative = machine.run("ip -6 address show tentative")?;
        Ok(wait::holds(tentative.is_empty(), &tentative))
    })
    .unwrap();
}
