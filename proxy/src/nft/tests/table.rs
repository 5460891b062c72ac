//! The Service contract as packets meet it: who asks (rows), where (columns), and what comes of it, under each
//! policy and each way to tell pods' packets from others. The expectations stand in the tables; what the plan says
//! and what a real packet meets in the kernel must both agree with them, for both families and in every mode. So must
//! what `twill trace` tells a person of the same kernel.
//!
//! Cells: the servers that may answer (`a` runs on this node, `b` on another one), and `+` where the server sees
//! the node in place of the client; `refuse`, `drop`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use cli::kernel::Kernel;
use cli::objects::Cluster;
use cli::report::{Arrival, Hop, Trace};
use cli::target::{From, To};
use cli::trace::{Question, trace};
use hostnet::nft::Proto;
use hostnet::testkit::{Ns, ask_tcp_from};
use hostnet::vocab::{Family, Subnet};

use super::world::{NODE_PORT, World};
use crate::backend::Backend;
use crate::fixtures;
use crate::iptables::{IptablesBackend, Naming, Options, Variant};
use crate::plan::{
    At, DetectLocal, FamilyRuleset, Frontend, Masquerade, PodTraffic, ServicePort, Settings,
    Verdict,
};

/// Columns: where the Service is asked. `other` is a port of the cluster IP that no Service has,
/// `unknown` an address of the service network that none has.
const TARGETS: [&str; 6] = [
    "cluster-ip",
    "node-port",
    "balancer",
    "external",
    "other",
    "unknown",
];

/// Rows: who asks. `far` is a pod of another node.
const CLIENTS: [&str; 5] = ["outside", "far", "pod", "self", "node"];

/// What stays the same for a table.
struct Scenario {
    detection: &'static str,
    /// Fields of the Service's spec, a flow mapping's inside.
    policy: &'static str,
    /// Those of `a` and `b` that are ready.
    endpoints: &'static str,
}

struct Site {
    world: World,
    mode: Mode,
}

/// Which compiler makes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Nft,
    Iptables(Naming),
    /// By the old tables.
    Legacy,
}

/// All of them. The old names have other rules, too.
const MODES: [Mode; 4] = [
    Mode::Nft,
    Mode::Iptables(Naming::Today),
    Mode::Iptables(Naming::Legacy),
    Mode::Legacy,
];

impl Mode {
    /// What iptables mode does not say, as kube-proxy's does not: that a cluster IP has no other ports, and to this
    /// node itself that nobody is behind an address of the outside. Such packets go wherever routes lead.
    fn leaves_open(self, client: &str, target: &str, cell: &str) -> bool {
        let is_far = ["balancer", "external"].contains(&target);
        self != Mode::Nft && (target == "other" || client == "node" && is_far && cell == "refuse")
    }
}

/// One packet, as rules see it.
struct Packet<'a> {
    ns: &'a Ns,
    source: IpAddr,
    interface: Option<&'static str>,
    address: IpAddr,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Answer {
        servers: BTreeSet<String>,
        masqueraded: bool,
    },
    Refuse,
    Drop,
}

impl Outcome {
    fn parse(cell: &str) -> Outcome {
        match cell {
            "refuse" => Outcome::Refuse,
            "drop" => Outcome::Drop,
            _ => Outcome::Answer {
                servers: cell
                    .trim_end_matches('+')
                    .chars()
                    .map(String::from)
                    .collect(),
                masqueraded: cell.ends_with('+'),
            },
        }
    }
}

impl Site {
    fn new(family: Family, mode: Mode) -> Site {
        let world = World::new(family);
        // A pod of another node is behind the same cable as the world outside.
        let length = match family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let far = world.at("far.9");
        world.client.addr("eth0", &format!("{far}/{length}"));
        world.node.route(
            &format!("{far}/{length}"),
            &world.at("outside.100").to_string(),
        );
        Site { world, mode }
    }

