//! twill-proxy against a real API server and a real kernel, alone: without pods and their network,
//! endpoints are servers on other machines.

mod events;
mod soak;
mod udp;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use hostnet::nft::{Nft, Table, TableId};
use hostnet::vocab::Family;
use integration::lab::Lab;
use integration::machine::Machine;
use integration::objects::{self, Endpoint};
use integration::traffic::{self, Greeting, Stream, Transport};
use integration::{Daemon, Node, http, wait};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Where the servers listen.
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30_080;

/// Nodes `one`, `two` and `three` with the proxy on them, and a server on the latter two.
fn lab() -> Lab {
    let lab = Lab::builder()
        .node("one", &[])
        .node("two", &[])
        .node("three", &[])
        .daemons(&[Daemon::Proxy])
        .up()
        .unwrap();
    for name in ["two", "three"] {
        let machine = lab.node(name).unwrap().machine();
        let argv = ["/opt/twill/lab", "serve", name, &TARGET.to_string()];
        machine.spawn("server", &argv, &[]).unwrap();
        let server = SocketAddr::from((lab.node(name).unwrap().ip(), TARGET));
        wait::until("server", wait::PATIENCE, || {
            Ok(traffic::ask(machine.netns(), Transport::Tcp, server))
        })
        .unwrap();
    }
    lab
}

/// The Service `default/web`: TCP and UDP 80 at its cluster IP and, by number, at the nodes.
fn web(lab: &Lab, endpoints: &[&str]) -> Service {
    let spec = json!({"type": "NodePort", "ports": [
        {"name": "t", "protocol": "TCP", "port": 80, "targetPort": TARGET, "nodePort": NODE_PORT},
        {"name": "u", "protocol": "UDP", "port": 80, "targetPort": TARGET, "nodePort": NODE_PORT},
    ]});
    web_with(lab, &spec, endpoints)
}

/// The Service `default/web` of this specification.
fn web_with(lab: &Lab, spec: &Value, endpoints: &[&str]) -> Service {
    let object = lab
        .api()
        .apply(&json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": spec,
        }))
        .unwrap();
    let service: Service = serde_json::from_value(serde_json::to_value(object).unwrap()).unwrap();
    set_endpoints(lab, &service, endpoints);
    service
}

fn set_endpoints(lab: &Lab, service: &Service, nodes: &[&str]) {
    let endpoint = |name: &&str| Endpoint {
        address: lab.node(name).unwrap().ip(),
        node: Some((*name).to_owned()),
        pod: None,
    };
    let endpoints: Vec<_> = nodes.iter().map(endpoint).collect();
    lab.api()
        .apply(&objects::endpoint_slice(service, &endpoints).unwrap())
        .unwrap();
}

fn cluster_ip(service: &Service) -> SocketAddr {
    let ip = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref());
    SocketAddr::new(ip.unwrap().parse().unwrap(), 80)
}

/// Waits until an answer comes from that server.
fn wait_for(
    machine: &Machine,
    transport: Transport,
    address: SocketAddr,
    server: &str,
) -> Greeting {
    wait::until(
        &format!("{server} at {transport} {address}"),
        wait::PATIENCE,
        || Ok(answer_from(machine, transport, address, server)),
    )
    .unwrap()
}

fn answer_from(
    machine: &Machine,
    transport: Transport,
    address: SocketAddr,
    server: &str,
) -> Result<Greeting> {
    let greeting = traffic::ask(machine.netns(), transport, address)?;
    ensure!(greeting.server == server, "{} answered", greeting.server);
    Ok(greeting)
}

/// The proxy's table on a node, read back.
fn table(node: &Node) -> Option<Table> {
    let id = TableId::new(Family::V4, "twill-proxy");
    let mut nft = node.machine().netns().run_in(Nft::open).unwrap().unwrap();
    nft.observe(&id).unwrap().table
}

/// The same as `nft` lists it, with handles: what was made anew has another.
fn listed(node: &Node) -> String {
    node.machine()
        .run("nft -a list table ip twill-proxy")
        .unwrap()
}

/// Counts the transactions of the node's nf_tables.
fn generation(node: &Node) -> u32 {
    let mut nft = node.machine().netns().run_in(Nft::open).unwrap().unwrap();
    nft.generation().unwrap()
}

