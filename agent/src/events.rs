//! Event objects: what a cluster's user shall find in `kubectl describe`, beside the log.
//!
//! [`Recorder::publish`] only puts a [`Notice`] into a short queue; a task of its own sends it, so no slow or absent API
//! server is in a loop's way. The same matter told again within minutes is counted on the Event that is there (as
//! `kubectl` shows: `x5 over 2m`), and a flood of different ones is cut: an Event is a hint, never a record.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder as Sender, Reporter},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// How many notices wait for the API server; more are dropped.
const QUEUE: usize = 64;

/// How many Events go out in one go, and how long it takes until one more may.
const BURST: u32 = 32;
const REFILL: Duration = Duration::from_secs(5);

/// After how long an Event is sent once more, if the API server could not be reached.
const AGAIN: Duration = Duration::from_secs(1);

/// The longest note that the API server takes is 1024 bytes (`events.k8s.io/v1`).
const MAX_NOTE: usize = 1000;

/// Something that a user should know of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// Something is wrong; else it is only worth knowing.
    pub warning: bool,
    /// Why, in one CamelCase word, such as `SubnetConflict`.
    pub reason: &'static str,
    /// What was done or tried, in one CamelCase word, such as `ClaimSubnet`.
    pub action: &'static str,
    /// For a person: what is the matter, and what to do.
    pub note: String,
    /// The object that it is about.
    pub regarding: ObjectReference,
    /// A second object that has to do with it.
    pub related: Option<ObjectReference>,
}

impl Notice {
    /// About what the API server does not let a daemon watch, in the words of the log.
    #[must_use]
    pub fn refused(error: &str, regarding: ObjectReference) -> Self {
        Self {
            warning: true,
            reason: "MissingPermission",
            action: "Watch",
            note: error.to_owned(),
            regarding,
            related: None,
        }
    }
}

/// A reference to a Node.
#[must_use]
pub fn node(name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: Some(uid.into()).filter(|uid: &String| !uid.is_empty()),
        ..ObjectReference::default()
    }
}

/// Takes notices. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Recorder(mpsc::Sender<Notice>);

impl Recorder {
    /// Starts the task that sends. `controller` is the program's name, `instance` this one of it (its node). The task
    /// ends when all clones are gone.
    #[must_use]
    pub fn start(client: Client, controller: &str, instance: &str) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        let reporter = Reporter {
            controller: controller.into(),
            instance: Some(instance.into()),
        };
        tokio::spawn(send_all(Sender::new(client, reporter), queue));
        Self(sender)
    }

    /// Hands over a notice, and returns at once. It is dropped if too many wait.
    pub fn publish(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            tracing::debug!(%error, "an Event was dropped");
        }
    }
}

async fn send_all(sender: Sender, mut queue: mpsc::Receiver<Notice>) {
    let mut allowance = Allowance::new();
    let mut complaint: Option<String> = None;
    while let Some(notice) = queue.recv().await {
        if !allowance.take() {
            tracing::debug!(
                note = notice.note,
                "an Event was left out: too many of them"
            );
            continue;
        }
        let event = event(&notice);
        let mut result = sender.publish(&event, &notice.regarding).await;
        // What changes a network may break the connection that would tell of it.
        if result
            .as_ref()
            .is_err_and(|error| !matches!(error, kube::Error::Api(_)))
        {
            sleep_until(Instant::now() + AGAIN).await;
            result = sender.publish(&event, &notice.regarding).await;
        }
        let trouble = result.err().map(|error| crate::client::explain(&error));
        // Once for each kind of trouble: what is lost is a hint, and it is in the log already.
        if trouble != complaint {
            if let Some(error) = &trouble {
                tracing::warn!(error, "Events cannot be written; going on without");
            }
            complaint = trouble;
        }
    }
}

fn event(notice: &Notice) -> Event {
    let mut note = notice.note.clone();
    if note.len() > MAX_NOTE {
        note.truncate(note.floor_char_boundary(MAX_NOTE));
        note.push('…');
    }
    Event {
        type_: if notice.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: notice.reason.into(),
        note: Some(note),
        action: notice.action.into(),
        secondary: notice.related.clone(),
    }
}

/// A bucket of tokens.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self {
            left: BURST,
            since: Instant::now(),
        }
    }

    fn take(&mut self) -> bool {
        let periods = self.since.elapsed().as_millis() / REFILL.as_millis();
        if let Ok(periods) = u32::try_from(periods)
            && periods > 0
        {
            self.left = self.left.saturating_add(periods).min(BURST);
            self.since = Instant::now();
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use hyper::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::service_fn;

    /// A client whose server hands each request to a channel, and answers with the status and what came in.
    fn client(status: u16) -> (Client, mpsc::UnboundedReceiver<(String, Value)>) {
        let (sender, requests) = mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<Body>| {
            let sender = sender.clone();
            async move {
                let line = format!("{} {}", request.method(), request.uri().path());
                let body = request.into_body().collect().await?.to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap();
                let answer = match status {
                    200 => body.to_string(),
                    _ => json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "code": status, "reason": "Forbidden", "message": "events is forbidden"})
                    .to_string(),
                };
                sender.send((line, body)).unwrap();
                let response = Response::builder().status(status);
                Ok::<_, kube::Error>(response.body(Body::from(answer.into_bytes())).unwrap())
            }
        });
        (Client::new(service, "default"), requests)
    }

    fn notice(reason: &'static str) -> Notice {
        Notice {
            warning: true,
            reason,
            action: "ClaimSubnet",
            note: "é".repeat(MAX_NOTE),
            regarding: node("n1", "uid-1"),
            related: Some(node("n2", "")),
        }
    }

    #[tokio::test]
    async fn what_is_told_again_is_counted_on_the_same_event() {
        let (client, mut requests) = client(200);
        let recorder = Recorder::start(client, "flanneld", "n1");
        recorder.publish(notice("SubnetConflict"));
        recorder.publish(notice("SubnetConflict"));
        let (line, event) = requests.recv().await.unwrap();
        assert_eq!(
            line,
            "POST /apis/events.k8s.io/v1/namespaces/default/events"
        );
        assert_eq!(
            (&event["reason"], &event["type"], &event["action"]),
            (
                &json!("SubnetConflict"),
                &json!("Warning"),
                &json!("ClaimSubnet")
            )
        );
        assert_eq!(
            (&event["regarding"]["kind"], &event["regarding"]["uid"]),
            (&json!("Node"), &json!("uid-1"))
        );
        assert_eq!(event["reportingInstance"], "n1");
        let note = event["note"].as_str().unwrap();
        assert!(note.len() <= 1024 && note.ends_with('…'));
        let (line, event) = requests.recv().await.unwrap();
        assert!(line.starts_with("PATCH /apis/events.k8s.io/v1/namespaces/default/events/n1."));
        assert_eq!(event["series"]["count"], 2);
    }

    #[tokio::test]
    async fn a_flood_is_cut_and_a_refusal_ends_nothing() {
        let (client, mut requests) = client(403);
        let recorder = Recorder::start(client, "flanneld", "n1");
        for _ in 0..3 {
            recorder.publish(notice("SubnetConflict"));
            assert!(requests.recv().await.unwrap().0.starts_with("POST"));
        }
        let mut allowance = Allowance::new();
        assert_eq!((0..100).filter(|_| allowance.take()).count(), 32);
        tokio::time::pause();
        tokio::time::advance(2 * REFILL).await;
        assert_eq!((0..100).filter(|_| allowance.take()).count(), 2);
    }
}
