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
use kube::api::{ApiResource, DynamicObject, ListParams};

use tokio::sync::OnceCell;

use super::api::{ApiServer, COMPONENT, NAMESPACE, missing};
use crate::far;
use crate::onward::{self, Place, Reach};
use crate::status::{DAEMONS, Daemon};

/// To a port of a pod, through the API server and the pod's kubelet.
type Connection = SendRequest<Empty<Bytes>>;

/// What is known of the daemons' pods.
#[derive(Default)]
pub(super) struct Daemons {
    /// Their names, by node and daemon, as one list has told.
    pods: OnceCell<BTreeMap<(String, String), String>>,
    waiting: Waiting,
}

/// Connections that wait for the next question, by node and port. A runtime holds on to one for a second after its end, and
/// a new one takes three servers' work.
#[derive(Default)]
#[expect(
    clippy::disallowed_types,
    reason = "threads that ask many nodes at one time share it, and none waits while it has it"
)]
struct Waiting(std::sync::Mutex<BTreeMap<(String, u16), Connection>>);

impl Waiting {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(String, u16), Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, node: &str, port: u16) -> Option<Connection> {
        self.all().remove(&(node.to_owned(), port))
    }

    fn put(&self, node: &str, port: u16, connection: Connection) {
        self.all().insert((node.to_owned(), port), connection);
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
        let waiting = &self.daemons.waiting;
        // One that waited may be at its end: the next is a new one.
        let answer = match waiting.take(node, port) {
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
                let answer = answer.map_err(|error| format!("port {port}: {error}"))?;
                (answer, connection)
            }
        };
        if far::has_more(target) {
            waiting.put(node, port, connection);
        }
        onward::body(status.as_u16(), &String::from_utf8_lossy(&body))
    }

    /// By the name that one list of all has told, if that is still right.
    async fn connect(&self, node: &str, port: u16) -> Result<Connection, String> {
        let has_port = |daemon: &&Daemon| [daemon.metrics, daemon.health].contains(&port);
        let daemon = DAEMONS.iter().find(has_port).ok_or("no daemon's port")?;
        let of_all = self.daemons.pods.get_or_try_init(|| self.pods("")).await?;
        let key = (node.to_owned(), daemon.name.to_owned());
        if let Some(pod) = of_all.get(&key)
            && let Ok(connection) = self.forward(node, daemon, pod, port).await
        {
            return Ok(connection);
        }
        let of_node = self.pods(&format!(",spec.nodeName={node}")).await?;
        let pod = of_node.get(&key);
        let pod = pod.ok_or_else(|| format!("no pod of {} runs there", daemon.name))?;
        self.forward(node, daemon, pod, port).await
    }

    /// The daemons' pods that run, and of which this holds.
    async fn pods(&self, fields: &str) -> Result<BTreeMap<(String, String), String>, String> {
        // Of a pod little is looked at, and its type is a large one.
        let kind = ApiResource::erase::<Pod>(&());
        let pods: Api<DynamicObject> = Api::namespaced_with(self.patient.clone(), NAMESPACE, &kind);
        let [one, other] = DAEMONS.map(|daemon| daemon.name);
        let params = ListParams::default()
            .labels(&format!("{COMPONENT} in ({one}, {other})"))
            .fields(&format!("status.phase=Running{fields}"));
        let found = pods.list(&params).await;
        let found =
            found.map_err(|error| missing("list", &kind, Some(NAMESPACE), &error).to_string())?;
        let named = found.items.into_iter().filter_map(|pod| {
            let daemon = pod.metadata.labels?.remove(COMPONENT)?;
            let node = pod.data.pointer("/spec/nodeName")?.as_str()?;
            Some(((node.to_owned(), daemon), pod.metadata.name?))
        });
        Ok(named.collect())
    }

    /// To both of its ports: who asks at one often asks at the other, too.
    async fn forward(
        &self,
        node: &str,
        daemon: &Daemon,
        pod: &str,
        port: u16,
    ) -> Result<Connection, String> {
        let pods: Api<Pod> = Api::namespaced(self.patient.clone(), NAMESPACE);
        let ports = [daemon.metrics, daemon.health];
        let forward = pods.portforward(pod, &ports).await;
        let mut forward = forward.map_err(|error| not_forwarded(&error))?;
        let mut wanted = None;
        for of_daemon in ports {
            let stream = forward.take_stream(of_daemon).ok_or("no stream")?;
            let (connection, work) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| format!("port {of_daemon} of {pod}: {error}"))?;
            tokio::spawn(work);
            match of_daemon == port {
                true => wanted = Some(connection),
                false => self.daemons.waiting.put(node, of_daemon, connection),
            }
        }
        wanted.ok_or_else(|| format!("port {port} is none of {}", daemon.name))
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
