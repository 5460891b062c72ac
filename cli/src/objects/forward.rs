//! The daemons of other nodes, asked by `pods/portforward`: the right to that verb is the permission.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ApiResource, ListParams};

use super::api::{ApiServer, COMPONENT, NAMESPACE, missing};
use crate::onward::{self, Place, Reach};
use crate::status;

/// To a port of a pod, through the API server and the pod's kubelet.
type Connection = SendRequest<Empty<Bytes>>;

/// Connections that wait for the next question. A runtime holds on to one for a second after its end, and a new one takes
/// three servers' work.
#[derive(Default)]
#[expect(
    clippy::disallowed_types,
    reason = "threads that ask many nodes at one time share it, and none waits while it has it"
)]
pub(super) struct Connections(std::sync::Mutex<BTreeMap<(String, u16), Connection>>);

impl Connections {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(String, u16), Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reach for ApiServer {
    fn get(&self, node: &Place, port: u16, target: &str) -> Result<String, String> {
        let name = node
            .name
            .as_deref()
            .ok_or("its name is not known, so that its daemons cannot be found")?;
        let patience = onward::patience(target);
        let asked = self.ask_daemon(name, port, target);
        let limited = async { tokio::time::timeout(patience, asked).await };
        self.runtime
            .block_on(limited)
            .unwrap_or_else(|_| Err(format!("no answer within {} s", patience.as_secs())))
    }
}

impl ApiServer {
    async fn ask_daemon(&self, node: &str, port: u16, target: &str) -> Result<String, String> {
        let key = (node.to_owned(), port);
        // One that waited may be at its end: the next is a new one.
        let waiting = self.connections.all().remove(&key);
        let answer = match waiting {
            Some(mut connection) => ask(&mut connection, target)
                .await
                .ok()
                .zip(Some(connection)),
            None => None,
        };
        let ((status, body), connection) = match answer {
            Some(answer) => answer,
            None => {
                let mut connection = self.connect(node, port).await?;
                let answer = ask(&mut connection, target).await;
                (
                    answer.map_err(|error| format!("port {port}: {error}"))?,
                    connection,
                )
            }
        };
        self.connections.all().insert(key, connection);
        onward::body(status.as_u16(), &String::from_utf8_lossy(&body))
    }

    async fn connect(&self, node: &str, port: u16) -> Result<Connection, String> {
        let daemon = match port {
            onward::PORT | status::FLANNELD_HEALTH => "flanneld",
            _ => "twill-proxy",
        };
        let pods: Api<Pod> = Api::namespaced(self.patient.clone(), NAMESPACE);
        let params = ListParams::default()
            .labels(&format!("{COMPONENT}={daemon}"))
            .fields(&format!("spec.nodeName={node},status.phase=Running"));
        let found = pods.list_metadata(&params).await;
        let found = found.map_err(|error| {
            let kind = ApiResource::erase::<Pod>(&());
            missing("list", &kind, Some(NAMESPACE), &error).to_string()
        })?;
        let pod = found.items.into_iter().find_map(|pod| pod.metadata.name);
        let pod = pod.ok_or_else(|| format!("no pod of {daemon} runs there"))?;
        let forward = pods.portforward(&pod, &[port]).await;
        let mut forward = forward.map_err(|error| not_forwarded(&error))?;
        let stream = forward.take_stream(port).ok_or("no stream")?;
        let (connection, work) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("port {port} of {pod}: {error}"))?;
        tokio::spawn(work);
        Ok(connection)
    }
}

async fn ask(connection: &mut Connection, target: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    connection.ready().await?;
    let request = Request::get(target).header(HOST, "localhost");
    let response = connection.send_request(request.body(Empty::new())?).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
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
