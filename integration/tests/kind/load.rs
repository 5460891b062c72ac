//! Connections that go on while something happens to the cluster.

use std::process::{Child, Stdio};

use integration::kind::{Cluster, NODES};

/// One connection after another to ADDRESS PORT while /tmp/load is there; then how many were answered, how many not,
/// and the longest that one took, in milliseconds. Each must be answered within 5 s.
const LOAD: &str = r#"
answered=0 lost=0 longest=0
while [ -e /tmp/load ]; do
  start=${EPOCHREALTIME/./}
  if exec 3<>"/dev/tcp/$1/$2" && printf "GET /hostname HTTP/1.0\r\n\r\n" >&3 && read -r -t 5 line <&3 && [[ $line == *200* ]]; then
    answered=$((answered + 1))
  else
    lost=$((lost + 1))
  fi
  exec 3>&-
  took=$(((${EPOCHREALTIME/./} - start) / 1000))
  [ $took -le $longest ] || longest=$took
  sleep 0.02
done
echo "$answered $lost $longest"
"#;

/// What enters the network of the client pod on a node.
pub(crate) const POD: &str = r#"nsenter -t $(crictl inspect -o go-template --template "{{.info.pid}}" $(crictl ps -q --name client)) -n"#;

/// An unbroken row of connections on a node, or in a pod's network on it.
pub(crate) struct Load {
    name: String,
    child: Child,
}

/// Starts connections from `within` of a node (nothing, or [`POD`]).
pub(crate) fn start(cluster: &Cluster, node: &str, within: &str, address: &str, port: u16) -> Load {
    cluster.on(node, "touch /tmp/load").unwrap();
    cluster
        .shell(&format!(
            "docker exec -i {node} sh -c 'cat >/tmp/load.sh' <<'END'{LOAD}END"
        ))
        .unwrap();
    let child = cluster
        .command(&format!(
            "docker exec {node} sh -c '{within} bash /tmp/load.sh {address} {port}'"
        ))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Load {
        name: format!("{address}:{port} from {node} {within}"),
        child,
    }
}

/// Ends the connections; none was lost.
pub(crate) fn all_answered(cluster: &Cluster, loads: Vec<Load>) {
    for node in NODES {
        cluster.on(node, "rm -f /tmp/load").unwrap();
    }
    for load in loads {
        let output = load.child.wait_with_output().unwrap();
        let counted = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers: Vec<u64> = counted
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            numbers.len() == 3 && numbers[0] > 0 && numbers[1] == 0,
            "{}: answered, lost, longest: {counted}{said}",
            load.name
        );
        eprintln!(
            "  {}: {} answered, longest {} ms",
            load.name, numbers[0], numbers[2]
        );
    }
}
