//! The iptables backend: the plan as kube-proxy's chains, for hosts whose tools and people expect `KUBE-SERVICES`.
//!
//! ```text
//!  nat     PREROUTING, OUTPUT ─▶ KUBE-SERVICES ─▶ KUBE-NODEPORTS   addresses, then node ports
//!                                     │  └─▶ KUBE-FW-… ─┐  │       who may come in by a load balancer
//!                                     │       KUBE-EXT-… ◀─┘       what comes from outside
//!                                     ▼           │
//!                        KUBE-SVC-…, KUBE-SVL-… ◀─┘                all endpoints, those of this node
//!                                     └─▶ KUBE-SEP-…               one endpoint: DNAT
//!          any of these ─▶ KUBE-MARK-MASQ;  POSTROUTING ─▶ KUBE-POSTROUTING
//!  filter  INPUT, FORWARD, OUTPUT ─▶ KUBE-SERVICES, KUBE-EXTERNAL-SERVICES (nobody there),
//!                                    KUBE-PROXY-FIREWALL, KUBE-NODEPORTS, KUBE-FORWARD, KUBE-FIREWALL
//! ```
//!
//! * `names`: chains' names, in both namings; `rule`: the form of a rule; `options`: what rules depend on
//!   besides the plan;
//! * `fixed`: what is there whatever the services are; `port`: what a service port is;
//! * `saved`: what the kernel holds; `script`: the document that changes it; `diff`: from the one to the other;
//! * `metrics`: what is told of it; `counters`: the kernel's, with which rules count packets;
//! * `program`: the host's programs; `apply`: [`IptablesBackend`], which has them do it.

mod apply;
mod counters;
mod diff;
mod fixed;
pub mod leftovers;
mod metrics;
mod names;
mod options;
mod port;
mod program;
mod rule;
mod saved;
mod script;
#[cfg(test)]
mod tests;

use hostnet::vocab::Family;

pub use apply::{IptablesBackend, IptablesError, route_localnet};
pub use metrics::Metrics;
pub use names::Naming;
pub use options::Options;
pub use program::{ProgramError, Variant};

use crate::plan::Ruleset;

/// What makes the rules of a plan where there are none: documents for `iptables-restore` and `ip6tables-restore`.
pub fn rules(options: &Options, ruleset: &Ruleset) -> [String; 2] {
    Family::ALL.map(|family| {
        let rules = ruleset.family(family);
        let context = fixed::Context::new(family, options, rules);
        let planned = diff::full(&context, rules, &saved::Saved::default());
        planned.script.to_string()
    })
}

fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}
