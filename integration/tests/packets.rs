//! Real packets from everywhere to everywhere: who answers, and whom the pod sees.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use hostnet::netns::NetNs;
use integration::testing::{NODES, ask, lab, pod, service, vip};
use integration::traffic::Transport;
use integration::{inspect, wait};

/// A node's own addresses, as the kernel has them.
fn addresses(node: &integration::Node) -> Vec<IpAddr> {
    let links = inspect::json(node.machine(), "ip -j address show").unwrap();
    let infos = links
        .iter()
        .filter_map(|link| link["addr_info"].as_array())
        .flatten();
    infos
        .map(|info| info["local"].as_str().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn pods_reach_pods_on_one_node_and_across_with_their_own_addresses() {
    let [a, b] = [0, 1].map(|i| pod(&format!("direct-{i}"), NODES[1]));
    let far = pod("direct-far", NODES[2]);
    for transport in Transport::ALL {
        for (from, to) in [(&a, &b), (&b, &a), (&a, &far), (&far, &a)] {
            let answer = ask(from.name(), from.netns(), transport, to.address());
            assert_eq!(answer.server, to.name());
            assert_eq!(answer.client, from.ip(), "{transport} {answer}");
        }
    }
    for pod in [a, b, far] {
        lab().delete_pod(pod).unwrap();
    }
}

#[test]
fn pods_and_nodes_reach_the_cluster_ip() {
    let backend = pod("inside", NODES[2]);
    let service = service("inside", 30101, &[&backend]);
    for node in lab().nodes() {
        let client = pod("inside-client", node.name());
        let own = addresses(node);
        for transport in Transport::ALL {
            let answer = ask(client.name(), client.netns(), transport, vip(&service));
            assert_eq!(answer.server, backend.name());
            assert_eq!(
                answer.client,
                client.ip(),
                "a pod keeps its address: {answer}"
            );

            let answer = ask(
                node.name(),
                node.machine().netns(),
                transport,
                vip(&service),
            );
            assert_eq!(answer.server, backend.name());
            assert!(own.contains(&answer.client), "{answer}, but {own:?}");
        }
        lab().delete_pod(client).unwrap();
    }
    lab().unexpose(&service).unwrap();
    lab().delete_pod(backend).unwrap();
}

#[test]
fn the_outside_reaches_the_node_port_of_every_node() {
    let backend = pod("outside", NODES[1]);
    let service = service("outside", 30102, &[&backend]);
    for node in lab().nodes() {
        let own = addresses(node);
        for transport in Transport::ALL {
            let target = SocketAddr::from((node.ip(), 30102));
            let answer = ask("outside", lab().outside().netns(), transport, target);
            assert_eq!(answer.server, backend.name(), "through {}", node.name());
            assert!(own.contains(&answer.client), "not masqueraded: {answer}");
        }
    }
    lab().unexpose(&service).unwrap();
    lab().delete_pod(backend).unwrap();
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let backend = pod("hairpin", NODES[2]);
    let service = service("hairpin", 30103, &[&backend]);
    let node = lab().node(NODES[2]).unwrap();
    for transport in Transport::ALL {
        for target in [vip(&service), SocketAddr::from((node.ip(), 30103))] {
            let answer = ask(backend.name(), backend.netns(), transport, target);
            assert_eq!(answer.server, backend.name());
            assert!(
                addresses(node).contains(&answer.client),
                "{transport} {target}: {answer}"
            );
        }
    }
    lab().unexpose(&service).unwrap();
    lab().delete_pod(backend).unwrap();
}

#[test]
fn connections_spread_over_all_endpoints() {
    let pods = NODES.map(|node| pod("spread", node));
    let service = service("spread", 30104, &[&pods[0], &pods[1], &pods[2]]);
    let mut answers = std::collections::BTreeSet::new();
    // Each of three stays out of 60 with a probability of 3·10⁻¹¹.
    for _ in 0..60 {
        let outside = lab().outside().netns();
        let target = SocketAddr::from((lab().nodes()[0].ip(), 30104));
        answers.insert(ask("outside", outside, Transport::Tcp, target).server);
    }
    assert_eq!(answers.len(), 3, "{answers:?}");
    lab().unexpose(&service).unwrap();
    for pod in pods {
        lab().delete_pod(pod).unwrap();
    }
}

#[test]
fn pods_reach_the_api_server_by_its_cluster_ip_and_the_outside_as_their_node() {
    let client = pod("egress", NODES[1]);
    let api = SocketAddr::from(([10, 96, 0, 1], 443));
    client
        .netns()
        .run_in(|| std::net::TcpStream::connect_timeout(&api, wait::PATIENCE))
        .unwrap()
        .expect("the API server's cluster IP");

    // The router has no route to pods: without masquerade there would be no way back.
    let outside = lab().outside();
    outside
        .spawn(
            "server",
            &["/opt/twill/lab", "serve", "elsewhere", "7000"],
            &[],
        )
        .unwrap();
    let target = SocketAddr::from(([198, 51, 100, 10], 7000));
    wait::until("server outside", wait::PATIENCE, || {
        Ok(integration::traffic::ask(
            outside.netns(),
            Transport::Tcp,
            target,
        ))
    })
    .unwrap();
    for transport in Transport::ALL {
        let answer = ask(client.name(), client.netns(), transport, target);
        let node = lab().node(NODES[1]).unwrap();
        assert_eq!(answer.client, node.ip(), "{answer}");
    }
    lab().delete_pod(client).unwrap();
}

#[test]
fn of_a_deleted_service_nothing_is_left() {
    let backend = pod("deleted", NODES[1]);
    // Of this table, while other tests' Services come and go, only what is this Service's.
    let ours = |table: &str| -> Vec<String> {
        let marks = [
            " . 30105",
            "10.96.222.222",
            &backend.ip().to_string(),
            "default/deleted",
        ];
        let lines = table.split([',', '\n']);
        lines
            .filter(|line| marks.iter().any(|mark| line.contains(mark)))
            .map(str::to_owned)
            .collect()
    };
    let object = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "deleted", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.222.222", "ports": [
            {"port": 80, "targetPort": 8080, "nodePort": 30105},
        ]},
    });
    let service = lab().expose(&object, &[&backend]).unwrap();
    let list = |node: &integration::Node| node.machine().run("nft list table ip twill-proxy");
    for node in lab().nodes() {
        wait::until("Service in the kernel", wait::PATIENCE, || {
            Ok(wait::holds(
                ours(&list(node)?).len() >= 4,
                "too little is there",
            ))
        })
        .unwrap();
    }
    lab().unexpose(&service).unwrap();
    for node in lab().nodes() {
        wait::until("end of the Service in the kernel", wait::PATIENCE, || {
            let left = ours(&list(node)?);
            Ok(wait::holds(left.is_empty(), &format!("{left:?}")))
        })
        .unwrap();
    }
    lab().delete_pod(backend).unwrap();
}

