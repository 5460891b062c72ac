//! Starting a lab: what it is to be, and how it gets there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use hostnet::vocab::Subnet;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::{Lab, OUTSIDE};
use crate::control_plane::{self, ControlPlane};
use crate::keeper::Keeper;
use crate::machine::{ADMIN_CONF, Machine};
use crate::node::{Daemon, Node};
use crate::objects::{self, Endpoint};
use crate::progress::Progress;
use crate::registry::{Claim, LabName};
use crate::underlay::{self, Seat};
use crate::upstream::{self, Module, Program};
use crate::{manifests, programs, wait};

/// What a lab is to be.
#[derive(Debug)]
pub struct Builder {
    name: Option<LabName>,
    nodes: Vec<NodeSpec>,
    programs: Vec<Program>,
    daemons: Vec<Daemon>,
    arguments: Vec<(Daemon, Vec<String>)>,
    api_server: Vec<String>,
    net_conf: Option<String>,
    progress: Progress,
}

#[derive(Debug)]
struct NodeSpec {
    name: String,
    pod_cidrs: Vec<Subnet>,
}

impl Builder {
    pub(super) fn new() -> Builder {
        Builder {
            name: None,
            nodes: Vec::new(),
            programs: Program::CONTROL_PLANE.to_vec(),
            daemons: Daemon::ALL.to_vec(),
            arguments: Vec::new(),
            api_server: Vec::new(),
            net_conf: None,
            progress: Progress::hidden(),
        }
    }

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

    /// Further arguments of a daemon.
    pub fn arguments(mut self, daemon: Daemon, arguments: &[&str]) -> Builder {
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        self.arguments.push((daemon, arguments.collect()));
        self
    }

    /// Further arguments of the API server.
    pub fn api_server(mut self, arguments: &[String]) -> Builder {
        self.api_server.extend_from_slice(arguments);
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

    /// Starts the lab: until the daemons of every node are ready and know all other nodes, or until
    /// the first failure, after which nothing is left.
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
        let machine_of_api = machine(control_plane::NAME, Seat::ControlPlane)?;
        let starting = ControlPlane::start(machine_of_api, &self.api_server)?;
        let outside = machine(OUTSIDE, Seat::Outside)?;
        let mut nodes = Vec::new();
        for (spec, index) in self.nodes.iter().zip(0..) {
            let seat = Seat::Node(index);
            nodes.push(Node::new(machine(&spec.name, seat)?, seat));
        }
        let control_plane = starting.wait_ready()?;
        for node in &nodes {
            let kubeconfig = &control_plane.kubeconfig;
            node.machine().write(ADMIN_CONF, kubeconfig)?;
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
        lab.start_daemons(&self.daemons, &self.arguments)?;
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
    /// Writes the objects that are there before any daemon.
    fn populate(&self, base: &[Value], specs: &[NodeSpec]) -> Result<()> {
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
        // The API server makes it a little after it calls itself ready.
        let service = wait::until("Service of the API server", wait::PATIENCE, || {
            let service: Option<Service> = self.api().get(Some("default"), "kubernetes")?;
            Ok(service.context("there is none yet"))
        })?;
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

    fn start_daemons(
        &mut self,
        daemons: &[Daemon],
        arguments: &[(Daemon, Vec<String>)],
    ) -> Result<()> {
        let further = |daemon| -> Vec<&str> {
            (arguments.iter())
                .filter(|(of, _)| *of == daemon)
                .flat_map(|(_, arguments)| arguments.iter().map(String::as_str))
                .collect()
        };
        for node in &self.nodes {
            for &daemon in daemons {
                node.provide(daemon, &self.control_plane, &self.net_conf)?;
                node.start_with(daemon, &further(daemon))?;
            }
        }
        for node in &self.nodes {
            for &daemon in daemons {
                node.wait_ready(daemon)?;
            }
        }
        if daemons.contains(&Daemon::Flanneld) {
            let families = manifests::families(&self.net_conf)?;
            for node in &self.nodes {
                node.wait_peers(&families, self.nodes.len() - 1)?;
            }
        }
        Ok(())
    }
}