    fn packet(&self, client: &str, target: &str) -> Packet<'_> {
        let world = &self.world;
        let (ns, source, interface) = match client {
            "outside" => (&world.client, "outside.100", Some("eth0")),
            "far" => (&world.client, "far.9", Some("eth0")),
            "pod" => (&world.c, "pods.13", Some("cni0")),
            "self" => (&world.a, "pods.11", Some("cni0")),
            _ => (&world.node, "outside.1", None),
        };
        let (address, port) = match target {
            "cluster-ip" => ("services.10", 80),
            "node-port" => ("outside.1", NODE_PORT),
            "balancer" => ("services.50", 80),
            "external" => ("services.51", 80),
            "unknown" => ("services.99", 80),
            _ => ("services.10", 81),
        };
        Packet {
            ns,
            source: world.at(source),
            interface,
            address: world.at(address),
            port,
        }
    }

    fn objects(&self, policy: &str, endpoints: &str) -> String {
        let at = |what| self.world.at(what);
        let endpoints: Vec<String> = (endpoints.chars())
            .map(|name| match name {
                'a' => format!("{{addresses: ['{}'], nodeName: k8s-node-2}}", at("pods.11")),
                _ => format!("{{addresses: ['{}'], nodeName: k8s-node-1}}", at("pods.12")),
            })
            .collect();
        format!(
            "kind: Service\n\
             metadata: {{name: web, namespace: shop}}\n\
             spec: {{clusterIPs: ['{}'], externalIPs: ['{}'], ports: [{{port: 80, nodePort: {NODE_PORT}}}], {policy}}}\n\
             status: {{loadBalancer: {{ingress: [{{ip: '{}'}}]}}}}\n\
             ---\n\
             kind: EndpointSlice\n\
             metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: {}\n\
             ports: [{{port: 8080}}]\n\
             endpoints: [{}]\n\
             ---\n\
             kind: ServiceCIDR\n\
             metadata: {{name: kubernetes}}\n\
             spec: {{cidrs: ['{}']}}\n\
             ---\n\
             kind: Node\n\
             metadata: {{name: k8s-node-2}}\n\
             spec: {{podCIDRs: ['{}']}}\n\
             status: {{addresses: [{{type: InternalIP, address: '{}'}}]}}\n",
            at("services.10"),
            at("services.51"),
            at("services.50"),
            self.world.family,
            endpoints.join(", "),
            self.network("services"),
            self.network("pods"),
            at("outside.1"),
        )
    }

    fn network(&self, name: &str) -> Subnet {
        let length = match (self.world.family, name) {
            (Family::V4, "cluster") => 16,
            (Family::V4, _) => 24,
            (Family::V6, "cluster") => 32,
            (Family::V6, _) => 64,
        };
        let name = if name == "cluster" { "pods" } else { name };
        Subnet::new(self.world.at(&format!("{name}.0")), length).unwrap()
    }

    fn plan(&self, scenario: &Scenario) -> crate::plan::Ruleset {
        let settings = Settings {
            detect_local: match scenario.detection {
                "ClusterCIDR" => DetectLocal::ClusterCidr(vec![self.network("cluster")]),
                "NodeCIDR" => DetectLocal::NodeCidr,
                "BridgeInterface" => DetectLocal::Interface("cni0".into()),
                "InterfaceNamePrefix" => DetectLocal::Interface("cn*".into()),
                _ => DetectLocal::Nothing,
            },
            ..Settings::default()
        };
        let policy = scenario
            .policy
            .replace("OUTSIDE", &self.network("outside").to_string());
        let mut index = fixtures::index(&self.objects(&policy, scenario.endpoints));
        fixtures::plan(&mut index, &settings)
    }

    /// Makes the rules of a plan in the node.
    fn program(&self, plan: &crate::plan::Ruleset) {
        let (naming, variant) = match self.mode {
            Mode::Nft => {
                self.world.backend().replace(plan).unwrap();
                return;
            }
            Mode::Iptables(naming) => (naming, Variant::Nft),
            Mode::Legacy => (Naming::Today, Variant::Legacy),
        };
        let options = Options {
            naming,
            ..Options::default()
        };
        let mut backend = IptablesBackend::new(options, variant);
        self.world.node.run(|| backend.replace(plan)).unwrap();
    }

    /// What a real packet meets.
    fn ask(&self, packet: &Packet<'_>) -> Outcome {
        let target = std::net::SocketAddr::new(packet.address, packet.port).to_string();
        let source = packet.interface.map(|_| packet.source);
        match ask_tcp_from(packet.ns, source, &target) {
            Ok(answer) => Outcome::Answer {
                servers: BTreeSet::from([answer.server]),
                masqueraded: match answer.source.ip() {
                    ip if ip == packet.source => false,
                    ip if ip == self.world.at("pods.1") => true,
                    other => panic!("{other} was seen, neither client nor node"),
                },
            },
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refuse,
            Err(error) => match error.kind() {
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Drop,
                // A packet of the node's own is told of by the call itself.
                ErrorKind::PermissionDenied => Outcome::Drop,
                _ => panic!("{target}: {error}"),
            },
        }
    }
}

