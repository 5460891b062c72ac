//! Who else has an IPv4 address of ours (RFC 5227): a link is asked for it by nobody, so that nobody learns by the question.

use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, bind, recv, send,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::vocab::Mac;

/// An Ethernet header and an ARP packet for IPv4 (RFC 826).
const LEN: usize = 14 + 28;
/// How often it is asked: a question may be lost.
const TIMES: u32 = 2;

/// The other machines on a link that say, within so long, that they have this address. `mac` is the link's own.
///
/// # Errors
/// The kernel gives no socket (it needs `CAP_NET_RAW`), or the link is down.
pub fn others(
    link: u32,
    mac: Mac,
    address: Ipv4Addr,
    patience: Duration,
) -> io::Result<BTreeSet<Mac>> {
    let socket = open(link)?;
    let mut found = BTreeSet::new();
    for _ in 0..TIMES {
        send(
            socket.as_raw_fd(),
            &question(mac, address),
            MsgFlags::empty(),
        )?;
        let end = Instant::now() + patience / TIMES;
        let mut frame = [0; LEN];
        loop {
            let left = end.saturating_duration_since(Instant::now()).as_micros();
            // 0 would be forever.
            let Some(left) = i64::try_from(left).ok().filter(|left| *left > 0) else {
                break;
            };
            setsockopt(&socket, ReceiveTimeout, &TimeVal::microseconds(left))?;
            match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(len) => found.extend(frame.get(..len).and_then(|frame| owner(frame, address))),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    found.remove(&mac);
    Ok(found)
}

/// A socket for the ARP packets of a link.
fn open(link: u32) -> io::Result<OwnedFd> {
    // Before it is bound it is of no protocol, and gets nothing.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
        sll_ifindex: i32::try_from(link).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    #[expect(unsafe_code, reason = "no safe call makes the address of a link")]
    // SAFETY: it is one of AF_PACKET, of the length that is told, and lives until the call returns.
    let address = unsafe {
        LinkAddr::from_raw(
            (&raw const address).cast(),
            Some(size_of::<libc::sockaddr_ll>() as libc::socklen_t),
        )
    };
    bind(socket.as_raw_fd(), &address.ok_or(Errno::EINVAL)?)?;
    Ok(socket)
}

fn question(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let Mac(own) = mac;
    [
        // To all, ARP; Ethernet, IPv4, their lengths, a request.
        &[0xff; 6][..],
        &own,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        // From nobody, whose address we do not want anybody to learn; to whoever has this one.
        &own,
        &[0; 4],
        &[0; 6],
        &address.octets(),
    ]
    .concat()
}

/// Who says by this frame, be it an answer or a question, that the address is its own.
fn owner(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let sender = frame.get(22..28)?.try_into().ok()?;
    (frame.get(28..32)? == address.octets()).then_some(Mac(sender))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Ns, connect};

    #[test]
    fn who_else_has_an_address_is_found_and_learns_nothing() {
        let [a, b] = ["a", "b"].map(Ns::new);
        connect(&a, "eth0", &b, "eth0");
        a.addr("eth0", "192.0.2.1/24");
        let eth0 = a.link("eth0");
        let look = |address: &str| {
            let address = address.parse().unwrap();
            let ask = || {
                others(
                    eth0.index,
                    eth0.mac.unwrap(),
                    address,
                    Duration::from_millis(400),
                )
            };
            a.run(ask).unwrap()
        };
        assert!(look("192.0.2.1").is_empty());
        b.addr("eth0", "192.0.2.1/24");
        let mac = b.link("eth0").mac.unwrap();
        assert_eq!(look("192.0.2.1"), [mac].into());
        assert!(look("192.0.2.2").is_empty());
        assert!(
            b.rtnl()
                .neighs(None)
                .unwrap()
                .iter()
                .all(|n| !n.addr.is_ipv4())
        );
        a.set_down("eth0");
        let down = a.run(|| {
            let address = Ipv4Addr::new(192, 0, 2, 1);
            others(
                eth0.index,
                eth0.mac.unwrap(),
                address,
                Duration::from_millis(1),
            )
        });
        assert_eq!(down.unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    }
}
