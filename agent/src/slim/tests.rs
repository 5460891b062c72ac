use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Value, json};

use super::*;

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Spec>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
struct Spec {
    #[prost(string, repeated, tag = "7")]
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

fn part(field: u32, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut bytes = Vec::new();
    encode_key(field, WireType::LengthDelimited, &mut bytes);
    encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

fn number(field: u32, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(field, WireType::Varint, &mut bytes);
    encode_varint(value, &mut bytes);
    bytes
}

fn enveloped(object_kind: &str, object: &[u8]) -> Vec<u8> {
    let types = [part(1, "v1"), part(2, object_kind)].concat();
    let envelope = [part(1, types), part(2, object), part(3, "")].concat();
    [&b"k8s\0"[..], &envelope].concat()
}

fn event(kind: &str, object_kind: &str, object: &[u8]) -> Vec<u8> {
    let raw = enveloped(object_kind, object);
    let event = [part(1, kind), part(2, part(1, raw))].concat();
    [&(event.len() as u32).to_be_bytes()[..], &event].concat()
}

fn annotation(key: &str, value: &str) -> Vec<u8> {
    part(12, [part(1, key), part(2, value)].concat())
}

/// A Node, with fields that nobody wants of each wire type.
fn node() -> Vec<u8> {
    let metadata = [
        part(1, "node-1"),
        part(5, "uid-1"),
        part(6, "42"),
        number(7, u64::MAX),
        part(8, [number(1, 1_795_341_600), number(2, 0)].concat()),
        part(11, [part(1, "label"), part(2, "x")].concat()),
        annotation("a", "1"),
        annotation("b", "\"ü\""),
        part(17, "managed"),
    ];
    let spec = [
        part(1, "10.244.1.0/24"),
        part(7, "10.244.1.0/24"),
        part(7, "fd00::/64"),
    ];
    let fixed = [&[9 << 3 | 1][..], &[0; 8], &[10 << 3 | 5], &[0; 4]].concat();
    let status = [fixed, part(8, "i".repeat(50_000))];
    [
        part(1, metadata.concat()),
        part(2, spec.concat()),
        part(3, status.concat()),
    ]
    .concat()
}

fn events() -> Vec<u8> {
    let bookmark = [
        part(6, "43"),
        annotation("k8s.io/initial-events-end", "true"),
    ];
    let status = [
        part(2, "Failure"),
        part(3, "too old"),
        part(4, "Expired"),
        number(6, 410),
    ];
    [
        event("ADDED", "Node", &node()),
        event("BOOKMARK", "Node", &part(1, bookmark.concat())),
        event("ERROR", "Status", &status.concat()),
    ]
    .concat()
}

fn reader() -> Events<Node> {
    Events::default()
}

#[test]
fn of_each_event_the_wanted_fields_become_a_line() {
    let lines = String::from_utf8(reader().read(&events()).unwrap()).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let node = json!({"type": "ADDED", "object": {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "node-1", "uid": "uid-1", "resourceVersion": "42",
            "creationTimestamp": "2026-11-22T10:00:00Z",
            "annotations": {"a": "1", "b": "\"ü\""},
        },
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00::/64"]},
    }});
    let bookmark = json!({"type": "BOOKMARK", "object": {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "resourceVersion": "43", "annotations": {"k8s.io/initial-events-end": "true"},
        },
    }});
    let error = json!({"type": "ERROR", "object": {
        "apiVersion": "v1", "kind": "Status",
        "status": "Failure", "message": "too old", "reason": "Expired", "code": 410,
    }});
    assert_eq!(lines, [node, bookmark, error]);
}

#[test]
fn events_come_in_pieces_of_any_size() {
    let (bytes, whole) = (events(), reader().read(&events()).unwrap());
    for size in [1, 2, 3, 7, 1000, 50_007] {
        let mut reader = reader();
        let pieces = bytes.chunks(size).map(|piece| reader.read(piece).unwrap());
        assert_eq!(pieces.collect::<Vec<_>>().concat(), whole, "{size}");
        assert!(reader.waiting.is_empty());
    }
}

#[tokio::test]
async fn a_refusal_is_what_the_api_server_says() {
    let why = "nodes is forbidden";
    let status = [
        part(2, "Failure"),
        part(3, why),
        part(4, "Forbidden"),
        number(6, 403),
    ];
    let body = enveloped("Status", &status.concat());
    let answer = service_fn(move |_: Request<Body>| {
        let body = Body::from(body.clone());
        let response = Response::builder()
            .status(403)
            .header(CONTENT_TYPE, PROTOBUF);
        future::ready(response.body(body))
    });
    let client = client::<Node>(Client::new(answer, "default"));
    let nodes = kube::Api::<k8s_openapi::api::core::v1::Node>::all(client);
    let refused = nodes.watch(&kube::api::WatchParams::default(), "0").await;
    match refused.map(drop) {
        Err(kube::Error::Api(status)) => {
            assert!(status.is_forbidden());
            assert_eq!((&*status.message, status.code), (why, 403));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_none_of_kubernetes_is_refused() {
    let refused = |bytes: &[u8]| reader().read(bytes).unwrap_err();
    let endless = refused(&u32::MAX.to_be_bytes());
    assert!(matches!(endless, Unreadable::Endless(_)), "{endless}");
    let cut = refused(&[0, 0, 0, 2, 0x0a, 0x05]);
    assert!(matches!(cut, Unreadable::Message(_)), "{cut}");
    let bare = refused(&[0, 0, 0, 0]);
    assert!(matches!(bare, Unreadable::NoEnvelope), "{bare}");
    let never = part(1, part(8, number(1, i64::MAX as u64)));
    let never = refused(&event("ADDED", "Node", &never));
    assert!(matches!(never, Unreadable::Json(_)), "{never}");
}
