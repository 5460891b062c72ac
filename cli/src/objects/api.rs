//! The API server: found as kubectl finds it, asked in blocking calls.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::runtime::Runtime;

use super::{Missing, Source};

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

/// A client of the API server.
pub struct ApiServer {
    runtime: Runtime,
    client: Client,
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
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
        let kubeconfig = match &wanted.kubeconfig {
            Some(path) => Some(
                Kubeconfig::read_from(path)
                    .with_context(|| format!("--kubeconfig {}", path.display()))?,
            ),
            None => match Kubeconfig::from_env().context("KUBECONFIG")? {
                None => match home.filter(|path| path.exists()) {
                    Some(path) => Some(
                        Kubeconfig::read_from(&path).with_context(|| path.display().to_string())?,
                    ),
                    None => None,
                },
                some => some,
            },
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
        config.read_timeout = Some(PATIENCE);
        // Making a client needs a runtime's context for its timers.
        let client = runtime.block_on(async { Client::try_from(config) });
        Ok(Some(ApiServer {
            client: client.context("kubeconfig")?,
            runtime,
        }))
    }

    fn api(&self, kind: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, kind),
            None => Api::all_with(self.client.clone(), kind),
        }
    }

    /// Runs what needs the client itself, to its end.
    pub fn run<F: Future>(&self, work: impl FnOnce(Client) -> F) -> F::Output {
        self.runtime.block_on(work(self.client.clone()))
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
            resource: match kind.group.as_str() {
                "" => kind.plural.clone(),
                group => format!("{}.{group}", kind.plural),
            },
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
