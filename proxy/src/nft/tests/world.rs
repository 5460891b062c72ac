//! A node with two pods that serve, one that does not, and a client outside; and plans for it in few words.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use hostnet::netlink::link::{self, Bridge, BridgePort, NewLink};
use hostnet::netlink::{LinkKind, Request};
use hostnet::testkit::{Answer, EchoServer, Ns, ask_tcp, ask_udp, connect, join_bridge};
use hostnet::vocab::{Family, IfName};

use super::super::NftBackend;
use crate::plan::{
    At, Endpoint, FamilyRuleset, Frontend, Masquerade, NodeRules, PodTraffic, PortKey, PortName,
    Protocol, Ruleset, ServicePort, Verdict, View,
};

/// The port at which pods serve.
pub(crate) const POD_PORT: u16 = 8080;
/// The node port of services that have one.
pub(crate) const NODE_PORT: u16 = 30_001;

/// ```text
///  client ── eth0 ─ node ─ cni0 ┬─ a (serves)
///                               ├─ b (serves)
///                               └─ c
/// ```
/// The client knows no way to the pods, only to the node and to the services.
pub(crate) struct World {
    pub(crate) family: Family,
    pub(crate) client: Ns,
    pub(crate) node: Ns,
    pub(crate) a: Ns,
    _b: Ns,
    pub(crate) c: Ns,
    _servers: Vec<EchoServer>,
}

impl World {
    pub(crate) fn new(family: Family) -> World {
        let [client, node, a, b, c] = ["client", "node", "a", "b", "c"].map(Ns::new);
        let w = |text: &str| with_prefix(family, text);
        node.forward();
        // Until its link-local address is known to be its own alone, a link asks for no neighbours.
        node.set_sysctl("ipv6/conf/default/accept_dad", "0");
        // Who refuses with ICMP does so each time.
        node.set_sysctl("ipv4/icmp_ratelimit", "0");
        node.set_sysctl("ipv6/icmp/ratelimit", "0");
        connect(&client, "eth0", &node, "eth0");
        client.addr("eth0", &w("outside.100"));
        node.addr("eth0", &w("outside.1"));
        let services = match family {
            Family::V4 => "10.96.0.0/12",
            Family::V6 => "fd00:96::/108",
        };
        client.route(services, &address(family, "outside.1").to_string());

        // As twill-cni makes it: bridged packets meet the rules, and a pod may reach itself.
        let bridge = LinkKind::Bridge(Bridge {
            nf_call_iptables: true,
            nf_call_ip6tables: true,
            vlan_filtering: false,
        });
        let cni0 = NewLink {
            up: true,
            ..NewLink::new(name("cni0"), bridge)
        };
        apply(&node, link::create(&cni0));
        node.addr("cni0", &w("pods.1"));
        // The service network's way out, as on a node with a default route.
        node.route(services, &address(family, "outside.100").to_string());
        let default = match family {
            Family::V4 => "default",
            Family::V6 => "default6",
        };
        for (pod, host) in [(&a, "pods.11"), (&b, "pods.12"), (&c, "pods.13")] {
            let port = format!("veth-{}", pod.label());
            join_bridge(&node, "cni0", &port, pod, "eth0");
            let hairpin = BridgePort {
                hairpin: true,
                isolated: false,
                locked: false,
            };
            apply(&node, link::set_port(name(&port), hairpin));
            pod.addr("eth0", &w(host));
            pod.route(default, &address(family, "pods.1").to_string());
        }
        let any = match family {
            Family::V4 => "0.0.0.0",
            Family::V6 => "[::]",
        };
        let servers = [&a, &b]
            .map(|pod| EchoServer::start(pod, pod.label(), &format!("{any}:{POD_PORT}")))
            .into();
        World {
            family,
            client,
            node,
            a,
            _b: b,
            c,
            _servers: servers,
        }
    }

    /// The backend in the node's namespace.
    pub(crate) fn backend(&self) -> NftBackend {
        self.node.run(NftBackend::open).unwrap()
    }

    pub(crate) fn at(&self, what: &str) -> IpAddr {
        address(self.family, what)
    }

    /// `address:port` of a service.
    pub(crate) fn vip(&self) -> String {
        socket(self.at("services.10"), 80)
    }

    /// `address:port` of the node port.
    pub(crate) fn node_port(&self) -> String {
        socket(self.at("outside.1"), NODE_PORT)
    }

    /// An endpoint in pod `a` (11), `b` (12), …, on this node.
    pub(crate) fn endpoint(&self, host: u16) -> Endpoint {
        Endpoint {
            address: self.at(&format!("pods.{host}")),
            port: POD_PORT,
            local: true,
        }
    }

