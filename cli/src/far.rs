//! What a node tells those elsewhere: flanneld answers on its loopback metrics port, from the kernel alone. The way of a
//! packet through it, what is wrong with it, what came of packets that it sends to all others, and any piece of its state.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use hostnet::nft::Proto;
use hostnet::vocab::Family;
use percent_encoding::NON_ALPHANUMERIC;

use crate::doctor::claims::Claim;
use crate::doctor::examine_all;
use crate::kernel::Kernel;
use crate::objects::Cluster;
use crate::probe;
use crate::remote::Ask;
use crate::report::{Onward, Trace};
use crate::target::{From, To};
use crate::trace::{PodNetwork, Question, networks, trace};
use crate::view::View;

/// Asks for a packet's way: [`Query`].
const TRACE: &str = "/trace";
/// Asks for what is wrong: [`doctor`].
const DOCTOR: &str = "/doctor";
/// Asks for packets to all others: [`Probe`].
const PROBE: &str = "/probe";
/// Asks for a piece of the kernel's state: [`Ask`].
const VIEW: &str = "/view";

/// Whether a node answers this path and query at all.
pub fn is_known(target: &str) -> bool {
    [TRACE, DOCTOR, PROBE, VIEW].contains(&path_of(target))
}

/// Whether its answer takes so long as packets that are lost.
pub(crate) fn is_slow(target: &str) -> bool {
    path_of(target) == PROBE
}

/// Whether another question to the node follows: of a trace they are many, and after an examination its version is asked.
pub(crate) fn has_more(target: &str) -> bool {
    [VIEW, DOCTOR].contains(&path_of(target))
}

fn path_of(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// The value of a key in the query; what is wrong with it as an error. `None`: it is not there.
fn given<T: FromStr>(target: &str, key: &str) -> Result<Option<T>, String> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.find(|(k, _)| *k == key).map(|(_, value)| value);
    let parsed = value.map(|text| text.parse().map_err(|_| format!("{key}={text:?} is none")));
    parsed.transpose()
}

/// Path and query of a request for a piece of the kernel's state. A URL has no room for most signs of JSON.
pub(crate) fn view_target(ask: &Ask) -> String {
    let json = serde_json::json!(ask).to_string();
    let ask = percent_encoding::utf8_percent_encode(&json, NON_ALPHANUMERIC);
    format!("{VIEW}?ask={ask}")
}

/// The reverse of [`view_target`].
fn parse_view(target: &str) -> Result<Ask, String> {
    let text: String = given(target, "ask")?.ok_or_else(|| format!("{VIEW}?ask=JSON: no ask"))?;
    let json = percent_encoding::percent_decode_str(&text).decode_utf8_lossy();
    serde_json::from_str(&json).map_err(|error| format!("ask={json:?} is none: {error}"))
}

/// The values of a key, between commas.
fn list<T: FromStr>(target: &str, key: &str) -> Result<Vec<T>, String> {
    let text = given::<String>(target, key)?.unwrap_or_default();
    let items = text.split(',').filter(|item| !item.is_empty());
    let parsed = items.map(|item| item.parse().map_err(|_| format!("{key}={text:?} is none")));
    parsed.collect()
}

/// Path and query of a request for what is wrong with a node, which knows no objects: with what these say of it.
pub fn doctor(claim: Option<&Claim>) -> String {
    let Some(Claim { subnets, vteps }) = claim else {
        return DOCTOR.to_owned();
    };
    let subnets: Vec<_> = subnets.iter().map(ToString::to_string).collect();
    let vteps: Vec<_> = vteps.iter().map(ToString::to_string).collect();
    format!(
        "{DOCTOR}?subnets={}&vteps={}",
        subnets.join(","),
        vteps.join(",")
    )
}

/// The reverse of [`doctor`], but for the path.
fn claim(target: &str) -> Result<Claim, String> {
    Ok(Claim {
        subnets: list(target, "subnets")?,
        vteps: list(target, "vteps")?,
    })
}

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
        format!("{TRACE}?from={from}&to={to}&proto={}", proto.0)
    }

    /// The reverse of [`Query::target`]. `None` if it is another path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(target: &str) -> Option<Result<Query, String>> {
        let missing =
            |key| move || format!("{TRACE}?from=ADDRESS&to=ADDRESS:PORT&proto=NUMBER: no {key}");
        (path_of(target) == TRACE).then(|| {
            Ok(Query {
                from: given(target, "from")?.ok_or_else(missing("from"))?,
                to: given(target, "to")?.ok_or_else(missing("to"))?,
                proto: Proto(given(target, "proto")?.ok_or_else(missing("proto"))?),
            })
        })
    }
}

/// What a node is asked to send to all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Packets of either size to each.
    pub count: u16,
    /// A Service to connect to.
    pub service: Option<SocketAddr>,
}

impl Probe {
    /// The most packets of either size that a node sends for one question.
    pub const MOST: u16 = 20;

    /// Path and query of a request.
    pub fn target(&self) -> String {
        let service = self.service.map(|service| format!("&service={service}"));
        format!(
            "{PROBE}?count={}{}",
            self.count,
            service.unwrap_or_default()
        )
    }

    /// The reverse of [`Probe::target`]. `None` if it is another path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(target: &str) -> Option<Result<Probe, String>> {
        (path_of(target) == PROBE).then(|| {
            let count = given(target, "count")?.unwrap_or(1);
            if !(1..=Probe::MOST).contains(&count) {
                return Err(format!("count={count} is not 1 to {}", Probe::MOST));
            }
            let service = given(target, "service")?;
            Ok(Probe { count, service })
        })
    }

    /// Sends them from this node, or rather from the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel cannot be read, or gives no socket.
    pub fn send(&self, view: &mut dyn View) -> anyhow::Result<probe::Report> {
        let peers = probe::peers(view)?;
        Ok(probe::Report {
            peers: probe::probe(&peers, self.count.into()).context("no socket for echoes")?,
            service: self.service.map(probe::connect),
            twice: probe::twice(view)?,
        })
    }
}

