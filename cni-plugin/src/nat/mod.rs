//! Host ports and masquerade: the table `twill-cni` of each family. Its chains are always the
//! same; an attachment is elements of its sets and maps, each with the attachment's name in its
//! comment.
//!
//! ```text
//!  prerouting (−105) ─┐
//!  output (−105) ─────┴─(to an address of this node)──► hostports: hostports-at, then hostports
//!
//!  postrouting (98):  the pod to itself (hairpin), from 127.0.0.1 (from-loopback), all (masq-all):
//!                     masquerade; what pods send outside (masq), but not to masq-except: masquerade
//!
//!  guard (−300):      from a pod, from or to 127.0.0.0/8: drop
//! ```
//!
//! No packet is marked: who is masqueraded is decided by the connection's first destination and
//! the addresses after translation. The guard is what makes `route_localnet` harmless
//! (CVE-2020-8558). The table stays when its last element goes: connections that stand go on being
//! translated only while there is a chain.

mod apply;
mod flows;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hostnet::nft::Selector::{
    CtOriginalDport, CtStatus, Daddr, Dport, FibDaddrType, IifName, L4Proto, Saddr,
};
use hostnet::nft::{
    CT_DNAT, Chain, Comment, Element, FIB_LOCAL, FieldType, Hook, Key, KeyType, NatFlags, Proto,
    Rule, Set, SetDecl, Table, TableId,
};
use hostnet::vocab::{Family, IfName, Subnet, names};

pub use self::apply::{Seen, publish, refuse_taken, withdraw, withdraw_if};
pub use self::flows::{Flows, forget};

use crate::record::Record;
use crate::request::Identity;

/// Before twill-proxy's −100: a host port of this node's pod comes before a Service.
const PRIORITY_DNAT: i32 = -105;
/// After twill-proxy's 95, before flanneld's 100.
const PRIORITY_MASQUERADE: i32 = 98;
/// `raw`: before addresses are translated back.
const PRIORITY_GUARD: i32 = -300;

const HOSTPORTS: &str = "hostports";
const HOSTPORTS_AT: &str = "hostports-at";
const HAIRPIN: &str = "hairpin";
const FROM_LOOPBACK: &str = "from-loopback";
const MASQ_ALL: &str = "masq-all";
const MASQ: &str = "masq";
const MASQ_EXCEPT: &str = "masq-except";
const BRIDGES: &str = "bridges";

/// Which table of a family is ours.
pub fn table_id(family: Family) -> TableId {
    TableId::new(family, names::TABLE_CNI)
}

/// The table with the elements of these attachments. Of two that have the same port (which ADD
/// refuses) the first has it.
pub fn table<'a>(family: Family, records: impl IntoIterator<Item = &'a Record>) -> Table {
    let mut table = layout(family);
    for record in records {
        for entry in entries(family, record) {
            if let Some(set) = table.sets.get_mut(entry.set) {
                set.elements.entry(entry.key).or_insert(entry.element);
            }
        }
    }
    table
}

/// A table as it is, with our chains and the elements of an attachment: what it lacks is the
/// difference.
pub(crate) fn with_attachment(found: &Table, family: Family, record: &Record) -> Table {
    let mut desired = layout(family);
    for (name, set) in &mut desired.sets {
        if let Some(found) = found.sets.get(name) {
            set.elements.clone_from(&found.elements);
        }
    }
    for entry in entries(family, record) {
        if let Some(set) = desired.sets.get_mut(entry.set) {
            set.elements.insert(entry.key, entry.element);
        }
    }
    desired
}

/// Guards more bridges than attachments with host ports need: those that let packets from
/// 127.0.0.0/8 pass go on doing so when the last host port is gone, and so does the guard.
pub(crate) fn guard_bridges<'a>(
    desired: &mut Table,
    opened: impl Iterator<Item = &'a IfName>,
    found: Option<&Table>,
) {
    let Some(bridges) = desired.sets.get_mut(BRIDGES) else {
        return;
    };
    for bridge in opened {
        bridges.insert(bridge.as_str(), ());
    }
    if let Some(found) = found.and_then(|found| found.sets.get(BRIDGES))
        && bridges.decl == found.decl
    {
        bridges.elements.extend(found.elements.clone());
    }
}

/// The families in which an attachment has elements.
pub fn families(record: &Record) -> Vec<Family> {
    let has_any = |family: &Family| !entries(*family, record).is_empty();
    Family::ALL.into_iter().filter(has_any).collect()
}