/// Waits until the proxy of a node has nothing to do.
fn wait_idle(node: &Node) {
    wait::until("an idle proxy", wait::PATIENCE, || {
        let before = generation(node);
        let metrics = node.metrics(Daemon::Proxy)?;
        let pending = |what: &str| {
            metrics.contains(&format!(
                "kubeproxy_sync_proxy_rules_{what}_changes_pending 0\n"
            ))
        };
        let idle = pending("service") && pending("endpoint") && before == generation(node);
        Ok(wait::holds(idle, &metrics))
    })
    .unwrap();
}

#[test]
fn a_service_works_from_its_creation_to_its_deletion_and_leaves_nothing() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    wait_idle(one);
    let before = table(one);

    let service = web(&lab, &["two"]);
    for transport in Transport::ALL {
        wait_for(one.machine(), transport, cluster_ip(&service), "two");
        // From outside a connection comes back by the way it came: two sees one.
        one.machine()
            .run("sysctl -q -w net.ipv4.ip_forward=1")
            .unwrap();
        let node_port = SocketAddr::new(one.ip(), NODE_PORT);
        let seen = wait_for(lab.outside(), transport, node_port, "two");
        assert_eq!(seen.client, one.ip());
    }

    set_endpoints(&lab, &service, &["three"]);
    wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "three");

    set_endpoints(&lab, &service, &[]);
    wait::until("a refusal", wait::PATIENCE, || {
        let asked = traffic::ask(one.machine().netns(), Transport::Tcp, cluster_ip(&service));
        let refused = asked.is_err_and(|error| format!("{error:#}").contains("refused"));
        Ok(wait::holds(refused, "it is not refused"))
    })
    .unwrap();

    set_endpoints(&lab, &service, &["two"]);
    wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "two");
    lab.unexpose(&service).unwrap();
    wait::until("the table as it was", wait::PATIENCE, || {
        Ok(wait::holds(table(one) == before, &listed(one)))
    })
    .unwrap();
}

#[test]
fn a_kill_loses_nothing_and_a_restart_changes_nothing() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let service = web(&lab, &["two"]);
    let streams = Transport::ALL.map(|transport| {
        wait_for(one.machine(), transport, cluster_ip(&service), "two");
        Stream::start(one.machine().netns(), transport, cluster_ip(&service)).unwrap()
    });
    wait_idle(one);
    let (before, transactions) = (listed(one), generation(one));

    one.stop(Daemon::Proxy, Signal::SIGKILL).unwrap();
    wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "two");
    one.start(Daemon::Proxy).unwrap();
    one.wait_ready(Daemon::Proxy).unwrap();
    wait_idle(one);
    one.stop(Daemon::Proxy, Signal::SIGTERM).unwrap();

    assert_eq!(generation(one), transactions, "not one transaction");
    assert_eq!(listed(one), before);
    for mut stream in streams {
        stream.wait_for(50, wait::PATIENCE).unwrap();
        let report = stream.finish().unwrap();
        assert_eq!(report.lost, [0; 0], "of {}", report.sent);
    }
}

#[test]
fn what_changed_while_the_proxy_was_away_is_made_up_for() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let service = web(&lab, &["two"]);
    wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "two");
    one.stop(Daemon::Proxy, Signal::SIGKILL).unwrap();
    set_endpoints(&lab, &service, &["three"]);
    one.start(Daemon::Proxy).unwrap();
    wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "three");
    wait_for(one.machine(), Transport::Udp, cluster_ip(&service), "three");
}

#[test]
fn what_others_break_is_mended_at_once_and_told() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let service = web(&lab, &["two"]);
    wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "two");
    wait_idle(one);
    let before = table(one);
    for break_it in [
        "nft flush ruleset",
        "nft delete table ip twill-proxy",
        "nft flush map ip twill-proxy vips",
        "nft add table ip twill-proxy { chain mine { } ; }",
    ] {
        one.machine().run(break_it).unwrap();
        wait::until(&format!("repair after {break_it}"), wait::PATIENCE, || {
            Ok(wait::holds(table(one) == before, "it is not as it was"))
        })
        .unwrap();
        wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "two");
    }
    let log = one.log(Daemon::Proxy);
    let told = log
        .lines()
        .filter(|line| line.contains("changed by someone else"))
        .count();
    assert!(told >= 4 && log.contains("process=\"nft\""), "{log}");
}

