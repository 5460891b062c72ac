//! The control plane: one etcd and one kube-apiserver on a machine of their own. What
//! controllers would do (endpoints, default accounts, node health) the lab does itself, so that
//! a test decides when it happens.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::api::ClusterApi;
use crate::machine::root::ASSETS;
use crate::machine::{ADMIN_CONF, Machine};
use crate::underlay::Seat;
use crate::wait;

/// The control plane machine's name.
pub const NAME: &str = "control-plane";

/// Where the API listens on it.
pub const PORT: u16 = 6443;

/// What services get their addresses from.
pub const SERVICE_CIDRS: &str = "10.96.0.0/12,fd00:10:96::/112";

const PKI: &str = "/etc/kubernetes/pki";
/// What ServiceAccounts ask for, each request once.
const AUDIT: &str = r#"{
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "Panic"],
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"}
    ]
}"#;
const TOKENS: &str = "/etc/kubernetes/tokens.csv";

/// Where the API server finds a policy for its audit log, and may write that, if its arguments say so.
pub const AUDIT_POLICY: &str = "/etc/kubernetes/audit.yaml";

/// A control plane that answers.
pub struct ControlPlane {
    /// Its machine.
    pub machine: Machine,
    /// Its API.
    pub api: ClusterApi,
    /// For clients: how to reach it and who they are.
    pub kubeconfig: String,
    /// The certificate authority that its clients trust.
    pub ca: String,
}

/// A control plane whose processes were started.
#[derive(Debug)]
pub struct Starting {
    machine: Machine,
    token: String,
}

impl Starting {
    /// Waits until the API is ready.
    pub fn wait_ready(self) -> Result<ControlPlane> {
        let Starting { machine, token } = self;
        let last_words = || machine.last_words("kube-apiserver");
        let process = format!("{NAME}/kube-apiserver");
        let running = || machine.keeper().running(&process);
        let ca = wait::until("API server's certificate", wait::PATIENCE, || {
            running()?;
            Ok(authority(&machine))
        })
        .with_context(last_words)?;
        let kubeconfig = kubeconfig(&ca, &token)?;
        let api = ClusterApi::new(&kubeconfig, machine.netns())?;
        wait::until("API server", wait::PATIENCE, || {
            running()?;
            Ok(api.get_raw("/readyz").map(drop))
        })
        .with_context(last_words)?;
        machine.write(ADMIN_CONF, &kubeconfig)?;
        Ok(ControlPlane {
            machine,
            api,
            kubeconfig,
            ca,
        })
    }
}

impl ControlPlane {
    /// Starts etcd and the API server, this one with some more arguments.
    pub fn start(machine: Machine, arguments: &[String]) -> Result<Starting> {
        let token = random_token()?;
        machine.write(TOKENS, &format!("{token},admin,admin,system:masters\n"))?;
        start_etcd(&machine)?;
        machine.write(AUDIT_POLICY, AUDIT)?;
        start_api_server(&machine, arguments)?;
        Ok(Starting { machine, token })
    }

    /// Finds a control plane that runs.
    pub fn attach(machine: Machine) -> Result<ControlPlane> {
        let kubeconfig = std::fs::read_to_string(machine.path(ADMIN_CONF))
            .context("the lab has no administrator's kubeconfig")?;
        Ok(ControlPlane {
            api: ClusterApi::new(&kubeconfig, machine.netns())?,
            ca: authority(&machine)?,
            machine,
            kubeconfig,
        })
    }
}

fn start_etcd(machine: &Machine) -> Result<()> {
    let argv = [
        &format!("{ASSETS}/etcd"),
        "--data-dir=/var/lib/etcd/data",
        // The data lies on a tmpfs and dies with the lab.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ];
    machine.spawn("etcd", &argv, &[])
}

/// Starts the API server. It makes its own certificate, signed by an authority that it makes
/// too, and its key also signs the ServiceAccounts' tokens.
fn start_api_server(machine: &Machine, arguments: &[String]) -> Result<()> {
    let mut argv = vec![
        format!("{ASSETS}/kube-apiserver"),
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={}", Seat::ControlPlane.v4()),
        format!("--secure-port={PORT}"),
        format!("--cert-dir={PKI}"),
        format!("--token-auth-file={TOKENS}"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-signing-key-file={PKI}/apiserver.key"),
        format!("--service-account-key-file={PKI}/apiserver.key"),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        "--authorization-mode=RBAC".into(),
        "--endpoint-reconciler-type=none".into(),
        "--allow-privileged=true".into(),
    ];
    argv.extend_from_slice(arguments);
    let argv: Vec<_> = argv.iter().map(String::as_str).collect();
    machine.spawn("kube-apiserver", &argv, &[])
}

/// The authority's certificate: the last in the file that the API server made.
fn authority(machine: &Machine) -> Result<String> {
    let path = format!("{PKI}/apiserver.crt");
    let chain = std::fs::read_to_string(machine.path(&path)).with_context(|| path.clone())?;
    let begin = "-----BEGIN CERTIFICATE-----";
    ensure!(
        chain.matches(begin).count() == 2 && chain.ends_with("-----END CERTIFICATE-----\n"),
        "{path} is not (yet) a certificate and its authority"
    );
    let at = chain.rfind(begin).context("no certificate")?;
    Ok(chain[at..].to_owned())
}

fn kubeconfig(ca: &str, token: &str) -> Result<String> {
    let server = format!("https://{}:{PORT}", Seat::ControlPlane.v4());
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {
            "server": server,
            "certificate-authority-data": data_encoding::BASE64.encode(ca.as_bytes()),
        }}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
    });
    // JSON is YAML.
    Ok(serde_json::to_string_pretty(&kubeconfig)?)
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random bytes")?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