/// Whether the node's 127.0.0.1 shall lead to the attachment, for which its bridge has to let
/// such packets pass (`route_localnet`).
pub fn needs_route_localnet(record: &Record) -> bool {
    entries(Family::V4, record)
        .iter()
        .any(|entry| entry.set == FROM_LOOPBACK)
}

/// An element of one of the sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) set: &'static str,
    pub(crate) key: Key,
    pub(crate) element: Element,
}

/// The elements of an attachment.
pub(crate) fn entries(family: Family, record: &Record) -> Vec<Entry> {
    let comment = comment(record);
    let entry = |set, key: Key, element: Element| Entry {
        set,
        key,
        element: element.comment(comment.clone()),
    };
    let addrs: Vec<IpAddr> = record.addrs();
    let addrs: Vec<IpAddr> = addrs
        .into_iter()
        .filter(|addr| Family::of(*addr) == family)
        .collect();
    let mut entries = Vec::new();
    // Of several addresses of a family the first is the one that ports lead to.
    let first = addrs.first().copied();
    for (port, addr) in record.ports.iter().filter_map(|port| Some((port, first?))) {
        if port.families(&[family]).is_empty() {
            continue;
        }
        let (proto, host_port) = (port.protocol.proto(), port.host_port);
        let target = Element::value((addr, port.container_port));
        entries.push(match port.at() {
            Some(at) => entry(HOSTPORTS_AT, (at, proto, host_port).into(), target),
            None => entry(HOSTPORTS, (proto, host_port).into(), target),
        });
        if record.masq_all {
            let key = (addr, proto, host_port);
            entries.push(entry(MASQ_ALL, key.into(), Element::new()));
        }
    }
    if let Some(addr) = first.filter(|_| record.snat && !entries.is_empty()) {
        entries.push(entry(HAIRPIN, (addr, addr).into(), Element::new()));
        if family == Family::V4 {
            entries.push(entry(FROM_LOOPBACK, addr.into(), Element::new()));
            let bridge = Key::from(record.bridge.as_str());
            // Nobody's: it stays, as the switch on the bridge does.
            entries.push(Entry {
                set: BRIDGES,
                key: bridge,
                element: Element::new(),
            });
        }
    }
    for (except, addr) in record
        .masquerade_except
        .iter()
        .flat_map(|except| addrs.iter().map(move |addr| (except, *addr)))
    {
        entries.push(entry(MASQ, addr.into(), Element::new()));
        for subnet in except.iter().filter(|subnet| subnet.family() == family) {
            let ends = |end: IpAddr| Key::from((addr, end));
            let key = Key::range(ends(subnet.base()), ends(subnet.last()));
            entries.push(entry(MASQ_EXCEPT, key, Element::new()));
        }
    }
    entries
}

/// `CONTAINER/INTERFACE@NETWORK NAMESPACE/POD`: the beginning tells ours from others', the end is
/// for people, and may be cut.
fn comment(record: &Record) -> Comment {
    let owner = format!(
        "{}/{}@{}",
        record.container_id, record.if_name, record.network
    );
    match &record.pod {
        Some(pod) => Comment::from(format!("{owner} {pod}")),
        None => Comment::from(owner),
    }
}

/// Whom an element belongs to, as its comment tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ElementOwner {
    /// The container's id.
    pub container_id: String,
    /// The interface inside it.
    pub ifname: String,
    /// The network.
    pub network: String,
    /// The pod, if it is known; it may be cut short.
    pub pod: Option<String>,
}

impl ElementOwner {
    fn of(element: &Element) -> Option<ElementOwner> {
        let text = element.comment.as_ref()?.as_str();
        let (owner, pod) = match text.split_once(' ') {
            Some((owner, pod)) => (owner, Some(pod.to_owned())),
            None => (text, None),
        };
        let (container_id, rest) = owner.split_once('/')?;
        let (ifname, network) = rest.split_once('@')?;
        Some(ElementOwner {
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
            network: network.to_owned(),
            pod,
        })
    }

    /// Whether it is this attachment.
    pub fn is(&self, identity: &Identity) -> bool {
        self.container_id == identity.container_id.as_str() && identity.ifname == *self.ifname
    }

    /// For people.
    pub fn whose(&self) -> String {
        match &self.pod {
            Some(pod) => format!("pod {pod} (container {})", self.container_id),
            None => format!("container {}", self.container_id),
        }
    }
}

