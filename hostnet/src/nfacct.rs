//! Counters that rules of iptables count packets with (`-m nfacct`): made, read and removed by name, in one network
//! namespace.

use nix::errno::Errno;

use crate::nfnetlink::wire::{self, Writer};
use crate::nfnetlink::{self, Socket};

/// `NFNL_SUBSYS_ACCT` with `NFNL_MSG_ACCT_NEW`, `NFNL_MSG_ACCT_GET` and `NFNL_MSG_ACCT_DEL`.
const NEW: u16 = 7 << 8;
const GET: u16 = NEW | 1;
const DELETE: u16 = NEW | 3;
/// `NFACCT_NAME` and `NFACCT_PKTS`.
const NAME: u16 = 1;
const PACKETS: u16 = 2;

/// What the kernel did not do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the counter {name} of nfacct")]
pub struct Error {
    what: &'static str,
    name: String,
    source: nfnetlink::Error,
}

/// A connection to the counters of one network namespace: that in which the thread was when it was opened.
#[derive(Debug)]
pub struct Counters {
    socket: Socket,
}

impl Counters {
    /// Connects to the counters of the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel gives no netlink socket.
    pub fn open() -> Result<Counters, Error> {
        let failed = |source| Error {
            what: "reach",
            name: "subsystem".to_owned(),
            source,
        };
        Ok(Counters {
            socket: Socket::open().map_err(failed)?,
        })
    }

    /// Makes a counter of this name, of at most 31 bytes, unless it is there.
    ///
    /// # Errors
    /// The kernel has no such counters (`CONFIG_NETFILTER_NETLINK_ACCT`), or does not let us.
    pub fn ensure(&mut self, name: &str) -> Result<(), Error> {
        let flags = wire::F_CREATE | wire::F_ACK;
        match self.ask(NEW, flags, name, |_| {}) {
            // It is there.
            Err(nfnetlink::Error::Refused(Errno::EBUSY | Errno::EEXIST)) => Ok(()),
            other => other.map_err(|source| failed("make", name, source)),
        }
    }

    /// How many packets it has counted; `None` if there is none of that name.
    ///
    /// # Errors
    /// As [`Counters::ensure`].
    pub fn packets(&mut self, name: &str) -> Result<Option<u64>, Error> {
        let mut packets = None;
        match self.ask(GET, wire::F_ACK, name, |found| packets = Some(found)) {
            Ok(()) => Ok(packets),
            Err(nfnetlink::Error::Refused(Errno::ENOENT)) => Ok(None),
            Err(source) => Err(failed("read", name, source)),
        }
    }

    /// Removes a counter that no rule counts with. Returns whether there was one; one that is in use stays.
    ///
    /// # Errors
    /// As [`Counters::ensure`].
    pub fn remove(&mut self, name: &str) -> Result<bool, Error> {
        match self.ask(DELETE, wire::F_ACK, name, |_| {}) {
            Ok(()) => Ok(true),
            Err(nfnetlink::Error::Refused(Errno::ENOENT | Errno::EBUSY)) => Ok(false),
            Err(source) => Err(failed("remove", name, source)),
        }
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        name: &str,
        mut counted: impl FnMut(u64),
    ) -> Result<(), nfnetlink::Error> {
        let ask = |writer: &mut Writer| writer.str(NAME, name);
        nfnetlink::request(&mut self.socket, kind, flags, 0, ask, |message| {
            if let Some(packets) = message.attrs().be64(PACKETS) {
                counted(packets);
            }
        })
    }
}

fn failed(what: &'static str, name: &str, source: nfnetlink::Error) -> Error {
    Error {
        what,
        name: name.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testkit::{Ns, require_tool, wait_until};

    const NAME: &str = "some_pkts";

    #[test]
    fn a_counter_counts_what_a_rule_has_it_count() {
        require_tool("iptables-nft", "iptables");
        let ns = Ns::new("nfacct");
        let mut counters = ns.run(Counters::open).unwrap();
        assert_eq!(counters.packets(NAME).unwrap(), None);
        assert!(!counters.remove(NAME).unwrap());
        counters.ensure(NAME).unwrap();
        counters.ensure(NAME).unwrap();
        assert_eq!(counters.packets(NAME).unwrap(), Some(0));
        let rule = |command| {
            let rule = [command, "OUTPUT", "-m", "nfacct", "--nfacct-name", NAME];
            ns.sh("iptables-nft", &rule);
        };
        rule("-A");
        ns.run(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", "127.0.0.1:9").unwrap();
        });
        assert!(counters.packets(NAME).unwrap() > Some(0));
        // One that counts already is left as it is, and one that is in use stays.
        counters.ensure(NAME).unwrap();
        assert!(!counters.remove(NAME).unwrap());
        assert!(counters.packets(NAME).unwrap() > Some(0));
        rule("-D");
        // The kernel frees the rule some time after it is gone.
        wait_until("a counter that is free", Duration::from_secs(10), || {
            counters.remove(NAME).unwrap()
        });
        assert_eq!(counters.packets(NAME).unwrap(), None);
    }
}