/// What `twill trace` tells of a packet: the servers, each with whether it sees the node in place of the client; or the
/// end, if it is to arrive nowhere.
type Told = Result<BTreeMap<String, bool>, Outcome>;

impl Site {
    fn told(&self, packet: &Packet<'_>) -> (Told, Trace) {
        let question = Question {
            from: packet
                .interface
                .map_or(From::Node(None), |_| From::Address(packet.source)),
            to: To::Address(packet.address, packet.port),
            proto: Proto::TCP,
            family: self.world.family,
            sees_pods: false,
        };
        let mut kernel = Kernel::of(self.world.node.ns().clone(), Path::new("/nowhere")).unwrap();
        let trace = trace(&mut kernel, &mut Cluster::default(), &[], &question).unwrap();
        let mut servers = BTreeMap::new();
        for hop in trace.hops.iter().filter(|hop| hop.stage == "endpoint") {
            let address = hop.text.parse::<SocketAddr>().unwrap().ip();
            let name = if address == self.world.at("pods.11") {
                "a"
            } else {
                "b"
            };
            let masqueraded = hop.then.iter().any(|hop| hop.stage == "masquerade");
            servers.insert(name.to_owned(), masqueraded);
        }
        let told = match (trace.arrives, servers.is_empty()) {
            (Arrival::Yes, false) => Ok(servers),
            (Arrival::No, _) => {
                let hops = trace.hops.iter().flat_map(Hop::all);
                let ends: Vec<&Hop> = hops.filter(|hop| hop.fault.is_some()).collect();
                let refuses =
                    |hop: &Hop| hop.text == "refused" || hop.text.to_lowercase().contains("reject");
                Err(match ends[..] {
                    [hop] if refuses(hop) => Outcome::Refuse,
                    _ => Outcome::Drop,
                })
            }
            // In iptables mode what no Service has goes where routes lead, and out there nobody has it either.
            (Arrival::Yes, true) if trace.hops.last().is_some_and(|hop| hop.stage == "out") => {
                Err(Outcome::Drop)
            }
            _ => panic!("{trace}"),
        };
        (told, trace)
    }
}

/// What a plan means for a packet.
fn model(rules: &FamilyRuleset, packet: &Packet<'_>) -> Outcome {
    let meets = |at: At| match at.address() {
        Some(address) => address == packet.address,
        None => rules.node.node_ports.contains(&packet.address),
    };
    let frontends =
        || (rules.ports.values()).flat_map(|port| port.frontends.iter().map(move |f| (port, f)));
    let Some((port, frontend)) = frontends().find(|(_, f)| meets(f.at) && f.port == packet.port)
    else {
        let networks = &rules.node.service_networks;
        if !frontends().any(|(_, f)| f.at == At::ClusterIp(packet.address)) {
            assert!(networks.iter().any(|net| net.contains(packet.address)));
            return Outcome::Drop;
        }
        assert!(frontends().any(|(_, f)| f.at == At::ClusterIp(packet.address)));
        return Outcome::Refuse;
    };
    decide(rules, port, frontend, packet)
}

