//! `twill-cni` beside the reference plugins, and beside the bare netlink calls: how long a runtime waits
//! for ADD and DEL.
//!
//! All sides do the same work in the same run, in turn, each in a node namespace of its own, with
//! their data on tmpfs; the start of the processes counts, because a runtime waits for it too.

mod report;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hostnet::netns::NetNs;
use integration::programs;
use integration::progress::Progress;
use integration::upstream::{self, Module, Program};
use report::{Samples, table};
use serde_json::{Value, json};

const PODS: usize = 100;
/// The reference chain with portmap takes long.
const PODS_WITH_PORTS: usize = 40;
const AT_ONCE: usize = 32;
const ROUNDS: usize = 7;

/// One side of the comparison: a chain of plugins with their configurations, in a node of its own.
struct Side {
    name: &'static str,
    node: NetNs,
    chain: Vec<(PathBuf, Value)>,
    bin_dir: PathBuf,
    /// Namespaces are held to the end: the kernel takes one down beside whatever is measured next,
    /// and with the lock that all network programs wait for.
    pods: Vec<NetNs>,
    add: Samples,
    del: Samples,
}

impl Side {
    fn new(name: &'static str, bin_dir: &Path, chain: Vec<Value>) -> Result<Side> {
        let program = |config: &Value| bin_dir.join(config["type"].as_str().unwrap_or_default());
        Ok(Side {
            name,
            node: NetNs::new_anonymous()?,
            chain: chain.into_iter().map(|c| (program(&c), c)).collect(),
            bin_dir: bin_dir.to_owned(),
            pods: Vec::new(),
            add: Samples::default(),
            del: Samples::default(),
        })
    }

