//! Owns what the configuration says about the kernel's connection tracking (kube-proxy's `conntrack`), and sets it.

use std::path::Path;
use std::time::Duration;

use hostnet::sysctl::{self, Sysctl, SysctlError};

/// Where the host's switches lie in a container that may not write its own.
const HOST_SYSCTLS: &str = "/host/proc/sys/net";
/// The most connections that the kernel remembers.
const MAX: &str = "netfilter/nf_conntrack_max";
/// The size of the hash table that they are found by: the module's parameter `hashsize`, which a container's sysfs
/// does not let it write.
const BUCKETS: &str = "netfilter/nf_conntrack_buckets";
/// As kube-proxy and the kernel reckon.
const CONNECTIONS_PER_BUCKET: u64 = 4;
/// Many cores ask for no more than this.
const MOST_BY_CORES: u64 = 1 << 20;
/// The cores of the machine: fewer may be given to this process.
const CORES: &str = "/sys/devices/system/cpu/online";

/// What is asked of connection tracking. What is 0 or `None` is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// The most connections, for each core.
    pub max_per_core: u32,
    /// The most connections, at least.
    pub min: u32,
    /// How long an idle TCP connection is remembered.
    pub tcp_established: Duration,
    /// How long a TCP connection is that one side has closed.
    pub tcp_close_wait: Duration,
    /// TCP packets outside of the window are no reason to call them invalid.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow is that nobody has answered.
    pub udp: Duration,
    /// How long one is that was answered.
    pub udp_stream: Duration,
}

/// kube-proxy's.
impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established: Duration::from_secs(24 * 3600),
            tcp_close_wait: Duration::from_secs(3600),
            tcp_be_liberal: false,
            udp: Duration::ZERO,
            udp_stream: Duration::ZERO,
        }
    }
}

impl Conntrack {
    /// The most connections, on a machine of so many cores; 0: left alone.
    fn max(&self, cores: u32) -> u64 {
        match self.max_per_core {
            0 => 0,
            per_core => (u64::from(per_core) * u64::from(cores))
                .min(MOST_BY_CORES)
                .max(self.min.into()),
        }
    }

    /// The switches below `/proc/sys/net` and their values, on a machine of so many cores.
    fn switches(&self, cores: u32) -> Vec<(&'static str, u64)> {
        let all = [
            (MAX, self.max(cores)),
            (
                "netfilter/nf_conntrack_tcp_timeout_established",
                self.tcp_established.as_secs(),
            ),
            (
                "netfilter/nf_conntrack_tcp_timeout_close_wait",
                self.tcp_close_wait.as_secs(),
            ),
            (
                "netfilter/nf_conntrack_tcp_be_liberal",
                self.tcp_be_liberal.into(),
            ),
            ("netfilter/nf_conntrack_udp_timeout", self.udp.as_secs()),
            (
                "netfilter/nf_conntrack_udp_timeout_stream",
                self.udp_stream.as_secs(),
            ),
        ];
        all.into_iter().filter(|(_, value)| *value > 0).collect()
    }

    /// Sets what differs, in the calling thread's network namespace; the most connections are never made fewer.
    /// What cannot be set is a warning that says what to do, and changes nothing else: returns these.
    pub fn apply(&self) -> Vec<String> {
        let root = [HOST_SYSCTLS, sysctl::ROOT]
            .into_iter()
            .find(|root| Path::new(root).is_dir());
        let sysctl = Sysctl::new(root.unwrap_or(sysctl::ROOT));
        self.apply_to(&sysctl, cores())
    }

    fn apply_to(&self, sysctl: &Sysctl, cores: u32) -> Vec<String> {
        let set = |key, value: u64| {
            if sysctl.ensure(key, &value.to_string())? {
                tracing::info!(key, value, "set for connection tracking");
            }
            Ok::<_, SysctlError>(())
        };
        // What others made larger stays so.
        let raise = |key, value: u64| {
            let is_enough = sysctl.get(key)?.parse().is_ok_and(|now: u64| now >= value);
            if is_enough { Ok(()) } else { set(key, value) }
        };
        let mut warnings = Vec::new();
        for (key, value) in self.switches(cores) {
            let done = if key == MAX {
                raise(MAX, value).and_then(|()| raise(BUCKETS, value / CONNECTIONS_PER_BUCKET))
            } else {
                set(key, value)
            };
            warnings.extend(done.err().map(|error| crate::run::chain(&error)));
        }
        warnings
    }
}

fn cores() -> u32 {
    let online = std::fs::read_to_string(CORES).ok();
    online.as_deref().and_then(counted).unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
    })
}

