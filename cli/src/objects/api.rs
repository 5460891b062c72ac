//! The API server: found as kubectl finds it, asked in blocking calls.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, ListParams, LogParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

use super::{Missing, Source, resource};
use crate::onward::{self, Place, Reach};
use crate::status;

/// How long a silent server is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which API server is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// A kubeconfig that must be there.
    pub kubeconfig: Option<PathBuf>,
    /// Its context, if not the current one.
    pub context: Option<String>,
}

/// A client of the API server. Clones share it.
#[derive(Clone)]
pub struct ApiServer {
    runtime: Arc<Runtime>,
    client: Client,
    /// For what daemons are asked: each answer has its own time.
    patient: Client,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Looks for it as kubectl does: the given kubeconfig, those of `KUBECONFIG`, `~/.kube/config`, and the variables
    /// of a pod. `None` if there is none of them.
    ///
    /// # Errors
    /// One that is there cannot be used.
    pub fn find(wanted: &Wanted) -> anyhow::Result<Option<ApiServer>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime")?;
        let options = KubeConfigOptions {
            context: wanted.context.clone(),
            ..KubeConfigOptions::default()
        };
        let kubeconfig = match &wanted.kubeconfig {
            Some(path) => Some(
                Kubeconfig::read_from(path)
                    .with_context(|| format!("--kubeconfig {}", path.display()))?,
            ),
            None => Kubeconfig::from_env()
                .context("KUBECONFIG")?
                .map_or_else(at_home, |found| Ok(Some(found)))?,
        };
        let is_in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let mut config = match kubeconfig {
            Some(kubeconfig) => runtime
                .block_on(Config::from_custom_kubeconfig(kubeconfig, &options))
                .context("kubeconfig")?,
            None if is_in_pod => Config::incluster().context("this pod's account")?,
            None => return Ok(None),
        };
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = None;
        let patient = config.clone();
        config.read_timeout = Some(PATIENCE);
        // Making a client needs a runtime's context for its timers.
        let client = |config| runtime.block_on(async { Client::try_from(config) });
        Ok(Some(ApiServer {
            client: client(config).context("kubeconfig")?,
            patient: client(patient).context("kubeconfig")?,
            runtime: Arc::new(runtime),
        }))
    }

    fn api(&self, kind: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, kind),
            None => Api::all_with(self.client.clone(), kind),
        }
    }
}

/// `~/.kube/config`, if it is there.
fn at_home() -> anyhow::Result<Option<Kubeconfig>> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    home.filter(|path| path.exists())
        .map(|path| Kubeconfig::read_from(&path).with_context(|| path.display().to_string()))
        .transpose()
}

/// Where Twill's daemons are, and the label that says which.
const NAMESPACE: &str = "kube-system";
const COMPONENT: &str = "app.kubernetes.io/component";

/// By `pods/portforward`: the right to that verb is the permission.
impl Reach for ApiServer {
    fn get(&self, node: &Place, port: u16, target: &str) -> Result<String, String> {
        let name = node
            .name
            .as_deref()
            .ok_or("its name is not known, so that its daemons cannot be found")?;
        let daemon = match port {
            onward::PORT | status::FLANNELD_HEALTH => "flanneld",
            _ => "twill-proxy",
        };
        let pods: Api<Pod> = Api::namespaced(self.patient.clone(), NAMESPACE);
        let params = ListParams::default()
            .labels(&format!("{COMPONENT}={daemon}"))
            .fields(&format!("spec.nodeName={name},status.phase=Running"));
        let asked = async {
            let found = pods.list_metadata(&params).await;
            let found = found.map_err(|error| {
                let kind = ApiResource::erase::<Pod>(&());
                missing("list", &kind, Some(NAMESPACE), &error).to_string()
            })?;
            let pod = found.items.into_iter().find_map(|pod| pod.metadata.name);
            let pod = pod.ok_or_else(|| format!("no pod of {daemon} runs there"))?;
            let mut forward =
                (pods.portforward(&pod, &[port]).await).map_err(|error| not_forwarded(&error))?;
            let mut stream = forward.take_stream(port).ok_or("no stream")?;
            let io = |error: std::io::Error| format!("port {port} of {pod}: {error}");
            stream
                .write_all(onward::request(target).as_bytes())
                .await
                .map_err(io)?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.map_err(io)?;
            onward::body(port, &text)
        };
        let patience = onward::patience(target);
        let limited = async { tokio::time::timeout(patience, asked).await };
        self.runtime
            .block_on(limited)
            .unwrap_or_else(|_| Err(format!("no answer within {} s", patience.as_secs())))
    }
}

impl ApiServer {
    /// The last lines of what Twill's daemons have logged, by the names of their pods.
    ///
    /// # Errors
    /// Their pods cannot be listed.
    pub fn logs_of_daemons(&self, lines: usize) -> Result<Vec<(String, String)>, String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let kind = ApiResource::erase::<Pod>(&());
        let failed = |verb, error| missing(verb, &kind, Some(NAMESPACE), &error).to_string();
        let params =
            ListParams::default().labels(&format!("{COMPONENT} in (flanneld, twill-proxy)"));
        let of_pod = LogParams {
            tail_lines: i64::try_from(lines).ok(),
            ..LogParams::default()
        };
        self.runtime.block_on(async {
            let found = pods.list_metadata(&params).await;
            let found = found.map_err(|error| failed("list", error))?;
            let mut logs = Vec::new();
            for pod in found.items.into_iter().filter_map(|pod| pod.metadata.name) {
                let log = pods.logs(&pod, &of_pod).await;
                logs.push((pod, log.unwrap_or_else(|error| failed("get", error))));
            }
            Ok(logs)
        })
    }
}

fn not_forwarded(error: &kube::Error) -> String {
    use kube::client::UpgradeConnectionError::ProtocolSwitch;
    match error {
        kube::Error::UpgradeConnection(ProtocolSwitch(code)) if code.as_u16() == 403 => {
            format!("no right to get and create pods/portforward in namespace {NAMESPACE}")
        }
        error => missing(
            "get",
            &ApiResource::erase::<Pod>(&()),
            Some(NAMESPACE),
            error,
        )
        .to_string(),
    }
}

impl Source for ApiServer {
    fn get(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<DynamicObject>, Missing> {
        let api = self.api(kind, namespace);
        let found = self.runtime.block_on(api.get_opt(name));
        found.map_err(|error| missing("get", kind, namespace, &error))
    }

    fn list(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        label: Option<(&str, &str)>,
    ) -> Result<Vec<DynamicObject>, Missing> {
        let api = self.api(kind, namespace);
        let params = match label {
            Some((key, value)) => ListParams::default().labels(&format!("{key}={value}")),
            None => ListParams::default(),
        };
        let found = self.runtime.block_on(api.list(&params));
        Ok(found
            .map_err(|error| missing("list", kind, namespace, &error))?
            .items)
    }
}

fn missing(
    verb: &'static str,
    kind: &ApiResource,
    namespace: Option<&str>,
    error: &kube::Error,
) -> Missing {
    match error {
        kube::Error::Api(status) if status.code == 403 => Missing::Forbidden {
            verb,
            resource: resource(kind),
            namespace: namespace.map(str::to_owned),
        },
        kube::Error::Api(status) if status.code == 401 => {
            Missing::Silent(format!("it does not know us: {}", status.message))
        }
        error => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                text += &format!(": {cause}");
                source = cause.source();
            }
            Missing::Silent(text)
        }
    }
}