    fn start(
        &self,
        plugin: &Path,
        verb: &str,
        id: &str,
        pod: &Path,
        config: &Value,
    ) -> Result<Child> {
        let mut command = Command::new(plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", pod)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.node.run_in(|| command.spawn())??;
        let mut stdin = child.stdin.take().context("the plugin's input")?;
        stdin.write_all(config.to_string().as_bytes())?;
        Ok(child)
    }

    fn finish(&self, verb: &str, child: Child) -> Result<Vec<u8>> {
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{} {verb} failed: {}{}",
            self.name,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Runs a verb through the chain as a runtime does, each plugin with the result of the one before,
    /// and returns how long it took. DEL goes the other way round.
    fn run(&self, verb: &str, id: &str, pod: &Path, prev: &mut Value) -> Result<Duration> {
        let mut chain: Vec<_> = self.chain.iter().collect();
        if verb == "DEL" {
            chain.reverse();
        }
        let started = Instant::now();
        for (plugin, config) in chain {
            let mut config = config.clone();
            if !prev.is_null() {
                config["prevResult"] = prev.clone();
            }
            let output = self.finish(verb, self.start(plugin, verb, id, pod, &config)?)?;
            if verb == "ADD" {
                *prev = serde_json::from_slice(&output)?;
            }
        }
        Ok(started.elapsed())
    }

    fn pod(&mut self, index: usize) -> Result<()> {
        let pod = self.namespace()?;
        let id = format!("pod-{index}");
        let mut result = Value::Null;
        self.add
            .push(self.run("ADD", &id, &pod.fd_path(), &mut result)?);
        self.del
            .push(self.run("DEL", &id, &pod.fd_path(), &mut result)?);
        Ok(())
    }

    /// Many ADDs at once, then many DELs: from the first start to the last end.
    fn crowd(&mut self) -> Result<()> {
        let pods: Vec<NetNs> = (0..AT_ONCE)
            .map(|_| self.namespace())
            .collect::<Result<_>>()?;
        for verb in ["ADD", "DEL"] {
            let started = Instant::now();
            let calls = pods.iter().enumerate().map(|(n, pod)| {
                let (plugin, config) = &self.chain[0];
                self.start(plugin, verb, &format!("crowd-{n}"), &pod.fd_path(), config)
            });
            for call in calls.collect::<Result<Vec<_>>>()? {
                self.finish(verb, call)?;
            }
            let took = started.elapsed();
            match verb {
                "ADD" => self.add.push(took),
                _ => self.del.push(took),
            }
        }
        Ok(())
    }

    fn namespace(&mut self) -> Result<NetNs> {
        let pod = NetNs::new_anonymous()?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    fn forget_figures(&mut self) {
        self.add = Samples::default();
        self.del = Samples::default();
    }
}

/// Runs all sides in turn, the first time without counting it: the first pod also makes the bridge.
fn in_turn(
    sides: &mut [Side],
    times: usize,
    mut once: impl FnMut(&mut Side, usize) -> Result<()>,
) -> Result<()> {
    for index in 0..=times {
        for side in sides.iter_mut() {
            once(side, index)?;
            if index == 0 {
                side.forget_figures();
            }
        }
    }
    Ok(())
}

fn add_and_del(what: &str, sides: &[Side]) {
    let [ours, theirs] = sides else { return };
    for (verb, a, b) in [
        ("ADD", &ours.add, &theirs.add),
        ("DEL", &ours.del, &theirs.del),
    ] {
        table(
            &format!("CNI {verb}{what}"),
            [(ours.name, a), (theirs.name, b)],
        );
    }
}

fn main() -> Result<()> {
    programs::check_host()?;
    let progress = Progress::shown();
    let scratch =
        tempfile::tempdir_in("/dev/shm").context("the benchmark keeps its data on tmpfs")?;
    let ours = programs::binaries()?;
    let wanted = [
        Program::Bridge,
        Program::HostLocal,
        Program::Portmap,
        Program::Bandwidth,
    ];
    let theirs = upstream::assets(Module::CniPlugins, &wanted, progress)?;
    let dir = |name: &str| scratch.path().join(name);

    let step = progress.step(format!("{PODS} pods on each side, in turn"));
    let mut sides = [
        Side::new("twill-cni", &ours, vec![twill(&dir("a"), 24, &[])])?,
        Side::new("bridge + host-local", &theirs, vec![bridge(&dir("b"))])?,
    ];
    let program = ours.join("examples/bare-attach");
    let bare_node = NetNs::new_anonymous()?;
    let mut bare = Samples::default();
    in_turn(&mut sides, PODS, |side, index| {
        side.pod(index)?;
        if side.name == "twill-cni" {
            let took = attach_bare(&program, &bare_node, &side.namespace()?, index)?;
            if index > 0 {
                bare.push(took);
            }
        }
        Ok(())
    })?;
    step.done();
    add_and_del("", &sides);
    table(
        "CNI ADD",
        [("twill-cni", &sides[0].add), ("bare netlink calls", &bare)],
    );

    let step = progress.step(format!("{PODS_WITH_PORTS} pods with a host port"));
    let port = [(8080, 80)];
    let mut sides = [
        Side::new("twill-cni", &ours, vec![twill(&dir("c"), 24, &port)])?,
        Side::new(
            "… + portmap",
            &theirs,
            vec![bridge(&dir("d")), portmap(&port)],
        )?,
    ];
    in_turn(&mut sides, PODS_WITH_PORTS, Side::pod)?;
    step.done();
    add_and_del(", one host port", &sides);

    let step = progress.step(format!("{PODS_WITH_PORTS} pods with rates both ways"));
    let rates = json!({"bandwidth": {
        "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000,
    }});
    let mut ours_shaped = twill(&dir("i"), 24, &[]);
    ours_shaped["runtimeConfig"] = rates.clone();
    let bandwidth =
        json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "runtimeConfig": rates});
    let mut sides = [
        Side::new("twill-cni", &ours, vec![ours_shaped])?,
        Side::new("… + bandwidth", &theirs, vec![bridge(&dir("j")), bandwidth])?,
    ];
    in_turn(&mut sides, PODS_WITH_PORTS, Side::pod)?;
    step.done();
    add_and_del(", rates both ways", &sides);

    let step = progress.step(format!("{AT_ONCE} pods at once, {ROUNDS} times"));
    let mut sides = [
        Side::new("twill-cni", &ours, vec![twill(&dir("e"), 24, &[])])?,
        Side::new("bridge + host-local", &theirs, vec![bridge(&dir("f"))])?,
    ];
    in_turn(&mut sides, ROUNDS, |side, _| side.crowd())?;
    step.done();
    add_and_del(&format!(", {AT_ONCE} at once"), &sides);

    let step = progress.step("pods beside 250 others, and beside 2");
    let mut sides = [
        Side::new(
            "250 addresses taken",
            &ours,
            vec![twill(&dir("g"), 23, &[])],
        )?,
        Side::new("2 addresses taken", &ours, vec![twill(&dir("h"), 23, &[])])?,
    ];
    reserve(&dir("g"), 250)?;
    reserve(&dir("h"), 2)?;
    in_turn(&mut sides, PODS, Side::pod)?;
    step.done();
    add_and_del(", others", &sides);
    Ok(())
}

/// The netlink calls of an ADD by a program that does nothing else.
fn attach_bare(bare: &Path, node: &NetNs, pod: &NetNs, index: usize) -> Result<Duration> {
    let mut command = Command::new(bare);
    command
        .arg(pod.fd_path())
        .arg(format!("veth{index}"))
        .arg(format!("10.244.1.{}/24", index + 2))
        .arg("10.244.1.1/24")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let output = node.run_in(|| command.output())??;
    let took = started.elapsed();
    ensure!(
        output.status.success(),
        "bare: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(took)
}

/// Puts files of addresses that others have where the plugins look for them.
fn reserve(dir: &Path, count: u32) -> Result<()> {
    let network = dir.join("networks/cbr0");
    std::fs::create_dir_all(&network)?;
    let base = u32::from_be_bytes([10, 244, 2, 2]);
    for n in 0..count {
        let addr = std::net::Ipv4Addr::from_bits(base + n);
        hostnet::atomic_file::create_unsynced(
            network.join(addr.to_string()),
            format!("other{n}\r\neth0").as_bytes(),
            0o600,
        )?;
    }
    Ok(())
}

fn ports(list: &[(u16, u16)]) -> Value {
    let list = list.iter().map(|(host, container)| {
        json!({"hostPort": host, "containerPort": container, "protocol": "tcp"})
    });
    Value::Array(list.collect())
}

fn twill(dir: &Path, prefix: u8, host_ports: &[(u16, u16)]) -> Value {
    let subnet_file = dir.join("subnet.env");
    let env = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.2.1/{prefix}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    let written = std::fs::create_dir_all(dir)
        .map_err(anyhow::Error::from)
        .and_then(|()| {
            Ok(hostnet::atomic_file::replace(
                &subnet_file,
                env.as_bytes(),
                0o600,
            )?)
        });
    if let Err(error) = written {
        panic!("{}: {error}", subnet_file.display());
    }
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "twill-cni",
        "subnetFile": subnet_file,
        "dataDir": dir.join("flannel"),
        "stateDir": dir.join("attachments"),
        "ipam": {"dataDir": dir.join("networks")},
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        "runtimeConfig": {"portMappings": ports(host_ports)},
    })
}

fn bridge(dir: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "isDefaultGateway": true,
        "hairpinMode": true,
        "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "dataDir": dir,
            "ranges": [[{"subnet": "10.244.1.0/24"}]],
            "routes": [{"dst": "10.244.0.0/16"}],
        },
    })
}

fn portmap(host_ports: &[(u16, u16)]) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "portmap",
        "runtimeConfig": {"portMappings": ports(host_ports)},
    })
}
