//! Owns what the configuration says about the kernel's connection tracking (kube-proxy's `conntrack`), and sets it.

use std::path::Path;
use std::time::Duration;

use hostnet::sysctl::{self, Sysctl};

/// Where the host's switches lie in a container that may not write its own.
const HOST_SYSCTLS: &str = "/host/proc/sys/net";

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
    /// The switches below `/proc/sys/net` and their values, on a machine of so many cores.
    fn switches(&self, cores: u32) -> Vec<(&'static str, u64)> {
        let max = match self.max_per_core {
            0 => 0,
            per_core => u64::from(per_core) * u64::from(cores),
        };
        let max = if max == 0 {
            0
        } else {
            max.max(self.min.into())
        };
        let all = [
            ("netfilter/nf_conntrack_max", max),
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

    /// Sets what differs, in the calling thread's network namespace. What cannot be set is a warning that says
    /// what to do, and changes nothing else: returns these.
    pub fn apply(&self) -> Vec<String> {
        let root = [HOST_SYSCTLS, sysctl::ROOT]
            .into_iter()
            .find(|root| Path::new(root).is_dir());
        let sysctl = Sysctl::new(root.unwrap_or(sysctl::ROOT));
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        (self.switches(cores).into_iter())
            .filter_map(
                |(key, value)| match sysctl.ensure(key, &value.to_string()) {
                    Ok(true) => {
                        tracing::info!(key, value, "set for connection tracking");
                        None
                    }
                    Ok(false) => None,
                    Err(error) => Some(crate::run::chain(&error)),
                },
            )
            .collect()
    }
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
        let none = Conntrack {
            max_per_core: 0,
            tcp_established: Duration::ZERO,
            tcp_close_wait: Duration::ZERO,
            ..usual
        };
        assert_eq!(none.switches(2), []);
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
        // The size of the table is the host's: no namespace but the first may set it.
        let is_about_the_size = |warning: &String| warning.contains("nf_conntrack_max");
        assert!(warnings.iter().all(is_about_the_size), "{warnings:?}");
        let max = ns.sysctl("netfilter/nf_conntrack_max");
        let cores = std::thread::available_parallelism().unwrap().get() as u64;
        let wanted = (cores * 32_768).max(131_072).to_string();
        assert_eq!(warnings.is_empty(), max == wanted, "{max}, {warnings:?}");
    }
}
