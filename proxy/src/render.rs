//! `twill-proxy render`: the rules that a dump of objects makes, without a cluster and without touching the kernel.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use agent::watch::Delta;
use clap::Parser;
use flate2::read::GzDecoder;
use hostnet::nft::Changes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{Args, Config, Mode};
use crate::index::{Index, Update};
use crate::iptables;
use crate::nft::{NftBackend, rules};
use crate::plan::{Planner, Ruleset};

/// Print the rules that a dump of objects makes on a node, as a script that `nft -f` takes
///
/// The kernel is not touched. The dump: kubectl get services,endpointslices,nodes,servicecidrs -A -o yaml
#[derive(Clone, Debug, Parser)]
pub struct RenderArgs {
    /// Services, EndpointSlices, Nodes and ServiceCIDRs as YAML or JSON: a file, a folder of such files, or - for standard input; or
    /// an archive of `twill support-dump`
    #[arg(long, value_name = "FILE|DIR", required = true)]
    pub objects: Vec<PathBuf>,

    /// The node whose rules these are [default: the dump's only Node, else this host's name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// The mode, as --proxy-mode
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,

    /// Print what would have to change in this host's kernel instead; exit code 1 if anything
    #[arg(long)]
    pub diff: bool,

    /// What else rules depend on
    #[command(flatten, next_help_heading = "As in the daemon")]
    pub args: Args,
}

/// Why nothing was rendered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("--objects {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is neither YAML nor JSON, or an object in it is not what its kind says.
    #[error("--objects {path}: {reason}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The kernel's rules cannot be read.
    #[error(transparent)]
    Kernel(#[from] hostnet::nft::Error),
    /// The rules of iptables cannot be read.
    #[error(transparent)]
    Iptables(#[from] iptables::IptablesError),
}

/// What was rendered.
#[derive(Debug)]
pub struct Rendered {
    /// For standard output.
    pub text: String,
    /// For standard error: what a person should know beside it.
    pub notes: Vec<String>,
    /// Whether something was to be changed in the kernel, where that was asked for.
    pub differs: bool,
}

/// Renders.
///
/// # Errors
/// [`Error`].
pub fn render(args: &RenderArgs) -> Result<Rendered, Error> {
    let objects = Objects::read(&args.objects)?;
    let mut daemon = args.args.clone();
    daemon.proxy_mode = daemon.proxy_mode.or(args.mode.clone());
    daemon.hostname_override = (args.node.clone())
        .or(daemon.hostname_override)
        .or_else(|| objects.only_node());
    let config = Config::load(&daemon)?;
    let mut notes = config.notes.clone();
    notes.extend(objects.notes());
    let ruleset = plan(objects, &config, &mut notes);
    let text = match config.mode {
        Mode::Nftables => {
            let changes = match args.diff {
                true => NftBackend::open()?.difference(&ruleset)?,
                false => rules(&ruleset),
            };
            (changes.iter())
                .filter(|changes| !changes.is_empty())
                .map(|changes: &Changes| format!("{changes}\n"))
                .collect()
        }
        Mode::Iptables { options, variant } => {
            let documents = match args.diff {
                true => crate::daemon::iptables_backend(options, variant).difference(&ruleset)?,
                false => iptables::rules(&options, &ruleset),
            };
            documents_text(&documents)
        }
    };
    Ok(Rendered {
        differs: args.diff && !text.is_empty(),
        text,
        notes,
    })
}

/// Each under the name of the program that takes it.
fn documents_text(documents: &[String; 2]) -> String {
    (["iptables-restore", "ip6tables-restore"]
        .iter()
        .zip(documents))
    .filter(|(_, document)| !document.is_empty())
    .map(|(program, document)| format!("# {program} --noflush\n{document}\n"))
    .collect()
}

fn plan(objects: Objects, config: &Config, notes: &mut Vec<String>) -> Ruleset {
    let mut index = Index::new(&config.hostname).proxy_name(config.service_proxy_name.clone());
    for update in objects.updates {
        index.update(update);
    }
    if index.node().is_none() {
        let node = index.this_node();
        notes.push(format!(
            "no Node {node} in the dump: node ports answer nowhere"
        ));
    }
    let mut planner = Planner::new(config.settings.clone());
    let dirty = index.take_dirty();
    planner.update(&index, &dirty);
    notes.extend(planner.take_new_conflicts().iter().map(|conflict| {
        let (loser, owner) = (&conflict.loser, &conflict.owner);
        format!(
            "{loser}: {} is left out: {owner} has it",
            conflict.frontend.place()
        )
    }));
    planner.ruleset().clone()
}

/// More than any dump is: what is larger is not read to its end.
const LARGEST: u64 = 1 << 30;

/// What a file says: itself, or, if it is an archive of `twill support-dump`, its objects.
fn text(bytes: Vec<u8>) -> io::Result<String> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return String::from_utf8(bytes).map_err(|error| invalid(error.to_string()));
    }
    let mut archive = tar::Archive::new(GzDecoder::new(bytes.as_slice()).take(LARGEST));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() == "objects.json" {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            return Ok(text);
        }
    }
    let none = "no objects.json in it: it was taken without an API server, or is no archive of `twill support-dump`";
    Err(invalid(none.to_owned()))
}

