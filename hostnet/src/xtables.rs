//! What the old tables of `iptables-legacy` say about forwarded packets: reading only, and only as much as it takes to
//! tell a person who it is that drops them, and what a predecessor has left.
//!
//! The kernel shows these tables through socket options of `linux/netfilter_ipv4/ip_tables.h`. Asking for a table loads it,
//! so it is asked for only where it is loaded already.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::vocab::Family;

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; those of IPv6 have the same numbers.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;

/// `struct ipt_getinfo`: a name of 32 bytes, the valid hooks, the first entry and the policy's offset of each of five
/// hooks, the number and the size of all entries.
const INFO_LEN: usize = 32 + 4 + 5 * 4 + 5 * 4 + 4 + 4;
const INFO_UNDERFLOW: usize = 32 + 4 + 5 * 4;
const INFO_SIZE: usize = INFO_LEN - 4;

/// `struct ipt_get_entries`: a name of 32 bytes and a size, then at an offset of 8 the entries.
const ENTRIES_HEADER: usize = 40;

/// Tables larger than this are not looked into.
const MAX_SIZE: u32 = 64 << 20;

/// Length of `struct xt_entry_target`.
const TARGET_HEADER: usize = 32;

/// Whether the policy of FORWARD in the old `filter` table of the calling thread's network namespace is DROP. `None` if
/// the table is not loaded.
///
/// # Errors
/// The kernel refuses to show it; `CAP_NET_ADMIN` is needed.
pub fn forward_policy_is_drop(family: Family) -> io::Result<Option<bool>> {
    Ok(match Table::read(family, "filter")? {
        Some(table) => Some(table.policy(FORWARD)?),
        None => None,
    })
}

/// The names of the chains that a program has made in an old table of the calling thread's network namespace; none if
/// the table is not loaded.
///
/// # Errors
/// As [`forward_policy_is_drop`].
pub fn chains(family: Family, table: &str) -> io::Result<Vec<String>> {
    match Table::read(family, table)? {
        Some(table) => table.chains(),
        None => Ok(Vec::new()),
    }
}

/// A table as the kernel shows it.
struct Table {
    family: Family,
    info: Vec<u8>,
    /// What [`GET_ENTRIES`] gave, header and all.
    entries: Vec<u8>,
}

impl Table {
    /// Reads a table; `None` if it is not loaded.
    fn read(family: Family, name: &str) -> io::Result<Option<Table>> {
        let names = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        let loaded = fs::read_to_string(names).unwrap_or_default();
        if !loaded.lines().any(|loaded| loaded == name) {
            return Ok(None);
        }
        let socket = Socket::open(family)?;
        let mut info = vec![0; INFO_LEN];
        info[..name.len()].copy_from_slice(name.as_bytes());
        socket.get(GET_INFO, &mut info)?;
        let size = u32_at(&info, INFO_SIZE)?;
        if size > MAX_SIZE {
            return Err(io::Error::other("the table is too large to be read"));
        }
        let mut entries = vec![0; ENTRIES_HEADER + size as usize];
        entries[..name.len()].copy_from_slice(name.as_bytes());
        entries[32..36].copy_from_slice(&size.to_ne_bytes());
        socket.get(GET_ENTRIES, &mut entries)?;
        Ok(Some(Table {
            family,
            info,
            entries,
        }))
    }

    /// Whether the policy of a hook, which is the verdict of its last entry, is DROP.
    fn policy(&self, hook: usize) -> io::Result<bool> {
        let entry = ENTRIES_HEADER + u32_at(&self.info, INFO_UNDERFLOW + 4 * hook)? as usize;
        // `struct xt_standard_target`: a header, then the verdict; DROP is -1 there.
        let verdict = u32_at(&self.entries, self.target(entry)? + TARGET_HEADER)? as i32;
        Ok(verdict == -libc::NF_DROP - 1)
    }

    /// A chain that a program has made begins with an entry whose target, `ERROR`, carries its name.
    fn chains(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let mut entry = ENTRIES_HEADER;
        while entry < self.entries.len() {
            let target = self.target(entry)?;
            // `struct xt_entry_target`: a size of 2 bytes, then the name.
            if text_at(&self.entries, target + 2)? == "ERROR" {
                names.push(text_at(&self.entries, target + TARGET_HEADER)?.to_owned());
            }
            // `next_offset` stands behind `target_offset`.
            let next = u16_at(&self.entries, entry + self.target_offset() + 2)?;
            if next == 0 {
                return Err(malformed());
            }
            entry += usize::from(next);
        }
        // The last entry of all is one, too, and of no chain.
        names.pop();
        Ok(names)
    }

    /// Where an entry's target stands.
    fn target(&self, entry: usize) -> io::Result<usize> {
        Ok(entry + usize::from(u16_at(&self.entries, entry + self.target_offset())?))
    }

    /// Where `target_offset` stands in `struct ipt_entry` and `struct ip6t_entry`.
    fn target_offset(&self) -> usize {
        match self.family {
            Family::V4 => 88,
            Family::V6 => 140,
        }
    }
}

/// A text that a zero byte ends.
fn text_at(bytes: &[u8], at: usize) -> io::Result<&str> {
    let rest = bytes.get(at..).ok_or_else(malformed)?;
    let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).map_err(|_| malformed())
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| u16::from_ne_bytes(*bytes))
        .ok_or_else(malformed)
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| u32::from_ne_bytes(*bytes))
        .ok_or_else(malformed)
}

fn malformed() -> io::Error {
    io::Error::other("the kernel's filter table is not as expected")
}

struct Socket {
    fd: OwnedFd,
    level: libc::c_int,
}

impl Socket {
    fn open(family: Family) -> io::Result<Socket> {
        let (domain, level) = match family {
            Family::V4 => (AddressFamily::Inet, libc::SOL_IP),
            Family::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
        };
        let fd = socket(
            domain,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )?;
        Ok(Socket { fd, level })
    }

    /// Asks for an option. What is in the buffer is the question; the answer has the same length.
    #[expect(unsafe_code, reason = "nix has no wrapper for options of netfilter")]
    fn get(&self, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
        let mut len = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
        // SAFETY: the pointers are to the buffer and to its length, which both live until the call returns; the kernel
        // writes no more than that length.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                self.level,
                option,
                buffer.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Ns, require_tool};

    #[test]
    fn the_policy_is_read_where_there_is_one() {
        require_tool("iptables-legacy", "iptables");
        let ns = Ns::new("xtables");
        for (family, program) in [
            (Family::V4, "iptables-legacy"),
            (Family::V6, "ip6tables-legacy"),
        ] {
            let read = || ns.run(|| forward_policy_is_drop(family)).unwrap();
            assert_eq!(read(), None, "asking loads no table");
            // Rules before and in the chain, so that the policy is not the first entry.
            ns.sh(program, &["-A", "INPUT", "-j", "ACCEPT"]);
            ns.sh(program, &["-A", "FORWARD", "-i", "lo", "-j", "DROP"]);
            assert_eq!(read(), Some(false));
            ns.sh(program, &["-P", "FORWARD", "DROP"]);
            assert_eq!(read(), Some(true));
            let read = || ns.run(|| chains(family, "filter")).unwrap();
            assert_eq!(read(), [""; 0]);
            ns.sh(program, &["-N", "FLANNEL-FWD"]);
            ns.sh(program, &["-N", "OTHER"]);
            ns.sh(program, &["-A", "OTHER", "-j", "FLANNEL-FWD"]);
            assert_eq!(read(), ["FLANNEL-FWD", "OTHER"]);
        }
    }
}
