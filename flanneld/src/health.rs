//! What probes are told.

use std::collections::BTreeMap;

use agent::http::Reply;
use tokio::sync::watch;

/// What has to be there before this node's pods can reach the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// All Nodes and Leases are known.
    Listed,
    /// Our subnet is held.
    Subnet,
    /// The kernel holds what is desired: device, rules, and every valid peer that is known.
    Kernel,
    /// subnet.env (and the conflist) is written.
    Files,
    /// Our Node says where we are, so that other nodes can know.
    Published,
    /// Nothing else is in the pods' way: another network's CNI configuration, or Services in the pods' range.
    Alone,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::Listed,
        Self::Subnet,
        Self::Kernel,
        Self::Files,
        Self::Published,
        Self::Alone,
    ];

    fn missing(self) -> &'static str {
        match self {
            Self::Listed => "Nodes and Leases are not listed yet",
            Self::Subnet => "no subnet is held yet",
            Self::Kernel => "the kernel does not hold all that is desired",
            Self::Files => "subnet.env is not written yet",
            Self::Published => "our Node does not tell the others yet where we are",
            Self::Alone => "another network is in the way",
        }
    }
}

/// The parts that are missing, each with why, as far as that is known.
pub type Missing = BTreeMap<Part, String>;

/// What is missing, to be told by those who look and read by the server.
#[derive(Clone, Debug)]
pub struct Health(watch::Sender<Missing>);

impl Health {
    /// With nothing there yet.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Missing>) {
        let (sender, receiver) = watch::channel(Part::ALL.map(|part| (part, String::new())).into());
        (Self(sender), receiver)
    }

    /// Notes whether a part is there.
    pub fn set(&self, part: Part, there: bool) {
        self.0.send_modify(|missing| {
            if there {
                missing.remove(&part);
            } else {
                missing.entry(part).or_default();
            }
        });
    }

    /// Notes why a part is missing, if it is.
    pub fn explain(&self, part: Part, why: &str) {
        self.0.send_modify(|missing| {
            if let Some(known) = missing.get_mut(&part) {
                why.clone_into(known);
            }
        });
    }
}

/// The answer for a path. `/healthz` and `/livez` are 200 as long as the process can answer at all: a restart would
/// mend nothing that the loop does not mend. `/readyz` is 200 when the node's network is complete.
#[must_use]
pub fn reply(target: &str, missing: &Missing) -> Reply {
    match target.split('?').next() {
        Some("/healthz" | "/livez") => Reply::text(200, "ok\n"),
        Some("/readyz") if missing.is_empty() => Reply::text(200, "ok\n"),
        Some("/readyz") => {
            let line = |(part, why): (&Part, &String)| match &**why {
                "" => format!("{}\n", part.missing()),
                why => format!("{}: {why}\n", part.missing()),
            };
            Reply::text(503, missing.iter().map(line).collect::<String>())
        }
        _ => Reply::not_found(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_part_is_there_and_else_it_says_what_is_missing() {
        let (health, parts) = Health::new();
        let others = Part::ALL.into_iter().filter(|part| *part != Part::Files);
        for part in others {
            health.set(part, true);
        }
        assert_eq!(
            reply("/readyz", &parts.borrow()),
            Reply::text(503, "subnet.env is not written yet\n")
        );
        health.set(Part::Files, true);
        assert_eq!(reply("/readyz?verbose", &parts.borrow()).status, 200);
        health.explain(Part::Files, "of what is there nothing is said");
        assert_eq!(reply("/readyz", &parts.borrow()).status, 200);
        health.set(Part::Kernel, false);
        health.explain(Part::Kernel, "no devices of the type vxlan");
        health.set(Part::Kernel, false);
        assert_eq!(
            reply("/readyz", &parts.borrow()),
            Reply::text(
                503,
                "the kernel does not hold all that is desired: no devices of the type vxlan\n"
            )
        );
        assert_eq!(reply("/livez", &parts.borrow()).status, 200);
        assert_eq!(reply("/", &parts.borrow()).status, 404);
    }
}