/// What a dump holds.
#[derive(Debug, Default)]
struct Objects {
    updates: Vec<Update>,
    nodes: Vec<String>,
    others: usize,
}

impl Objects {
    fn read(paths: &[PathBuf]) -> Result<Objects, Error> {
        let mut objects = Objects::default();
        for path in paths {
            let failed = |source| Error::Read {
                path: path.clone(),
                source,
            };
            if path == Path::new("-") {
                let mut bytes = Vec::new();
                io::stdin().read_to_end(&mut bytes).map_err(failed)?;
                objects.parse(path, &text(bytes).map_err(failed)?)?;
            } else if path.is_dir() {
                let files: Result<Vec<_>, _> = (path.read_dir().map_err(failed)?)
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect();
                let is_dump = |path: &PathBuf| {
                    let extension = path.extension().and_then(|e| e.to_str());
                    matches!(extension, Some("yaml" | "yml" | "json"))
                };
                let mut files: Vec<_> =
                    files.map_err(failed)?.into_iter().filter(is_dump).collect();
                files.sort();
                objects.extend(Objects::read(&files)?);
            } else {
                let read = std::fs::read(path).and_then(text);
                objects.parse(path, &read.map_err(failed)?)?;
            }
        }
        Ok(objects)
    }

    fn extend(&mut self, other: Objects) {
        self.updates.extend(other.updates);
        self.nodes.extend(other.nodes);
        self.others += other.others;
    }

    fn parse(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let failed = |reason: String| Error::Parse {
            path: path.into(),
            reason,
        };
        // JSON is YAML too, but reading it as such takes many times longer.
        let documents: Vec<Value> = match serde_json::from_str(text) {
            Ok(document) => vec![document],
            Err(_) => {
                // A dump is as large as its cluster; it is not a stranger's.
                let options = serde_saphyr::options! { budget: None };
                serde_saphyr::from_multiple_with_options(text, options)
                    .map_err(|error| failed(error.to_string()))?
            }
        };
        documents
            .into_iter()
            .try_for_each(|document| self.add(document))
            .map_err(failed)
    }

