//! Echo requests of ICMP, of a size that must not be split: is a machine there, how far, and what fits on the way.

use std::io;
use std::mem::{size_of, size_of_val};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::vocab::Family;

/// Bytes of an ICMP header.
const ICMP: usize = 8;

/// Bytes of the headers before an echo's content: IP and ICMP.
pub fn overhead(family: Family) -> usize {
    match family {
        Family::V4 => 20 + ICMP,
        Family::V6 => 40 + ICMP,
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// It was answered, after so long.
    Answered(Duration),
    /// It was not answered in time.
    Lost,
    /// It is larger than what this machine knows to fit on the way.
    TooLarge,
    /// There is no way there.
    Unreachable,
}

/// A socket for echoes, of the network namespace in which it was opened. It needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    family: Family,
    id: u16,
    sequence: u16,
}

impl Pinger {
    /// Opens a socket. Those of one process differ by `id`.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn open(family: Family, id: u16) -> io::Result<Pinger> {
        let (domain, protocol) = match family {
            Family::V4 => (AddressFamily::Inet, SockProtocol::Icmp),
            Family::V6 => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        let (level, option) = match family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
        };
        // `IP_PMTUDISC_DO` and its IPv6 twin: never split.
        let never: libc::c_int = 2;
        #[expect(unsafe_code, reason = "no safe call sets this option")]
        // SAFETY: the option is an int, and `never` lives until the call returns.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const never).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        Errno::result(set)?;
        Ok(Pinger {
            socket,
            family,
            id,
            sequence: 0,
        })
    }

    /// Sends one request with so many bytes of content, and waits for its answer.
    ///
    /// # Errors
    /// The socket failed.
    pub fn ping(&mut self, to: IpAddr, content: usize, patience: Duration) -> io::Result<Echo> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = self.request(content);
        let target = SockaddrStorage::from(SocketAddr::new(to, 0));
        let start = Instant::now();
        match sendto(
            self.socket.as_raw_fd(),
            &request,
            &target,
            MsgFlags::empty(),
        ) {
            Ok(_) => {}
            Err(Errno::EMSGSIZE) => return Ok(Echo::TooLarge),
            Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN) => {
                return Ok(Echo::Unreachable);
            }
            Err(error) => return Err(error.into()),
        }
        let mut buffer = vec![0_u8; 65_536];
        loop {
            let left = patience.saturating_sub(start.elapsed());
            // 0 would be forever.
            let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX);
            if micros == 0 {
                return Ok(Echo::Lost);
            }
            setsockopt(&self.socket, ReceiveTimeout, &TimeVal::microseconds(micros))?;
            let received = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer);
            let (len, from) = match received {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(Echo::Lost),
                Err(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => return Ok(Echo::Unreachable),
                Err(Errno::EMSGSIZE) => return Ok(Echo::TooLarge),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let is_from = from.is_none_or(|from| address(&from) == Some(to));
            if is_from && self.is_answer(&buffer[..len]) {
                return Ok(Echo::Answered(start.elapsed()));
            }
        }
    }

    fn request(&self, content: usize) -> Vec<u8> {
        const ECHO_V4: u8 = 8;
        const ECHO_V6: u8 = 128;
        let kind = match self.family {
            Family::V4 => ECHO_V4,
            Family::V6 => ECHO_V6,
        };
        let mut request = vec![0; ICMP + content];
        request[0] = kind;
        request[4..6].copy_from_slice(&self.id.to_be_bytes());
        request[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        // The kernel writes that of ICMPv6.
        if self.family == Family::V4 {
            let sum = checksum(&request);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        request
    }

    fn is_answer(&self, packet: &[u8]) -> bool {
        const REPLY_V4: u8 = 0;
        const REPLY_V6: u8 = 129;
        // Raw sockets of IPv4 give the header too.
        let (skip, kind) = match self.family {
            Family::V4 => (
                packet.first().map_or(0, |byte| usize::from(byte & 15) * 4),
                REPLY_V4,
            ),
            Family::V6 => (0, REPLY_V6),
        };
        let Some(icmp) = packet.get(skip..).filter(|icmp| icmp.len() >= ICMP) else {
            return false;
        };
        icmp[0] == kind
            && icmp[4..6] == self.id.to_be_bytes()
            && icmp[6..8] == self.sequence.to_be_bytes()
    }
}

fn address(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| IpAddr::from(from.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::from(from.ip())))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let mut word = [0; size_of::<u16>()];
        word[..size_of_val(pair)].copy_from_slice(pair);
        u32::from(u16::from_be_bytes(word))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Ns, connect, require_tool};

    #[test]
    fn a_machine_answers_what_fits_and_an_absent_one_nothing() {
        require_tool("ip", "iproute2");
        let [a, b] = ["a", "b"].map(Ns::new);
        for ns in [&a, &b] {
            ns.set_sysctl("ipv6/conf/default/accept_dad", "0");
        }
        connect(&a, "eth0", &b, "eth0");
        for (ns, four, six) in [
            (&a, "192.0.2.1/24", "2001:db8::1/64"),
            (&b, "192.0.2.2/24", "2001:db8::2/64"),
        ] {
            ns.set_sysctl("ipv6/conf/eth0/accept_dad", "0");
            ns.addr("eth0", four);
            ns.addr("eth0", six);
        }
        let patience = Duration::from_secs(5);
        for (family, there, absent, elsewhere) in [
            (Family::V4, "192.0.2.2", "192.0.2.3", "203.0.113.1"),
            (Family::V6, "2001:db8::2", "2001:db8::3", "2001:db8:9::1"),
        ] {
            let mut pinger = a.run(|| Pinger::open(family, 7)).unwrap();
            let mut ping = |to: &str, content, patience| {
                pinger.ping(to.parse().unwrap(), content, patience).unwrap()
            };
            let full = 1500 - overhead(family);
            for content in [0, 1, 56, full] {
                let echo = ping(there, content, patience);
                assert!(matches!(echo, Echo::Answered(_)), "{content}: {echo:?}");
            }
            assert_eq!(ping(there, full + 1, patience), Echo::TooLarge);
            assert_eq!(ping(elsewhere, 0, patience), Echo::Unreachable);
            let echo = ping(absent, 0, Duration::from_millis(50));
            assert!(matches!(echo, Echo::Lost | Echo::Unreachable), "{echo:?}");
        }
    }

    #[test]
    fn sums_are_those_of_the_standard() {
        assert_eq!(checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }
}
