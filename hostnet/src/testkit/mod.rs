//! What tests need of the network: private namespaces that go with the test, cables and bridges
//! between them, servers and clients that tell who answered whom, and snapshots to compare.
//!
//! Nothing here touches the namespace that the test was started in. All of it panics with a
//! sentence that says what to do, because that is what a test shall do.
//!
//! ```no_run
//! use hostnet::testkit::{EchoServer, Ns, ask_tcp, connect};
//!
//! let (a, b) = (Ns::new("a"), Ns::new("b"));
//! connect(&a, "eth0", &b, "eth0");
//! a.addr("eth0", "192.0.2.1/24");
//! b.addr("eth0", "192.0.2.2/24");
//! let _server = EchoServer::start(&b, "b", "192.0.2.2:8080");
//! let answer = ask_tcp(&a, "192.0.2.2:8080").unwrap();
//! assert_eq!((answer.server.as_str(), answer.source.ip().to_string().as_str()), ("b", "192.0.2.1"));
//! ```

mod card;
mod echo;
mod ns;
mod snapshot;
mod wait;

pub use card::BadCard;
pub use echo::{Answer, EchoServer, ask_tcp, ask_tcp_from, ask_udp};
pub use ns::{Ns, connect, join_bridge, require_root, require_tool};
pub use snapshot::Snapshot;
pub use wait::{wait_for, wait_until};
