//! What the old tables of `iptables-legacy` say: reading only, to tell a person what becomes of a packet there, who it is
//! that drops it, and what a predecessor has left.
//!
//! The kernel shows these tables through socket options of `linux/netfilter_ipv4/ip_tables.h`. Asking for a table loads it,
//! so it is asked for only where it is loaded already.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::nft::{Expr, Hook, Name, Policy, Proto, Rule, Selector, Verdict};
use crate::vocab::{Family, Subnet};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; those of IPv6 have the same numbers.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;

/// `struct ipt_getinfo`: a name of 32 bytes, the valid hooks, the first entry and the policy's offset of each of five
/// hooks, the number and the size of all entries.
const INFO_LEN: usize = 32 + 4 + 5 * 4 + 5 * 4 + 4 + 4;
const INFO_HOOKS: usize = 32;
const INFO_ENTRY: usize = 32 + 4;
const INFO_UNDERFLOW: usize = 32 + 4 + 5 * 4;
const INFO_SIZE: usize = INFO_LEN - 4;

/// `struct ipt_get_entries`: a name of 32 bytes and a size, then at an offset of 8 the entries.
const ENTRIES_HEADER: usize = 40;

/// Tables larger than this are not looked into.
const MAX_SIZE: u32 = 64 << 20;

/// Length of `struct xt_entry_target`.
const TARGET_HEADER: usize = 32;

/// `IFNAMSIZ`.
const IF_NAME: usize = 16;

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

/// An old table by its chains, each rule in the form in which `iptables-nft` writes it into nf_tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    /// Where packets enter, by which chain, and whether what no rule decides on is dropped.
    pub entered: Vec<(Hook, Name, Policy)>,
    /// All chains' rules.
    pub rules: BTreeMap<Name, Vec<Rule>>,
}

/// The rules of an old table of the calling thread's network namespace. `None` if the table is not loaded.
///
/// # Errors
/// As [`forward_policy_is_drop`].
pub fn rules(family: Family, table: &str) -> io::Result<Option<Chains>> {
    match Table::read(family, table)? {
        Some(table) => table.rules().map(Some),
        None => Ok(None),
    }
}

