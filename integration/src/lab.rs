//! A whole lab: started, attached to, ended; its nodes and pods.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use hostnet::netns::NetNs;
use hostnet::vocab::Subnet;
use k8s_openapi::api::core::v1::{Pod as PodObject, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde::Serialize;
use serde_json::json;

use crate::api::ClusterApi;
use crate::control_plane::{self, ControlPlane};
use crate::keeper::Keeper;
use crate::machine::Machine;
use crate::node::{Daemon, Node};
use crate::objects::{self, Endpoint, PodSpec};
use crate::progress::Progress;
use crate::registry::{Claim, LabName};
use crate::sandbox::{PodName, Sandbox};
use crate::traffic::{self, Transport};
use crate::underlay::{self, Seat};
use crate::upstream::{self, Module, Program};
use crate::{manifests, programs, wait};

/// The machine of the client that is no part of the cluster.
pub const OUTSIDE: &str = "outside";

/// What a lab is to be.
#[derive(Debug)]
pub struct Builder {
    name: Option<LabName>,
    nodes: Vec<NodeSpec>,
    programs: Vec<Program>,
    daemons: Vec<Daemon>,
    net_conf: Option<String>,
    progress: Progress,
}

#[derive(Debug)]
struct NodeSpec {
    name: String,
    pod_cidrs: Vec<Subnet>,
}

/// A lab that is up. It ends when this is dropped, or when the process dies, unless it is
/// [detached](Lab::detach).
pub struct Lab {
    // Declared first, dropped first: the API client goes before the network that it is in.
    control_plane: ControlPlane,
    nodes: Vec<Node>,
    outside: Machine,
    net_conf: String,
    keeper: Arc<Keeper>,
}

/// A pod that runs on a node of the lab.
pub struct Pod {
    spec: PodSpec,
    sandbox: Sandbox,
    ips: Vec<IpAddr>,
}

impl Builder {
    /// Names the lab; without a name it gets one that no other has.
    pub fn name(mut self, name: LabName) -> Builder {
        self.name = Some(name);
        self
    }

    /// Adds a node. Without `pod_cidrs` its Node object has none either.
    pub fn node(mut self, name: &str, pod_cidrs: &[Subnet]) -> Builder {
        self.nodes.push(NodeSpec {
            name: name.to_owned(),
            pod_cidrs: pod_cidrs.to_vec(),
        });
        self
    }

    /// Which daemons are started on every node: all, unless this says otherwise.
    pub fn daemons(mut self, daemons: &[Daemon]) -> Builder {
        self.daemons = daemons.to_vec();
        self
    }

    /// Programs of Kubernetes that are wanted besides the control plane's.
    pub fn program(mut self, program: Program) -> Builder {
        self.programs.push(program);
        self
    }

    /// Another net-conf.json than the one in `manifests/`.
    pub fn net_conf(mut self, net_conf: &str) -> Builder {
        self.net_conf = Some(net_conf.to_owned());
        self
    }

    /// Shows what is done and how long it takes.
    pub fn progress(mut self, progress: Progress) -> Builder {
        self.progress = progress;
        self
    }

    /// Starts the lab: until the daemons of every node are ready, or until the first failure,
    /// after which nothing is left.
    pub fn up(self) -> Result<Lab> {
        programs::check_host()?;
        ensure!(!self.nodes.is_empty(), "a lab needs a node");
        ensure!(
            self.nodes.len() <= usize::from(Seat::MAX_NODES),
            "{} nodes: a lab has at most {}",
            self.nodes.len(),
            Seat::MAX_NODES
        );
        let name = self.name.map_or_else(anonymous, Ok)?;
        let claim = Claim::new(&name)?;
        let binaries = programs::binaries()?;
        // Shown even where progress is hidden: a build takes minutes, once.
        let assets = upstream::assets(Module::Kubernetes, &self.programs, Progress::shown())?;

        let step = self
            .progress
            .step(format!("machines and control plane of lab {name}"));
        let keeper = Arc::new(Keeper::start(claim.name(), &binaries.join("lab"))?);
        // From here on the keeper holds the name.
        drop(claim);
        underlay::build(&keeper)?;
        let machine = |name: &str, seat| -> Result<Machine> {
            let machine = Machine::start(&keeper, name, &binaries, &assets)?;
            underlay::connect(&machine, seat)?;
            Ok(machine)
        };
        let starting = ControlPlane::start(machine(control_plane::NAME, Seat::ControlPlane)?)?;
        let outside = machine(OUTSIDE, Seat::Outside)?;
        let mut nodes = Vec::new();
        for (spec, index) in self.nodes.iter().zip(0..) {
            let seat = Seat::Node(index);
            nodes.push(Node::new(machine(&spec.name, seat)?, seat));
        }
        let control_plane = starting.wait_ready()?;
        for node in &nodes {
            let kubeconfig = &control_plane.kubeconfig;
            node.machine()
                .write(crate::machine::ADMIN_CONF, kubeconfig)?;
        }
        step.done();

        let base = manifests::base()?;
        let mut lab = Lab {
            net_conf: match self.net_conf {
                Some(net_conf) => net_conf,
                None => manifests::net_conf(&base)?.to_owned(),
            },
            control_plane,
            nodes,
            outside,
            keeper,
        };
        lab.populate(&base, &self.nodes)?;
        let step = self
            .progress
            .step(format!("daemons of {} nodes", self.nodes.len()));
        lab.start_daemons(&self.daemons)?;
        step.done();
        Ok(lab)
    }
}

/// The name of a test's lab.
fn anonymous() -> Result<LabName> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    LabName::new(&format!("t{}-{count}", std::process::id()))
}

