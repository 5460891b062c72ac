//! A datagram to a port where nobody listens, which a machine answers by ICMP: does it get there, whoever makes its checksum?

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};

use crate::vocab::Family;

/// Where traceroute(8) expects nobody, and firewalls expect traceroute.
const PORT: u16 = 33_434;

/// Who computes a datagram's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The device, if it says that it can: so it is with nearly all packets.
    Device,
    /// The kernel, before any device sees it.
    Kernel,
}

/// Sends one datagram. Whether an answer came: where none does, it may have been lost, or nobody is told of what is refused.
///
/// # Errors
/// The socket failed.
pub fn knock(to: IpAddr, checksum: Checksum, patience: Duration) -> io::Result<bool> {
    let socket = UdpSocket::bind((Family::of(to).unspecified(), 0))?;
    socket.connect((to, PORT))?;
    socket.set_read_timeout(Some(patience))?;
    let content = b"is anybody there?";
    let sent = match checksum {
        Checksum::Device => socket.send(content),
        // The checksum of what comes in parts is summed up as they come (`ip_append_data`).
        Checksum::Kernel => {
            let (first, rest) = content.split_at(1);
            let more = MsgFlags::from_bits_retain(libc::MSG_MORE);
            send(socket.as_raw_fd(), first, more)?;
            socket.send(rest)
        }
    };
    let answer = sent.and_then(|_| socket.recv(&mut [0; 1]));
    match answer {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Ok(true),
            io::ErrorKind::WouldBlock
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Ok(false),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{BadCard, Ns, connect};

    #[test]
    fn what_a_card_computes_wrong_is_told_from_what_the_kernel_computes() {
        let [a, card, b] = ["a", "card", "b"].map(Ns::new);
        for ns in [&a, &b] {
            ns.set_sysctl("ipv6/conf/default/accept_dad", "0");
        }
        connect(&a, "eth0", &card, "to-a");
        connect(&b, "eth0", &card, "to-b");
        for (ns, n) in [(&a, 1), (&b, 2)] {
            ns.addr("eth0", &format!("192.0.2.{n}/24"));
            ns.addr("eth0", &format!("2001:db8::{n}/64"));
        }
        let _card = BadCard::start(&card, "to-a", "to-b");
        let (long, short) = (Duration::from_secs(5), Duration::from_millis(300));
        for to in ["192.0.2.2", "2001:db8::2"] {
            let knock = |checksum, patience| {
                let to = to.parse().unwrap();
                a.run(|| knock(to, checksum, patience)).unwrap()
            };
            assert!(knock(Checksum::Kernel, long), "{to}");
            assert!(!knock(Checksum::Device, short), "{to}");
        }
        // Nothing is lost where nothing is computed wrong.
        for checksum in [Checksum::Device, Checksum::Kernel] {
            for to in ["192.0.2.1", "2001:db8::1"] {
                let to = to.parse().unwrap();
                assert!(a.run(|| knock(to, checksum, long)).unwrap());
            }
        }
        let nobody = "203.0.113.1".parse().unwrap();
        let refused = a.run(|| knock(nobody, Checksum::Device, short));
        assert!(!refused.unwrap_or(false));
    }
}
