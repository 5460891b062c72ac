//! What becomes of UDP flows as their Service changes, with real packets; and which flows are looked at.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use hostnet::conntrack::{Conntrack, Filter, Tuple, UdpFlow};
use hostnet::testkit::{Ns, wait_for};
use hostnet::vocab::Family;
use prometheus_client::registry::Registry;

use super::{Cleaner, Stale};
use crate::backend::Backend;
use crate::metrics::Metrics;
use crate::nft::NftBackend;
use crate::nft::tests::world::{Service, World};
use crate::plan::{Delta, Endpoint, Ruleset};

/// A client that keeps its port, as a resolver does.
struct Client {
    socket: UdpSocket,
}

impl Client {
    fn new(ns: &Ns, target: &str) -> Client {
        let target: SocketAddr = target.parse().unwrap();
        let any = if target.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = ns.run(|| UdpSocket::bind(any)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        socket.connect(target).unwrap();
        Client { socket }
    }

    /// Who answers; what the network says in place of an answer.
    fn ask(&self) -> Result<String, ErrorKind> {
        let mut buffer = [0; 512];
        let answer = self
            .socket
            .send(b"?")
            .and_then(|_| self.socket.recv(&mut buffer));
        let length = answer.map_err(|error| error.kind())?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }

    #[track_caller]
    fn wait(&self, what: &str, wanted: impl Fn(&Result<String, ErrorKind>) -> bool) {
        wait_for(what, Duration::from_secs(20), || {
            wanted(&self.ask()).then_some(())
        });
    }

    #[track_caller]
    fn wait_answer(&self, server: &str) {
        self.wait(server, |answer| answer.as_deref() == Ok(server));
    }
}

struct Site {
    world: World,
    backend: NftBackend,
    cleaner: Cleaner,
    plan: Ruleset,
}

impl Site {
    fn new(family: Family) -> Site {
        let world = World::new(family);
        let mut backend = world.backend();
        let plan = world.plan([]);
        backend.replace(&plan).unwrap();
        let metrics = Metrics::new(&mut Registry::default());
        let cleaner = world.node.run(|| Cleaner::start(metrics)).unwrap();
        Site {
            world,
            backend,
            cleaner,
            plan,
        }
    }

    fn set(&mut self, services: impl IntoIterator<Item = Service>) {
        let plan = self.world.plan(services);
        let delta = Delta::between(&self.plan, &plan);
        self.backend.update(&delta).unwrap();
        let mut stale = Stale::default();
        stale.add(&delta, &plan);
        self.cleaner.clean(stale);
        self.plan = plan;
    }

