//! Owns the kernel's counters by which rules count packets for kube-proxy's metrics.

use std::time::Duration;

use hostnet::nfacct::Counters;

/// Packets that `KUBE-FORWARD` drops, as kube-proxy calls their counter.
pub(super) const INVALID_PACKETS: &str = "ct_state_invalid_dropped_pkts";
/// Packets to node ports at a loopback address, as kube-proxy calls their counter.
pub(super) const LOCALHOST_PACKETS: &str = "localhost_nps_accepted_pkts";

const ALL: [&str; 2] = [INVALID_PACKETS, LOCALHOST_PACKETS];

/// How often, and how far apart, it is looked whether a counter is in use still.
const LOOKS: (u32, Duration) = (40, Duration::from_millis(25));

/// Makes them where they are not there. Returns whether they are now: not every kernel has such.
pub(super) fn ensure() -> bool {
    let made = Counters::open()
        .and_then(|mut counters| ALL.iter().try_for_each(|name| counters.ensure(name)));
    made.inspect_err(|error| {
        let error = crate::run::chain(error);
        tracing::debug!(error, "rules count no packets");
    })
    .is_ok()
}

/// Whether they are there.
pub(super) fn are_there() -> bool {
    packets().iter().all(|(_, packets)| packets.is_some())
}

/// What they have counted, those that are there.
pub(super) fn packets() -> [(&'static str, Option<u64>); 2] {
    let mut counters = Counters::open().ok();
    ALL.map(|name| {
        let packets = counters.as_mut().and_then(|c| c.packets(name).ok()?);
        (name, packets)
    })
}

/// Removes those that no rule counts with.
pub(super) fn remove() {
    // Where there are no counters there is nothing to remove.
    let Ok(mut counters) = Counters::open() else {
        return;
    };
    let mut is_gone = |name| {
        counters.remove(name).is_ok_and(|was_there| was_there)
            || !matches!(counters.packets(name), Ok(Some(_)))
    };
    let (looks, apart) = LOOKS;
    for name in ALL {
        // The kernel frees rules of nf_tables, and what they hold, some time after they are gone, and tells nobody.
        for _ in 0..looks {
            if is_gone(name) {
                break;
            }
            #[expect(clippy::disallowed_methods, reason = "there is nothing to wait for")]
            std::thread::sleep(apart);
        }
    }
}