fn decide(
    rules: &FamilyRuleset,
    port: &ServicePort,
    frontend: &Frontend,
    packet: &Packet<'_>,
) -> Outcome {
    let is_within = |networks: &[Subnet]| networks.iter().any(|net| net.contains(packet.source));
    let is_node = packet.interface.is_none();
    let is_pod = match &rules.node.pods {
        PodTraffic::Unknown => false,
        PodTraffic::From(networks) => is_within(networks),
        PodTraffic::Interface(name) => {
            packet
                .interface
                .is_some_and(|interface| match name.strip_suffix('*') {
                    Some(prefix) => interface.starts_with(prefix),
                    None => interface == &**name,
                })
        }
    };
    if frontend
        .sources
        .as_ref()
        .is_some_and(|networks| !is_within(networks))
    {
        return Outcome::Drop;
    }
    let verdict = if is_node || is_pod {
        frontend.inside
    } else {
        frontend.outside
    };
    let endpoints = match verdict {
        Verdict::Reject => return Outcome::Refuse,
        Verdict::Drop => return Outcome::Drop,
        Verdict::Balance(view) => port.endpoints(view),
    };
    let name = |endpoint: &crate::plan::Endpoint| {
        if endpoint.local {
            "a".to_owned()
        } else {
            "b".to_owned()
        }
    };
    Outcome::Answer {
        servers: endpoints.iter().map(name).collect(),
        masqueraded: match frontend.masquerade {
            Masquerade::Always => true,
            Masquerade::NotPods => rules.node.pods != PodTraffic::Unknown && (is_node || !is_pod),
            Masquerade::ThisNode => is_node,
        },
    }
}

/// Runs a table: its header names the columns, each line begins with the client. `.`: not asked.
#[track_caller]
fn check(site: &Site, scenario: &Scenario, table: &str) {
    let plan = site.plan(scenario);
    let rules = plan.family(site.world.family);
    site.program(&plan);
    let mut lines = table.trim().lines().map(str::split_whitespace);
    let targets: Vec<&str> = lines.next().unwrap().collect();
    assert!(
        targets.iter().all(|target| TARGETS.contains(target)),
        "{targets:?}"
    );
    let cells: Vec<(&str, &str, &str)> = lines
        .flat_map(|mut line| {
            let client = line.next().unwrap();
            assert!(CLIENTS.contains(&client), "{client}");
            let cells: Vec<_> = line.collect();
            assert_eq!(cells.len(), targets.len(), "{client}");
            targets
                .iter()
                .copied()
                .zip(cells)
                .map(move |(target, cell)| (client, target, cell))
        })
        .filter(|(_, _, cell)| *cell != ".")
        .filter(|(client, target, cell)| !site.mode.leaves_open(client, target, cell))
        .collect();
    // At once: what is dropped is waited for.
    std::thread::scope(|scope| {
        for (client, target, cell) in cells {
            scope.spawn(move || {
                let packet = site.packet(client, target);
                let what = format!(
                    "{:?} {} {} [{}] endpoints {}: {client} → {target}",
                    site.mode,
                    site.world.family,
                    scenario.detection,
                    scenario.policy,
                    scenario.endpoints
                );
                let wanted = Outcome::parse(cell);
                // That which meets itself is masqueraded, whatever else holds.
                let planned = match (model(rules, &packet), client) {
                    (
                        Outcome::Answer {
                            servers,
                            masqueraded,
                        },
                        "self",
                    ) => Outcome::Answer {
                        masqueraded: masqueraded || servers.len() == 1 && servers.contains("a"),
                        servers,
                    },
                    (other, _) => other,
                };
                assert_eq!(planned, wanted, "the plan: {what}");
                let met = site.ask(&packet);
                match (&wanted, &met) {
                    (
                        Outcome::Answer {
                            servers,
                            masqueraded,
                        },
                        Outcome::Answer {
                            servers: by,
                            masqueraded: seen,
                        },
                    ) => {
                        assert!(by.is_subset(servers), "{what}: {met:?}, not {cell}");
                        let meets_itself = client == "self" && by.contains("a");
                        assert_eq!(
                            *seen,
                            *masqueraded || meets_itself,
                            "{what}: {met:?}, not {cell}"
                        );
                    }
                    _ => assert_eq!(met, wanted, "{what}"),
                }
                let (told, trace) = site.told(&packet);
                let wanted: Told = match wanted {
                    Outcome::Answer {
                        servers,
                        masqueraded,
                    } => Ok(servers
                        .into_iter()
                        .map(|server| {
                            let meets_itself = client == "self" && server == "a";
                            (server, masqueraded || meets_itself)
                        })
                        .collect()),
                    end => Err(end),
                };
                assert_eq!(told, wanted, "{what}: {trace}");
            });
        }
    });
}

