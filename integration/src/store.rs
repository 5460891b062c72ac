//! Objects put into etcd, below the API: for clusters so large that writing them through it would take minutes.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::{http, wait};

/// How many changes etcd takes at once (its `--max-txn-ops`).
const AT_ONCE: usize = 128;
/// Where etcd listens.
const PORT: u16 = 2379;
/// Before each key of the API server's.
const PREFIX: &str = "/registry";

/// Puts objects into the store as they are: the API server gives no defaults, reserves no address and checks
/// nothing. Each goes by its key, such as `services/specs/default/web`.
pub fn put(
    control_plane: &ControlPlane,
    objects: impl IntoIterator<Item = (String, Value)>,
) -> Result<()> {
    // What translates JSON for it is there a while after the API server is.
    wait::until("etcd", wait::PATIENCE, || Ok(send(control_plane, &[])))?;
    let mut puts = Vec::new();
    for (key, object) in objects {
        let key = format!("{PREFIX}/{key}");
        let value = object.to_string();
        puts.push(json!({"requestPut": {
            "key": BASE64.encode(key.as_bytes()),
            "value": BASE64.encode(value.as_bytes()),
        }}));
        if puts.len() == AT_ONCE {
            send(control_plane, &std::mem::take(&mut puts))?;
        }
    }
    if puts.is_empty() {
        return Ok(());
    }
    send(control_plane, &puts)
}

fn send(control_plane: &ControlPlane, puts: &[Value]) -> Result<()> {
    let etcd = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let body = json!({ "success": puts }).to_string();
    let netns = control_plane.machine.netns();
    let answer = http::post(netns, etcd, "/v3/kv/txn", &body).context("etcd does not answer")?;
    ensure!(answer.status == 200, "etcd refused: {}", answer.body.trim());
    Ok(())
}