#[test]
fn the_table_as_nft_lists_it_loads_again() {
    let backend = pod("listed", NODES[0]);
    let service = service("listed", 30106, &[&backend]);
    let node = lab().node(NODES[0]).unwrap().machine();
    let listing = node.run("nft -s list table ip twill-proxy").unwrap();
    let vip = vip(&service).ip().to_string();
    assert!(
        listing.contains(&vip) && listing.contains(" . 30106"),
        "{listing}"
    );

    let empty = NetNs::new_anonymous().unwrap();
    let mut nft = std::process::Command::new("nsenter")
        .arg(format!("--net={}", empty.fd_path().display()))
        .args(["nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut nft.stdin.take().unwrap(), listing.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
    let again = inspect::run_in(&empty, "nft -s list table ip twill-proxy").unwrap();
    assert_eq!(sorted(&again), sorted(&listing));
    lab().unexpose(&service).unwrap();
    lab().delete_pod(backend).unwrap();
}

/// `nft` lists elements in the order of the kernel's hash table: by element, in any order.
fn sorted(listing: &str) -> Vec<String> {
    let parts = listing
        .replace("elements = {", ",")
        .replace(['}', '\n'], ",");
    let mut parts: Vec<_> = parts
        .split(',')
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    parts.sort();
    parts
}