    fn add(&mut self, object: Value) -> Result<(), String> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if let (true, Value::Object(mut list)) = (kind.ends_with("List"), object.clone()) {
            let items = list.remove("items").unwrap_or_default();
            let of = kind.trim_end_matches("List").to_owned();
            for mut item in items.as_array().cloned().unwrap_or_default() {
                // In a list of one kind, as the API gives it, the items do not say theirs.
                if let (Value::Object(fields), false) = (&mut item, of.is_empty()) {
                    fields.entry("kind").or_insert_with(|| of.clone().into());
                }
                self.add(item)?;
            }
            return Ok(());
        }
        let name = |object: &Value| {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or("?").to_owned();
            match kind.as_str() {
                "Node" | "ServiceCIDR" => text("name"),
                _ => format!("{}/{}", text("namespace"), text("name")),
            }
        };
        let what = format!("{kind} {}", name(&object));
        fn read<T: DeserializeOwned>(object: Value, what: &str) -> Result<Delta<T>, String> {
            let parsed = serde_json::from_value(object).map_err(|e| format!("{what}: {e}"))?;
            Ok(Delta::Upsert(parsed))
        }
        self.updates.push(match kind.as_str() {
            "ServiceCIDR" => Update::ServiceCidr(read(object, &what)?),
            "Service" => Update::Service(read(object, &what)?),
            "EndpointSlice" => Update::Slice(read(object, &what)?),
            "Node" => {
                self.nodes.push(name(&object));
                Update::Node(read(object, &what)?)
            }
            _ => {
                self.others += 1;
                return Ok(());
            }
        });
        Ok(())
    }

    fn only_node(&self) -> Option<String> {
        match self.nodes.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        }
    }

    fn notes(&self) -> Option<String> {
        let others = self.others;
        (others > 0).then(|| format!("{others} objects are of other kinds: passed over"))
    }
}

#[cfg(test)]
mod tests {
    use hostnet::testkit::{Ns, require_tool};
    use proptest::prelude::*;

    use super::*;
    use crate::backend::Backend;
    use crate::fixtures::SEED;

    fn run(dir: &Path, flags: &[&str]) -> Result<Rendered, Error> {
        let objects = format!("--objects={}", dir.display());
        let args = ["render", &objects, "--cluster-cidr=10.244.0.0/16"];
        render(&RenderArgs::try_parse_from(args.iter().chain(flags)).unwrap())
    }