#[test]
fn cleanup_removes_our_tables_and_no_other() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    one.machine().run("nft add table ip other").unwrap();
    one.stop(Daemon::Proxy, Signal::SIGTERM).unwrap();
    let tables = || one.machine().run("nft list tables").unwrap();
    assert!(
        tables().contains("table ip twill-proxy"),
        "the rules outlive the proxy: {}",
        tables()
    );
    for _ in 0..2 {
        one.machine()
            .run("/opt/twill/twill-proxy --cleanup")
            .unwrap();
        assert_eq!(tables(), "table ip other\n");
    }
}

#[test]
fn node_ports_answer_at_given_addresses_as_these_come_and_go() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    one.stop(Daemon::Proxy, Signal::SIGTERM).unwrap();
    let networks = "--nodeport-addresses=10.99.0.0/16";
    one.start_with(Daemon::Proxy, &[networks]).unwrap();
    one.wait_ready(Daemon::Proxy).unwrap();
    let service = web(&lab, &["two"]);
    wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "two");
    let answers = |address: &str| {
        let address = format!("{address}:{NODE_PORT}").parse().unwrap();
        traffic::ask(one.machine().netns(), Transport::Tcp, address).is_ok()
    };
    assert!(!answers(&one.ip().to_string()), "in none of the networks");

    for (what, there) in [("add", true), ("del", false), ("add", true)] {
        let change = format!("ip address {what} 10.99.0.1/32 dev lo");
        one.machine().run(&change).unwrap();
        wait::until(&format!("rules after {change}"), wait::PATIENCE, || {
            let set = one
                .machine()
                .run("nft list set ip twill-proxy nodeport-ips")?;
            Ok(wait::holds(set.contains("10.99.0.1") == there, &set))
        })
        .unwrap();
    }
    assert!(answers("10.99.0.1"));
    assert!(!answers("127.0.0.1"), "never at loopback addresses");
}

#[test]
fn health_follows_rules_and_node() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let ask = |port: u16, path: &str| {
        let server = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        http::get(one.machine().netns(), server, path).unwrap()
    };
    assert_eq!(ask(10_256, "/healthz").status, 200);
    assert_eq!(ask(10_249, "/proxyMode").body, "nftables");
    lab.api()
        .apply(&json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "one"},
            "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
        }))
        .unwrap();
    wait::until("a node that is not eligible", wait::PATIENCE, || {
        let healthz = ask(10_256, "/healthz");
        Ok(wait::holds(
            healthz.status == 503 && healthz.body.contains("\"nodeEligible\":false"),
            &healthz.body,
        ))
    })
    .unwrap();
    assert_eq!(ask(10_256, "/livez").status, 200);
}

/// A value of the proxy's metrics.
fn metric(node: &Node, name: &str) -> Result<String> {
    let metrics = node.metrics(Daemon::Proxy)?;
    let line = metrics
        .lines()
        .find(|line| line.split([' ', '{']).next() == Some(name));
    Ok(line
        .and_then(|line| line.rsplit(' ').next())
        .unwrap_or("none")
        .to_owned())
}

