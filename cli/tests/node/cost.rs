//! What a trace costs does not grow with the Services there are: elements are looked up, tables are not read.

use std::path::Path;

use cli::kernel::Kernel;
use cli::objects::Cluster;
use cli::report::Trace;
use cli::trace::{Question, trace};
use hostnet::nft::Proto;
use hostnet::snapshot;
use hostnet::testkit::Ns;
use hostnet::vocab::Family;
use serde_json::json;

use crate::objects::given;
use crate::services::{SUBJECT, cluster_ip, node, save};

const FEW: u32 = 20;
const MANY: u32 = 2_000;

/// The trace and how many bytes of nf_tables it took.
fn traced(node: &Ns, file: &Path, mut cluster: Cluster, from: &str, to: &str) -> (Trace, u64) {
    let records = tempfile::tempdir().unwrap();
    let kernel = Kernel::of(node.ns().clone(), records.path()).unwrap();
    let mut kernel = kernel.services(file);
    let question = Question {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        proto: Proto::TCP,
        family: Family::V4,
        sees_pods: true,
    };
    let told = trace(&mut kernel, &mut cluster, &[], &question).unwrap();
    (told, kernel.answered())
}

#[test]
fn as_much_is_read_with_many_services_as_with_few() {
    let folder = tempfile::tempdir().unwrap();
    let with = |services: u32| {
        let node = node(services);
        let file = folder.path().join(services.to_string());
        let traced = |file: &Path, cluster, from, to| {
            let (told, bytes) = traced(&node, file, cluster, from, to);
            assert!(told.to_string().contains("chance 50.0 %"), "{told}");
            bytes
        };
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "service-7", "namespace": "default"},
            "spec": {"clusterIPs": [cluster_ip(7)], "ports": [{"name": "http", "port": 80, "nodePort": 30_007}]},
        });
        let known = || Cluster::of(given(std::slice::from_ref(&object)));
        let blind = Cluster::default;
        save(&file, services);
        let name = "svc/default/service-7";
        let few = [
            traced(&file, blind(), "node", "10.96.1.7:80"),
            traced(&file, blind(), "outside", "172.30.0.12:30007"),
            traced(&file, known(), "node", name),
            traced(&file, known(), "outside", name),
            traced(&file, blind(), "node", name),
            traced(&file, blind(), "outside", name),
        ];
        // The last resort, which shows that a map that is read would be seen.
        let absent = traced(Path::new("/nowhere"), blind(), "node", name);
        (few, absent)
    };
    let (few, many) = (with(FEW), with(MANY));
    assert_eq!(few.0, many.0);
    // An element takes more than a hundred bytes.
    let more = u64::from(MANY - FEW) * 100;
    assert!(many.1 > few.1 + more, "{few:?} {many:?}");
}

#[test]
fn what_twill_proxy_remembers_and_the_kernel_does_not_have_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("twill-proxy");
    let node = node(FEW);
    // A Service of this name had the address of another.
    save(&file, FEW);
    let text = std::fs::read_to_string(&file).unwrap();
    let body = text.split_once('\n').unwrap().1;
    let mut body: serde_json::Value = serde_json::from_str(body).unwrap();
    let state = &mut body["state"];
    state["services"]["default/service-7"]["cluster_ips"][0] = json!(cluster_ip(8));
    snapshot::encode(SUBJECT, "uid", state)
        .unwrap()
        .write(&file)
        .unwrap();
    let (told, _) = traced(
        &node,
        &file,
        Cluster::default(),
        "node",
        "svc/default/service-7",
    );
    assert!(told.to_string().contains("10.96.1.7:80"), "{told}");
}
