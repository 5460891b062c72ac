//! A node that moves from the reference plugins to `twill-cni` and back, with its pods running: one
//! configuration, in which only the type changes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostnet::testkit::{EchoServer, Ns, ask_tcp, require_tool};
use integration::programs;
use integration::progress::Progress;
use integration::upstream::{self, Module, Program};
use serde_json::{Value, json};

/// A node with both families of plugins and one configuration.
struct Node {
    host: Ns,
    dir: tempfile::TempDir,
    reference: PathBuf,
    ours: PathBuf,
    /// What stands before the machine's own programs.
    path: PathBuf,
}

const REFERENCE: &str = "bridge";
const OURS: &str = "twill-cni";

impl Node {
    fn new() -> Node {
        programs::check_host().unwrap();
        let wanted = [Program::Bridge, Program::HostLocal, Program::Portmap];
        let dir = tempfile::tempdir().unwrap();
        Node {
            host: Ns::new("node"),
            path: dir.path().join("bin"),
            dir,
            reference: upstream::assets(Module::CniPlugins, &wanted, Progress::shown()).unwrap(),
            ours: programs::binaries().unwrap(),
        }
    }

    fn config(&self, kind: &str, extra: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "cbr0",
            "type": kind,
            "bridge": "cni0",
            "isGateway": true,
            "isDefaultGateway": true,
            "hairpinMode": true,
            "ipMasq": true,
            "ipMasqBackend": "iptables",
            "mtu": 1450,
            "stateDir": self.dir.path().join("twill"),
            "ipam": {
                "type": "host-local",
                "dataDir": self.dir.path().join("networks"),
                "ranges": [[{"subnet": "10.244.3.0/24"}]],
                "routes": [{"dst": "10.244.0.0/16"}],
            },
        });
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    fn call(&self, verb: &str, id: &str, pod: &Ns, config: &Value) -> Value {
        let kind = config["type"].as_str().unwrap();
        let dir: &Path = if kind == OURS {
            &self.ours
        } else {
            &self.reference
        };
        let mut command = Command::new(dir.join(kind));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.reference)
            .env("PATH", self.search_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.host.run(|| command.spawn()).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(config.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{kind} {verb} {id}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    fn add(&self, kind: &str, id: &str, pod: &Ns) -> Value {
        self.call("ADD", id, pod, &self.config(kind, json!({})))
    }

    /// Attaches a pod by the reference plugins, and gives it a host port by portmap.
    fn add_with_port(&self, id: &str, pod: &Ns, backend: &str, port: u16) -> Value {
        let result = self.add(REFERENCE, id, pod);
        let ports = json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]);
        let portmap = json!({
            "cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "backend": backend,
            "prevResult": result, "runtimeConfig": {"portMappings": ports},
        });
        self.call("ADD", id, pod, &portmap);
        result
    }

    fn search_path(&self) -> String {
        let rest = std::env::var("PATH").unwrap_or_default();
        format!("{}:{rest}", self.path.display())
    }

    /// A node on which `iptables` is the old program.
    fn with_old_iptables() -> Node {
        let node = Node::new();
        std::fs::create_dir(&node.path).unwrap();
        for name in ["iptables", "ip6tables"] {
            let old = format!("{name}-legacy");
            require_tool(&old, "iptables");
            let script = format!("#!/bin/sh\nexec {old} \"$@\"\n");
            hostnet::atomic_file::replace(node.path.join(name), script.as_bytes(), 0o755).unwrap();
        }
        node
    }

    /// All rules, in whatever tables.
    fn rules(&self) -> String {
        let old = self.host.sh("iptables-legacy-save", &[]);
        old + &self.host.sh("nft", &["list", "ruleset"])
    }

    fn reserved(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("networks/cbr0")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect();
        names.sort();
        names
    }

    fn nat(&self) -> String {
        self.host.sh("iptables-nft", &["-t", "nat", "-S"])
    }
}

fn addr(result: &Value) -> String {
    let cidr = result["ips"][0]["address"].as_str().unwrap();
    cidr.split('/').next().unwrap().to_owned()
}

fn all_reach_each_other(pods: &[(&Ns, &str)]) {
    for (client, from) in pods {
        for (server, to) in pods {
            if client.label() != server.label() {
                let answer = ask_tcp(client, &format!("{to}:80"))
                    .unwrap_or_else(|e| panic!("{} to {}: {e}", client.label(), server.label()));
                assert_eq!(answer.server, server.label());
                assert_eq!(answer.source.ip().to_string(), *from);
            }
        }
    }
}