/// Where a node has what is not in its kernel.
#[derive(Clone, Debug)]
pub struct Files {
    /// Records of twill-cni.
    pub records: PathBuf,
    /// The pods' networks, told by flanneld.
    pub subnet_file: PathBuf,
    /// CNI configurations, if they can be seen.
    pub cni_conf_dir: PathBuf,
    /// CNI plugins, if they can be seen.
    pub cni_bin_dir: PathBuf,
}

/// Follows the packet through this node, as a daemon sees it: not into pods.
///
/// # Errors
/// The kernel cannot be read.
pub fn answer(query: &Query, files: &Files) -> anyhow::Result<Trace> {
    let networks = networks(&files.subnet_file)?;
    answer_of(&mut Kernel::here(&files.records)?, &networks, query)
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

/// The answer to a request of any path, as status and JSON; `None` if the path is another's. It may take seconds.
pub fn reply(target: &str, files: &Files) -> Option<(u16, String)> {
    let told = match path_of(target) {
        TRACE => Query::parse(target)?.map(|query| {
            answer(&query, files).and_then(|trace| Ok(serde_json::to_string(&trace)?))
        }),
        VIEW => parse_view(target).map(|ask| seen(&ask, files)),
        DOCTOR => claim(target).map(|claim| findings(claim, files)),
        PROBE => Probe::parse(target)?.map(|asked| sent(&asked, files)),
        _ => return None,
    };
    let failed = |error: &str| serde_json::json!({ "error": error }).to_string();
    Some(match told {
        Err(error) => (400, failed(&error)),
        Ok(Ok(text)) => (200, text),
        Ok(Err(error)) => (500, failed(&format!("{error:#}"))),
    })
}

fn seen(ask: &Ask, files: &Files) -> anyhow::Result<String> {
    let networks = networks(&files.subnet_file)?;
    ask.answer(&mut Kernel::here(&files.records)?, &networks)
}

fn findings(claim: Claim, files: &Files) -> anyhow::Result<String> {
    let mut kernel = Kernel::here(&files.records)?;
    let found = examine_all(&mut kernel, files, Some(&claim))?;
    Ok(serde_json::to_string(&found)?)
}

/// Connections go to Services alone: nobody shall look through this for what listens where.
fn sent(asked: &Probe, files: &Files) -> anyhow::Result<String> {
    let mut kernel = Kernel::here(&files.records)?;
    let mut asked = *asked;
    if let Some(service) = asked.service
        && !probe::is_service(&mut kernel, service)?
    {
        asked.service = None;
    }
    Ok(serde_json::to_string(&asked.send(&mut kernel)?)?)
}

#[cfg(test)]
mod tests {
    use hostnet::nft::{Key, TableId};

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

    #[test]
    fn a_piece_of_the_state_is_asked_for_in_a_url() {
        let asks = [
            Ask::Links,
            Ask::Route("fd00::1".parse().unwrap()),
            Ask::Switch("ipv4/conf/eth0/rp_filter".to_owned()),
            Ask::Element(
                TableId::new(Family::V4, "twill-proxy").into(),
                "a set & more=?%".to_owned(),
                Key::from((Proto::TCP, 80_u16)),
            ),
        ];
        for ask in asks {
            let target = view_target(&ask);
            target.parse::<hyper::Uri>().unwrap();
            assert_eq!(parse_view(&target), Ok(ask));
        }
        let error = parse_view("/view?ask=%22all%22").unwrap_err();
        assert!(error.contains("unknown variant `all`"), "{error}");
        assert_eq!(
            parse_view("/view"),
            Err("/view?ask=JSON: no ask".to_owned())
        );
    }

    #[test]
    fn what_objects_say_of_a_node_gets_there() {
        let said = Claim {
            subnets: ["10.244.1.0/24", "fd00:1::/64"]
                .map(|subnet| subnet.parse().unwrap())
                .into(),
            vteps: vec!["0e:00:00:00:02:00".parse().unwrap()],
        };
        for said in [said, Claim::default()] {
            assert_eq!(claim(&doctor(Some(&said))), Ok(said));
        }
        // An earlier twill says nothing.
        assert_eq!(claim(&doctor(None)), Ok(Claim::default()));
        assert!(is_known(&doctor(Some(&Claim::default()))));
        let error = claim("/doctor?subnets=10.244.1.0/24,x").unwrap_err();
        assert_eq!(error, "subnets=\"10.244.1.0/24,x\" is none");
    }

    #[test]
    fn what_is_sent_for_others_is_bounded() {
        let service = Some("[fd00::1]:443".parse().unwrap());
        for service in [service, None] {
            let asked = Probe { count: 3, service };
            assert_eq!(Probe::parse(&asked.target()), Some(Ok(asked)));
        }
        for (target, said) in [
            ("/probe?count=0", "count=0 is not 1 to 20"),
            ("/probe?count=21", "count=21 is not 1 to 20"),
            ("/probe?count=x", "count=\"x\" is none"),
            ("/probe?service=10.0.0.1", "service=\"10.0.0.1\" is none"),
        ] {
            let error = Probe::parse(target).unwrap().unwrap_err();
            assert_eq!(error, said);
        }
    }
}
