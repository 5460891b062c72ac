//! A pod's network namespace, attached as a container runtime attaches it (CNI spec 1.1.0,
//! sections 3 and 4): the first conflist on the node's disk, its plugins in order, each given
//! the result of the one before; DEL in reverse order with the last result.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use hostnet::netns::NetNs;
use hostnet::vocab::Cidr;
use hostnet::vocab::names::POD_INTERFACE;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::machine::root::CNI_BIN;
use crate::machine::{Machine, printed};
use crate::underlay::batch;
use crate::wait;

const CONF_DIR: &str = "/etc/cni/net.d";
const NETNS_DIR: &str = "/run/netns";

/// A network namespace on a node, for one pod.
#[derive(Debug)]
pub struct Sandbox {
    machine: Machine,
    pod: PodName,
    netns: NetNs,
    /// What ADD was called with and what came of it.
    attached: Option<(Network, Option<u64>, Value)>,
}

/// Which pod a sandbox is for, as a runtime tells it to plugins.
#[derive(Clone, Debug)]
pub struct PodName {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID, from which the container's id is made.
    pub uid: String,
}

/// A network configuration list (section 1 of the spec).
#[derive(Clone, Debug, Deserialize)]
struct Network {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    name: String,
    plugins: Vec<Value>,
}

impl Sandbox {
    /// Makes the namespace, with `lo` up. On the node it is `/run/netns/NAMESPACE.NAME`, so that
    /// `ip netns` lists pods.
    pub fn new(machine: &Machine, pod: PodName) -> Result<Sandbox> {
        let name = netns_name(&pod.namespace, &pod.name);
        machine.run(&format!("ip netns add {name}"))?;
        let netns = NetNs::open(machine.path(Path::new(NETNS_DIR).join(&name)))?;
        let sandbox = Sandbox {
            machine: machine.clone(),
            pod,
            netns,
            attached: None,
        };
        let mut ip = machine.command("ip");
        ip.args(["-n", &name]);
        batch(ip, "link set lo up\n")?;
        Ok(sandbox)
    }

    /// The network namespace of a pod that is on `machine`.
    pub fn find(machine: &Machine, namespace: &str, name: &str) -> Option<NetNs> {
        let path = Path::new(NETNS_DIR).join(netns_name(namespace, name));
        NetNs::open(machine.path(path)).ok()
    }

    /// The network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its path on the node.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(netns_name(&self.pod.namespace, &self.pod.name))
    }

    /// Runs ADD of the node's network, with a limit of bandwidth in bits per second. Returns the pod's addresses.
    pub fn attach(&mut self, bandwidth: Option<u64>) -> Result<Vec<IpAddr>> {
        let network = wait::until("CNI configuration", wait::PATIENCE, || {
            Ok(Network::first(&self.machine))
        })?;
        let mut result = None;
        for plugin in &network.plugins {
            let config = network.config(plugin, bandwidth, result.as_ref());
            let printed = self.call("ADD", plugin, &config)?;
            result = Some(serde_json::from_str(&printed).context("ADD printed no result")?);
        }
        let result = result.context("a network without plugins")?;
        let ips = addresses(&result)?;
        self.attached = Some((network, bandwidth, result));
        Ok(ips)
    }

    /// The result of ADD.
    pub fn result(&self) -> Option<&Value> {
        self.attached.as_ref().map(|(_, _, result)| result)
    }

    /// Runs DEL of what was attached.
    pub fn detach(&mut self) -> Result<()> {
        if let Some((network, bandwidth, result)) = self.attached.take() {
            for plugin in network.plugins.iter().rev() {
                let config = network.config(plugin, bandwidth, Some(&result));
                self.call("DEL", plugin, &config)?;
            }
        }
        Ok(())
    }

    /// Detaches the namespace and removes it.
    pub fn remove(mut self) -> Result<()> {
        self.detach()?;
        let name = netns_name(&self.pod.namespace, &self.pod.name);
        self.machine.run(&format!("ip netns del {name}"))?;
        Ok(())
    }

    fn call(&self, verb: &str, plugin: &Value, config: &Value) -> Result<String> {
        let kind = plugin["type"].as_str().context("a plugin without a type")?;
        let what = format!("{kind} {verb} for {}", self.pod.name);
        let PodName {
            namespace,
            name,
            uid,
        } = &self.pod;
        let id = uid.replace('-', "");
        let mut command = self.machine.command(&format!("{CNI_BIN}/{kind}"));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &id)
            .env("CNI_NETNS", self.path())
            .env("CNI_IFNAME", POD_INTERFACE)
            .env("CNI_PATH", CNI_BIN)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                     K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run nsenter")?;
        let stdin = child.stdin.take().context("no pipe to the plugin")?;
        serde_json::to_writer(stdin, config).with_context(|| what.clone())?;
        let output = child.wait_with_output()?;
        if let Ok(error) = serde_json::from_slice::<PluginError>(&output.stdout)
            && !output.status.success()
        {
            bail!("{what} failed: {error}");
        }
        printed(&what, output)
    }
}

/// What a plugin prints when it fails (section 5 of the spec).
#[derive(Debug, Deserialize)]
struct PluginError {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl std::fmt::Display for PluginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {}: {} {}", self.code, self.msg, self.details)
    }
}

impl Network {
    /// The first conflist in the order of file names, which is the one that runtimes take.
    fn first(machine: &Machine) -> Result<Network> {
        let dir = machine.path(CONF_DIR);
        let mut files: Vec<_> = std::fs::read_dir(&dir)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|ext| ext == "conflist"))
            .collect();
        files.sort();
        let file = files
            .first()
            .with_context(|| format!("no conflist in {CONF_DIR} on {}", machine.name()))?;
        let network: Network = serde_json::from_str(&std::fs::read_to_string(file)?)
            .with_context(|| format!("{} is no conflist", file.display()))?;
        ensure!(
            !network.plugins.is_empty(),
            "{} has no plugins",
            file.display()
        );
        Ok(network)
    }

    /// One plugin's execution configuration: "Deriving execution configuration from plugin
    /// configuration" of the spec.
    fn config(&self, plugin: &Value, bandwidth: Option<u64>, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        config["cniVersion"] = json!(self.cni_version);
        config["name"] = json!(self.name);
        if let Some(fields) = config.as_object_mut() {
            // Nothing in the lab asks for port mappings.
            fields.remove("capabilities");
        }
        if let Some(rate) = bandwidth.filter(|_| plugin["capabilities"]["bandwidth"] == json!(true))
        {
            config["runtimeConfig"] = json!({"bandwidth": {
                "ingressRate": rate, "ingressBurst": rate, "egressRate": rate, "egressBurst": rate,
            }});
        }
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config
    }
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("a result without ips")?;
    ips.iter()
        .map(|ip| {
            let address = ip["address"].as_str().context("an ip without address")?;
            let cidr: Cidr = address.parse()?;
            Ok(cidr.addr())
        })
        .collect()
}

fn netns_name(namespace: &str, name: &str) -> String {
    format!("{namespace}.{name}")
}