/// The table without any attachment.
fn layout(family: Family) -> Table {
    let addr = FieldType::addr(family);
    let (proto, port) = (FieldType::InetProto, FieldType::InetService);
    let target = KeyType::of([addr, port]);
    let decls = [
        SetDecl::map(HOSTPORTS, KeyType::of([proto, port]), target.clone()),
        SetDecl::map(HOSTPORTS_AT, KeyType::of([addr, proto, port]), target),
        SetDecl::set(HAIRPIN, KeyType::of([addr, addr])),
        SetDecl::set(MASQ_ALL, KeyType::of([addr, proto, port])),
        SetDecl::set(MASQ, KeyType::of([addr])),
        SetDecl::set(MASQ_EXCEPT, KeyType::of([addr, addr])).interval(),
    ];
    let mut table = Table::new(family, names::TABLE_CNI)
        .comment("twill-cni: host ports and masquerade; an attachment is elements of the sets")
        .chain("prerouting", to_this_node(family, Hook::Prerouting))
        .chain("output", to_this_node(family, Hook::Output))
        .chain(
            HOSTPORTS,
            Chain::regular()
                .rule(Rule::new().dnat_to_map(
                    family,
                    [Daddr(family), L4Proto, Dport],
                    HOSTPORTS_AT,
                ))
                .rule(Rule::new().dnat_to_map(family, [L4Proto, Dport], HOSTPORTS)),
        )
        .chain("postrouting", postrouting(family));
    for decl in decls {
        table = table.set(Set::new(Arc::new(decl)));
    }
    if family == Family::V4 {
        let bridges = SetDecl::set(BRIDGES, KeyType::of([FieldType::IfName]));
        let loopbacks = SetDecl::set(FROM_LOOPBACK, KeyType::of([addr]));
        table = table.set(bridges).set(loopbacks).chain("guard", guard());
    }
    table
}

fn to_this_node(family: Family, hook: Hook) -> Chain {
    let rule = match family {
        Family::V4 => Rule::new(),
        // The kernel routes nothing from ::1 to a pod: it stays the node's own.
        Family::V6 => Rule::new().ne(Daddr(family), Ipv6Addr::LOCALHOST),
    };
    Chain::nat(hook, PRIORITY_DNAT).rule(rule.eq(FibDaddrType, FIB_LOCAL).goto(HOSTPORTS))
}

/// 127.0.0.0/8.
fn loopback() -> Subnet {
    let base = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
    Subnet::new(base, 8).unwrap_or(Subnet::host(base))
}

/// The protocols that a host port can have.
const PROTOCOLS: [Proto; 3] = [Proto::TCP, Proto::UDP, Proto::SCTP];

fn postrouting(family: Family) -> Chain {
    let dnat = || Rule::new().has(CtStatus, CT_DNAT);
    let masquerade = |rule: Rule, why: &str| rule.masquerade(NatFlags::FULLY_RANDOM).comment(why);
    let mut chain = Chain::nat(Hook::Postrouting, PRIORITY_MASQUERADE).rule(masquerade(
        dnat().in_set([Saddr(family), Daddr(family)], HAIRPIN),
        "a pod that meets itself",
    ));
    if family == Family::V4 {
        chain = chain.rule(masquerade(
            dnat()
                .within(Saddr(family), loopback())
                .in_set([Daddr(family)], FROM_LOOPBACK),
            "from the node's 127.0.0.1",
        ));
    }
    // nft reads `ct original proto-dst` only where it knows the protocol.
    chain = chain.rules(PROTOCOLS.map(|proto| {
        let of = Rule::new().eq(L4Proto, proto).has(CtStatus, CT_DNAT);
        masquerade(
            of.in_set([Daddr(family), L4Proto, CtOriginalDport], MASQ_ALL),
            "masqAll",
        )
    }));
    let multicast = match family {
        Family::V4 => Subnet::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        Family::V6 => Subnet::new("ff00::".parse().unwrap_or(family.unspecified()), 8),
    };
    let multicast = multicast.unwrap_or(Subnet::host(family.unspecified()));
    chain
        .rule(
            Rule::new()
                .in_set([Saddr(family), Daddr(family)], MASQ_EXCEPT)
                .return_(),
        )
        .rule(masquerade(
            Rule::new()
                .outside(Daddr(family), multicast)
                .in_set([Saddr(family)], MASQ),
            "what pods send outside (ipMasq)",
        ))
}

/// The node's own 127.0.0.0/8 is its own, also where the bridge lets such packets pass.
fn guard() -> Chain {
    let from_pods = || Rule::new().in_set([IifName], BRIDGES);
    Chain::filter(Hook::Prerouting, PRIORITY_GUARD)
        .rule(from_pods().within(Daddr(Family::V4), loopback()).drop())
        .rule(from_pods().within(Saddr(Family::V4), loopback()).drop())
        .comment("CVE-2020-8558")
}

