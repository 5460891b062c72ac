//! UDP flows of clients that keep their port, as a resolver does: they follow their Service through all that becomes
//! of it, and a TCP connection goes on meanwhile.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::time::Duration;

use hostnet::conntrack::{Conntrack, Filter, UdpFlow};

use super::*;

/// For one answer; a lost datagram is asked again.
const SOON: Duration = Duration::from_millis(200);

struct Client {
    name: &'static str,
    socket: UdpSocket,
}

impl Client {
    fn new(name: &'static str, machine: &Machine, server: SocketAddr) -> Client {
        let socket = machine.netns().run_in(|| UdpSocket::bind("0.0.0.0:0"));
        let socket = socket.unwrap().unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect(server).unwrap();
        Client { name, socket }
    }

    /// Who answers.
    fn ask(&self) -> io::Result<String> {
        let mut buffer = [0; 512];
        self.socket.send(b"?")?;
        let length = self.socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let greeting: Greeting = text.lines().next().unwrap_or_default().parse().unwrap();
        Ok(greeting.server)
    }

    fn wait(&self, what: &str, wanted: impl Fn(&io::Result<String>) -> bool) {
        let what = format!("{what} for {}", self.name);
        wait::until(&what, wait::PATIENCE, || {
            let answer = self.ask();
            Ok(wait::holds(wanted(&answer), &format!("{answer:?}")))
        })
        .unwrap();
    }

    fn wait_answer(&self, server: &str) {
        self.wait(server, |answer| {
            answer.as_ref().is_ok_and(|by| by == server)
        });
    }
}

/// The UDP flows of a node that were translated.
fn translated(node: &Node) -> Vec<UdpFlow> {
    let mut flows = Vec::new();
    let mut conntrack = node
        .machine()
        .netns()
        .run_in(Conntrack::open)
        .unwrap()
        .unwrap();
    conntrack
        .dump(&Filter::all(Family::V4), |flow| flows.push(flow))
        .unwrap();
    flows.retain(|flow| flow.reply.src != flow.original.dst);
    flows
}

#[test]
fn flows_follow_their_service_and_connections_stay() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    one.machine()
        .run("sysctl -q -w net.ipv4.ip_forward=1")
        .unwrap();
    let service = web(&lab, &[]);
    let node_port = SocketAddr::new(one.ip(), NODE_PORT);
    let clients = [
        Client::new("the node", one.machine(), cluster_ip(&service)),
        Client::new("the node at its node port", one.machine(), node_port),
        Client::new("the outside", lab.outside(), node_port),
    ];
    let refused = |clients: &[Client]| {
        for client in clients {
            // From the node itself the first refusal of a flow shows as another error.
            client.wait("a refusal", |answer| {
                answer
                    .as_ref()
                    .is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
            });
        }
    };
    let answered = |server: &str| clients.iter().for_each(|client| client.wait_answer(server));

    // No endpoints yet: told at once, and freed when they come.
    refused(&clients);
    set_endpoints(&lab, &service, &["two"]);
    answered("two");
    wait_for(one.machine(), Transport::Tcp, cluster_ip(&service), "two");
    let mut connection =
        Stream::start(one.machine().netns(), Transport::Tcp, cluster_ip(&service)).unwrap();

    // The endpoint goes: for another one, for good, and another comes.
    set_endpoints(&lab, &service, &["three"]);
    answered("three");
    set_endpoints(&lab, &service, &[]);
    refused(&clients);
    set_endpoints(&lab, &service, &["three"]);
    answered("three");

    // The Service goes, and no flow of it goes on; it comes again.
    lab.unexpose(&service).unwrap();
    for client in &clients {
        client.wait("silence", io::Result::is_err);
    }
    wait::until("no translated flow", wait::PATIENCE, || {
        let flows = translated(one);
        Ok(wait::holds(flows.is_empty(), &format!("{flows:?}")))
    })
    .unwrap();
    let mut again = service.clone();
    again.metadata =
        serde_json::from_value(json!({"name": "web", "namespace": "default"})).unwrap();
    again.status = None;
    lab.api().apply(&again).unwrap();
    set_endpoints(&lab, &again, &["two"]);
    answered("two");

    connection.wait_for(50, wait::PATIENCE).unwrap();
    let report = connection.finish().unwrap();
    assert_eq!(report.lost, [0; 0], "of {}", report.sent);
    let deleted = metric(one, "kubeproxy_conntrack_reconciler_deleted_entries_total").unwrap();
    assert!(deleted.parse::<u32>().unwrap() >= 6, "{deleted}");
}
