//! A server that says who it is and whom it sees, over TCP and UDP, and its clients.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};

use super::Ns;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a server's threads look whether they shall end.
const TICK: Duration = Duration::from_millis(50);

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answered.
    pub server: String,
    /// The source address and port that it saw.
    pub source: SocketAddr,
}

/// A server on one port, TCP and UDP. To each TCP connection and each UDP datagram it answers
/// `NAME SOURCE\n`; what a TCP client writes then, it gets back. It ends when dropped.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    listener: TcpListener,
    threads: Vec<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts one in a namespace on an address such as `10.244.3.81:8080` or `[::]:8080`.
    pub fn start(ns: &Ns, name: &str, address: &str) -> EchoServer {
        let bound = ns.run(|| Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?)));
        let (listener, socket): (TcpListener, UdpSocket) =
            bound.unwrap_or_else(|error: io::Error| {
                panic!("server {name} on {address} in {}: {error}", ns.label())
            });
        let set_up = || {
            socket.set_read_timeout(Some(TICK))?;
            listener.try_clone()
        };
        let accepting = set_up().unwrap_or_else(|error| panic!("server {name}: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let threads = vec![
            std::thread::spawn({
                let (name, stop) = (name.to_owned(), Arc::clone(&stop));
                move || serve_tcp(&name, &accepting, &stop)
            }),
            std::thread::spawn({
                let (name, stop) = (name.to_owned(), Arc::clone(&stop));
                move || serve_udp(&name, &socket, &stop)
            }),
        ];
        EchoServer {
            stop,
            listener,
            threads,
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(name: &str, listener: &TcpListener, stop: &Arc<AtomicBool>) {
    let mut connections = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, source)) = listener.accept() else {
            continue;
        };
        let (name, stop) = (name.to_owned(), Arc::clone(stop));
        connections.push(std::thread::spawn(move || {
            // A client that goes away is none of the server's business.
            let _ = echo(&name, stream, source, &stop);
        }));
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn echo(
    name: &str,
    mut stream: TcpStream,
    source: SocketAddr,
    stop: &AtomicBool,
) -> io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    stream.write_all(line(name, source).as_bytes())?;
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn serve_udp(name: &str, socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        // Errors are timeouts, and refusals that an earlier answer met with.
        if let Ok((_, source)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(line(name, source).as_bytes(), source);
        }
    }
}

/// IPv4 sources are shown as such, also on a socket that serves both families.
fn line(name: &str, source: SocketAddr) -> String {
    format!(
        "{name} {}\n",
        SocketAddr::new(source.ip().to_canonical(), source.port())
    )
}

fn parse(line: &str) -> io::Result<Answer> {
    let unreadable = || io::Error::other(format!("not an answer: {line:?}"));
    let (server, source) = line.trim_end().rsplit_once(' ').ok_or_else(unreadable)?;
    let source = source.parse().map_err(|_| unreadable())?;
    Ok(Answer {
        server: server.to_owned(),
        source,
    })
}

/// Connects from a namespace over TCP and reads the answer, within two seconds.
pub fn ask_tcp(ns: &Ns, address: &str) -> io::Result<Answer> {
    ask_tcp_from(ns, None, address)
}

/// The same from a source address of the namespace's.
pub fn ask_tcp_from(ns: &Ns, source: Option<IpAddr>, address: &str) -> io::Result<Answer> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let stream = ns.run(|| connect_tcp(source, address))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    parse(&answer)
}

fn connect_tcp(source: Option<IpAddr>, address: SocketAddr) -> io::Result<TcpStream> {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
    let Some(source) = source else {
        return TcpStream::connect_timeout(&address, PATIENCE);
    };
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(source, 0)),
    )?;
    // A blocking connect takes the send timeout as its own.
    let stream = TcpStream::from(fd);
    stream.set_write_timeout(Some(PATIENCE))?;
    match socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(address)) {
        // So the kernel says that the timeout is over.
        Err(Errno::EINPROGRESS) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(stream),
    }
}

/// Sends a datagram from a namespace and reads the answer, within two seconds.
pub fn ask_udp(ns: &Ns, address: &str) -> io::Result<Answer> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = ns.run(|| UdpSocket::bind((any, 0)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    socket.send(b"who are you\n")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    parse(&String::from_utf8_lossy(&buffer[..length]))
}
