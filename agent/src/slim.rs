//! Watches that bring only what is read: in Kubernetes' protobuf form, of which all other fields are passed over.
//!
//! With a thousand Nodes that carry 50 KB of images and status each, JSON costs the API server most of the time of a
//! list, and us a look at each byte. In protobuf a field that nobody wants is a length to skip. The rest is passed on as
//! the JSON lines that kube's watcher reads; a server that has no protobuf is understood, too.
//!
//! Layout: `WatchEvent`, `Unknown` and the types of objects as in the `generated.proto` files of k8s.io/apimachinery and
//! k8s.io/api.

use futures::{StreamExt, TryStreamExt, future};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame},
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
};
use k8s_openapi::jiff::Timestamp;
use kube::{Client, client::Body};
use serde_json::{Map, Value, json};
use tower::service_fn;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What is asked for, by preference.
const ACCEPTED: HeaderValue =
    HeaderValue::from_static("application/vnd.kubernetes.protobuf, application/json");

/// The longest event that is read. The API server stores no object above 3 MiB or so.
const LONGEST: usize = 16 << 20;

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its number in protobuf.
    pub number: u64,
    /// Its name in JSON.
    pub name: &'static str,
    /// What it holds.
    pub form: Form,
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Text.
    Text,
    /// Any number of texts.
    Texts,
    /// Texts by keys that are texts.
    Map,
    /// A whole number.
    Number,
    /// A moment, `k8s.io.apimachinery.pkg.apis.meta.v1.Time`.
    Time,
    /// A message.
    Message(&'static [Field]),
    /// Any number of messages.
    Messages(&'static [Field]),
}

/// Shorthand for [`Field`].
#[must_use]
pub const fn field(number: u64, name: &'static str, form: Form) -> Field {
    Field { number, name, form }
}

/// `metadata` as far as a watch and our daemons need it.
pub const METADATA: &[Field] = &[
    field(1, "name", Form::Text),
    field(3, "namespace", Form::Text),
    field(5, "uid", Form::Text),
    field(6, "resourceVersion", Form::Text),
    field(8, "creationTimestamp", Form::Time),
    field(12, "annotations", Form::Map),
];

/// `Status`, which a watch brings when it fails.
const STATUS: &[Field] = &[
    field(2, "status", Form::Text),
    field(3, "message", Form::Text),
    field(4, "reason", Form::Text),
    field(6, "code", Form::Number),
];

/// What came is no protobuf of Kubernetes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API server's protobuf cannot be read: {0}")]
pub struct Unreadable(&'static str);

/// The client, but of what its watches bring only these fields are read. For watches of one kind of object.
#[must_use]
pub fn client(client: Client, object: &'static [Field]) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = service_fn(move |mut request: Request<Body>| {
        let client = client.clone();
        async move {
            let query = request.uri().query().unwrap_or_default();
            if query.split('&').any(|pair| pair == "watch=true") {
                request.headers_mut().insert(ACCEPT, ACCEPTED);
            }
            let response = client.send(request).await?;
            Ok::<_, kube::Error>(slimmed(response, object))
        }
    });
    Client::new(service, namespace)
}

type AnyBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

fn slimmed(response: Response<Body>, object: &'static [Field]) -> Response<AnyBody> {
    let kind = response.headers().get(CONTENT_TYPE);
    let is_protobuf = kind.is_some_and(|kind| kind.as_bytes().starts_with(PROTOBUF.as_bytes()));
    response.map(|body| {
        if !is_protobuf {
            return body.map_err(Into::into).boxed_unsync();
        }
        let mut events = Events {
            object,
            waiting: Vec::new(),
        };
        let lines = body.into_data_stream().map(move |chunk| -> Result<_, _> {
            let lines = events.read(&chunk?)?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Frame::data(Bytes::from(lines)))
        });
        let has_some = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(|data| !data.is_empty());
        StreamBody::new(lines.try_filter(move |frame| future::ready(has_some(frame))))
            .boxed_unsync()
    })
}

/// A stream of events, each behind its length in four bytes.
struct Events {
    object: &'static [Field],
    waiting: Vec<u8>,
}

impl Events {
    /// Takes what came, and returns the events that are whole, a line for each. Of one that is not whole yet no more is
    /// kept than has come of it.
    fn read(&mut self, mut chunk: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let mut lines = Vec::new();
        while !chunk.is_empty() {
            if self.waiting.is_empty()
                && let Some((event, rest)) = first(chunk)?
            {
                self.push(&mut lines, event)?;
                chunk = rest;
                continue;
            }
            let missing = self.missing()?.min(chunk.len());
            let (part, rest) = chunk.split_at(missing);
            self.waiting.extend_from_slice(part);
            chunk = rest;
            if first(&self.waiting)?.is_some() {
                let whole = std::mem::take(&mut self.waiting);
                self.push(&mut lines, whole.get(LENGTH..).unwrap_or_default())?;
            }
        }
        Ok(lines)
    }

    /// How many bytes are still to come of the length, or of the event.
    fn missing(&mut self) -> Result<usize, Unreadable> {
        let whole = match self.waiting.first_chunk() {
            Some(bytes) => LENGTH + length(*bytes)?,
            None => LENGTH,
        };
        self.waiting.reserve_exact(whole - self.waiting.len());
        Ok(whole - self.waiting.len())
    }

    fn push(&self, lines: &mut Vec<u8>, event: &[u8]) -> Result<(), Unreadable> {
        lines.extend(line(event, self.object)?.to_string().into_bytes());
        lines.push(b'\n');
        Ok(())
    }
}

