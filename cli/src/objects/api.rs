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
use tokio::runtime::Runtime;

use super::forward::Daemons;
use super::{Missing, Source, resource};

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
    pub(super) runtime: Arc<Runtime>,
    client: Client,
    /// For what daemons are asked: each answer has its own time.
    pub(super) patient: Client,
    pub(super) daemons: Arc<Daemons>,
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
            daemons: Arc::default(),
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
pub(super) const NAMESPACE: &str = "kube-system";
pub(super) const COMPONENT: &str = "app.kubernetes.io/component";

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

pub(super) fn missing(
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