impl Lab {
    /// A lab to be started.
    pub fn builder() -> Builder {
        Builder {
            name: None,
            nodes: Vec::new(),
            programs: Program::CONTROL_PLANE.to_vec(),
            daemons: Daemon::ALL.to_vec(),
            net_conf: None,
            progress: Progress::hidden(),
        }
    }

    /// The API, as its administrator.
    pub fn api(&self) -> &ClusterApi {
        &self.control_plane.api
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The nodes, in the order in which they were added.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node is called {name}"))
    }

    /// The client that is no part of the cluster.
    pub fn outside(&self) -> &Machine {
        &self.outside
    }

    /// Lets the lab live on after this process.
    pub fn detach(self) -> Result<()> {
        self.keeper.detach()
    }

    /// Writes a Service, and the EndpointSlice that has these pods as its ready endpoints, as
    /// the endpoint slice controller would. Returns the Service with the addresses it got.
    pub fn expose(&self, service: &impl Serialize, pods: &[&Pod]) -> Result<Service> {
        let service: Service = typed(&self.api().apply(service)?)?;
        let endpoints: Vec<_> = pods
            .iter()
            .flat_map(|pod| {
                pod.ips.iter().filter(|ip| ip.is_ipv4()).map(|ip| Endpoint {
                    address: *ip,
                    node: Some(pod.spec.node.clone()),
                    pod: Some(pod.spec.name.clone()),
                })
            })
            .collect();
        self.api()
            .apply(&objects::endpoint_slice(&service, &endpoints)?)?;
        Ok(service)
    }

    /// Deletes a Service and its EndpointSlices.
    pub fn unexpose(&self, service: &Service) -> Result<()> {
        let (namespace, name) = (service.namespace(), service.name_any());
        for slice in self.api().list::<EndpointSlice>(namespace.as_deref())? {
            if slice.labels().get("kubernetes.io/service-name") == Some(&name) {
                let slice = slice.name_any();
                self.api()
                    .delete::<EndpointSlice>(namespace.as_deref(), &slice)?;
            }
        }
        self.api().delete::<Service>(namespace.as_deref(), &name)
    }