fn for_all(check: impl Fn(Site) + Sync) {
    let check = &check;
    for mode in MODES {
        std::thread::scope(|scope| {
            for family in Family::ALL {
                scope.spawn(move || check(Site::new(family, mode)));
            }
        });
    }
}

fn scenario(detection: &'static str, policy: &'static str, endpoints: &'static str) -> Scenario {
    Scenario {
        detection,
        policy,
        endpoints,
    }
}

const CLUSTER: &str = "externalTrafficPolicy: Cluster";
const LOCAL: &str = "externalTrafficPolicy: Local";

#[test]
fn policy_cluster() {
    for_all(|site| {
        // A pod of another node is one by its address in the cluster's network, and by nothing else.
        check(
            &site,
            &scenario("ClusterCIDR", CLUSTER, "ab"),
            "
                      cluster-ip  node-port  balancer  external  other
            outside   ab+         ab+        ab+       ab+       refuse
            far       ab          ab+        ab+       ab+       refuse
            pod       ab          ab+        ab+       ab+       refuse
            self      ab          ab+        ab+       ab+       refuse
            node      ab+         ab+        ab+       ab+       refuse",
        );
        for detection in ["NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"] {
            check(
                &site,
                &scenario(detection, CLUSTER, "ab"),
                "
                      cluster-ip  node-port  balancer  external  other
            outside   ab+         ab+        ab+       ab+       refuse
            far       ab+         ab+        ab+       ab+       refuse
            pod       ab          ab+        ab+       ab+       refuse
            self      ab          ab+        ab+       ab+       refuse
            node      ab+         ab+        ab+       ab+       refuse",
            );
        }
        check(
            &site,
            &scenario("none", CLUSTER, "ab"),
            "
                      cluster-ip  node-port  balancer  external  other
            outside   ab          ab+        ab+       ab+       refuse
            far       ab          ab+        ab+       ab+       refuse
            pod       ab          ab+        ab+       ab+       refuse
            self      ab          ab+        ab+       ab+       refuse
            node      ab          ab+        ab+       ab+       refuse",
        );
        // One endpoint, which meets itself.
        check(
            &site,
            &scenario("ClusterCIDR", CLUSTER, "a"),
            "
                      cluster-ip  node-port  balancer  external
            pod       a           a+         a+        a+
            self      a+          a+         a+        a+
            node      a+          a+         a+        a+",
        );
    });
}

#[test]
fn external_policy_local() {
    for_all(|site| {
        // Who is inside goes anywhere, and is seen as itself; the node has no address that a pod could answer.
        check(
            &site,
            &scenario("ClusterCIDR", LOCAL, "ab"),
            "
                      cluster-ip  node-port  balancer  external  other
            outside   ab+         a          a         a         refuse
            far       ab          ab         ab        ab        refuse
            pod       ab          ab         ab        ab        refuse
            self      ab          ab         ab        ab        refuse
            node      ab+         ab+        ab+       ab+       refuse",
        );
        for detection in ["NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"] {
            check(
                &site,
                &scenario(detection, LOCAL, "ab"),
                "
                      cluster-ip  node-port  balancer  external
            outside   ab+         a          a         a
            far       ab+         a          a         a
            pod       ab          ab         ab        ab
            self      ab          ab         ab        ab
            node      ab+         ab+        ab+       ab+",
            );
        }
        // Where pods cannot be told they are as those outside.
        check(
            &site,
            &scenario("none", LOCAL, "ab"),
            "
                      cluster-ip  node-port  balancer  external
            outside   ab          a          a         a
            far       ab          a          a         a
            pod       ab          a          a         a
            self      ab          a+         a+        a+
            node      ab          ab+        ab+       ab+",
        );
    });
}

