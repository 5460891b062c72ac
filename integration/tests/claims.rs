//! Many nodes without a subnet that start at the same moment: alone, and while the controller-manager of Kubernetes gives
//! out subnets, too. Whoever is first on a node wins, no two nodes ever use the same, and where two were given the same,
//! that is named with what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use integration::machine::ADMIN_CONF;
use integration::machine::root::ASSETS;
use integration::upstream::Program;
use integration::{Daemon, Lab, http, objects, wait};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node as NodeObject;
use nix::sys::signal::Signal;

const NODES: usize = 20;
const NET_CONF: &str =
    r#"{"Network": "10.199.0.0/16", "SubnetLen": 26, "Backend": {"Type": "vxlan"}}"#;

/// All daemons at once, until all are ready.
fn start(lab: &Lab) {
    for node in lab.nodes() {
        node.start(Daemon::Flanneld).unwrap();
    }
    for node in lab.nodes() {
        node.wait_ready(Daemon::Flanneld).unwrap();
    }
}

/// Waits until all are ready. The controller-manager does not look at Leases: where it gives one node what another has
/// claimed at that very moment, the clash is named, and what its words say is done.
fn settle(lab: &Lab) {
    let health = SocketAddr::from((Ipv4Addr::LOCALHOST, 8081));
    let mut remedied: BTreeMap<&str, usize> = BTreeMap::new();
    wait::until("subnet on every node", 2 * wait::PATIENCE, || {
        let mut missing = Vec::new();
        for node in lab.nodes() {
            let answer = http::get(node.machine().netns(), health, "/readyz");
            if answer.is_ok_and(|answer| answer.status == 200) {
                continue;
            }
            let log = node.log(Daemon::Flanneld);
            let named = log.lines().filter(|line| line.contains("is held by Node"));
            let done = remedied.entry(node.name()).or_default();
            let clashes: Vec<_> = named.skip(*done).collect();
            if let Some(clash) = clashes.last() {
                assert!(clash.contains("delete the Node object"), "{clash}");
                *done += clashes.len();
                lab.api().delete::<NodeObject>(None, node.name())?;
                lab.api()
                    .apply(&objects::node(node.name(), &[node.ip()], &[]))?;
            }
            missing.push(format!("{}: {log}", node.name()));
        }
        Ok(wait::holds(missing.is_empty(), &missing.join("\n")))
    })
    .unwrap();
}

/// The nodes' subnets by name, all different, each held by its node's Lease, and no Lease besides.
fn subnets(lab: &Lab) -> BTreeMap<String, String> {
    let nodes: Vec<NodeObject> = lab.api().list(None).unwrap();
    let subnet = |node: NodeObject| Some((node.metadata.name?, node.spec?.pod_cidr?));
    let subnets: BTreeMap<String, String> = nodes.into_iter().filter_map(subnet).collect();
    let different: BTreeSet<&String> = subnets.values().collect();
    assert_eq!(
        (subnets.len(), different.len()),
        (NODES, NODES),
        "{subnets:?}"
    );
    let leases: Vec<Lease> = lab.api().list(Some("kube-system")).unwrap();
    let held = |lease: Lease| {
        let labels = lease.metadata.labels?;
        let dashed = labels.get("twill.io/subnet")?.clone();
        Some((lease.spec?.holder_identity?, dashed))
    };
    let held: BTreeMap<String, String> = leases.iter().cloned().filter_map(held).collect();
    let wanted = subnets
        .iter()
        .map(|(node, subnet)| (node.clone(), subnet.replace(['.', '/'], "-")));
    assert_eq!(held, wanted.collect(), "each node holds what it has");
    let labelled = leases.iter().filter(|lease| {
        let labels = lease.metadata.labels.as_ref();
        labels.is_some_and(|labels| labels.contains_key("twill.io/subnet"))
    });
    assert_eq!(labelled.count(), NODES, "no claim is left over");
    subnets
}

#[test]
fn nodes_that_start_at_once_never_share_a_subnet_with_and_without_a_controller_manager() {
    let builder = (1..=NODES).fold(Lab::builder(), |builder, n| {
        builder.node(&format!("node-{n:02}"), &[])
    });
    let lab = builder
        .daemons(&[])
        .program(Program::ControllerManager)
        .net_conf(NET_CONF)
        .up()
        .unwrap_or_else(|error| panic!("{error:#}"));
    for node in lab.nodes() {
        node.provide(Daemon::Flanneld, lab.control_plane(), NET_CONF)
            .unwrap();
    }
    start(&lab);
    let alone = subnets(&lab);
    assert!(
        alone
            .values()
            .all(|subnet| subnet.starts_with("10.199.") && subnet.ends_with("/26")),
        "{alone:?}"
    );
    for node in lab.nodes() {
        node.wait_peers(&["ipv4"], NODES - 1).unwrap();
    }

    // The same nodes register anew, and the controller-manager starts together with the daemons. It takes subnets from
    // the front of the same network, as flanneld does.
    for node in lab.nodes() {
        node.stop(Daemon::Flanneld, Signal::SIGKILL).unwrap();
        lab.api().delete::<NodeObject>(None, node.name()).unwrap();
    }
    for lease in lab.api().list::<Lease>(Some("kube-system")).unwrap() {
        let name = lease.metadata.name.unwrap();
        lab.api()
            .delete::<Lease>(Some("kube-system"), &name)
            .unwrap();
    }
    for node in lab.nodes() {
        lab.api()
            .apply(&objects::node(node.name(), &[node.ip()], &[]))
            .unwrap();
    }
    let machine = lab.nodes()[0].machine();
    let program = format!("{ASSETS}/{}", Program::ControllerManager.name());
    let kubeconfig = format!("--kubeconfig={ADMIN_CONF}");
    machine
        .spawn(
            "controller-manager",
            &[
                &program,
                &kubeconfig,
                "--controllers=node-ipam-controller",
                "--allocate-node-cidrs",
                "--cluster-cidr=10.199.0.0/16",
                "--node-cidr-mask-size=26",
                "--leader-elect=false",
                "--secure-port=0",
            ],
            &[],
        )
        .unwrap();
    for node in lab.nodes() {
        node.start(Daemon::Flanneld).unwrap();
    }
    settle(&lab);
    let together = subnets(&lab);
    wait::until("peers of every node", wait::PATIENCE, || {
        let routes = machine.run("ip route show dev flannel.1")?;
        Ok(wait::holds(routes.lines().count() == NODES - 1, &routes))
    })
    .unwrap();
    assert_eq!(together, subnets(&lab), "nothing moves afterwards");
    let log = std::fs::read_to_string(machine.log("controller-manager")).unwrap();
    assert!(
        log.contains("Started controller") || log.contains("Starting ipam controller"),
        "it did run:\n{log}"
    );
}