#[cfg(test)]
mod tests {
    use hostnet::nft::{diff, model};

    use super::*;
    use crate::record::RecordAddress;
    use crate::record::tests::record;

    fn with_ports(id: &str, ports: &str) -> Record {
        Record {
            pod: Some("default/web".to_owned()),
            ports: serde_json::from_str(ports).unwrap(),
            snat: true,
            ..record(id)
        }
    }

    fn dual(record: Record) -> Record {
        let mut addresses = record.addresses.clone();
        addresses.push(RecordAddress {
            address: "fd00::51/64".parse().unwrap(),
            gateway: None,
        });
        Record {
            addresses,
            ..record
        }
    }

    const PORTS: &str = r#"[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},
        {"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"127.0.0.1"}]"#;

    fn added(family: Family, records: &[Record]) -> Vec<String> {
        let empty = layout(family);
        let changes = diff(Some(&empty), table(family, records));
        changes.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn an_attachment_is_elements_only() {
        let web = dual(with_ports("c1", PORTS));
        let owner = "comment \"c1/eth0@cbr0 default/web\"";
        assert_eq!(
            added(Family::V4, std::slice::from_ref(&web)),
            [
                "add element ip twill-cni bridges { \"cni0\" }".to_owned(),
                format!("add element ip twill-cni from-loopback {{ 10.244.3.81 {owner} }}"),
                format!("add element ip twill-cni hairpin {{ 10.244.3.81 . 10.244.3.81 {owner} }}"),
                format!(
                    "add element ip twill-cni hostports {{ tcp . 8080 {owner} : 10.244.3.81 . 80 }}"
                ),
                format!(
                    "add element ip twill-cni hostports-at {{ 127.0.0.1 . udp . 53 {owner} : 10.244.3.81 . 5353 }}"
                ),
            ]
        );
        assert_eq!(
            added(Family::V6, std::slice::from_ref(&web)),
            [
                format!("add element ip6 twill-cni hairpin {{ fd00::51 . fd00::51 {owner} }}"),
                format!(
                    "add element ip6 twill-cni hostports {{ tcp . 8080 {owner} : fd00::51 . 80 }}"
                ),
            ]
        );
        assert_eq!(families(&web), Family::ALL);
        assert_eq!(families(&record("c2")), []);
        assert!(needs_route_localnet(&web));
        let plain = Record { snat: false, ..web };
        assert!(!needs_route_localnet(&plain));
        assert_eq!(added(Family::V4, &[plain]).len(), 2);
    }

    #[test]
    fn masquerade_is_elements_too() {
        let masq = Record {
            masquerade_except: Some(vec!["10.244.0.0/16".parse().unwrap()]),
            masq_all: true,
            ports: serde_json::from_str(PORTS).unwrap(),
            ..record("c1")
        };
        let lines = added(Family::V4, &[masq]).join("\n");
        for text in [
            "masq { 10.244.3.81 comment",
            "masq-except { 10.244.3.81 . 10.244.0.0/16 comment",
            "masq-all { 10.244.3.81 . tcp . 8080 comment",
        ] {
            assert!(lines.contains(text), "{text}\n{lines}");
        }
    }

    #[test]
    fn the_first_of_two_with_one_port_has_it() {
        let (a, b) = (with_ports("a", PORTS), with_ports("b", PORTS));
        let made = table(Family::V4, [&a, &b]);
        for element in made.sets[HOSTPORTS].elements.values() {
            assert_eq!(ElementOwner::of(element).unwrap().container_id, "a");
        }
    }

    #[test]
    fn owners_are_read_from_comments_also_from_cut_ones() {
        let identity = crate::attachment::tests::identity("c1");
        let mut long = with_ports("c1", PORTS);
        long.pod = Some(format!("{}/{}", "n".repeat(63), "p".repeat(200)));
        for entry in entries(Family::V4, &long) {
            if entry.set != BRIDGES {
                let owner = ElementOwner::of(&entry.element).unwrap();
                assert!(owner.is(&identity), "{owner:?}");
                assert_eq!(owner.network, "cbr0");
            }
        }
        assert_eq!(ElementOwner::of(&Element::new()), None);
    }

    #[test]
    fn a_table_is_reached_from_nothing() {
        for family in Family::ALL {
            let desired = table(family, [&dual(with_ports("c1", PORTS))]);
            let changes = diff(None, desired.clone());
            assert_eq!(model::replay(None, &changes), Ok(Some(desired.clone())));
            assert!(diff(Some(&desired), desired.clone()).is_empty());
        }
    }
}
