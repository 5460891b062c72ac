//! A network card that is broken.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::Ns;

/// How often its threads look whether they shall end, in milliseconds.
const TICK: i64 = 50;

/// Passes frames between two links as they are, and does not compute the checksums that were left to it, as some drivers
/// and hypervisors with packets in packets. It ends when dropped.
#[derive(Debug)]
pub struct BadCard {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BadCard {
    /// Between two links of a namespace, which are up.
    pub fn start(ns: &Ns, a: &str, b: &str) -> BadCard {
        let [a, b] = [a, b].map(|link| Arc::new(ns.run(|| all_frames(link))));
        let stop = Arc::new(AtomicBool::new(false));
        let pass = |from: &Arc<OwnedFd>, to: &Arc<OwnedFd>| {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut frame = vec![0; 1 << 16];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(len) = recv(from.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                        // What the other side does not take is lost, as on a cable.
                        let _ = send(to.as_raw_fd(), &frame[..len], MsgFlags::empty());
                    }
                }
            })
        };
        let threads = vec![pass(&a, &b), pass(&b, &a)];
        BadCard { stop, threads }
    }
}

impl Drop for BadCard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A socket for all frames of a link of the calling thread's namespace.
fn all_frames(link: &str) -> OwnedFd {
    let open = || -> nix::Result<OwnedFd> {
        let (family, all) = (AddressFamily::Packet, SockProtocol::EthAll);
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, all)?;
        let addresses = getifaddrs()?.filter(|of| of.interface_name == link);
        let mut addresses = addresses.filter_map(|of| of.address?.as_link_addr().copied());
        let address = addresses.next().ok_or(nix::errno::Errno::ENODEV)?;
        bind(socket.as_raw_fd(), &address)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(TICK))?;
        Ok(socket)
    };
    open().unwrap_or_else(|error| panic!("a socket for the frames of {link}: {error}"))
}