/// How many there are in a list of the kernel's, such as `0-3,6`.
fn counted(list: &str) -> Option<u32> {
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    ranges.sum()
}

#[cfg(test)]
mod tests {
    use hostnet::testkit::Ns;

    use super::*;

    #[test]
    fn the_table_grows_with_the_cores_and_zero_is_left_alone() {
        let max = |conntrack: &Conntrack, cores| conntrack.switches(cores)[0].1;
        let usual = Conntrack::default();
        assert_eq!(max(&usual, 2), 131_072);
        assert_eq!(max(&usual, 8), 262_144);
        assert_eq!(max(&usual, 256), 1_048_576);
        let none = Conntrack {
            max_per_core: 0,
            tcp_established: Duration::ZERO,
            tcp_close_wait: Duration::ZERO,
            ..usual
        };
        assert_eq!(none.switches(2), []);
    }

    #[test]
    fn a_machines_cores_are_counted() {
        for (list, count) in [
            ("0\n", Some(1)),
            ("0-3,6\n", Some(5)),
            ("", None),
            ("3-1", None),
        ] {
            assert_eq!(counted(list), count, "{list}");
        }
        assert!(cores() > 0);
    }

    #[test]
    fn the_table_grows_and_never_shrinks() {
        let conntrack = Conntrack {
            tcp_established: Duration::ZERO,
            tcp_close_wait: Duration::ZERO,
            ..Conntrack::default()
        };
        let after = |before: [&str; 2]| {
            let root = tempfile::tempdir().unwrap();
            let path = |key| root.path().join(key);
            std::fs::create_dir(path("netfilter")).unwrap();
            for (key, value) in [MAX, BUCKETS].iter().zip(before) {
                hostnet::atomic_file::replace(path(key), value.as_bytes(), 0o600).unwrap();
            }
            let sysctl = Sysctl::new(root.path());
            assert_eq!(conntrack.apply_to(&sysctl, 8), [""; 0]);
            [MAX, BUCKETS].map(|key| sysctl.get(key).unwrap())
        };
        assert_eq!(after(["65536", "16384"]), ["262144", "65536"]);
        assert_eq!(after(["65536", "131072"]), ["262144", "131072"]);
        assert_eq!(after(["1000000", "131072"]), ["1000000", "131072"]);
        assert_eq!(after(["1000000", "16384"]), ["1000000", "65536"]);
    }

    #[test]
    fn a_hash_table_that_cannot_be_made_larger_is_a_warning() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("netfilter")).unwrap();
        let max = root.path().join(MAX);
        hostnet::atomic_file::replace(&max, b"131072", 0o600).unwrap();
        let conntrack = Conntrack {
            tcp_established: Duration::ZERO,
            tcp_close_wait: Duration::ZERO,
            ..Conntrack::default()
        };
        let warnings = conntrack.apply_to(&Sysctl::new(root.path()), 2);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(BUCKETS), "{warnings:?}");
    }

    #[test]
    fn timeouts_are_set_and_what_cannot_be_is_said() {
        let ns = Ns::new("sysctls");
        let conntrack = Conntrack {
            tcp_be_liberal: true,
            udp: Duration::from_secs(7),
            ..Conntrack::default()
        };
        let warnings = ns.run(|| conntrack.apply());
        assert_eq!(ns.sysctl("netfilter/nf_conntrack_udp_timeout"), "7");
        assert_eq!(ns.sysctl("netfilter/nf_conntrack_tcp_be_liberal"), "1");
        let established = ns.sysctl("netfilter/nf_conntrack_tcp_timeout_established");
        assert_eq!(established, "86400");
        // The size of the table is the host's: no namespace but the first may set it, which only those hear who
        // want a larger one.
        let is_about_the_size =
            |warning: &String| warning.contains(MAX) || warning.contains(BUCKETS);
        assert!(warnings.iter().all(is_about_the_size), "{warnings:?}");
        let number = |key| ns.sysctl(key).parse::<u64>().unwrap();
        let wanted = conntrack.max(cores());
        let is_enough = number(MAX) >= wanted && number(BUCKETS) >= wanted / CONNECTIONS_PER_BUCKET;
        assert_eq!(warnings.is_empty(), is_enough, "{wanted}, {warnings:?}");
        let larger = Conntrack {
            min: u32::MAX,
            ..conntrack
        };
        let warnings = ns.run(|| larger.apply());
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        let forbidden = "the kernel forbids it in this network namespace: set it on the host";
        assert!(warning.contains(forbidden), "{warning}");
    }
}
