//! Watches that bring only what is read: in Kubernetes' protobuf form, of which all other fields are passed over.
//!
//! With a thousand Nodes that carry 50 KB of images and status each, JSON costs the API server most of the time of a
//! list, and us a look at each byte. In protobuf a field that nobody wants is a length to skip. The rest is passed on as
//! the JSON lines that kube's watcher reads; a server that has no protobuf is understood, too.
//!
//! Numbers of fields as in the `generated.proto` files of k8s.io/apimachinery and k8s.io/api.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use futures::{StreamExt, TryStreamExt, future, stream};
use http_body_util::{BodyExt, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame},
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
};
use k8s_openapi::jiff::Timestamp;
use kube::{Client, client::Body};
use prost::Message;
use prost::bytes::{Buf, BytesMut};
use serde::{Serialize, Serializer, ser::Error as _};
use tower::service_fn;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What is asked for, by preference.
const ACCEPTED: HeaderValue =
    HeaderValue::from_static("application/vnd.kubernetes.protobuf, application/json");

/// The longest event that is read. The API server stores no object above 3 MiB or so.
const LONGEST: usize = 16 << 20;

/// `metadata` as far as a watch and our daemons need it.
#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// `name`
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `namespace`
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `uid`
    #[prost(string, tag = "5")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// `resourceVersion`
    #[prost(string, tag = "6")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// `creationTimestamp`
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Time>,
    /// `annotations`
    #[prost(btree_map = "string, string", tag = "12")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A moment in whole seconds.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Time {
    /// Since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = Timestamp::from_second(self.seconds).map_err(S::Error::custom)?;
        serializer.collect_str(&time)
    }
}

/// `WatchEvent`: what happened, and the object in an envelope behind four letters.
#[derive(Clone, PartialEq, Message)]
struct WatchEvent {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(message, optional, tag = "2")]
    object: Option<RawExtension>,
}

#[derive(Clone, PartialEq, Message)]
struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    raw: Bytes,
}

/// The envelope, `Unknown`.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(message, optional, tag = "1")]
    of: Option<TypeMeta>,
    #[prost(bytes = "bytes", tag = "2")]
    object: Bytes,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

/// `Status`, which a watch brings when it fails, and which is the answer where there is to be none.
#[derive(Clone, PartialEq, Message, Serialize)]
struct Status {
    #[prost(string, tag = "2")]
    status: String,
    #[prost(string, tag = "3")]
    message: String,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(int32, tag = "6")]
    code: i32,
}

/// What kube's watcher reads.
#[derive(Serialize)]
struct Line<'a, K> {
    r#type: &'a str,
    object: Typed<K>,
}

#[derive(Serialize)]
struct Typed<K> {
    #[serde(flatten)]
    of: TypeMeta,
    #[serde(flatten)]
    object: K,
}

