//! A node: a machine with the daemons that Twill runs on it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use hostnet::vocab::names::{CNI_NETWORK, CNI_TYPE, SUBNET_ENV};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::control_plane::{self, ControlPlane};
use crate::http;
use crate::machine::root::{ASSETS, BINARIES};
use crate::machine::{ADMIN_CONF, Machine};
use crate::progress::Progress;
use crate::underlay::{self, Seat};
use crate::upstream::{self, Module, Program};
use crate::wait;
use crate::workload::Container;

const NAMESPACE: &str = "kube-system";

/// Where flanneld's pod has its configuration mounted.
const NET_CONF: &str = "/etc/kube-flannel/net-conf.json";

/// Where upstream's flannel is put.
const FLANNEL: &str = "/usr/local/bin/flannel";

/// A daemon of Twill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// Subnets and routes between nodes.
    Flanneld,
    /// Services.
    Proxy,
}

impl Daemon {
    /// Both, in the order in which they are started.
    pub const ALL: [Daemon; 2] = [Daemon::Flanneld, Daemon::Proxy];

    /// The binary's name, and the ServiceAccount's.
    pub fn name(self) -> &'static str {
        match self {
            Daemon::Flanneld => "flanneld",
            Daemon::Proxy => "twill-proxy",
        }
    }

    /// What it answers 200 to once it has done its work.
    fn readiness(self) -> (u16, &'static str) {
        match self {
            Daemon::Flanneld => (8081, "/readyz"),
            Daemon::Proxy => (10256, "/healthz"),
        }
    }

    fn metrics_port(self) -> u16 {
        match self {
            Daemon::Flanneld => 8082,
            Daemon::Proxy => 10249,
        }
    }
}

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct Node {
    machine: Machine,
    seat: Seat,
}

impl Node {
    pub(crate) fn new(machine: Machine, seat: Seat) -> Node {
        Node { machine, seat }
    }

    /// Its machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The command line of a proxy of this node, ours or kube-proxy, that a test runs beside or in place of the other.
    pub fn proxy_argv(&self, program: &str, mode: &str) -> Vec<String> {
        let is_ours = program == Daemon::Proxy.name();
        let folder = if is_ours { BINARIES } else { ASSETS };
        let mut argv = vec![
            format!("{folder}/{program}"),
            format!("--proxy-mode={mode}"),
            format!("--kubeconfig={ADMIN_CONF}"),
            format!("--hostname-override={}", self.name()),
            "--cluster-cidr=10.244.0.0/16".to_owned(),
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-min=0".to_owned(),
        ];
        if !is_ours {
            // These switches are the machine's, not the node's.
            argv.push("--conntrack-tcp-timeout-established=0".to_owned());
            argv.push("--conntrack-tcp-timeout-close-wait=0".to_owned());
        }
        argv
    }