#[test]
fn addresses_outside_the_cluster_have_one_owner_and_a_health_check() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    one.stop(Daemon::Proxy, Signal::SIGTERM).unwrap();
    let config = |masquerade_all: bool| {
        let yaml = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
             kind: KubeProxyConfiguration\n\
             clusterCIDR: 10.244.0.0/16\n\
             nftables: {{masqueradeAll: {masquerade_all}}}\n"
        );
        one.machine().write("/etc/twill/proxy.yaml", &yaml).unwrap();
    };
    config(false);
    one.start_with(Daemon::Proxy, &["--config=/etc/twill/proxy.yaml"])
        .unwrap();
    one.wait_ready(Daemon::Proxy).unwrap();

    // Addresses of a load balancer and of the user's own, one of which another Service claims too.
    let service = |name: &str, node_port: u16, external: &str| {
        let object = lab
            .api()
            .apply(&json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "type": "LoadBalancer",
                    "externalTrafficPolicy": "Local",
                    "externalIPs": [external],
                    "sessionAffinity": "ClientIP",
                    "ports": [{"port": 80, "targetPort": TARGET, "nodePort": node_port}],
                },
                "status": {"loadBalancer": {"ingress": [{"ip": format!("203.0.113.{}", node_port % 100)}]}},
            }))
            .unwrap();
        serde_json::from_value::<Service>(serde_json::to_value(object).unwrap()).unwrap()
    };
    let older = service("older", 30_001, "203.0.113.200");
    set_endpoints(&lab, &older, &["two"]);
    one.machine()
        .run("ip route add 203.0.113.0/24 dev lo")
        .unwrap();
    let at = |host: u8| SocketAddr::from(([203, 0, 113, host], 80));
    for host in [1, 200] {
        wait_for(one.machine(), Transport::Tcp, at(host), "two");
    }
    let younger = service("younger", 30_002, "203.0.113.200");
    set_endpoints(&lab, &younger, &["three"]);
    wait_for(one.machine(), Transport::Tcp, at(2), "three");
    wait_for(one.machine(), Transport::Tcp, at(200), "two");
    wait::until("an Event", wait::PATIENCE, || {
        let events = lab.api().list::<Event>(Some("default"))?;
        let told = events.iter().any(|event| {
            event.reason.as_deref() == Some("FrontendConflict")
                && event.regarding.as_ref().and_then(|r| r.uid.clone()) == younger.metadata.uid
        });
        Ok(wait::holds(told, &format!("{events:?}")))
    })
    .unwrap();
    let conflicts = || metric(one, "twill_proxy_conflicting_frontends");
    assert_eq!(conflicts().unwrap(), "1");
    lab.unexpose(&older).unwrap();
    wait_for(one.machine(), Transport::Tcp, at(200), "three");
    assert_eq!(conflicts().unwrap(), "0");

    // A load balancer is sent elsewhere until this node has an endpoint.
    let spec = younger.spec.as_ref().unwrap();
    let check = u16::try_from(spec.health_check_node_port.unwrap()).unwrap();
    let status = |wanted: u16| {
        let server = SocketAddr::new(one.ip(), check);
        wait::until("an answer to the load balancer", wait::PATIENCE, || {
            let answer = http::get(lab.outside().netns(), server, "/")?;
            Ok(wait::holds(answer.status == wanted, &answer.body))
        })
        .unwrap();
    };
    status(503);
    set_endpoints(&lab, &younger, &["one"]);
    status(200);

    // The configuration file is followed.
    let rules = || listed(one);
    assert!(!rules().contains("comment \"default/younger\" : goto masq-always"));
    config(true);
    wait::until("the new configuration", wait::PATIENCE, || {
        let listed = rules();
        let all = listed.contains("comment \"default/younger\" : goto masq-always");
        Ok(wait::holds(all, &listed))
    })
    .unwrap();
    let server = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let configz = http::get(one.machine().netns(), server, "/configz").unwrap();
    assert!(
        configz.body.contains("\"masqueradeAll\":true"),
        "{}",
        configz.body
    );
}

#[test]
fn a_node_that_was_rebooted_serves_before_the_api_answers() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    let service = web(&lab, &["two"]);
    let serves = || {
        for transport in Transport::ALL {
            wait_for(one.machine(), transport, cluster_ip(&service), "two");
        }
    };
    serves();
    let saved = one.machine().path("/var/lib/twill/twill-proxy");
    wait::until("a snapshot", wait::PATIENCE, || {
        let text = std::fs::read_to_string(&saved)?;
        Ok(wait::holds(text.contains("default/web"), &text))
    })
    .unwrap();
    let before = table(one);
    one.stop(Daemon::Proxy, Signal::SIGKILL).unwrap();
    one.machine().run("nft flush ruleset").unwrap();
    // Nobody answers there.
    let nowhere = ["--master=https://192.0.2.1:6443"];
    one.start_with(Daemon::Proxy, &nowhere).unwrap();
    serves();
    assert_eq!(table(one), before);

    // Rules that are there may be newer than the file: they stay.
    one.stop(Daemon::Proxy, Signal::SIGKILL).unwrap();
    one.machine()
        .run("nft flush map ip twill-proxy vips")
        .unwrap();
    one.start_with(Daemon::Proxy, &nowhere).unwrap();
    wait::until("a look at the file", wait::PATIENCE, || {
        let log = one.log(Daemon::Proxy);
        let kept = log.contains("the state on disk is not needed");
        Ok(wait::holds(kept, &log))
    })
    .unwrap();
    assert!(!listed(one).contains("goto lb-1"));
    one.stop(Daemon::Proxy, Signal::SIGKILL).unwrap();
    one.start(Daemon::Proxy).unwrap();
    serves();
}