#[test]
fn without_endpoints_here_or_anywhere() {
    for_all(|site| {
        for policy in [CLUSTER, LOCAL] {
            check(
                &site,
                &scenario("ClusterCIDR", policy, ""),
                "
                      cluster-ip  node-port  balancer  external
            outside   refuse      refuse     refuse    refuse
            pod       refuse      refuse     refuse    refuse
            node      refuse      refuse     refuse    refuse",
            );
        }
        // An address that no Service has.
        check(
            &site,
            &scenario("ClusterCIDR", CLUSTER, "ab"),
            "
                      cluster-ip  unknown
            outside   ab+         drop
            pod       ab          drop
            node      ab+         drop",
        );
        // Elsewhere, but not here.
        check(
            &site,
            &scenario("BridgeInterface", LOCAL, "b"),
            "
                      cluster-ip  node-port  balancer  external
            outside   b+          drop       drop      drop
            far       b+          drop       drop      drop
            pod       b           b          b         b
            node      b+          b+         b+        b+",
        );
        check(
            &site,
            &scenario("none", LOCAL, "b"),
            "
                      cluster-ip  node-port  balancer  external
            outside   b           drop       drop      drop
            pod       b           drop       drop      drop
            node      b           b+         b+        b+",
        );
    });
}

#[test]
fn internal_policy_local() {
    const INTERNAL: &str = "internalTrafficPolicy: Local";
    for_all(|site| {
        check(
            &site,
            &scenario("ClusterCIDR", INTERNAL, "ab"),
            "
                      cluster-ip  node-port  balancer  external  other
            outside   a+          ab+        ab+       ab+       refuse
            pod       a           ab+        ab+       ab+       refuse
            self      a+          ab+        ab+       ab+       refuse
            node      a+          ab+        ab+       ab+       refuse",
        );
        check(
            &site,
            &scenario("ClusterCIDR", INTERNAL, "b"),
            "
                      cluster-ip  node-port  balancer  external  other
            outside   drop        b+         b+        b+        refuse
            pod       drop        b+         b+        b+        refuse
            node      drop        b+         b+        b+        refuse",
        );
    });
}

#[test]
fn source_ranges_guard_the_load_balancer_alone() {
    const RANGES: &str = "externalTrafficPolicy: Local, loadBalancerSourceRanges: [' OUTSIDE ', 192.0.2.0/24, '2001:db8::/32']";
    const OTHERS: &str =
        "externalTrafficPolicy: Cluster, loadBalancerSourceRanges: [192.0.2.0/24, '2001:db8::/32']";
    for_all(|site| {
        check(
            &site,
            &scenario("ClusterCIDR", RANGES, "ab"),
            "
                      cluster-ip  node-port  balancer  external
            outside   ab+         a          a         a
            far       ab          ab         drop      ab
            pod       ab          ab         drop      ab
            node      ab+         ab+        ab+       ab+",
        );
        check(
            &site,
            &scenario("NodeCIDR", OTHERS, "ab"),
            "
                      cluster-ip  node-port  balancer  external
            outside   ab+         ab+        drop      ab+
            pod       ab          ab+        drop      ab+
            node      ab+         ab+        drop      ab+",
        );
    });
    // A list that says nothing of a family leaves that one open.
    const V6_ONLY: &str = "loadBalancerSourceRanges: ['2001:db8::/32']";
    for mode in MODES {
        check(
            &Site::new(Family::V4, mode),
            &scenario("ClusterCIDR", V6_ONLY, "ab"),
            "
                      cluster-ip  node-port  balancer  external
            outside   ab+         ab+        ab+       ab+",
        );
    }
}