    fn dump(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            hostnet::atomic_file::replace(dir.path().join(name), text.as_bytes(), 0o644).unwrap();
        }
        dir
    }

    #[test]
    fn the_worked_example() {
        let dir = dump(&[("all.yaml", SEED), ("notes.txt", "not: [a dump")]);
        let rendered = run(dir.path(), &["--node=k8s-node-2"]).unwrap();
        let v4: String = (rendered.text.lines())
            .filter(|line| line.starts_with("add element ip "))
            .map(|line| format!("{line}\n"))
            .collect();
        insta::assert_snapshot!(v4);
    }

    #[test]
    fn the_worked_example_as_kube_proxys_chains() {
        let dir = dump(&[("all.yaml", SEED)]);
        let flags = ["--node=k8s-node-2", "--mode=iptables"];
        let rendered = run(dir.path(), &flags).unwrap();
        insta::assert_snapshot!(rendered.text);
        assert!(!rendered.differs);
    }

    #[test]
    fn what_is_printed_loads_and_is_what_the_daemon_would_make() {
        require_tool("nft", "nftables");
        let dir = dump(&[("all.yaml", SEED)]);
        let flags = ["--node=k8s-node-2"];
        let script = run(dir.path(), &flags).unwrap().text;
        let ns = Ns::new("render");
        let file = dump(&[("rules.nft", &script)]);
        let file = file.path().join("rules.nft");
        let diff = || ns.run(|| run(dir.path(), &["--node=k8s-node-2", "--diff"]).unwrap());
        assert!(diff().differs, "nothing is there yet");
        ns.sh("nft", &["-f", file.to_str().unwrap()]);
        assert_eq!(diff().text, "");
        ns.sh("nft", &["flush", "map", "ip", "twill-proxy", "vips"]);
        let found = diff();
        assert!(
            found.differs
                && found
                    .text
                    .lines()
                    .all(|line| line.starts_with("add element ip twill-proxy vips"))
        );
        // And nothing was mended by looking.
        assert!(diff().differs);
        let mut backend = ns.run(NftBackend::open).unwrap();
        backend.replace(&Ruleset::default()).unwrap();
        assert!(diff().differs);
    }

    #[test]
    fn lists_json_and_several_files_are_one_dump() {
        let list = |kind: &str, items: &str| format!(r#"{{"kind": "{kind}", "items": [{items}]}}"#);
        let service = r#"{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]}}"#;
        let node = r#"{"kind": "Node", "metadata": {"name": "n"}}, {"kind": "Pod"}"#;
        let dir = dump(&[
            ("a.json", &list("ServiceList", service)),
            ("b.json", &list("List", node)),
        ]);
        let rendered = run(dir.path(), &[]).unwrap();
        assert!(
            rendered.text.contains("10.96.0.1 . tcp . 80"),
            "{}",
            rendered.text
        );
        assert_eq!(
            rendered.notes,
            ["1 objects are of other kinds: passed over"]
        );
    }

    /// An archive of one file, as `twill support-dump` makes them.
    fn archive(name: &str, text: &str) -> Vec<u8> {
        let packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let mut tar = tar::Builder::new(packed);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        tar.into_inner().and_then(|packed| packed.finish()).unwrap()
    }

    #[test]
    fn an_archive_of_a_dump_is_its_objects() {
        let dir = dump(&[("objects.yaml", SEED)]);
        let wanted = run(dir.path(), &["--node=k8s-node-2"]).unwrap().text;
        assert!(!wanted.is_empty());
        let path = dir.path().join("dump.tar.gz");
        let write = |bytes: &[u8]| hostnet::atomic_file::replace(&path, bytes, 0o644).unwrap();
        let whole = archive("objects.json", SEED);
        write(&whole);
        let rendered = run(&path, &["--node=k8s-node-2"]).unwrap();
        assert_eq!(rendered.text, wanted);
        write(&archive("about.json", "{}"));
        let error = run(&path, &[]).unwrap_err().to_string();
        assert!(
            error.contains("dump.tar.gz: no objects.json in it"),
            "{error}"
        );
        write(&whole[..whole.len() / 2]);
        run(&path, &[]).unwrap_err();
    }

    #[test]
    fn errors_name_file_and_object() {
        let wrong = "kind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: 5}\n";
        let dir = dump(&[("wrong.yaml", wrong)]);
        let error = run(dir.path(), &["--node=n"]).unwrap_err().to_string();
        assert!(error.contains("wrong.yaml: Service shop/web: "), "{error}");
        let error = run(Path::new("/nowhere"), &[]).unwrap_err().to_string();
        assert!(error.contains("--objects /nowhere: "), "{error}");
        let dir = dump(&[("a.yaml", SEED)]);
        let error = run(dir.path(), &["--mode=kernelspace"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("kernelspace"), "{error}");
    }

    /// Whatever the API lets through, and more: addresses and ports of any kind.
    fn object() -> impl Strategy<Value = String> {
        let address = prop_oneof![
            Just("''".to_owned()),
            Just("None".to_owned()),
            Just("127.0.0.1".to_owned()),
            Just("169.254.1.1".to_owned()),
            Just("255.255.255.255".to_owned()),
            Just("'::'".to_owned()),
            Just("'fe80::1'".to_owned()),
            (0..3_u8).prop_map(|n| format!("10.96.0.{n}")),
            (0..3_u8).prop_map(|n| format!("'fd00::{n}'")),
            "[a-z.:0-9]{0,8}".prop_map(|text| format!("'{text}'")),
        ];
        let number = prop_oneof![
            Just(0),
            Just(-1),
            Just(80),
            Just(30_000),
            Just(65_535),
            Just(65_536),
            any::<i32>()
        ];
        let protocol = prop::sample::select(vec!["TCP", "UDP", "SCTP", "ICMP", "''"]);
        let policy = prop::sample::select(vec!["Local", "Cluster", "Other"]);
        let addresses =
            prop::collection::vec(address.clone(), 0..4).prop_map(|list| list.join(", "));
        let service = (
            0..3_u8, addresses.clone(), addresses.clone(), addresses.clone(), addresses.clone(),
            prop::collection::vec((number.clone(), number.clone(), protocol.clone(), 0..3_u8), 0..4),
            (policy.clone(), policy, number.clone(), any::<bool>()),
        )
            .prop_map(|(name, ips, external, balancers, ranges, ports, (internal, out, check, sticky))| {
                let ports: Vec<String> = (ports.into_iter())
                    .map(|(port, node_port, protocol, name)| {
                        format!("{{name: p{name}, port: {port}, nodePort: {node_port}, protocol: {protocol}}}")
                    })
                    .collect();
                let ingress: Vec<String> = balancers.split(", ").filter(|a| !a.is_empty()).map(|a| format!("{{ip: {a}}}")).collect();
                let affinity = if sticky { "ClientIP" } else { "None" };
                format!(
                    "kind: Service\nmetadata: {{name: s{name}, namespace: shop}}\n\
                     spec: {{clusterIPs: [{ips}], externalIPs: [{external}], loadBalancerSourceRanges: [{ranges}], \
                     ports: [{}], internalTrafficPolicy: {internal}, externalTrafficPolicy: {out}, \
                     healthCheckNodePort: {check}, sessionAffinity: {affinity}}}\n\
                     status: {{loadBalancer: {{ingress: [{}]}}}}\n---\n",
                    ports.join(", "),
                    ingress.join(", "),
                )
            });
        let slice = (0..3_u8, 0..3_u8, addresses, number, protocol, any::<[bool; 4]>()).prop_map(
            |(name, service, addresses, port, protocol, [v6, ready, serving, here])| {
                let family = if v6 { "IPv6" } else { "IPv4" };
                let node = if here { "here" } else { "there" };
                let endpoints: Vec<String> = (addresses.split(", "))
                    .map(|address| {
                        format!(
                            "{{addresses: [{address}], nodeName: {node}, \
                             conditions: {{ready: {ready}, serving: {serving}, terminating: {}}}}}",
                            !ready
                        )
                    })
                    .collect();
                format!(
                    "kind: EndpointSlice\nmetadata: {{name: e{name}, namespace: shop, labels: {{kubernetes.io/service-name: s{service}}}}}\n\
                     addressType: {family}\nports: [{{name: p0, port: {port}, protocol: {protocol}}}]\nendpoints: [{}]\n---\n",
                    endpoints.join(", "),
                )
            },
        );
        let node = Just(
            "kind: Node\nmetadata: {name: here}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n---\n"
                .to_owned(),
        );
        prop_oneof![4 => service, 4 => slice, 1 => node]
    }

    /// In one namespace for all cases: the kernel takes what any objects make, whatever it held before.
    #[test]
    fn the_kernel_takes_what_any_objects_make() {
        let ns = Ns::new("any");
        let backend = std::cell::RefCell::new(ns.run(NftBackend::open).unwrap());
        let config = ProptestConfig::with_cases(48);
        proptest!(config, |(objects in prop::collection::vec(object(), 0..12))| {
            let args = Args::try_parse_from(["x", "--hostname-override=here", "--cluster-cidr=10.244.0.0/16"]);
            let config = Config::load(&args.unwrap()).unwrap();
            let mut parsed = Objects::default();
            parsed.parse(Path::new("any"), &objects.concat()).unwrap();
            let plan = plan(parsed, &config, &mut Vec::new());
            let mut backend = backend.borrow_mut();
            backend.replace(&plan).unwrap();
            backend.tick().unwrap();
            backend.tick().unwrap();
            prop_assert_eq!(backend.replace(&plan).unwrap().ops, 0);
        });
    }
}
