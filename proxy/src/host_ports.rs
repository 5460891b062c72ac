//! Node ports that are host ports of pods too. twill-cni's rules come before ours, so the pod answers there and the
//! Service does not: nobody is told by the API server, which knows of neither.

use std::collections::{BTreeMap, BTreeSet};

use hostnet::nft::{Datum, Nft, Table, TableId};
use hostnet::vocab::{Family, names};

use crate::plan::{At, PortKey, Ruleset};

/// twill-cni's maps: by protocol and port, and by address before these.
const MAPS: [&str; 2] = ["hostports", "hostports-at"];

/// A node port that a pod of this node has as its host port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clash {
    /// The Service's port.
    pub key: PortKey,
    /// The number.
    pub port: u16,
    /// Whose host port it is, in twill-cni's words.
    pub owner: String,
}

/// Finds them, and remembers which are known.
#[derive(Debug, Default)]
pub struct HostPorts {
    known: BTreeSet<Clash>,
}

impl HostPorts {
    /// Reads twill-cni's tables; returns the clashes that are new.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn look(&mut self, ruleset: &Ruleset) -> Result<Vec<Clash>, hostnet::nft::Error> {
        let mut nft = Nft::open()?;
        let mut found = BTreeSet::new();
        for family in Family::ALL {
            let id = TableId::new(family, names::TABLE_CNI);
            if let Some(table) = nft.observe(&id)?.table {
                found.extend(clashes(&host_ports(&table), ruleset, family));
            }
        }
        let new = found.difference(&self.known).cloned().collect();
        self.known = found;
        Ok(new)
    }
}

type Owners = BTreeMap<(u8, u16), String>;

/// Whose each host port is, by protocol and number.
fn host_ports(table: &Table) -> Owners {
    let mut owners = Owners::new();
    for set in MAPS.iter().filter_map(|name| table.sets.get(*name)) {
        for (key, element) in &set.elements {
            let fields = set.decl.key.decode(key).unwrap_or_default();
            if let [.., Datum::Proto(proto), Datum::Port(port)] = fields[..] {
                let owner = element.comment.as_ref().map(|c| c.as_str().to_owned());
                owners.insert((proto.0, port), owner.unwrap_or_default());
            }
        }
    }
    owners
}

fn clashes(owners: &Owners, ruleset: &Ruleset, family: Family) -> Vec<Clash> {
    if owners.is_empty() {
        return Vec::new();
    }
    let ports = ruleset.family(family).ports.iter();
    ports
        .flat_map(|(key, port)| port.frontends.iter().map(move |frontend| (key, frontend)))
        .filter(|(_, frontend)| frontend.at == At::NodePort)
        .filter_map(|(key, frontend)| {
            let owner = owners.get(&(key.protocol.number(), frontend.port))?;
            Some(Clash {
                key: key.clone(),
                port: frontend.port,
                owner: owner.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use hostnet::testkit::{Ns, require_tool};

    use super::*;
    use crate::fixtures::{self, SEED, cluster_cidr};

    #[test]
    fn a_clash_is_told_once_and_again_after_it_was_gone() {
        require_tool("nft", "nftables");
        let ns = Ns::new("host-ports");
        let plan = fixtures::plan(&mut fixtures::index(SEED), &cluster_cidr("10.244.0.0/16"));
        let mut host_ports = HostPorts::default();
        let mut look = || -> Vec<String> {
            let new = ns.run(|| host_ports.look(&plan)).unwrap();
            (new.iter())
                .map(|clash| format!("{} {} {}", clash.key, clash.port, clash.owner))
                .collect()
        };
        assert_eq!(look(), [""; 0], "there is no such table");
        ns.sh(
            "nft",
            &["add table ip twill-cni; \
               add map ip twill-cni hostports { type inet_proto . inet_service : ipv4_addr . inet_service; }; \
               add map ip twill-cni hostports-at { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }; \
               add element ip twill-cni hostports { udp . 30001 : 10.244.3.9 . 53, tcp . 30002 : 10.244.3.9 . 80 }"],
        );
        assert_eq!(look(), [""; 0], "another protocol, another port");
        let set = |verb: &str| {
            let element = "{ 192.168.1.12 . tcp . 30001 comment \"pod-a\" : 10.244.3.9 . 80 }";
            ns.sh(
                "nft",
                &[&format!(
                    "{verb} element ip twill-cni hostports-at {element}"
                )],
            );
        };
        let clash = ["default/hello-world-service/tcp 30001 pod-a"];
        set("add");
        assert_eq!(look(), clash);
        assert_eq!(look(), [""; 0], "it is known");
        set("delete");
        assert_eq!(look(), [""; 0]);
        set("add");
        assert_eq!(look(), clash);
    }
}
