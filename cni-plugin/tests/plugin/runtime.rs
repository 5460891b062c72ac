//! A node and its runtime: a private namespace, the plugin's directories, and calls.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hostnet::atomic_file;
use hostnet::testkit::{Ns, Snapshot};
use serde_json::{Value, json};

/// A node whose pods hang on `cni0`.
pub(crate) struct Node {
    pub(crate) host: Ns,
    dir: tempfile::TempDir,
    version: &'static str,
    flannels: bool,
    extra: Value,
    args: String,
    path: PathBuf,
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) ok: bool,
    pub(crate) json: Value,
}

impl Reply {
    /// Of an exit status and what was written to standard output.
    pub(crate) fn of(ok: bool, stdout: &[u8]) -> Reply {
        let json = match stdout {
            [] => Value::Null,
            text => serde_json::from_slice(text)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(text))),
        };
        Reply { ok, json }
    }

    /// The result of an ADD that must have succeeded.
    pub(crate) fn result(self) -> Value {
        assert!(self.ok, "{:#}", self.json);
        self.json
    }

    /// Code and message of a call that must have failed.
    pub(crate) fn error(self) -> (u64, String) {
        assert!(!self.ok, "{:#}", self.json);
        let code = self.json["code"].as_u64().unwrap();
        (code, self.json["msg"].as_str().unwrap().to_owned())
    }

    /// The first address of a result, without its length.
    pub(crate) fn addr(self) -> String {
        let result = self.result();
        let cidr = result["ips"][0]["address"].as_str().unwrap();
        cidr.split('/').next().unwrap().to_owned()
    }
}

pub(crate) const SUBNET: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

pub(crate) const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:3::1/64\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

impl Node {
    /// A node with the subnet 10.244.3.0/24.
    pub(crate) fn new() -> Node {
        let node = Node::without_subnet();
        node.set_subnet(SUBNET);
        node
    }

    /// A node on which flanneld has not yet run.
    pub(crate) fn without_subnet() -> Node {
        let dir = tempfile::tempdir().unwrap();
        Node {
            host: Ns::new("node"),
            dir,
            version: "1.1.0",
            flannels: true,
            extra: json!({}),
            args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=x".to_owned(),
            path: PathBuf::from("/opt/cni/bin"),
        }
    }

    /// A node whose configuration is that of the bridge plugin, with these keys.
    pub(crate) fn plain(keys: Value) -> Node {
        let mut node = Node::without_subnet();
        node.flannels = false;
        node.set_extra(keys);
        node
    }

    /// `CNI_ARGS`.
    pub(crate) fn set_args(&mut self, args: &str) {
        self.args = args.to_owned();
    }

    /// `CNI_PATH`.
    pub(crate) fn set_path(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// The configuration's version.
    pub(crate) fn with_version(mut self, version: &'static str) -> Node {
        self.version = version;
        self
    }

    /// Further keys of the configuration, over the usual ones.
    pub(crate) fn set_extra(&mut self, extra: Value) {
        self.extra = extra;
    }

    pub(crate) fn set_subnet(&self, text: &str) {
        self.put("subnet.env", text);
    }

    /// Writes a file below the node's directory.
    pub(crate) fn put(&self, name: &str, contents: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        atomic_file::replace(path, contents.as_bytes(), 0o600).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> Value {
        let mut config = json!({
            "cniVersion": self.version,
            "name": "cbr0",
            "type": "twill-cni",
            "subnetFile": self.path("subnet.env"),
            "stateDir": self.path("twill"),
            "dataDir": self.path("flannel"),
            "ipam": {"dataDir": self.path("networks")},
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        });
        if !self.flannels {
            config = json!({
                "cniVersion": self.version,
                "name": "cbr0",
                "type": "twill-cni",
                "stateDir": self.path("twill"),
            });
            if self.extra.get("ipam").is_some() {
                config["ipam"] = json!({"dataDir": self.path("networks")});
            }
        }
        for (key, value) in self.extra.as_object().unwrap() {
            match (config.get_mut(key), value) {
                (Some(Value::Object(object)), Value::Object(more)) => object.extend(more.clone()),
                _ => config[key] = value.clone(),
            }
        }
        config
    }

    /// Starts a call; its standard input is written and closed.
    pub(crate) fn start(&self, verb: &str, id: &str, netns: &str) -> Child {
        let mut child = self.spawn(verb, id, netns);
        self.feed(&mut child);
        child
    }

    /// Gives a call its configuration.
    pub(crate) fn feed(&self, child: &mut Child) {
        // A process that fails before it reads has closed the pipe.
        let _ = child
            .stdin
            .take()
            .unwrap()
            .write_all(self.config().to_string().as_bytes());
    }

    /// Starts a call that waits for its configuration.
    pub(crate) fn spawn(&self, verb: &str, id: &str, netns: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twill-cni"));
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .env("CNI_ARGS", &self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.host.run(|| command.spawn()).unwrap()
    }

    pub(crate) fn call(&self, verb: &str, id: &str, netns: &str) -> Reply {
        finish(self.start(verb, id, netns))
    }

    pub(crate) fn add(&self, id: &str, pod: &Ns) -> Reply {
        self.call("ADD", id, &pod.path())
    }

    pub(crate) fn del(&self, id: &str, netns: &str) {
        let reply = self.call("DEL", id, netns);
        assert!(reply.ok, "{:#}", reply.json);
        assert_eq!(reply.json, Value::Null, "DEL prints nothing");
    }

    /// The addresses that are reserved.
    pub(crate) fn reserved(&self) -> BTreeSet<String> {
        names(&self.path("networks/cbr0"))
            .into_iter()
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect()
    }

    /// All that the plugin keeps on disk for attachments, and whatever else lies there.
    pub(crate) fn kept(&self) -> Vec<String> {
        let mut kept = names(&self.path("networks/cbr0"));
        kept.retain(|name| name != "lock" && !name.starts_with("last_reserved_ip."));
        let records = names(&self.path("twill")).into_iter();
        // The marker of the boot stays.
        kept.extend(records.filter(|name| !name.ends_with(".boot")));
        kept
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.host)
    }

    /// The bridge's ports.
    pub(crate) fn ports(&self) -> Vec<String> {
        let bridge = self.host.link("cni0").index;
        let ports = self.host.rtnl().ports(bridge).unwrap();
        ports.iter().map(|port| port.name.to_string()).collect()
    }
}

/// Waits for a call to end and reads its answer; nothing but JSON is allowed on standard output.
pub(crate) fn finish(child: Child) -> Reply {
    let output = child.wait_with_output().unwrap();
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Reply::of(output.status.success(), &output.stdout)
}

fn names(dir: &Path) -> Vec<String> {
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect(),
        Err(_) => Vec::new(),
    }
}
