//! What the old tables of `iptables-legacy` say about forwarded packets: reading only, and only as much as it takes to
//! tell a person who it is that drops them.
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
const MAX_SIZE: usize = 64 << 20;

/// Whether the policy of FORWARD in the old `filter` table of the calling thread's network namespace is DROP. `None` if
/// the table is not loaded.
///
/// # Errors
/// The kernel refuses to show it; `CAP_NET_ADMIN` is needed.
pub fn forward_policy_is_drop(family: Family) -> io::Result<Option<bool>> {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let is_loaded =
        fs::read_to_string(names).is_ok_and(|names| names.lines().any(|n| n == "filter"));
    if !is_loaded {
        return Ok(None);
    }
    let socket = Socket::open(family)?;
    let mut info = vec![0; INFO_LEN];
    info[..6].copy_from_slice(b"filter");
    socket.get(GET_INFO, &mut info)?;
    let size = u32_at(&info, INFO_SIZE)? as usize;
    if size > MAX_SIZE {
        return Err(io::Error::other("the filter table is too large to be read"));
    }
    let mut entries = vec![0; ENTRIES_HEADER + size];
    entries[..6].copy_from_slice(b"filter");
    entries[32..36].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_ne_bytes());
    socket.get(GET_ENTRIES, &mut entries)?;
    policy(&info, &entries, family).map(Some)
}

/// Reads the verdict of FORWARD's last entry, which is its policy.
fn policy(info: &[u8], entries: &[u8], family: Family) -> io::Result<bool> {
    // `target_offset` of `struct ipt_entry` and `struct ip6t_entry`.
    let target_offset = match family {
        Family::V4 => 88,
        Family::V6 => 140,
    };
    let entry = ENTRIES_HEADER + u32_at(info, INFO_UNDERFLOW + 4 * FORWARD)? as usize;
    let target = entries
        .get(entry + target_offset..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| usize::from(u16::from_ne_bytes(*bytes)))
        .ok_or_else(malformed)?;
    // `struct xt_standard_target`: a header of 32 bytes, then the verdict; DROP is -1 there.
    let verdict = u32_at(entries, entry + target + 32)? as i32;
    Ok(verdict == -libc::NF_DROP - 1)
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
        }
    }
}
