//! Watching objects: kube's watcher turned into plain deltas, with resyncs already worked out.
//!
//! The consumer folds [`Delta`]s into its own index. A broken watch resumes by itself with backoff; after a list from
//! scratch only what the list no longer holds is removed, so work grows with the change and nothing is ever dropped
//! and added again. Use slim types (`#[derive(Resource)] #[resource(inherit = Node)]`) that keep only needed fields.

use std::{collections::HashSet, fmt, fmt::Debug};

use futures::{Stream, StreamExt, future, stream};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Config, Error, Event},
    },
};
use serde::de::DeserializeOwned;

/// Names one object among those of its kind. The namespace is empty for cluster-scoped objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `metadata.namespace`, or empty.
    pub namespace: Box<str>,
    /// `metadata.name`.
    pub name: Box<str>,
}

impl Key {
    /// The key of `object`.
    pub fn of(object: &impl Resource) -> Self {
        let text = |part: &Option<String>| part.as_deref().unwrap_or_default().into();
        Self {
            namespace: text(&object.meta().namespace),
            name: text(&object.meta().name),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One change of the watched set.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta<K> {
    /// The object is there, like this.
    Upsert(K),
    /// The object is gone.
    Remove(Key),
    /// All objects that exist have been told: what the index holds now is whole. Comes after the first list, and
    /// again after each later list from scratch.
    Synced,
}

/// Which objects to watch.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// By label, e.g. `twill.io/subnet`.
    pub labels: Option<String>,
    /// By field, e.g. `metadata.name=node-1`.
    pub fields: Option<String>,
}

/// Watches the objects of `api` that `selector` picks, for ever. Streaming lists (KEP-3157) where the server has
/// them, paged lists where not. Errors are logged, once per kind of trouble, and retried with backoff; that the right to
/// it is missing is `refused`, too.
pub fn deltas<K, R>(
    api: Api<K>,
    selector: &Selector,
    refused: R,
) -> impl Stream<Item = Delta<K>> + Send + use<K, R>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    R: Fn(&str) + Send,
{
    let kind = K::kind(&()).into_owned();
    let mut resync = Resync::default();
    let mut complaint = Complaint { kind, text: None };
    events(api, selector).flat_map(move |event| {
        if let Some(error) = complaint.hear(&event) {
            refused(error);
        }
        stream::iter(event.map(|event| resync.fold(event)).unwrap_or_default())
    })
}

/// The watcher's own events, with `metadata.managedFields` dropped.
fn events<K>(
    api: Api<K>,
    selector: &Selector,
) -> impl Stream<Item = Result<Event<K>, Error>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let paged = Config {
        label_selector: selector.labels.clone(),
        field_selector: selector.fields.clone(),
        ..Config::default()
    };
    let streaming = watcher::watcher(api.clone(), paged.clone().streaming_lists());
    // A server that has no streaming lists refuses the request: from then on ask the old way.
    let streaming =
        streaming.take_while(|event| future::ready(!event.as_ref().is_err_and(no_streaming_lists)));
    let old_way = stream::once(future::ready(()))
        .flat_map(move |()| watcher::watcher(api.clone(), paged.clone()));
    streaming.chain(old_way).default_backoff().modify(|object| {
        object.meta_mut().managed_fields = None;
    })
}

/// `sendInitialEvents` is forbidden, says a server whose WatchList feature is off (HTTP 422), and 400 an older one.
fn no_streaming_lists(error: &Error) -> bool {
    matches!(error, Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 422))
}

/// Turns lists from scratch into deltas.
#[derive(Default)]
struct Resync {
    known: HashSet<Key>,
    /// While a list runs: what was known before and has not been seen again yet.
    unseen: Option<HashSet<Key>>,
}

impl Resync {
    fn fold<K: Resource<DynamicType = ()>>(&mut self, event: Event<K>) -> Vec<Delta<K>> {
        match event {
            Event::Init => {
                self.unseen = Some(self.known.clone());
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let key = Key::of(&object);
                if let Some(unseen) = &mut self.unseen {
                    unseen.remove(&key);
                }
                self.known.insert(key);
                vec![Delta::Upsert(object)]
            }
            Event::Delete(object) => {
                let key = Key::of(&object);
                if self.known.remove(&key) {
                    vec![Delta::Remove(key)]
                } else {
                    Vec::new()
                }
            }
            Event::InitDone => {
                let gone = self.unseen.take().unwrap_or_default();
                for key in &gone {
                    self.known.remove(key);
                }
                gone.into_iter()
                    .map(Delta::Remove)
                    .chain([Delta::Synced])
                    .collect()
            }
        }
    }
}

/// Logs trouble when it begins, when it changes and when it ends; not at each retry.
struct Complaint {
    kind: String,
    text: Option<String>,
}

