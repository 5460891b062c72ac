//! What a node tells others of the way through it: flanneld answers on its loopback metrics port, from the kernel alone.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use hostnet::nft::Proto;
use hostnet::vocab::Family;

use crate::kernel::Kernel;
use crate::objects::Cluster;
use crate::report::{Onward, Trace};
use crate::target::{From, To};
use crate::trace::{PodNetwork, Question, networks, trace};
use crate::view::View;

/// The path under which a node answers.
pub const PATH: &str = "/trace";

/// What is asked of a node: a packet that comes in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Its source.
    pub from: IpAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// Its transport protocol.
    pub proto: Proto,
}

impl Query {
    /// Of a packet that left another node.
    pub fn of(onward: &Onward, proto: Proto) -> Query {
        Query {
            from: onward.from,
            to: onward.to,
            proto,
        }
    }

    /// Path and query of a request.
    pub fn target(&self) -> String {
        let Query { from, to, proto } = self;
        format!("{PATH}?from={from}&to={to}&proto={}", proto.0)
    }

    /// The reverse of [`Query::target`]. `None` if it is another path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(target: &str) -> Option<Result<Query, String>> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        (path == PATH).then(|| {
            let value = |key: &str| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                let found = pairs.find(|(k, _)| *k == key).map(|(_, value)| value);
                found.ok_or_else(|| {
                    format!("{PATH}?from=ADDRESS&to=ADDRESS:PORT&proto=NUMBER: no {key}")
                })
            };
            let wrong = |key: &str, text: &str| format!("{key}={text:?} is none");
            let (from, to, proto) = (value("from")?, value("to")?, value("proto")?);
            Ok(Query {
                from: from.parse().map_err(|_| wrong("from", from))?,
                to: to.parse().map_err(|_| wrong("to", to))?,
                proto: Proto(proto.parse().map_err(|_| wrong("proto", proto))?),
            })
        })
    }
}

/// Follows the packet through this node, as a daemon sees it: not into pods.
///
/// # Errors
/// The kernel cannot be read.
pub fn answer(query: &Query, records: &Path, subnet_file: &Path) -> anyhow::Result<Trace> {
    let networks = networks(subnet_file)?;
    answer_of(&mut Kernel::here(records)?, &networks, query)
}

/// The same of any node's state.
///
/// # Errors
/// As [`answer`].
pub fn answer_of(
    view: &mut dyn View,
    networks: &[PodNetwork],
    query: &Query,
) -> anyhow::Result<Trace> {
    let question = Question {
        from: From::Address(query.from),
        to: To::Address(query.to.ip(), query.to.port()),
        proto: query.proto,
        family: Family::of(query.to.ip()),
        sees_pods: false,
    };
    trace(view, &mut Cluster::default(), networks, &question)
}

/// The answer to a request of any path, as status and JSON; `None` if the path is another's.
pub fn reply(target: &str, records: &Path, subnet_file: &Path) -> Option<(u16, String)> {
    let failed = |error: &str| serde_json::json!({ "error": error }).to_string();
    Some(match Query::parse(target)? {
        Err(error) => (400, failed(&error)),
        Ok(query) => match answer(&query, records, subnet_file)
            .and_then(|trace| serde_json::to_string(&trace).context("no JSON"))
        {
            Ok(text) => (200, text),
            Err(error) => (500, failed(&format!("{error:#}"))),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_understood_and_what_is_not_is_named() {
        for (from, to) in [
            ("10.244.1.2", "10.244.3.81:8080"),
            ("fd00::1", "[fd00::2]:80"),
        ] {
            let query = Query {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                proto: Proto::TCP,
            };
            assert_eq!(Query::parse(&query.target()), Some(Ok(query)));
        }
        assert_eq!(Query::parse("/metrics"), None);
        for (target, said) in [
            (
                "/trace?from=10.0.0.1&to=10.0.0.2&proto=6",
                "to=\"10.0.0.2\" is none",
            ),
            ("/trace", "no from"),
        ] {
            let error = Query::parse(target).unwrap().unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