    /// A plan with these services, where pods are known by their network.
    pub(crate) fn plan(&self, services: impl IntoIterator<Item = Service>) -> Ruleset {
        let network = match self.family {
            Family::V4 => "10.244.0.0/24",
            Family::V6 => "fd00:244::/64",
        };
        let node = NodeRules {
            pods: PodTraffic::From(vec![network.parse().unwrap()]),
            node_ports: BTreeSet::from([self.at("outside.1")]),
            ..NodeRules::default()
        };
        let ports = services
            .into_iter()
            .map(|service| service.port(self))
            .collect();
        let mut plan = Ruleset::default();
        *plan.family_mut(self.family) = FamilyRuleset { node, ports };
        plan
    }
}

/// A service port at cluster IP `services.10`, port 80, and at the node port.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) protocol: Protocol,
    pub(crate) endpoints: Vec<Endpoint>,
    /// `externalTrafficPolicy: Local`, with these endpoints on this node.
    pub(crate) local: Option<Vec<Endpoint>>,
    /// `sessionAffinity: ClientIP`, for so many seconds.
    pub(crate) affinity: Option<NonZeroU32>,
}

impl Service {
    pub(crate) fn tcp(endpoints: impl IntoIterator<Item = Endpoint>) -> Service {
        let endpoints = endpoints.into_iter().collect();
        Service {
            protocol: Protocol::Tcp,
            endpoints,
            local: None,
            affinity: None,
        }
    }

    pub(crate) fn udp(endpoints: impl IntoIterator<Item = Endpoint>) -> Service {
        Service {
            protocol: Protocol::Udp,
            ..Service::tcp(endpoints)
        }
    }

    pub(crate) fn local(self, endpoints: impl IntoIterator<Item = Endpoint>) -> Service {
        Service {
            local: Some(endpoints.into_iter().collect()),
            ..self
        }
    }

    pub(crate) fn affinity(self, seconds: u32) -> Service {
        Service {
            affinity: NonZeroU32::new(seconds),
            ..self
        }
    }

    fn port(self, world: &World) -> (PortKey, Arc<ServicePort>) {
        let name = PortName::new("default", "hello", self.protocol.as_str());
        let key = PortKey {
            name,
            protocol: self.protocol,
        };
        let inside = match self.endpoints.is_empty() {
            true => Verdict::Reject,
            false => Verdict::Balance(View::Cluster),
        };
        let outside = match &self.local {
            Some(local) if local.is_empty() => Verdict::Drop,
            Some(_) => Verdict::Balance(View::Local),
            None => inside,
        };
        let cluster_ip = Frontend {
            at: At::ClusterIp(world.at("services.10")),
            port: 80,
            inside,
            outside: inside,
            masquerade: Masquerade::NotPods,
            sources: None,
        };
        let node_port = Frontend {
            at: At::NodePort,
            port: NODE_PORT,
            inside,
            outside,
            masquerade: if self.local.is_some() {
                Masquerade::ThisNode
            } else {
                Masquerade::Always
            },
            sources: None,
        };
        let cluster: Arc<[Endpoint]> = self.endpoints.into();
        let serving = match self.protocol {
            Protocol::Udp => cluster.clone(),
            _ => Arc::default(),
        };
        let port = ServicePort {
            frontends: vec![cluster_ip, node_port],
            cluster,
            local: self.local.unwrap_or_default().into(),
            affinity: self.affinity,
            serving,
            health_check: None,
        };
        (key, Arc::new(port))
    }
}

/// Asks over the service's protocol.
pub(crate) fn ask(protocol: Protocol, ns: &Ns, address: &str) -> io::Result<Answer> {
    match protocol {
        Protocol::Udp => ask_udp(ns, address),
        _ => ask_tcp(ns, address),
    }
}

/// `outside.100`, `pods.11`, `services.10` as an address.
fn address(family: Family, what: &str) -> IpAddr {
    let (network, host) = what.split_once('.').unwrap();
    let host: u16 = host.parse().unwrap();
    match (family, network) {
        (Family::V4, "outside") => IpAddr::from([192, 168, 1, host as u8]),
        (Family::V4, "pods") => IpAddr::from([10, 244, 0, host as u8]),
        (Family::V4, "far") => IpAddr::from([10, 244, 1, host as u8]),
        (Family::V6, "far") => IpAddr::from([0xfd00, 0x244, 0, 1, 0, 0, 0, host]),
        (Family::V4, "services") => IpAddr::from([10, 96, 0, host as u8]),
        (Family::V6, "outside") => IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, host]),
        (Family::V6, "pods") => IpAddr::from([0xfd00, 0x244, 0, 0, 0, 0, 0, host]),
        (Family::V6, "services") => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, host]),
        other => panic!("no such network: {other:?}"),
    }
}

fn with_prefix(family: Family, what: &str) -> String {
    let length = match family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    format!("{}/{length}", address(family, what))
}

fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn apply(ns: &Ns, request: Request) {
    ns.apply(request);
}
