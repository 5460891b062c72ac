//! The server: one thread per connection, one for datagrams.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result};

use super::{Greeting, make_room};

/// Serves TCP and UDP on one port of all addresses (0: any free one), in threads of its own, as
/// long as the process lives. Returns where it listens.
pub fn serve(name: &str, port: u16) -> Result<SocketAddr> {
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(any(port))
        .with_context(|| format!("cannot listen on tcp port {port}"))?;
    let address = listener.local_addr()?;
    let port = address.port();
    let datagrams =
        UdpSocket::bind(any(port)).with_context(|| format!("cannot listen on udp port {port}"))?;
    make_room(&datagrams)?;
    let tcp_name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = tcp_name.clone();
            // A conversation that breaks off is its client's business.
            std::thread::spawn(move || converse(&name, &stream));
        }
    });
    let udp_name = name.to_owned();
    std::thread::spawn(move || answer_datagrams(&udp_name, &datagrams));
    Ok(address)
}

fn greeting(name: &str, local: SocketAddr, peer: SocketAddr) -> Greeting {
    Greeting {
        server: name.to_owned(),
        address: local.ip().to_canonical(),
        client: peer.ip().to_canonical(),
    }
}

fn converse(name: &str, stream: &TcpStream) -> io::Result<()> {
    let greeting = greeting(name, stream.local_addr()?, stream.peer_addr()?);
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.contains(" HTTP/1.") {
        while line.trim() != "" {
            line.clear();
            reader.read_line(&mut line)?;
        }
        let body = format!("{greeting}\n");
        return write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    writeln!(writer, "{greeting}")?;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        writer.write_all(line.as_bytes())?;
    }
}

fn answer_datagrams(name: &str, socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // An error is an earlier answer's (ICMP); the next question has nothing to do with it.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Ok(local) = source_towards(peer) else {
            continue;
        };
        let mut answer = format!("{}\n", greeting(name, local, peer)).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&answer, peer);
    }
}

/// The address that this host speaks to `peer` from: a datagram socket does not tell which of
/// its addresses was asked.
fn source_towards(peer: SocketAddr) -> io::Result<SocketAddr> {
    let probe = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    probe.connect(peer)?;
    probe.local_addr()
}
