//! For end-to-end tests: one cluster for all tests of a file, three nodes with all daemons. Each
//! test makes its own pods and Services. What fails here panics, as in a test.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use hostnet::netns::NetNs;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::events::v1::Event;
use serde_json::json;

use crate::traffic::{self, Greeting, Transport};
use crate::{Daemon, Lab, Pod, PodSpec, wait};

/// The nodes' names.
pub const NODES: [&str; 3] = ["k8s-master", "k8s-node-1", "k8s-node-2"];

/// Set it, and the cluster of a test stays, to look at why the test failed.
const KEEP: &str = "TWILL_LAB_KEEP";

/// The cluster. It ends with the test process, unless the environment has `TWILL_LAB_KEEP`.
pub fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let mut builder = Lab::builder();
        for (name, subnet) in NODES
            .iter()
            .zip(["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"])
        {
            builder = builder.node(name, &[subnet.parse().unwrap()]);
        }
        let lab = builder.up().unwrap_or_else(|error| panic!("{error:#}"));
        if std::env::var_os(KEEP).is_some() {
            let keeper = lab.nodes()[0].machine().keeper();
            keeper.detach().unwrap();
            let name = keeper.name();
            eprintln!("the lab stays: `lab exec --lab {name} k8s-node-1`, `lab down {name}`");
        }
        lab
    })
}

/// A pod of the test `app` on a node.
pub fn pod(app: &str, node: &str) -> Pod {
    let name = format!("{app}-{node}");
    lab()
        .run_pod(PodSpec::new(&name, node).label("app", app))
        .unwrap_or_else(|error| panic!("{error:#}"))
}

/// A Service of the test `app` with these endpoints: port 80 to their 8080, TCP and UDP, and a
/// node port.
pub fn service(app: &str, node_port: u16, pods: &[&Pod]) -> Service {
    let ports: Vec<_> = ["TCP", "UDP"]
        .iter()
        .map(|protocol| {
            json!({
                "name": protocol.to_lowercase(),
                "protocol": protocol,
                "port": 80,
                "targetPort": 8080,
                "nodePort": node_port,
            })
        })
        .collect();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": app, "namespace": "default"},
        "spec": {"type": "NodePort", "selector": {"app": app}, "ports": ports},
    });
    let service = lab().expose(&service, pods).unwrap();
    wait_for_service(&service, node_port);
    service
}

/// The Service's cluster IP and port.
pub fn vip(service: &Service) -> SocketAddr {
    let ip = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref());
    let ip: IpAddr = ip.expect("a cluster IP").parse().unwrap();
    (ip, 80).into()
}

/// Until every node has the Service's last element, which is its node port's.
fn wait_for_service(service: &Service, node_port: u16) {
    let vip = vip(service).ip().to_string();
    let port = format!(" . {node_port} ");
    for node in lab().nodes() {
        wait::until("Service in the kernel", wait::PATIENCE, || {
            let table = node.machine().run("nft list table ip twill-proxy")?;
            let there = table.matches(&vip).count() >= 2 && table.contains(&port);
            Ok(wait::holds(there, "it is not there"))
        })
        .unwrap_or_else(|error| panic!("{}: {error:#}\n{}", node.name(), node.log(Daemon::Proxy)));
    }
}

/// Asks, and says who asked if there is no answer.
pub fn ask(who: &str, from: &NetNs, transport: Transport, to: SocketAddr) -> Greeting {
    traffic::ask(from, transport, to)
        .unwrap_or_else(|error| panic!("{transport} from {who} to {to}: {error:#}"))
}

/// The note of an Event about a Node, once it is there.
pub fn event(lab: &Lab, node: &str, reason: &str) -> String {
    let find = || -> Option<String> {
        let events: Vec<Event> = lab.api().list(Some("default")).unwrap();
        let is_it = |event: &&Event| {
            let regarding = event.regarding.as_ref();
            event.reason.as_deref() == Some(reason)
                && regarding.and_then(|object| object.name.as_deref()) == Some(node)
        };
        events.iter().find(is_it)?.note.clone()
    };
    let what = format!("Event {reason} on {node}");
    let log = || {
        Daemon::ALL
            .map(|daemon| lab.node(node).unwrap().log(daemon))
            .concat()
    };
    wait::until(&what, wait::PATIENCE, || {
        Ok(find().ok_or_else(|| anyhow::anyhow!("it is not there")))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", log()))
}