/// What came is no protobuf of Kubernetes'.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    /// Not even that.
    #[error("the API server's protobuf cannot be read")]
    Message(#[from] prost::DecodeError),
    /// An object without the envelope's four letters.
    #[error("the API server sends an object in no envelope")]
    NoEnvelope,
    /// A length that cannot be.
    #[error("the API server sends an event of {0} bytes")]
    Endless(usize),
    /// A time of no year, for one.
    #[error("the API server's object cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// The client, but of what its watches bring only the fields of `K` are read, which has the object's names in JSON. For
/// watches of one kind of object.
#[must_use]
pub fn client<K>(client: Client) -> Client
where
    K: Message + Default + Serialize + 'static,
{
    let namespace = client.default_namespace().to_owned();
    let service = service_fn(move |mut request: Request<Body>| {
        let client = client.clone();
        async move {
            let query = request.uri().query().unwrap_or_default();
            if query.split('&').any(|pair| pair == "watch=true") {
                request.headers_mut().insert(ACCEPT, ACCEPTED);
            }
            Ok::<_, kube::Error>(slimmed::<K>(client.send(request).await?))
        }
    });
    Client::new(service, namespace)
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn slimmed<K>(response: Response<Body>) -> Response<UnsyncBoxBody<Bytes, AnyError>>
where
    K: Message + Default + Serialize + 'static,
{
    let kind = response.headers().get(CONTENT_TYPE);
    let is_protobuf = kind.is_some_and(|kind| kind.as_bytes().starts_with(PROTOBUF.as_bytes()));
    let is_refused = !response.status().is_success();
    response.map(|body| {
        if !is_protobuf {
            return body.map_err(Into::into).boxed_unsync();
        }
        if is_refused {
            let refusal = async move {
                let whole = Limited::new(body, LONGEST).collect().await?.to_bytes();
                Ok(Frame::data(Bytes::from(refusal(whole)?)))
            };
            return StreamBody::new(stream::once(refusal)).boxed_unsync();
        }
        let mut events = Events::<K>::default();
        let lines = body
            .into_data_stream()
            .map(move |chunk| -> Result<_, AnyError> {
                Ok(Frame::data(Bytes::from(events.read(&chunk?)?)))
            });
        let has_some = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(|data| !data.is_empty());
        StreamBody::new(lines.try_filter(move |frame| future::ready(has_some(frame))))
            .boxed_unsync()
    })
}

/// A stream of events, each behind its length in four bytes.
#[derive(Debug)]
struct Events<K> {
    waiting: BytesMut,
    of: PhantomData<fn() -> K>,
}

impl<K> Default for Events<K> {
    fn default() -> Self {
        Self {
            waiting: BytesMut::new(),
            of: PhantomData,
        }
    }
}

impl<K: Message + Default + Serialize> Events<K> {
    /// Takes what came, and returns the events that are whole, a line for each.
    fn read(&mut self, chunk: &[u8]) -> Result<Vec<u8>, Unreadable> {
        const HEAD: usize = size_of::<u32>();
        self.waiting.extend_from_slice(chunk);
        let mut lines = Vec::new();
        while let Some(head) = self.waiting.first_chunk::<HEAD>() {
            let length = u32::from_be_bytes(*head) as usize;
            if length > LONGEST {
                return Err(Unreadable::Endless(length));
            }
            if self.waiting.len() < HEAD + length {
                break;
            }
            self.waiting.advance(HEAD);
            let event = self.waiting.split_to(length).freeze();
            write_line::<K>(event, &mut lines)?;
        }
        // One large object shall not hold its memory for ever.
        if self.waiting.is_empty() {
            self.waiting = BytesMut::new();
        }
        Ok(lines)
    }
}

/// An object that is behind no length, and in an envelope, as one in an event is.
fn opened(mut raw: Bytes) -> Result<(TypeMeta, Bytes), Unreadable> {
    if !raw.starts_with(b"k8s\0") {
        return Err(Unreadable::NoEnvelope);
    }
    let Envelope { of, object } = Envelope::decode(raw.split_off(4))?;
    Ok((of.unwrap_or_default(), object))
}

/// The API server's word that there is nothing to watch, and why, in JSON.
fn refusal(body: Bytes) -> Result<Vec<u8>, Unreadable> {
    let (of, object) = opened(body)?;
    let object = Status::decode(object)?;
    Ok(serde_json::to_vec(&Typed { of, object })?)
}

fn write_line<K: Message + Default + Serialize>(
    event: Bytes,
    lines: &mut Vec<u8>,
) -> Result<(), Unreadable> {
    let event = WatchEvent::decode(event)?;
    let (of, object) = opened(event.object.unwrap_or_default().raw)?;
    let r#type = &*event.kind;
    if of.kind == "Status" {
        let object = Typed {
            object: Status::decode(object)?,
            of,
        };
        serde_json::to_writer(&mut *lines, &Line { r#type, object })?;
    } else {
        let object = Typed {
            object: K::decode(object)?,
            of,
        };
        serde_json::to_writer(&mut *lines, &Line { r#type, object })?;
    }
    lines.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests;