/// The chains that hooks lead to, in the order of the hooks' numbers.
const ENTERED: [(Hook, &str); 5] = [
    (Hook::Prerouting, "PREROUTING"),
    (Hook::Input, "INPUT"),
    (Hook::Forward, "FORWARD"),
    (Hook::Output, "OUTPUT"),
    (Hook::Postrouting, "POSTROUTING"),
];

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
        for (entry, _) in self.each()? {
            names.extend(self.chain_at(entry)?.map(str::to_owned));
        }
        // The last entry of all is one, too, and of no chain.
        names.pop();
        Ok(names)
    }

    /// Where entries begin, one after another, each with its length.
    fn each(&self) -> io::Result<Vec<(usize, usize)>> {
        let mut all = Vec::new();
        let mut entry = ENTRIES_HEADER;
        while entry < self.entries.len() {
            // `next_offset` stands behind `target_offset`.
            let next = u16_at(&self.entries, entry + self.target_offset() + 2)?;
            if next == 0 {
                return Err(malformed());
            }
            all.push((entry, usize::from(next)));
            entry += usize::from(next);
        }
        Ok(all)
    }

    /// The name that an `ERROR` target carries: of a chain that begins behind it.
    fn chain_at(&self, entry: usize) -> io::Result<Option<&str>> {
        let target = self.target(entry)?;
        // `struct xt_entry_target`: a size of 2 bytes, then the name.
        Ok(match text_at(&self.entries, target + 2)? {
            "ERROR" => Some(text_at(&self.entries, target + TARGET_HEADER)?),
            _ => None,
        })
    }

    fn rules(&self) -> io::Result<Chains> {
        let entries = self.each()?;
        let mut starts: BTreeMap<usize, Name> = BTreeMap::new();
        let mut policies: BTreeMap<usize, usize> = BTreeMap::new();
        let mut chains = Chains::default();
        let valid = u32_at(&self.info, INFO_HOOKS)?;
        for (number, (hook, name)) in ENTERED.into_iter().enumerate() {
            if valid & (1 << number) == 0 {
                continue;
            }
            let start = u32_at(&self.info, INFO_ENTRY + 4 * number)? as usize;
            let end = u32_at(&self.info, INFO_UNDERFLOW + 4 * number)? as usize;
            starts.insert(start, name.into());
            policies.insert(end, number);
            let policy = match self.policy(number)? {
                true => Policy::Drop,
                false => Policy::Accept,
            };
            chains.entered.push((hook, name.into(), policy));
        }
        for (entry, len) in &entries {
            if let Some(name) = self.chain_at(*entry)? {
                starts.insert(entry + len - ENTRIES_HEADER, name.into());
            }
        }
        let mut chain: Option<Name> = None;
        for (entry, len) in &entries {
            let offset = entry - ENTRIES_HEADER;
            if let Some(name) = starts.get(&offset) {
                chains.rules.entry(name.clone()).or_default();
                chain = Some(name.clone());
            }
            let is_rule = !policies.contains_key(&offset) && self.chain_at(*entry)?.is_none();
            if let Some(chain) = chain.as_ref().filter(|_| is_rule) {
                let rule = self.rule(*entry, *len, &starts)?;
                chains.rules.entry(chain.clone()).or_default().push(rule);
            }
        }
        // The last entry of all is an `ERROR` of no chain.
        chains.rules.remove("ERROR");
        let is_entered = |name: &Name| chains.entered.iter().any(|(_, entered, _)| entered == name);
        for (_, rules) in (chains.rules.iter_mut()).filter(|(name, _)| !is_entered(name)) {
            // Back to where it was called from: `iptables-legacy` ends each chain so, and shows it to nobody.
            rules.pop();
        }
        Ok(chains)
    }

    /// `struct ipt_entry`, `struct ip6t_entry`.
    fn rule(&self, at: usize, len: usize, chains: &BTreeMap<usize, Name>) -> io::Result<Rule> {
        let entry = self.entries.get(at..at + len).ok_or_else(malformed)?;
        let wide = self.family.bits() as usize / 8;
        // Source, destination, their masks, the names of two interfaces, and their masks.
        let names = 4 * wide;
        let proto = names + 4 * IF_NAME;
        let (flags, inverts, goto, elements) = match self.family {
            Family::V4 => (proto + 2, proto + 3, 2, 112),
            Family::V6 => (proto + 3, proto + 4, 4, 168),
        };
        let byte = |at: usize| entry.get(at).copied().ok_or_else(malformed);
        let (flags, inverts) = (byte(flags)?, byte(inverts)?);
        let mut rule = Rule::new();
        let number = u16_at(entry, proto)?;
        if number != 0 {
            let proto = Proto(u8::try_from(number).map_err(|_| malformed())?);
            rule = match inverts & 0x40 {
                0 => rule.eq(Selector::L4Proto, proto),
                _ => rule.ne(Selector::L4Proto, proto),
            };
        }
        for (from, what, invert) in [
            (0, Selector::Saddr(self.family), 0x08),
            (wide, Selector::Daddr(self.family), 0x10),
        ] {
            let address = address_at(entry, from, wide)?;
            let prefix = ones(entry, from + 2 * wide, wide)?;
            if prefix > 0 {
                let subnet = Subnet::new(address, prefix).map_err(|_| malformed())?;
                rule = match inverts & invert {
                    0 => rule.within(what, subnet),
                    _ => rule.outside(what, subnet),
                };
            }
        }
        for (n, what, invert) in [(0, Selector::IifName, 0x01), (1, Selector::OifName, 0x02)] {
            let name = text_at(entry, names + n * IF_NAME)?;
            let mask = entry
                .get(names + (2 + n) * IF_NAME..)
                .ok_or_else(malformed)?;
            // The mask of a whole name covers the zero behind it.
            let is_whole = mask.get(name.len()).is_some_and(|byte| *byte != 0);
            if !name.is_empty() {
                let name = match name.strip_suffix('+') {
                    Some(beginning) if !is_whole => format!("{beginning}*"),
                    _ => name.to_owned(),
                };
                rule = match inverts & invert {
                    0 => rule.eq(what, name.as_str()),
                    _ => rule.ne(what, name.as_str()),
                };
            }
        }
        let target = usize::from(u16_at(entry, self.target_offset())?);
        let mut at = elements;
        while at < target {
            let size = usize::from(u16_at(entry, at)?);
            let part = entry.get(at..at + size).ok_or_else(malformed)?;
            let (name, revision, info) = element(part)?;
            rule = match port_alone(name, info) {
                Some(port) => rule.eq(Selector::Dport, port),
                None => rule.then(Expr::of_xt("match", name, revision, info)),
            };
            at += size;
        }
        let (name, revision, info) = element(entry.get(target..).ok_or_else(malformed)?)?;
        Ok(match name {
            // `struct xt_standard_target`: the verdict is that of netfilter below zero, or where the next rule is.
            "" => match u32_at(info, 0)? as i32 {
                -1 => rule.then(Expr::Verdict(Verdict::Drop)),
                -2 => rule.then(Expr::Verdict(Verdict::Accept)),
                -5 => rule.then(Expr::Verdict(Verdict::Return)),
                to => match chains.get(&(to as usize)) {
                    Some(chain) if flags & goto != 0 => {
                        rule.then(Expr::Verdict(Verdict::Goto(chain.clone())))
                    }
                    Some(chain) => rule.then(Expr::Verdict(Verdict::Jump(chain.clone()))),
                    // The next rule: one that only counts.
                    None => rule,
                },
            },
            name => rule.then(Expr::of_xt("target", name, revision, info)),
        })
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

/// Name, revision and bytes of a `struct xt_entry_match` or `struct xt_entry_target`.
fn element(part: &[u8]) -> io::Result<(&str, u8, &[u8])> {
    const REVISION: usize = 31;
    let size = usize::from(u16_at(part, 0)?);
    let info = part.get(TARGET_HEADER..size).ok_or_else(malformed)?;
    Ok((text_at(part, 2)?, part[REVISION], info))
}

/// The port of a `struct xt_tcp` or `struct xt_udp` that asks for one destination port and nothing else.
fn port_alone(name: &str, info: &[u8]) -> Option<u16> {
    let word = |at: usize| u16_at(info, at).ok();
    let (from, to) = (word(4)?, word(6)?);
    let rest = match name {
        "tcp" => info.get(8..12)?,
        "udp" => info.get(8..9)?,
        _ => return None,
    };
    let is_alone = (word(0)?, word(2)?) == (0, u16::MAX) && from == to;
    // An option, the flags that are looked at and how they are, and what is inverted.
    (is_alone && rest.iter().all(|byte| *byte == 0)).then_some(from)
}

fn address_at(bytes: &[u8], at: usize, wide: usize) -> io::Result<IpAddr> {
    let bytes = bytes.get(at..at + wide).ok_or_else(malformed)?;
    match (bytes.first_chunk::<16>(), bytes.first_chunk::<4>()) {
        (Some(bytes), _) => Ok(IpAddr::from(*bytes)),
        (None, Some(bytes)) => Ok(IpAddr::from(*bytes)),
        (None, None) => Err(malformed()),
    }
}

/// The length of a mask's prefix. One with gaps counts as far as it has none.
fn ones(bytes: &[u8], at: usize, wide: usize) -> io::Result<u8> {
    let bytes = bytes.get(at..at + wide).ok_or_else(malformed)?;
    let mut length = 0;
    for byte in bytes {
        length += byte.leading_ones() as u8;
        if *byte != 0xff {
            break;
        }
    }
    Ok(length)
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
    io::Error::other("an old table of the kernel's is not as expected")
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

    #[test]
    fn rules_are_those_that_iptables_nft_would_write() {
        require_tool("iptables-legacy", "iptables");
        for (family, program, host, net, reject) in [
            (
                Family::V4,
                "iptables-legacy",
                "10.96.0.10",
                "10.244.0.0/16",
                "icmp-port-unreachable",
            ),
            (
                Family::V6,
                "ip6tables-legacy",
                "fd00::10",
                "fd00:244::/32",
                "icmp6-port-unreachable",
            ),
        ] {
            let ns = Ns::new("xtables");
            let read = || ns.run(|| rules(family, "filter")).unwrap();
            assert_eq!(read(), None, "asking loads no table");
            let run = |line: &str| drop(ns.sh(program, &line.split(' ').collect::<Vec<_>>()));
            run("-P FORWARD DROP");
            run("-N EMPTY");
            run("-N SERVICES");
            run("-A FORWARD -i cni+ ! -o eth0 -j SERVICES");
            run(&format!(
                "-A SERVICES -p tcp -d {host} --dport 53 -j ACCEPT"
            ));
            run(&format!("-A SERVICES ! -s {net} -g EMPTY"));
            run("-A SERVICES -p udp --dport 1:9 -j RETURN");
            run(&format!(
                "-A SERVICES ! -p udp -j REJECT --reject-with {reject}"
            ));
            run("-A SERVICES");
            let table = read().unwrap();
            let policies = table
                .entered
                .iter()
                .map(|(hook, name, policy)| (*hook, &**name, *policy));
            assert!(policies.eq([
                (Hook::Input, "INPUT", Policy::Accept),
                (Hook::Forward, "FORWARD", Policy::Drop),
                (Hook::Output, "OUTPUT", Policy::Accept),
            ]));
            let shown: Vec<String> = (table.rules.iter())
                .flat_map(|(name, rules)| {
                    rules
                        .iter()
                        .map(move |rule| format!("{name}: {}", rule.show(family)))
                })
                .collect();
            let ip = if family == Family::V4 { "ip" } else { "ip6" };
            assert_eq!(
                shown,
                [
                    "FORWARD: iifname \"cni*\" oifname != \"eth0\" jump SERVICES".to_owned(),
                    format!("SERVICES: meta l4proto tcp {ip} daddr {host} th dport 53 accept"),
                    format!("SERVICES: {ip} saddr != {net} goto EMPTY"),
                    "SERVICES: meta l4proto udp [match udp] return".to_owned(),
                    "SERVICES: meta l4proto != udp [target REJECT]".to_owned(),
                    "SERVICES: ".to_owned(),
                ]
            );
            assert!(table.rules[&Name::from("EMPTY")].is_empty());
            let xt = table.rules[&Name::from("SERVICES")][2]
                .exprs
                .iter()
                .find_map(Expr::xt);
            // Ports in the machine's order: of the source all, of the destination those.
            let ports: Vec<u16> = (xt.unwrap().info.chunks_exact(2))
                .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
                .collect();
            assert_eq!(ports[..4], [0, u16::MAX, 1, 9]);
        }
    }
}