#[test]
fn pods_stay_while_their_node_moves_to_twill_and_back() {
    require_tool("iptables-nft", "iptables");
    let node = Node::new();
    let pods: Vec<Ns> = ["a", "b", "c", "d", "e"].map(Ns::new).into();
    let [a, b, c, d, e] = &pods[..] else {
        unreachable!()
    };

    // Made by the reference plugins, one with a host port.
    let of_a = node.add_with_port("a", a, "iptables", 8080);
    let of_b = node.add(REFERENCE, "b", b);
    let (addr_a, addr_b) = (addr(&of_a), addr(&of_b));
    assert_eq!(
        (addr_a.as_str(), addr_b.as_str()),
        ("10.244.3.2", "10.244.3.3")
    );
    assert!(node.nat().contains(&addr_a), "{}", node.nat());

    // The next ones are ours.
    let addr_c = addr(&node.add(OURS, "c", c));
    let of_d = node.add(OURS, "d", d);
    let addr_d = addr(&of_d);
    assert_eq!(
        (addr_c.as_str(), addr_d.as_str()),
        ("10.244.3.4", "10.244.3.5")
    );
    let _servers: Vec<EchoServer> = [(a, &addr_a), (b, &addr_b), (c, &addr_c), (d, &addr_d)]
        .map(|(pod, addr)| EchoServer::start(pod, pod.label(), &format!("{addr}:80")))
        .into();
    all_reach_each_other(&[(a, &addr_a), (b, &addr_b), (c, &addr_c), (d, &addr_d)]);
    assert_eq!(
        ask_tcp(&node.host, "127.0.0.1:8080").unwrap().server,
        "a",
        "portmap's port still leads to its pod"
    );

    // DEL comes to us, with all that the others left.
    node.call("DEL", "a", a, &node.config(OURS, json!({})));
    assert!(a.find_link("eth0").is_none());
    assert_eq!(node.reserved(), ["10.244.3.3", "10.244.3.4", "10.244.3.5"]);
    let nat = node.nat();
    assert!(!nat.contains(&addr_a) && !nat.contains("8080"), "{nat}");
    assert!(nat.contains(&addr_b), "b keeps its masquerade\n{nat}");
    all_reach_each_other(&[(b, &addr_b), (c, &addr_c), (d, &addr_d)]);

    // And back: the reference plugins go on where we stopped.
    let of_e = node.add(REFERENCE, "e", e);
    let addr_e = addr(&of_e);
    assert_eq!(addr_e, "10.244.3.6");
    let _server = EchoServer::start(e, "e", &format!("{addr_e}:80"));
    all_reach_each_other(&[(b, &addr_b), (c, &addr_c), (d, &addr_d), (e, &addr_e)]);
    let theirs = node.config(REFERENCE, json!({"prevResult": of_d}));
    node.call("DEL", "d", d, &theirs);
    assert!(d.find_link("eth0").is_none());
    assert_eq!(node.reserved(), ["10.244.3.3", "10.244.3.4", "10.244.3.6"]);

    // What they did not know of goes with the next GC of ours, and nothing else does.
    let valid = ["b", "c", "e"].map(|id| json!({"containerID": id, "ifname": "eth0"}));
    let extra = json!({"cni.dev/valid-attachments": valid});
    let record = node.dir.path().join("twill/d-eth0.json");
    assert!(record.exists());
    node.call("GC", "", c, &node.config(OURS, extra));
    assert!(!record.exists());
    assert_eq!(node.reserved(), ["10.244.3.3", "10.244.3.4", "10.244.3.6"]);
    all_reach_each_other(&[(b, &addr_b), (c, &addr_c), (e, &addr_e)]);
}

#[test]
fn host_ports_of_portmap_go_with_their_pods_wherever_portmap_put_them() {
    for (node, backend) in [
        (Node::new(), "nftables"),
        (Node::with_old_iptables(), "iptables"),
    ] {
        let pods = [Ns::new("a"), Ns::new("b")];
        let [a, b] = &pods;
        let addr_a = addr(&node.add_with_port("a", a, backend, 8080));
        let addr_b = addr(&node.add_with_port("b", b, backend, 8081));
        let _server = EchoServer::start(b, "b", &format!("{addr_b}:80"));
        let before = node.rules();
        assert!(
            before.contains(&addr_a) && before.contains("8080"),
            "{before}"
        );

        node.call("DEL", "a", a, &node.config(OURS, json!({})));
        let after = node.rules();
        let left: Vec<&str> = (after.lines())
            .filter(|line| line.contains(&addr_a) || line.contains("8080"))
            .collect();
        assert_eq!(left, Vec::<&str>::new(), "{backend}");
        assert_eq!(ask_tcp(&node.host, "127.0.0.1:8081").unwrap().server, "b");
    }
}
