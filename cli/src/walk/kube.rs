//! What kube-proxy's iptables chains are called, and what their comments tell; twill-proxy in iptables mode has the same.

use std::net::IpAddr;

use hostnet::nft::{AnyTable, CmpOp, Expr, Header, MetaKey, Proto, Rule, TableId};
use hostnet::vocab::Family;

use crate::legacy;
use crate::view::{Result, View};

/// The chain that all packets to Services pass, in tables `nat` and `filter`.
pub const SERVICES: &str = "KUBE-SERVICES";
/// The chain of node ports.
pub const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// The chain, in table `filter`, of what comes from outside to Services that nobody serves.
const EXTERNAL: &str = "KUBE-EXTERNAL-SERVICES";
/// The chain that marks what shall be masqueraded.
const MARK_MASQ: &str = "KUBE-MARK-MASQ";

/// Whether a jump to this chain decides something about a Service.
pub fn is_of_a_service(chain: &str) -> bool {
    let of_one = [
        "KUBE-SVC-",
        "KUBE-SVL-",
        "KUBE-EXT-",
        "KUBE-FW-",
        "KUBE-SEP-",
        "KUBE-XLB-",
    ];
    chain == MARK_MASQ || of_one.iter().any(|prefix| chain.starts_with(prefix))
}

/// The table of a family in which the chains of Services are.
pub fn nat(family: Family) -> TableId {
    TableId::new(family, "nat")
}

/// Whether Services are iptables chains on this node.
///
/// # Errors
/// The kernel cannot be read.
pub fn is_mode(view: &mut dyn View, family: Family) -> Result<bool> {
    // It is never empty: its last rule leads to node ports.
    for table in tables(family, "nat") {
        if !view.rules(&table, SERVICES)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where such chains are, by iptables-nft or iptables-legacy.
fn tables(family: Family, name: &str) -> [AnyTable; 2] {
    [
        TableId::new(family, name).into(),
        legacy::table(family, name),
    ]
}

/// Where a rule of [`SERVICES`] or [`NODE_PORTS`] leads from: a Service's port, where it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// `NAMESPACE/NAME[:PORT]`.
    pub service: String,
    /// `None` for a node port.
    pub address: Option<IpAddr>,
    /// The transport protocol.
    pub proto: Proto,
    /// The port.
    pub port: u16,
}

/// All cluster IPs and node ports that the rules know.
///
/// # Errors
/// The kernel cannot be read.
pub fn entrances(view: &mut dyn View, family: Family) -> Result<Vec<Entrance>> {
    let mut all = Vec::new();
    // Services without endpoints are known in `filter` alone.
    for (table, chain, is_told) in [
        ("nat", SERVICES, "cluster IP"),
        ("nat", NODE_PORTS, ""),
        ("filter", SERVICES, ""),
        ("filter", EXTERNAL, "-"),
    ] {
        for table in tables(family, table) {
            let rules = view.rules(&table, chain)?;
            let found = rules.iter().filter_map(|rule| entrance(rule, family));
            // Of a Service's addresses its cluster IP stands for all.
            let found = found.filter(|(of, said)| of.address.is_none() || said.ends_with(is_told));
            all.extend(found.map(|(of, _)| of));
        }
    }
    Ok(all)
}

/// What a rule asks for, with its comment.
fn entrance(rule: &Rule, family: Family) -> Option<(Entrance, String)> {
    let said = comment(rule)?;
    let service = service_of(&said)?.to_owned();
    let (mut address, mut proto, mut port) = (None, None, None);
    let daddr = match family {
        Family::V4 => (16, 4),
        Family::V6 => (24, 16),
    };
    for pair in rule.exprs.windows(2) {
        let [load, Expr::Cmp { op, value, .. }] = pair else {
            continue;
        };
        match load {
            _ if *op != CmpOp::EQ => {}
            Expr::Payload {
                header: Header::NETWORK,
                offset,
                len,
                ..
            } if (*offset, *len) == daddr => {
                address = match value.len() {
                    4 => value.first_chunk::<4>().map(|b| IpAddr::from(*b)),
                    _ => value.first_chunk::<16>().map(|b| IpAddr::from(*b)),
                };
            }
            Expr::Payload {
                header: Header::TRANSPORT,
                offset: 2,
                len: 2,
                ..
            } => port = value.first_chunk().map(|b| u16::from_be_bytes(*b)),
            Expr::Meta {
                key: MetaKey::L4PROTO,
                ..
            } => proto = value.first().copied().map(Proto),
            _ => {}
        }
    }
    let entrance = Entrance {
        service,
        address,
        proto: proto?,
        port: port?,
    };
    Some((entrance, said))
}

/// Whether a chain is kube-proxy's.
pub fn is_kube(chain: &str) -> bool {
    chain.starts_with("KUBE-")
}

/// The comment that iptables gave a rule.
pub fn comment(rule: &Rule) -> Option<String> {
    let info = rule
        .exprs
        .iter()
        .filter_map(|expr| expr.xt())
        .find(|xt| !xt.is_target && xt.name == "comment")?
        .info;
    let end = info.iter().position(|byte| *byte == 0);
    Some(String::from_utf8_lossy(&info[..end.unwrap_or(info.len())]).into_owned())
}

/// The service port that a comment names: `NAMESPACE/NAME[:PORT]` at its beginning, perhaps with a colon behind it
/// (`default/web:http cluster IP`, `default/web: cluster IP`).
pub fn service_of(comment: &str) -> Option<&str> {
    let word = comment.split_whitespace().next()?.trim_end_matches(':');
    let (namespace, name) = word.split_once('/')?;
    (!namespace.is_empty() && !name.is_empty()).then_some(word)
}

/// Why kube-proxy has put a rule that refuses: the cause and the remedy, by its comment.
pub fn refusal(comment: &str) -> Option<(&'static str, &'static str)> {
    const FEW: &str = "use another node, or set the traffic policy to Cluster";
    [
        (
            "has no endpoints",
            "the Service has no endpoint that is ready",
            "`kubectl get endpointslices -A`: is a pod ready that the selector finds?",
        ),
        (
            "has no local endpoints",
            "the Service's traffic policy is Local, and no endpoint that is ready is on this node",
            FEW,
        ),
        (
            "traffic not accepted by KUBE-FW",
            "the Service lets only some sources in, and this is none of them",
            "add the client's network to spec.loadBalancerSourceRanges of the Service",
        ),
    ]
    .into_iter()
    .find(|(said, ..)| comment.contains(said))
    .map(|(_, cause, remedy)| (cause, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_name_service_ports() {
        for (comment, service) in [
            ("default/web:http cluster IP", Some("default/web:http")),
            ("default/web: cluster IP", Some("default/web")),
            ("default/web cluster IP", Some("default/web")),
            (
                "default/web:http -> 10.244.3.81:8080",
                Some("default/web:http"),
            ),
            ("kubernetes service portals", None),
            ("", None),
        ] {
            assert_eq!(service_of(comment), service, "{comment}");
        }
    }
}
