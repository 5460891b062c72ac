//! One question, one answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use hostnet::netns::NetNs;

use super::{Greeting, Transport, make_room};

/// Long enough for three tries of a connect (1 s and 2 s apart).
const PATIENCE: Duration = Duration::from_secs(8);

/// Asks a server from inside a namespace. One datagram is sent, and never again: a lost packet
/// is a failure.
pub fn ask(netns: &NetNs, transport: Transport, server: SocketAddr) -> Result<Greeting> {
    let answer = match transport {
        Transport::Tcp => ask_tcp(netns, server),
        Transport::Udp => ask_udp(netns, server),
    };
    answer
        .with_context(|| format!("no answer from {transport} {server}"))?
        .parse()
}

fn ask_tcp(netns: &NetNs, server: SocketAddr) -> Result<String> {
    let mut stream = connect(netns, server)?;
    stream.write_all(b"who is there?\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn ask_udp(netns: &NetNs, server: SocketAddr) -> Result<String> {
    let socket = datagrams_to(netns, server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who is there?")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

pub(super) fn connect(netns: &NetNs, server: SocketAddr) -> Result<TcpStream> {
    let stream = netns.run_in(|| TcpStream::connect_timeout(&server, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(super) fn datagrams_to(netns: &NetNs, server: SocketAddr) -> Result<UdpSocket> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = netns.run_in(|| UdpSocket::bind(any))??;
    make_room(&socket)?;
    socket.connect(server)?;
    Ok(socket)
}