/// Bytes before each event.
const LENGTH: usize = 4;

fn length(bytes: [u8; LENGTH]) -> Result<usize, Unreadable> {
    let length = u32::from_be_bytes(bytes) as usize;
    match length <= LONGEST {
        true => Ok(length),
        false => Err(Unreadable("an event without end")),
    }
}

/// Bytes, and those that come behind them.
type Split<'a> = (&'a [u8], &'a [u8]);

/// The first event, if it is whole.
fn first(bytes: &[u8]) -> Result<Option<Split<'_>>, Unreadable> {
    match bytes.split_first_chunk() {
        Some((header, rest)) => Ok(rest.split_at_checked(length(*header)?)),
        None => Ok(None),
    }
}

/// A `WatchEvent`: its type, and the object in an envelope (`Unknown`) behind four letters.
fn line(event: &[u8], object: &'static [Field]) -> Result<Value, Unreadable> {
    const EVENT: &[Field] = &[field(1, "type", Form::Text)];
    const RAW: u64 = 1;
    const KIND: &[Field] = &[
        field(1, "apiVersion", Form::Text),
        field(2, "kind", Form::Text),
    ];
    let mut line = message(event, EVENT)?;
    let raw = bytes(bytes(event, 2)?, RAW)?;
    let envelope = raw
        .strip_prefix(b"k8s\0")
        .ok_or(Unreadable("an object in no envelope"))?;
    let mut whole = message(bytes(envelope, 1)?, KIND)?;
    let fields = match whole.get("kind").and_then(Value::as_str) {
        Some("Status") => STATUS,
        _ => object,
    };
    whole.extend(message(bytes(envelope, 2)?, fields)?);
    line.insert("object".to_owned(), Value::Object(whole));
    Ok(Value::Object(line))
}

/// The wanted fields of a message.
fn message(bytes: &[u8], wanted: &[Field]) -> Result<Map<String, Value>, Unreadable> {
    let mut object = Map::new();
    for part in Parts(bytes) {
        let (number, content) = part?;
        let Some(field) = wanted.iter().find(|field| field.number == number) else {
            continue;
        };
        let mut push = |value| {
            let list = object.entry(field.name).or_insert_with(|| json!([]));
            if let Value::Array(list) = list {
                list.push(value);
            }
        };
        match (field.form, content) {
            (Form::Texts, Content::Bytes(bytes)) => push(text(bytes)?),
            (Form::Messages(wanted), Content::Bytes(bytes)) => {
                push(Value::Object(message(bytes, wanted)?));
            }
            (Form::Map, Content::Bytes(bytes)) => {
                let entry = message(bytes, ENTRY)?;
                let map = object.entry(field.name).or_insert_with(|| json!({}));
                let part = |name| entry.get(name).and_then(Value::as_str).unwrap_or_default();
                if let Value::Object(map) = map {
                    map.insert(part("key").to_owned(), json!(part("value")));
                }
            }
            (form, content) => {
                let value = match (form, content) {
                    (Form::Text, Content::Bytes(bytes)) => text(bytes)?,
                    (Form::Message(wanted), Content::Bytes(bytes)) => {
                        Value::Object(message(bytes, wanted)?)
                    }
                    (Form::Time, Content::Bytes(bytes)) => match time(bytes)? {
                        Some(time) => time,
                        None => continue,
                    },
                    (Form::Number, Content::Number(number)) => json!(number),
                    _ => return Err(Unreadable("a field of another form")),
                };
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(object)
}

/// An entry of a map.
const ENTRY: &[Field] = &[field(1, "key", Form::Text), field(2, "value", Form::Text)];

fn text(bytes: &[u8]) -> Result<Value, Unreadable> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unreadable("text that is not UTF-8"))?;
    Ok(json!(text))
}

/// A moment as JSON has it, in whole seconds; `None` where none is set.
fn time(bytes: &[u8]) -> Result<Option<Value>, Unreadable> {
    const SECONDS: &[Field] = &[field(1, "seconds", Form::Number)];
    let message = message(bytes, SECONDS)?;
    let Some(seconds) = message.get("seconds").and_then(Value::as_i64) else {
        return Ok(None);
    };
    let time = Timestamp::from_second(seconds).map_err(|_| Unreadable("a time of no year"))?;
    Ok(Some(json!(time.to_string())))
}

/// The last content of a field; empty if it is not there, as in protobuf.
fn bytes(message: &[u8], number: u64) -> Result<&[u8], Unreadable> {
    let mut found = &message[..0];
    for part in Parts(message) {
        if let (this, Content::Bytes(bytes)) = part?
            && this == number
        {
            found = bytes;
        }
    }
    Ok(found)
}

/// What stands in a field.
enum Content<'a> {
    Number(i64),
    Bytes(&'a [u8]),
    /// Of a fixed length: nothing that we read.
    Fixed,
}

/// The fields of a message, one after another.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for (index, byte) in self.0.iter().take(10).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Some(number);
            }
        }
        None
    }

    fn part(&mut self) -> Option<(u64, Content<'a>)> {
        let key = self.number()?;
        let length = match key & 7 {
            0 => return Some((key >> 3, Content::Number(self.number()?.cast_signed()))),
            1 => 8,
            2 => usize::try_from(self.number()?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        match key & 7 {
            2 => Some((key >> 3, Content::Bytes(bytes))),
            _ => Some((key >> 3, Content::Fixed)),
        }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u64, Content<'a>), Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_none() {
            self.0 = &[];
        }
        Some(part.ok_or(Unreadable("a message that is cut short")))
    }
}

#[cfg(test)]
mod tests;
