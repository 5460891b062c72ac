//! The API as the cluster's administrator uses it, in blocking calls.

use std::sync::Arc;

use anyhow::{Context, Result};
use hostnet::netns::NetNs;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, TypeMeta,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::runtime::Runtime;

/// Who the lab is to the API server (server-side apply's field manager).
const MANAGER: &str = "twill-lab";

/// The cluster's API, with every right.
#[derive(Clone)]
pub struct ClusterApi {
    runtime: Arc<Runtime>,
    client: Client,
}

impl ClusterApi {
    /// A client that lives in `netns` (its threads do, so its sockets do), with the server and
    /// the identity of a kubeconfig.
    pub fn new(kubeconfig: &str, netns: &NetNs) -> Result<ClusterApi> {
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig).context("the lab's kubeconfig")?;
        let netns = netns.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || netns.enter().expect("root may enter a lab's namespace"))
            .build()
            .context("cannot start a runtime for the API client")?;
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            anyhow::Ok(Client::try_from(config)?)
        });
        Ok(ClusterApi {
            client: client.context("the lab's kubeconfig")?,
            runtime: Arc::new(runtime),
        })
    }

    /// Runs what needs more than the calls below, to its end.
    pub fn call<F>(&self, call: impl FnOnce(Client) -> F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        // As a task of its own it runs on the runtime's threads, which are in the namespace.
        let task = self.runtime.spawn(call(self.client.clone()));
        match self.runtime.block_on(task) {
            Ok(output) => output,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Asks the server for a path, such as `/readyz`.
    pub fn get_raw(&self, path: &str) -> Result<String> {
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(self.call(async move |client| client.request_text(request).await)?)
    }

    /// Writes an object by server-side apply, and its status too if it has one. Objects are
    /// given as JSON, YAML documents or typed: whatever names its apiVersion and kind.
    pub fn apply(&self, object: &impl Serialize) -> Result<DynamicObject> {
        let object = serde_json::to_value(object).context("not an object")?;
        let meta: TypeMeta = serde_json::from_value(object.clone())
            .context("an object without apiVersion or kind")?;
        let mut object: DynamicObject = serde_json::from_value(object)?;
        let status = object
            .data
            .as_object_mut()
            .and_then(|data| data.remove("status"));
        let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(&meta)?);
        let name = object
            .metadata
            .name
            .clone()
            .context("an object without a name")?;
        let what = format!("cannot apply {} {name}", meta.kind);
        let applied = self.call(async move |client| {
            let api = api_of(client, object.metadata.namespace.as_deref(), &kind);
            let params = PatchParams::apply(MANAGER).force();
            let applied = api.patch(&name, &params, &Patch::Apply(&object)).await?;
            match status {
                // Not applied: a Node's addresses of two families are one key to apply.
                Some(status) => {
                    let patch = Patch::Merge(json!({ "status": status }));
                    api.patch_status(&name, &PatchParams::default(), &patch)
                        .await
                }
                None => Ok(applied),
            }
        });
        applied.context(what)
    }

    /// Reads an object.
    pub fn get<K>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let (namespace, of_name) = (namespace.map(str::to_owned), name.to_owned());
        let found = self.call(async move |client| {
            api_of(client, namespace.as_deref(), &ApiResource::erase::<K>(&()))
                .get_opt(&of_name)
                .await
        });
        let found = found.with_context(|| format!("cannot get {} {name}", K::kind(&())))?;
        Ok(found.map(typed).transpose()?)
    }

    /// Reads all objects of a kind, in one namespace or in all.
    pub fn list<K>(&self, namespace: Option<&str>) -> Result<Vec<K>>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let namespace = namespace.map(str::to_owned);
        let found = self.call(async move |client| {
            api_of(client, namespace.as_deref(), &ApiResource::erase::<K>(&()))
                .list(&ListParams::default())
                .await
        });
        let found = found.with_context(|| format!("cannot list {}", K::plural(&())))?;
        Ok(found
            .items
            .into_iter()
            .map(typed)
            .collect::<Result<_, _>>()?)
    }

    /// Deletes an object at once; one that is not there is an error.
    pub fn delete<K>(&self, namespace: Option<&str>, name: &str) -> Result<()>
    where
        K: Resource<DynamicType = ()>,
    {
        let (namespace, of_name) = (namespace.map(str::to_owned), name.to_owned());
        let deleted = self.call(async move |client| {
            let params = DeleteParams::default().grace_period(0);
            api_of(client, namespace.as_deref(), &ApiResource::erase::<K>(&()))
                .delete(&of_name, &params)
                .await
        });
        deleted.with_context(|| format!("cannot delete {} {name}", K::kind(&())))?;
        Ok(())
    }
}

fn api_of(client: Client, namespace: Option<&str>, kind: &ApiResource) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, kind),
        None => Api::all_with(client, kind),
    }
}

fn typed<K: DeserializeOwned>(object: DynamicObject) -> serde_json::Result<K> {
    serde_json::to_value(object).and_then(serde_json::from_value)
}
