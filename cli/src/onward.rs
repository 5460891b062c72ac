//! The way at other nodes: each is asked for its part, and its answer is put where the trace left for it.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use hostnet::nft::Proto;
use hostnet::vocab::Family;
use k8s_openapi::api::core::v1::Node;
use serde::de::DeserializeOwned;

use crate::crowd::at_once;
use crate::far::{self, Query};
use crate::report::{Hop, Trace};
use crate::trace::internal_ips;

/// The port at which flanneld answers, on a node's loopback.
pub const PORT: u16 = 8082;

/// How many nodes a packet may come to: one that goes further goes round.
const NODES_MAX: u8 = 3;

/// How many nodes are asked at one time.
pub(crate) const AT_ONCE: usize = 16;

/// A way to ask the daemon of a node.
pub trait Reach {
    /// The body of its answer to a GET of path and query at a port of the node's loopback.
    ///
    /// # Errors
    /// Why there is none, for people.
    fn get(&self, node: &Place, port: u16, target: &str) -> Result<String, String>;
}

/// A node, as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name, if the objects are seen.
    pub name: Option<String>,
    /// Its address.
    pub address: IpAddr,
}

impl Place {
    /// As its object tells: by its first address, or that of nobody if it has none.
    pub fn of(node: &Node) -> Place {
        let mut addresses = internal_ips(node);
        Place {
            name: node.metadata.name.clone(),
            address: addresses.next().unwrap_or(Family::V4.unspecified()),
        }
    }

    /// Where objects are not seen.
    pub fn nameless(address: IpAddr) -> Place {
        Place {
            name: None,
            address,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.address),
        }
    }
}

/// Asks by a command of the user's, such as `ssh {node} curl -sf {url}`: its words are run as they are, and what it
/// prints is the answer.
#[derive(Clone, Debug)]
pub struct ByCommand(pub String);

impl Reach for ByCommand {
    fn get(&self, node: &Place, port: u16, target: &str) -> Result<String, String> {
        let url = format!("http://127.0.0.1:{port}{target}");
        let fill = |word: &str| {
            word.replace("{node}", &node.to_string())
                .replace("{address}", &node.address.to_string())
                .replace("{url}", &url)
        };
        let words: Vec<String> = self.0.split_whitespace().map(fill).collect();
        let (program, arguments) = words.split_first().ok_or("--reach is empty")?;
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{program}: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().last().unwrap_or_default();
            return Err(format!("{program}: {}: {said}", output.status));
        }
        String::from_utf8(output.stdout).map_err(|_| format!("{program}: no text"))
    }
}

/// Asks the daemons of this node directly, and others as is said.
pub struct FromHere {
    /// This node's addresses.
    pub own: Vec<IpAddr>,
    /// How to ask others, if there is a way.
    pub others: Option<Box<dyn Reach + Send + Sync>>,
}

impl FromHere {
    /// An address of this node's; that of nobody if it has none.
    pub fn here(&self) -> IpAddr {
        let first = self.own.first().copied();
        first.unwrap_or(Family::V4.unspecified())
    }
}

impl Reach for FromHere {
    fn get(&self, node: &Place, port: u16, target: &str) -> Result<String, String> {
        match &self.others {
            _ if self.own.contains(&node.address) => loopback(port, target),
            Some(others) => others.get(node, port, target),
            None => {
                Err("another node: it is asked through the API server, or by --reach".to_owned())
            }
        }
    }
}

/// Asks the daemons of all nodes at one time, each for its target; of this node `here` tells.
pub fn everywhere<T: DeserializeOwned + Send>(
    places: &[Place],
    reach: &FromHere,
    target: impl Fn(&Place) -> String + Sync,
    here: impl FnOnce() -> Result<T, String>,
) -> Vec<Result<T, String>> {
    let own = places
        .iter()
        .position(|place| reach.own.contains(&place.address));
    let mut here = own.map(|_| here());
    let answers = at_once(places, AT_ONCE, |n, place| {
        (Some(n) != own).then(|| {
            let body = reach.get(place, PORT, &target(place))?;
            serde_json::from_str(&body)
                .map_err(|error| format!("its answer is not understood: {error}"))
        })
    });
    let answers = answers
        .into_iter()
        .filter_map(|answer| answer.or_else(|| here.take()));
    answers.collect()
}

/// How long an answer to this is waited for.
pub(crate) fn patience(target: &str) -> Duration {
    Duration::from_secs(if far::is_slow(target) { 60 } else { 5 })
}

/// The body of a 200 of this machine's.
pub(crate) fn loopback(port: u16, target: &str) -> Result<String, String> {
    let patience = patience(target);
    let ask = || -> std::io::Result<String> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(request(target).as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask().map_err(|error| format!("port {port}: {error}"))?;
    let (head, content) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| format!("port {port} does not speak HTTP"))?;
    body(status, content)
}

/// A request, in HTTP/1.0 so that the answer ends with the connection.
fn request(target: &str) -> String {
    format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n")
}

/// The content of an answer, if its status is that of what was wanted.
pub(crate) fn body(status: u16, content: &str) -> Result<String, String> {
    match status {
        200 => Ok(content.to_owned()),
        _ => Err(format!("{status}: {}", content.trim().replace('\n', ", "))),
    }
}

/// Puts in what other nodes say of the way through them.
pub fn follow(reach: &dyn Reach, proto: Proto, mut trace: Trace) -> Trace {
    for hop in &mut trace.hops {
        go_on(reach, proto, hop, NODES_MAX);
    }
    trace.weighed()
}

fn go_on(reach: &dyn Reach, proto: Proto, hop: &mut Hop, left: u8) {
    for then in &mut hop.then {
        go_on(reach, proto, then, left);
    }
    let Some(onward) = hop.onward.clone() else {
        return;
    };
    let name = hop.object.as_deref().and_then(|o| o.strip_prefix("node "));
    let node = Place {
        name: name.map(str::to_owned),
        address: onward.node,
    };
    if left == 0 {
        hop.warnings
            .push("it goes from node to node, perhaps in a circle".to_owned());
        return;
    }
    let target = Query::of(&onward, proto).target();
    let answer = reach.get(&node, PORT, &target).and_then(|body| {
        serde_json::from_str::<Trace>(&body).map_err(|_| {
            let said: String = body.trim().chars().take(200).collect();
            format!("it says {said:?}, which is no trace")
        })
    });
    match answer {
        Ok(far) => {
            hop.text = format!("at node {node}");
            hop.object = None;
            hop.then = far.hops;
            for then in &mut hop.then {
                go_on(reach, proto, then, left - 1);
            }
        }
        Err(why) => {
            let warning = format!("node {node} does not answer, so its part is not seen: {why}");
            hop.warnings.push(warning);
        }
    }
}