    fn flows(&self) -> Vec<UdpFlow> {
        let mut flows = Vec::new();
        let mut conntrack = self.world.node.run(Conntrack::open).unwrap();
        let all = Filter::all(self.world.family);
        conntrack.dump(&all, |flow| flows.push(flow)).unwrap();
        flows
    }
}

#[test]
fn flows_follow_their_service() {
    std::thread::scope(|scope| {
        for family in Family::ALL {
            scope.spawn(move || follow(Site::new(family)));
        }
    });
}

fn follow(mut site: Site) {
    let (a, b) = (site.world.endpoint(11), site.world.endpoint(12));
    let udp = |endpoints: &[Endpoint]| [Service::udp(endpoints.to_vec())];
    let clients = [
        Client::new(&site.world.client, &site.world.vip()),
        Client::new(&site.world.client, &site.world.node_port()),
        Client::new(&site.world.c, &site.world.vip()),
        Client::new(&site.world.node, &site.world.vip()),
    ];
    // They begin before there is a Service, and are freed when it comes without endpoints, with, with others.
    for client in &clients {
        client.ask().unwrap_err();
    }
    site.set(udp(&[]));
    for client in &clients[..2] {
        client.wait("a refusal", |answer| {
            *answer == Err(ErrorKind::ConnectionRefused)
        });
    }
    for (endpoints, server) in [(a, "a"), (b, "b")] {
        site.set(udp(&[endpoints]));
        clients.iter().for_each(|client| client.wait_answer(server));
    }
    // One more endpoint, and one that is only on its way out: nobody is moved.
    let before = site.flows();
    site.set(udp(&[a, b]));
    let mut plan = site.plan.clone();
    let ports = &mut plan.family_mut(site.world.family).ports;
    let port = ports.values_mut().next().unwrap();
    let port = std::sync::Arc::make_mut(port);
    (port.cluster, port.serving) = ([a].into(), [a, b].into());
    let mut stale = Stale::default();
    stale.add(&Delta::between(&site.plan, &plan), &plan);
    let filter = stale.filter(site.world.family);
    assert!(filter.is_some(), "the change is looked at");
    assert!(
        !before.iter().any(|flow| stale.contains(flow)),
        "{before:?}"
    );
    // Moved by nothing but the flow's own end, they would still be asking `b`.
    clients.iter().for_each(|client| client.wait_answer("b"));
    site.set(udp(&[a]));
    clients.iter().for_each(|client| client.wait_answer("a"));
    // The Service goes, and with it the way to the pod, also for those that never stop to ask.
    site.set([]);
    for client in &clients {
        client.wait("silence", Result::is_err);
    }
    wait_for("no translated flow", Duration::from_secs(10), || {
        let translated = |flow: &UdpFlow| flow.reply.src != flow.original.dst;
        (!site.flows().iter().any(translated)).then_some(())
    });
}

fn flow(to: &str, from: &str) -> UdpFlow {
    let [client, to, from] = ["192.0.2.9:4000", to, from].map(|a| a.parse().unwrap());
    UdpFlow {
        original: Tuple {
            src: client,
            dst: to,
        },
        reply: Tuple {
            src: from,
            dst: client,
        },
        zone: 0,
        id: 1,
    }
}

/// A plan of `shop/web` with an endpoint, at these further addresses.
fn plan(external: &str, protocol: &str) -> Ruleset {
    let yaml = format!(
        "kind: Service\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{clusterIPs: [10.96.0.1], externalIPs: [{external}], ports: [{{port: 53, protocol: {protocol}, nodePort: 30053}}]}}\n\
         ---\n\
         kind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\n\
         ports: [{{port: 5353, protocol: {protocol}}}]\n\
         endpoints: [{{addresses: [10.244.1.1]}}]\n\
         ---\n\
         kind: Node\n\
         metadata: {{name: k8s-node-2}}\n\
         status: {{addresses: [{{type: InternalIP, address: 192.168.1.12}}]}}\n"
    );
    crate::fixtures::plan(&mut crate::fixtures::index(&yaml), &Default::default())
}

#[test]
fn only_flows_of_what_changed_are_looked_at() {
    let (before, after) = (plan("", "UDP"), plan("172.16.0.1", "UDP"));
    let mut stale = Stale::default();
    stale.add(&Delta::between(&before, &after), &after);
    for (to, from, is_stale) in [
        ("10.96.0.1:53", "10.244.1.1:5353", false),
        ("10.96.0.1:53", "10.244.1.1:53", true),
        ("10.96.0.1:53", "10.96.0.1:53", true),
        ("10.96.0.1:54", "10.244.1.9:5353", false),
        ("172.16.0.1:53", "172.16.0.1:53", true),
        ("192.168.1.12:30053", "10.244.1.9:5353", true),
        ("192.168.1.12:30053", "10.244.1.1:5353", false),
        // Another host's, that merely passes through.
        ("192.168.1.13:30053", "192.168.1.13:30053", false),
    ] {
        assert_eq!(stale.contains(&flow(to, from)), is_stale, "{to} {from}");
    }
    // The address goes: what was translated for it is cut off, what was not is none of ours.
    stale = Stale::default();
    stale.add(&Delta::between(&after, &before), &before);
    assert!(stale.contains(&flow("172.16.0.1:53", "10.244.1.1:5353")));
    assert!(!stale.contains(&flow("172.16.0.1:53", "172.16.0.1:53")));
}

#[test]
fn one_port_is_asked_of_the_kernel_alone_and_tcp_not_at_all() {
    let stale = |before: &Ruleset, after: &Ruleset| {
        let mut stale = Stale::default();
        stale.add(&Delta::between(before, after), after);
        stale
    };
    let none = Ruleset::default();
    let both = stale(&none, &plan("", "UDP"));
    assert_eq!(both.filter(Family::V4), Some(Filter::all(Family::V4)));
    assert_eq!(both.filter(Family::V6), None);
    let mut one = plan("", "UDP");
    let port = one.v4.ports.values_mut().next().unwrap();
    std::sync::Arc::make_mut(port).frontends.truncate(1);
    let filter = Filter::all(Family::V4).to_port(53);
    assert_eq!(stale(&none, &one).filter(Family::V4), Some(filter));
    assert!(stale(&none, &plan("", "TCP")).is_empty());
}

#[test]
fn what_is_found_later_goes_before_what_is_known() {
    let (with, without) = (plan("", "UDP"), Ruleset::default());
    let flow = flow("10.96.0.1:53", "10.244.1.1:5353");
    let step = |before: &Ruleset, after: &Ruleset| {
        let mut stale = Stale::default();
        stale.add(&Delta::between(before, after), after);
        stale
    };
    let mut stale = step(&with, &without);
    assert!(stale.contains(&flow));
    stale.extend(step(&without, &with));
    assert!(!stale.contains(&flow), "it is there again");
}