    /// Its name, as machine and as Node object.
    pub fn name(&self) -> &str {
        self.machine.name()
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> IpAddr {
        self.seat.v4().into()
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        self.seat.v6().into()
    }

    /// Gives a daemon what its pod would mount: the ServiceAccount's token, made by the API for
    /// this purpose, the cluster's CA, and the configuration.
    pub fn provide(
        &self,
        daemon: Daemon,
        control_plane: &ControlPlane,
        net_conf: &str,
    ) -> Result<()> {
        let token = token(control_plane, daemon.name())?;
        let account = account_dir(daemon);
        self.machine.write(&format!("{account}/token"), &token)?;
        self.machine
            .write(&format!("{account}/ca.crt"), &control_plane.ca)?;
        self.machine
            .write(&format!("{account}/namespace"), NAMESPACE)?;
        if daemon == Daemon::Flanneld {
            self.machine.write(NET_CONF, net_conf)?;
        }
        Ok(())
    }

    /// Starts a daemon as its DaemonSet's pod. It must have been [provided](Node::provide) for.
    pub fn start(&self, daemon: Daemon) -> Result<()> {
        self.start_with(daemon, &[])
    }

    /// Starts a daemon with further arguments.
    pub fn start_with(&self, daemon: Daemon, further: &[&str]) -> Result<()> {
        let name = daemon.name();
        let lab = format!("{BINARIES}/lab");
        let binary = format!("{BINARIES}/{name}");
        let account = account_dir(daemon);
        let container = Container::of(name)?;
        let host = Seat::ControlPlane.v4().to_string();
        let env = [
            ("KUBERNETES_SERVICE_HOST", host.as_str()),
            ("KUBERNETES_SERVICE_PORT", &control_plane::PORT.to_string()),
            ("NODE_NAME", self.name()),
            ("POD_NAME", &format!("{name}-{}", self.name())),
            ("POD_NAMESPACE", NAMESPACE),
        ];
        let mut argv = vec![lab, "container".into(), format!("--account={account}")];
        argv.push(format!("--capabilities={}", container.capabilities));
        argv.extend(
            container
                .mounts
                .iter()
                .map(|mount| format!("--mount={mount}")),
        );
        argv.extend(["--".to_owned(), binary]);
        argv.extend(container.expand(&env));
        argv.extend(further.iter().map(|&argument| argument.to_owned()));
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        self.machine.spawn(name, &argv, &env)
    }

    /// Starts upstream's flannel in flanneld's place, with the CNI configuration that its
    /// installation writes, but for the plugin's type. Its log and its process are named `flannel`.
    pub fn start_flannel(&self, net_conf: &str) -> Result<()> {
        let built = upstream::assets(Module::Flannel, &[Program::Flannel], Progress::shown())?;
        let (name, machine) = (Program::Flannel.name(), &self.machine);
        std::fs::copy(built.join(name), machine.path(FLANNEL))
            .with_context(|| format!("cannot bring {name} to {}", self.name()))?;
        machine.write(NET_CONF, net_conf)?;
        machine.write(
            "/etc/cni/net.d/10-flannel.conflist",
            &json!({"name": CNI_NETWORK, "cniVersion": "0.3.1", "plugins": [
                {"type": CNI_TYPE, "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
            ]})
            .to_string(),
        )?;
        let kubeconfig = format!("--kubeconfig-file={ADMIN_CONF}");
        let argv = [FLANNEL, &kubeconfig, "--ip-masq"];
        machine.spawn(name, &argv, &[("NODE_NAME", self.name())])?;
        wait::until("subnet of flannel", wait::PATIENCE, || {
            machine
                .keeper()
                .running(&format!("{}/{name}", self.name()))?;
            let written = machine.path(SUBNET_ENV).exists();
            Ok(wait::holds(written, "subnet.env is not there"))
        })
        .with_context(|| machine.last_words(name))
    }

    /// Waits until a running daemon says that it is ready.
    pub fn wait_ready(&self, daemon: Daemon) -> Result<()> {
        let (port, path) = daemon.readiness();
        let name = self.process(daemon);
        wait::until(&format!("readiness of {name}"), wait::PATIENCE, || {
            self.machine.keeper().running(&name)?;
            let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let response = http::get(self.machine.netns(), server, path);
            Ok(response.and_then(|response| {
                wait::holds(
                    response.status == 200,
                    &format!("{path}: {}", response.body.trim()),
                )
            }))
        })
        .with_context(|| self.machine.last_words(daemon.name()))
    }

    /// Sends a signal to a running daemon and waits for its end.
    pub fn stop(&self, daemon: Daemon, signal: Signal) -> Result<()> {
        self.machine.stop(daemon.name(), signal)
    }

    /// What a running daemon answers to `/metrics`.
    pub fn metrics(&self, daemon: Daemon) -> Result<String> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, daemon.metrics_port()));
        let response = http::get(self.machine.netns(), server, "/metrics")?;
        ensure!(response.status == 200, "/metrics: {}", response.body);
        Ok(response.body)
    }

    /// Waits until flanneld has programmed `count` peers in each of `families` (`ipv4`, `ipv6`). A
    /// node is ready once it has those that it knows; who comes later is news to it.
    pub fn wait_peers(&self, families: &[&str], count: usize) -> Result<()> {
        let name = self.process(Daemon::Flanneld);
        wait::until("peers", wait::PATIENCE, || {
            self.machine.keeper().running(&name)?;
            Ok(self.metrics(Daemon::Flanneld).and_then(|metrics| {
                let there = families.iter().all(|family| {
                    let line = format!("flanneld_peers{{family=\"{family}\"}} {count}");
                    metrics.lines().any(|it| it == line)
                });
                wait::holds(there, &metrics)
            }))
        })
        .with_context(|| self.machine.last_words(Daemon::Flanneld.name()))
    }

    /// What a daemon has logged so far.
    pub fn log(&self, daemon: Daemon) -> String {
        std::fs::read_to_string(self.machine.log(daemon.name())).unwrap_or_default()
    }

    /// Pulls the node's cable to the underlay, or plugs it in again.
    pub fn set_cable(&self, plugged: bool) -> Result<()> {
        underlay::set_cable(self.machine.keeper(), self.seat, plugged)
    }

    fn process(&self, daemon: Daemon) -> String {
        format!("{}/{}", self.name(), daemon.name())
    }
}

fn account_dir(daemon: Daemon) -> String {
    format!("/var/lib/kubelet/accounts/{}", daemon.name())
}

fn token(control_plane: &ControlPlane, account: &'static str) -> Result<String> {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            // A lab that is kept is used for a day at most.
            expiration_seconds: Some(24 * 3600),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = control_plane.api.call(async move |client| {
        Api::<ServiceAccount>::namespaced(client, NAMESPACE)
            .create_token_request(account, &PostParams::default(), &request)
            .await
    });
    let answer = answer.with_context(|| format!("no token for ServiceAccount {account}"))?;
    Ok(answer
        .status
        .context("a token request without a token")?
        .token)
}
