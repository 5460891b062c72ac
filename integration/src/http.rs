//! One HTTP request from inside a namespace: for the daemons' health and metrics, and the store.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use hostnet::netns::NetNs;

const PATIENCE: Duration = Duration::from_secs(5);

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status code.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// Asks `server` for `path` from inside `netns`.
pub fn get(netns: &NetNs, server: SocketAddr, path: &str) -> Result<Response> {
    ask(netns, server, &format!("GET {path}"), "")
}

/// Sends JSON to `path` of `server` from inside `netns`.
pub fn post(netns: &NetNs, server: SocketAddr, path: &str, json: &str) -> Result<Response> {
    ask(netns, server, &format!("POST {path}"), json)
}

fn ask(netns: &NetNs, server: SocketAddr, what: &str, body: &str) -> Result<Response> {
    let failed = || format!("{what} of {server} failed");
    let mut stream = netns
        .run_in(|| TcpStream::connect_timeout(&server, PATIENCE))?
        .with_context(failed)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // 1.0: the body ends with the connection.
    let request = format!(
        "{what} HTTP/1.0\r\nHost: {server}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).with_context(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(failed)?;
    parse(&text).with_context(|| format!("{}: not HTTP: {text:?}", failed()))
}

fn parse(text: &str) -> Option<Response> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some(Response {
        status: status.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let response = parse("HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nnot yet\n");
        let expected = Response {
            status: 503,
            body: "not yet\n".to_owned(),
        };
        assert_eq!(response, Some(expected));
        assert_eq!(parse("hello"), None);
    }
}
