//! `twill` where kubectl is: by the API server and the kubelets' port forwarding, on no node and with no daemon's help but
//! that of the pods.

use integration::kind::{Cluster, NODES};

use crate::{binaries, words};

/// What it says, and its exit status.
fn twill(cluster: &Cluster, arguments: &str) -> (Option<i32>, String) {
    let line = format!("{}/twill {arguments} 2>&1", binaries());
    let output = cluster.command(&line).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

/// hello-world runs, and all is well.
pub(crate) fn answers(cluster: &Cluster) {
    let client = format!(
        "pod -l app=client --field-selector spec.nodeName={}",
        NODES[1]
    );
    let client = &words(cluster, &client, ".items[*].metadata.name")[0];
    let service = "svc/default/hello-world-service";
    let says = |arguments: &str, code: i32, wanted: &[&str]| {
        let (status, text) = twill(cluster, arguments);
        assert_eq!(status, Some(code), "twill {arguments}: {text}");
        for line in wanted {
            assert!(
                text.contains(line),
                "twill {arguments}: no {line:?} in\n{text}"
            );
        }
    };
    says("status --wait 60", 0, &["3 of 3 nodes are well"]);
    let sent = "3 of 3 nodes have sent to 6 others in all, 0 times with trouble";
    says("probe", 0, &[sent]);
    says("doctor --all", 0, &["nothing is wrong on 3 of 3 nodes"]);
    says(&format!("pods --at {} {client}", NODES[1]), 0, &[client]);
    let slice = "EndpointSlice default/hello-world-service-";
    says(
        &format!("trace pod/default/{client} {service}"),
        0,
        &[slice, &format!("[pod default/{client}]")],
    );
    let which = format!("--at NODE ({})", NODES.join(", "));
    says(&format!("trace outside {service}"), 2, &[&which]);
    says(
        &format!("trace outside {service} --at {}", NODES[2]),
        0,
        &[slice],
    );
    let dump = "$TWILL_KIND_RUN/dump.tar.gz";
    says(&format!("support-dump {dump}"), 0, &["objects.json"]);
    let logs = format!("tar xzOf {dump} --wildcards 'logs/flanneld-*' | grep -c 'flanneld starts'");
    assert_eq!(cluster.shell(&logs).unwrap().trim(), "3");

    let wall = "nft 'add table inet wall; add chain inet wall gate { type filter hook input priority 0; }; add rule inet wall gate udp dport 8472 drop'";
    cluster.on(NODES[2], wall).unwrap();
    let one_way = format!("✗ {} → {}: ", NODES[1], NODES[2]);
    says("probe", 1, &[&one_way, "UDP port 8472 is filtered"]);
    cluster.on(NODES[2], "nft delete table inet wall").unwrap();
}
