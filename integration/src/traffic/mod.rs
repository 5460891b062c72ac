//! Servers that tell who answered and whom they saw, and clients that ask them.
//!
//! TCP: the first line is a question, answered by one line, a [`Greeting`]; every further line
//! is echoed. A question in HTTP gets the greeting as an HTTP response, for `curl`.
//! UDP: every datagram is answered by the greeting, a line feed, and the datagram.

mod client;
mod server;
mod stream;

use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::str::FromStr;

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

pub use client::ask;
pub use server::serve;
pub use stream::{Report, Stream};

/// What carries a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Transport; 2] = [Transport::Tcp, Transport::Udp];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

/// Gives a datagram socket room for seconds of a stream: on a busy machine a process that waits
/// for its turn must not look like a network that loses packets.
fn make_room(socket: &UdpSocket) -> anyhow::Result<()> {
    const ROOM: usize = 8 << 20;
    Ok(setsockopt(socket, RcvBufForce, &ROOM)?)
}

/// A server's answer: `hello-world from POD (10.244.3.81) to 10.244.0.1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Who answered.
    pub server: String,
    /// The address that the server was reached at, after translation.
    pub address: IpAddr,
    /// The client's address, as the server saw it.
    pub client: IpAddr,
}

impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Greeting {
            server,
            address,
            client,
        } = self;
        write!(f, "hello-world from {server} ({address}) to {client}")
    }
}

impl FromStr for Greeting {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Greeting, anyhow::Error> {
        let parse = || {
            let (server, rest) = text.strip_prefix("hello-world from ")?.split_once(" (")?;
            let (address, client) = rest.split_once(") to ")?;
            Some(Greeting {
                server: server.to_owned(),
                address: address.parse().ok()?,
                client: client.parse().ok()?,
            })
        };
        parse().ok_or_else(|| anyhow::anyhow!("not a greeting: {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use hostnet::netns::NetNs;

    use super::*;

    #[test]
    fn greetings_are_read_as_they_are_written() {
        let greeting = Greeting {
            server: "web-1".to_owned(),
            address: "10.244.3.81".parse().unwrap(),
            client: "fd00::1".parse().unwrap(),
        };
        let text = "hello-world from web-1 (10.244.3.81) to fd00::1";
        assert_eq!(greeting.to_string(), text);
        assert_eq!(text.parse::<Greeting>().unwrap(), greeting);
        assert!("hello".parse::<Greeting>().is_err());
    }

    /// A server on a free port of this machine's loopback.
    fn local() -> (NetNs, SocketAddr) {
        let address = serve("me", 0).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
        (NetNs::current().unwrap(), address)
    }

    #[test]
    fn servers_tell_who_they_are_and_whom_they_saw() {
        let (here, address) = local();
        for transport in Transport::ALL {
            let greeting = ask(&here, transport, address).unwrap();
            assert_eq!(
                greeting.to_string(),
                "hello-world from me (127.0.0.1) to 127.0.0.1"
            );
        }
        let response = crate::http::get(&here, address, "/").unwrap();
        assert_eq!(response.status, 200);
        assert_eq!(
            response.body,
            "hello-world from me (127.0.0.1) to 127.0.0.1\n"
        );
    }

    #[test]
    fn streams_count_what_is_answered() {
        let (here, address) = local();
        for transport in Transport::ALL {
            let mut stream = Stream::start(&here, transport, address).unwrap();
            stream.wait_for(20, Duration::from_secs(10)).unwrap();
            let report = stream.finish().unwrap();
            assert!(report.sent >= 20 && report.lost.is_empty(), "{report:?}");
        }
    }
}
