//! A pod of a lab, as its node's kubelet runs it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use hostnet::netns::NetNs;
use k8s_openapi::api::core::v1::Pod as PodObject;
use nix::sys::signal::Signal;

use super::Lab;
use crate::machine::root::BINARIES;
use crate::node::Node;
use crate::objects::PodSpec;
use crate::sandbox::{PodName, Sandbox};
use crate::traffic::{self, Transport};
use crate::wait;

/// A pod that runs on a node of the lab.
pub struct Pod {
    spec: PodSpec,
    sandbox: Sandbox,
    ips: Vec<IpAddr>,
}

impl Lab {
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
        let ips = sandbox.attach(spec.bandwidth)?;
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
        node.machine().stop(&server_name(&spec), Signal::SIGKILL)?;
        sandbox.remove()?;
        self.api()
            .delete::<PodObject>(Some(&spec.namespace), &spec.name)
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
        let lab = format!("{BINARIES}/lab");
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
