//! conntrack against the running kernel: real UDP flows, translated and not, in a private namespace.

use std::net::{SocketAddr, UdpSocket};

use hostnet::conntrack::{Conntrack, Filter, UdpFlow};
use hostnet::testkit::{EchoServer, Ns, ask_tcp, ask_udp, require_tool};
use hostnet::vocab::Family;

/// A namespace in which `10.96.0.10:53` and `[fd00::10]:53` are answered by servers on port 5300.
struct Lab {
    ns: Ns,
    _servers: Vec<EchoServer>,
}

impl Lab {
    fn new() -> Lab {
        require_tool("nft", "nftables");
        let ns = Ns::new("conntrack");
        for addr in [
            "192.0.2.1/32",
            "10.96.0.10/32",
            "2001:db8::1/128",
            "fd00::10/128",
        ] {
            ns.addr("lo", addr);
        }
        for (family, vip, to) in [
            ("ip", "10.96.0.10", "192.0.2.1:5300"),
            ("ip6", "fd00::10", "[2001:db8::1]:5300"),
        ] {
            ns.sh(
                "nft",
                &[&format!(
                    "add table {family} t; \
                     add chain {family} t out {{ type nat hook output priority -100; }}; \
                     add rule {family} t out {family} daddr {vip} meta l4proto {{ tcp, udp }} th dport 53 dnat to {to}"
                )],
            );
        }
        let servers = vec![
            EchoServer::start(&ns, "v4", "192.0.2.1:5300"),
            EchoServer::start(&ns, "v6", "[2001:db8::1]:5300"),
        ];
        Lab {
            ns,
            _servers: servers,
        }
    }

    fn conntrack(&self) -> Conntrack {
        self.ns.run(Conntrack::open).unwrap()
    }

    fn flows(&self, filter: &Filter) -> Vec<UdpFlow> {
        let mut flows = Vec::new();
        self.conntrack()
            .dump(filter, |flow| flows.push(flow))
            .unwrap();
        flows
    }

    /// Sends a datagram from a port of its own to where nobody answers.
    fn send(&self, to: &str) -> SocketAddr {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.ns.run(|| UdpSocket::bind(any)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"?").unwrap();
        socket.local_addr().unwrap()
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn flows_are_read_and_forgotten() {
    let lab = Lab::new();
    for (family, vip, backend) in [
        (Family::V4, "10.96.0.10:53", "192.0.2.1:5300"),
        (Family::V6, "[fd00::10]:53", "[2001:db8::1]:5300"),
    ] {
        assert!(ask_udp(&lab.ns, vip).is_ok(), "{vip}");
        assert!(ask_tcp(&lab.ns, vip).is_ok(), "{vip}");
        let elsewhere = backend.replace("5300", "5301");
        let from = lab.send(&elsewhere);

        // One of the three is what the filter asks for; TCP never is.
        let all = lab.flows(&Filter::all(family));
        assert!(all.len() >= 2, "{all:?}");
        assert!(all.iter().all(|flow| flow.family() == family), "{all:?}");
        assert!(
            all.iter()
                .any(|f| f.original.src == from && f.original.dst == addr(&elsewhere)),
            "{all:?}"
        );
        let to_port = lab.flows(&Filter::all(family).to_port(53));
        assert_eq!(to_port.len(), 1, "{to_port:?}");
        let flow = &to_port[0];
        assert_eq!(flow.original.dst, addr(vip));
        assert_eq!(flow.reply.src, addr(backend));
        assert_eq!(
            lab.flows(&Filter::all(family).to_addr(addr(vip).ip())),
            to_port
        );
        assert_eq!(lab.flows(&Filter::all(family).to_port(54)), []);
        let other = match family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        assert_eq!(lab.flows(&Filter::all(other).to_addr(addr(vip).ip())), []);

        // Of the same addresses but another flow: nothing goes.
        let another = UdpFlow {
            id: flow.id ^ 1,
            ..flow.clone()
        };
        let mut conntrack = lab.conntrack();
        assert_eq!(conntrack.delete(&[another]).unwrap(), 0);
        assert_eq!(lab.flows(&Filter::all(family).to_port(53)), to_port);
        // Twice: the second time it is gone already, which is no error.
        assert_eq!(conntrack.delete(&to_port).unwrap(), 1);
        assert_eq!(conntrack.delete(&to_port).unwrap(), 0);
        assert_eq!(lab.flows(&Filter::all(family).to_port(53)), []);
    }
    assert_eq!(Conntrack::open().unwrap().delete(&[]).unwrap(), 0);
}

/// More than one system call's worth, of which the odd ones go.
#[test]
fn many_flows_go_at_once() {
    let lab = Lab::new();
    let count = 1_500;
    for _ in 0..count {
        lab.send("192.0.2.1:9");
    }
    let filter = Filter::all(Family::V4).to_port(9);
    let (gone, kept): (Vec<_>, Vec<_>) = lab
        .flows(&filter)
        .into_iter()
        .partition(|flow| flow.original.src.port() % 2 == 1);
    assert!(gone.len() > 600, "{}", gone.len());
    assert_eq!(lab.conntrack().delete(&gone).unwrap(), gone.len());
    let mut left = lab.flows(&filter);
    left.sort_by_key(|flow| flow.original);
    let mut kept = kept;
    kept.sort_by_key(|flow| flow.original);
    assert_eq!(left, kept);
}