impl Complaint {
    /// Returns what is new if it is a refusal.
    fn hear<T>(&mut self, event: &Result<T, Error>) -> Option<&str> {
        let Err(error) = event else {
            if self.text.take().is_some() {
                tracing::info!(kind = %self.kind, "watch works again");
            }
            return None;
        };
        let text = explain(error);
        if self.text.as_ref() == Some(&text) {
            return None;
        }
        tracing::warn!(kind = %self.kind, error = %text, "watch failed; retrying, with what is known so far");
        let text = self.text.insert(text);
        is_refusal(error).then_some(text)
    }
}

fn is_refusal(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status)) => status.is_forbidden(),
        _ => false,
    }
}

fn explain(error: &Error) -> String {
    match error {
        Error::InitialListFailed(e) | Error::WatchStartFailed(e) | Error::WatchFailed(e) => {
            crate::client::explain(e)
        }
        Error::WatchError(status) => format!("{} (HTTP {})", status.message, status.code),
        Error::NoResourceVersion => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Reply;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Client, ResourceExt};
    use tokio_util::sync::CancellationToken;

    fn object(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some(name.into());
        object
    }

    fn key(name: &str) -> Key {
        Key::of(&object(name))
    }

    fn fold(resync: &mut Resync, events: Vec<Event<ConfigMap>>) -> Vec<Delta<ConfigMap>> {
        events
            .into_iter()
            .flat_map(|event| resync.fold(event))
            .collect()
    }

    #[test]
    fn a_list_from_scratch_removes_only_what_it_lacks() {
        let mut resync = Resync::default();
        let first = vec![
            Event::Init,
            Event::InitApply(object("a")),
            Event::InitApply(object("b")),
            Event::InitDone,
        ];
        assert_eq!(
            fold(&mut resync, first),
            [
                Delta::Upsert(object("a")),
                Delta::Upsert(object("b")),
                Delta::Synced
            ]
        );
        let second = vec![
            Event::Init,
            Event::InitApply(object("b")),
            Event::InitApply(object("c")),
            Event::InitDone,
        ];
        assert_eq!(
            fold(&mut resync, second),
            [
                Delta::Upsert(object("b")),
                Delta::Upsert(object("c")),
                Delta::Remove(key("a")),
                Delta::Synced
            ]
        );
    }

    #[test]
    fn a_list_that_breaks_off_removes_nothing() {
        let mut resync = Resync::default();
        fold(
            &mut resync,
            vec![Event::Init, Event::InitApply(object("a")), Event::InitDone],
        );
        assert_eq!(fold(&mut resync, vec![Event::Init, Event::Init]), []);
        assert_eq!(
            fold(
                &mut resync,
                vec![Event::InitApply(object("a")), Event::InitDone]
            ),
            [Delta::Upsert(object("a")), Delta::Synced]
        );
    }

    #[test]
    fn deletes_are_told_once() {
        let mut resync = Resync::default();
        let told = fold(
            &mut resync,
            vec![
                Event::Apply(object("a")),
                Event::Delete(object("a")),
                Event::Delete(object("a")),
            ],
        );
        assert_eq!(told, [Delta::Upsert(object("a")), Delta::Remove(key("a"))]);
    }

    /// A server that refuses streaming lists as Kubernetes does with the feature off.
    fn old_server(target: &str) -> Reply {
        let item = r#"{"metadata":{"namespace":"ns","name":"a","resourceVersion":"1","managedFields":[{"manager":"m"}]}}"#;
        if target.contains("sendInitialEvents") {
            Reply::json(
                422,
                r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422,"message":"sendInitialEvents: Forbidden"}"#,
            )
        } else if target.contains("watch=true") {
            Reply::json(200, "")
        } else {
            Reply::json(
                200,
                format!(
                    r#"{{"kind":"ConfigMapList","apiVersion":"v1","metadata":{{"resourceVersion":"1"}},"items":[{item}]}}"#
                ),
            )
        }
    }

    #[tokio::test]
    async fn a_server_without_streaming_lists_is_asked_the_old_way() {
        let stop = CancellationToken::new();
        let listener = crate::http::bind("--test", ([127, 0, 0, 1], 0).into())
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr()).parse().unwrap();
        tokio::spawn(listener.serve(old_server, stop.clone()));
        let client = Client::try_from(kube::Config::new(url)).unwrap();
        let api = Api::<ConfigMap>::all(client);
        let mut deltas = Box::pin(deltas(api, &Selector::default(), |_: &str| ()));
        let Some(Delta::Upsert(object)) = deltas.next().await else {
            panic!("the object comes first")
        };
        assert_eq!(object.name_any(), "a");
        assert_eq!(object.metadata.managed_fields, None);
        assert_eq!(deltas.next().await, Some(Delta::Synced));
        stop.cancel();
    }
}