    /// Runs a pod as a kubelet would: its network is attached, its server answers, and its
    /// object says that it is ready.
    pub fn run_pod(&self, spec: PodSpec) -> Result<Pod> {
        let node = self.node(&spec.node)?;
        ensure!(!spec.ports.is_empty(), "{} has no port", spec.name);
        let object = self.api().apply(&spec.object())?;
        let mut sandbox = Sandbox::new(
            node.machine(),
            PodName {
                namespace: spec.namespace.clone(),
                name: spec.name.clone(),
                uid: object.metadata.uid.context("a pod without a UID")?,
            },
        )?;
        let ips = sandbox.attach()?;
        ensure!(!ips.is_empty(), "{} got no address", spec.name);
        let pod = Pod { spec, sandbox, ips };
        pod.serve(node)?;
        self.api().apply(&pod.spec.running(node.ip(), &pod.ips))?;
        Ok(pod)
    }

    /// Ends a pod as a kubelet would.
    pub fn delete_pod(&self, pod: Pod) -> Result<()> {
        let Pod { spec, sandbox, .. } = pod;
        let node = self.node(&spec.node)?;
        let server = format!("{}/{}", spec.node, server_name(&spec));
        let keeper = node.machine().keeper();
        keeper.signal(&server, nix::sys::signal::Signal::SIGKILL)?;
        keeper.wait_ended(&server)?;
        sandbox.remove()?;
        self.api()
            .delete::<PodObject>(Some(&spec.namespace), &spec.name)
    }

    /// Writes the objects that are there before any daemon.
    fn populate(&self, base: &[serde_json::Value], specs: &[NodeSpec]) -> Result<()> {
        for object in base {
            self.api().apply(object)?;
        }
        // Admission wants every pod's account to exist; its controller does not run here.
        for namespace in ["default", "kube-system"] {
            self.api().apply(&json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": namespace},
            }))?;
        }
        for (node, spec) in self.nodes.iter().zip(specs) {
            let object = objects::node(node.name(), &[node.ip(), node.ip6()], &spec.pod_cidrs);
            self.api().apply(&object)?;
        }
        let service: Service = self
            .api()
            .get(Some("default"), "kubernetes")?
            .context("the API server has made no Service for itself")?;
        let mut slice = objects::endpoint_slice(
            &service,
            &[Endpoint {
                address: Seat::ControlPlane.v4().into(),
                node: None,
                pod: None,
            }],
        )?;
        slice["metadata"]["name"] = json!("kubernetes");
        self.api().apply(&slice)?;
        Ok(())
    }

    fn start_daemons(&mut self, daemons: &[Daemon]) -> Result<()> {
        for node in &self.nodes {
            for &daemon in daemons {
                node.provide(daemon, &self.control_plane, &self.net_conf)?;
                node.start(daemon)?;
            }
        }
        for node in &self.nodes {
            for &daemon in daemons {
                node.wait_ready(daemon)?;
            }
        }
        Ok(())
    }
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The node that it is on.
    pub fn node(&self) -> &str {
        &self.spec.node
    }

    /// Its addresses; one at least.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Its first address.
    pub fn ip(&self) -> IpAddr {
        self.ips[0]
    }

    /// Where it answers: its first address and port.
    pub fn address(&self) -> SocketAddr {
        (self.ip(), self.spec.ports[0]).into()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        self.sandbox.netns()
    }

    /// Its sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    fn serve(&self, node: &Node) -> Result<()> {
        let lab = format!("{}/lab", crate::machine::root::BINARIES);
        let path = self.sandbox.path();
        let netns = format!(
            "--net=/proc/{}/root{}",
            node.machine().pid(),
            path.display()
        );
        let ports: Vec<_> = self.spec.ports.iter().map(u16::to_string).collect();
        let mut argv = vec![lab.as_str(), "serve", &self.spec.name];
        argv.extend(ports.iter().map(String::as_str));
        let name = server_name(&self.spec);
        node.machine().spawn_in(&name, &argv, &[], &[&netns])?;
        wait::until(&format!("answer from {name}"), wait::PATIENCE, || {
            Ok(traffic::ask(self.netns(), Transport::Tcp, self.address()))
        })?;
        Ok(())
    }
}

fn server_name(spec: &PodSpec) -> String {
    format!("pod/{}.{}", spec.namespace, spec.name)
}

fn typed<K: serde::de::DeserializeOwned>(object: &impl Serialize) -> Result<K> {
    Ok(serde_json::from_value(serde_json::to_value(object)?)?)
}
