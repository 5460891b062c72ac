//! What is wrong on this node, whoever sends packets: switches, devices, what leads to peers and pods, and other
//! software that wants the same. Each finding has its evidence and its remedy.
//!
//! ```text
//!  claims    what the objects say of nodes, in conflict with each other or with what a node has
//!  versions  of Twill, on one node and among all
//!  rounds    all nodes
//! ```

pub mod claims;
pub mod rounds;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use hostnet::netlink::{Link, LinkKind};
use hostnet::nft::{ChainKind, Hook, Policy, TableId};
use hostnet::vocab::{Cidr, Family, names};
use hostnet::xtables;
use serde::{Deserialize, Serialize};

use crate::far::Files;
use crate::fix::Fix;
use crate::legacy;
use crate::pods::pods;
use crate::trace::{PodNetwork, networks};
use crate::view::{Result, View};
use crate::walk::kube;
use claims::Claim;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Packets are lost.
    Error,
    /// Packets may be lost.
    Warning,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// Where that is to be seen.
    pub evidence: String,
    /// What to do.
    pub remedy: String,
    /// What `--fix` does.
    #[serde(skip)]
    pub fix: Option<Fix>,
}

/// What is not in the network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// CNI configurations, in the order in which runtimes take them.
    pub conflists: Vec<String>,
    /// Names of running processes.
    pub processes: BTreeSet<String>,
    /// Families in which the FORWARD chain of iptables-legacy drops.
    pub legacy_drops: Vec<Family>,
    /// Of what of Twill is here, by the programs' names.
    pub versions: BTreeMap<String, String>,
    /// What the objects say of this node, if they are seen.
    pub claim: Option<Claim>,
}

impl Host {
    /// Looks at this host, but for what objects say of it.
    pub fn observe(cni_conf_dir: &Path, cni_bin_dir: &Path) -> Host {
        let names = |dir: &Path| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .filter_map(|e| e.file_name().into_string().ok())
                .collect()
        };
        let mut conflists = names(cni_conf_dir);
        conflists.retain(|name| {
            let ends = [".conf", ".conflist", ".json"];
            ends.iter().any(|end| name.ends_with(end))
        });
        conflists.sort();
        let processes = names(Path::new("/proc")).into_iter();
        let comm = |pid: String| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        let drops =
            |family: &Family| matches!(xtables::forward_policy_is_drop(*family), Ok(Some(true)));
        Host {
            conflists,
            processes: processes
                .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
                .filter_map(comm)
                .map(|name| name.trim_end().to_owned())
                .collect(),
            legacy_drops: Family::ALL.into_iter().filter(drops).collect(),
            versions: versions::here(cni_bin_dir),
            claim: None,
        }
    }
}

/// Examines the node; the worst comes first.
///
/// # Errors
/// The kernel cannot be read.
pub fn examine(
    view: &mut dyn View,
    networks: &[PodNetwork],
    host: &Host,
) -> anyhow::Result<Vec<Finding>> {
    let mut exam = Exam {
        view,
        networks,
        found: Vec::new(),
    };
    if networks.is_empty() {
        exam.error(
            "flanneld has not told of this node's pods",
            format!("{} is not there", names::SUBNET_ENV),
            "`kubectl -n kube-system logs daemonset/flanneld`: it waits for a subnet, or does not run; from a machine that is no node: `twill doctor --all`",
        );
    }
    exam.switches()?;
    exam.devices()?;
    exam.peers()?;
    exam.tables()?;
    exam.firewalls(host)?;
    exam.others(host);
    exam.found.extend(versions::differ(&host.versions));
    if let Some(claim) = &host.claim {
        exam.claim(claim)?;
    }
    exam.pods()?;
    exam.found.sort();
    Ok(exam.found)
}

/// Examines the node, with what its files and processes, and objects, tell besides.
///
/// # Errors
/// As [`examine`], or flanneld's file is no such file.
pub fn examine_all(
    view: &mut dyn View,
    files: &Files,
    claim: Option<&Claim>,
) -> anyhow::Result<Vec<Finding>> {
    let host = Host {
        claim: claim.cloned(),
        ..Host::observe(&files.cni_conf_dir, &files.cni_bin_dir)
    };
    examine(view, &networks(&files.subnet_file)?, &host)
}

struct Exam<'a> {
    view: &'a mut dyn View,
    networks: &'a [PodNetwork],
    found: Vec<Finding>,
}

const FLANNELD: &str = "flanneld mends this within a second where it runs: \
     `kubectl -n kube-system get pods -l app.kubernetes.io/component=flanneld -o wide`, and its log";

impl Exam<'_> {
    fn error(&mut self, what: &str, evidence: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, what, evidence, remedy);
    }

    fn add(
        &mut self,
        severity: Severity,
        what: &str,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.found.push(Finding {
            severity,
            what: what.to_owned(),
            evidence: evidence.into(),
            remedy: remedy.into(),
            fix: None,
        });
    }

    /// The finding that was added last can be mended so.
    fn fixed_by(&mut self, fix: Fix) {
        if let Some(last) = self.found.last_mut() {
            last.fix = Some(fix);
        }
    }

    fn has(&self, family: Family) -> bool {
        self.networks.iter().any(|n| n.own.family() == family)
    }

    fn switches(&mut self) -> Result<()> {
        for (family, key) in [
            (Family::V4, "ipv4/ip_forward"),
            (Family::V6, "ipv6/conf/all/forwarding"),
        ] {
            if self.has(family) && self.view.switch(key)?.as_deref() == Some("0") {
                let name = key.replace('/', ".");
                self.error(
                    &format!("this node does not forward {family} packets"),
                    format!("net.{name} = 0"),
                    format!("`sysctl -w net.{name}=1`; look in /etc/sysctl.d for who sets it to 0"),
                );
                self.fixed_by(Fix::Switch(key.to_owned(), "1"));
            }
        }
        let all = self.view.switch("ipv4/conf/all/rp_filter")?;
        for link in self.view.links()? {
            let is_ours = matches!(link.kind, LinkKind::Vxlan(_)) && is_flannels(&link);
            if !is_ours {
                continue;
            }
            let key = format!("ipv4/conf/{}/rp_filter", link.name);
            let own = self.view.switch(&key)?;
            // The greater of the two holds (Documentation/networking/ip-sysctl.rst).
            if own.max(all.clone()).as_deref() == Some("1") {
                self.add(
                    Severity::Warning,
                    &format!("{} drops packets of which the answer would go another way", link.name),
                    format!("{key} is strict (1)"),
                    format!("`sysctl -w net.ipv4.conf.{}.rp_filter=2`, with slashes where the name has a dot", link.name),
                );
                self.fixed_by(Fix::Switch(key, "2"));
            }
        }
        Ok(())
    }

    fn devices(&mut self) -> Result<()> {
        let links = self.view.links()?;
        let addrs = self.view.addrs()?;
        for link in &links {
            let is_bridge = link.name.as_str() == names::BRIDGE;
            if (is_bridge || is_flannels(link)) && !link.up {
                self.error(
                    &format!("{} is down", link.name),
                    format!("`ip link show {}`", link.name),
                    format!("`ip link set {} up`", link.name),
                );
                self.fixed_by(Fix::Up(link.name.clone()));
            }
        }
        for network in self.networks {
            let own = Cidr::host(network.own.base());
            let is_tunnel = |link: &&Link| {
                let is_v6 = link.name.as_str().starts_with("flannel-v6.");
                is_flannels(link) && is_v6 == (own.family() == Family::V6)
            };
            let has = |link: &Link| {
                let mut on_it = addrs.iter().filter(|addr| addr.link == link.index);
                on_it.any(|addr| addr.cidr.addr() == own.addr())
            };
            for link in links
                .iter()
                .filter(is_tunnel)
                .filter(|link| link.up && !has(link))
            {
                self.error(
                    &format!(
                        "what this node itself sends through {} gets no answer",
                        link.name
                    ),
                    format!("{own} is missing on {}", link.name),
                    format!(
                        "`ip address add {own} dev {}`; flanneld does so too",
                        link.name
                    ),
                );
                self.fixed_by(Fix::Address(link.name.clone(), own));
            }
        }
        let bridge = links
            .iter()
            .find(|link| link.name.as_str() == names::BRIDGE);
        let Some(bridge) = bridge.filter(|link| link.up) else {
            // Before the first pod there is none.
            return Ok(());
        };
        for network in self.networks {
            let gateway = network.own.gateway();
            let has = |addr: &hostnet::netlink::Addr| {
                addr.link == bridge.index && Some(addr.cidr) == gateway
            };
            if let Some(gateway) = gateway.filter(|_| !addrs.iter().any(has)) {
                self.error(
                    &format!("{} does not have the pods' gateway address", bridge.name),
                    format!("{gateway} is missing on {}", bridge.name),
                    format!(
                        "`ip address add {gateway} dev {}`; flanneld and the next pod do so too",
                        bridge.name
                    ),
                );
                self.fixed_by(Fix::Address(bridge.name.clone(), gateway));
            }
        }
        Ok(())
    }

    fn pods(&mut self) -> anyhow::Result<()> {
        let mut owners: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for pod in pods(self.view, None)? {
            if pod.state != "up" {
                self.error(
                    &format!("pod {} is cut off", pod.pod),
                    format!("{}, its port of {}: {}", pod.veth, pod.bridge, pod.state),
                    "`twill trace node pod/NAMESPACE/NAME:PORT` tells more; a pod that is deleted is made anew",
                );
                continue;
            }
            for address in pod.addresses {
                let owner = format!("{} by {}", pod.pod, pod.veth);
                owners.entry(address).or_default().push(owner);
            }
        }
        for (address, owners) in owners.iter().filter(|(_, owners)| owners.len() > 1) {
            self.error(
                &format!("{} pods have the address {address}", owners.len()),
                owners.join(", "),
                "delete all of them but one: they are made anew, with addresses of their own",
            );
        }
        Ok(())
    }

    /// Whatever route leads into a tunnel needs a neighbour and a forwarding entry.
    fn peers(&mut self) -> Result<()> {
        for link in self.view.links()? {
            if !is_flannels(&link) || !matches!(link.kind, LinkKind::Vxlan(_)) {
                continue;
            }
            let neighs = self.view.neighs(link.index)?;
            let fdb = self.view.fdb(link.index)?;
            for route in self.view.routes_by(link.index)? {
                let Some(gateway) = route.gateway else {
                    continue;
                };
                let mac = neighs
                    .iter()
                    .find(|n| n.addr == gateway)
                    .and_then(|n| n.mac);
                let evidence = match mac {
                    None => format!("{} has no neighbour {gateway}", link.name),
                    Some(mac) if !fdb.iter().any(|e| e.mac == mac && e.dst.is_some()) => {
                        format!("{} has no forwarding entry for {mac}", link.name)
                    }
                    Some(_) => continue,
                };
                self.error(
                    &format!("pods of {} are not reached", route.dst),
                    evidence,
                    FLANNELD,
                );
            }
        }
        Ok(())
    }

    fn tables(&mut self) -> Result<()> {
        let chains = self.view.base_chains()?;
        for family in Family::ALL {
            if !self.has(family) {
                continue;
            }
            for (name, daemon) in [
                (names::TABLE_PROXY, "twill-proxy"),
                (names::TABLE_FLANNEL, "flanneld"),
            ] {
                let table = TableId::new(family, name).into();
                // In iptables mode its rules are elsewhere.
                if name == names::TABLE_PROXY && kube::is_mode(self.view, family)? {
                    continue;
                }
                if !chains.iter().any(|chain| chain.table == table) {
                    self.add(
                        Severity::Warning,
                        &format!("{daemon} has no rules for {family}"),
                        format!("table {table} is not there"),
                        format!("`kubectl -n kube-system logs daemonset/{daemon}`: it does not run here, or is told not to"),
                    );
                }
            }
        }
        Ok(())
    }

    fn firewalls(&mut self, host: &Host) -> Result<()> {
        for chain in self.view.base_chains()? {
            let is_gate = chain.base.hook == Hook::Forward && chain.base.kind == ChainKind::Filter;
            if !is_gate || chain.base.policy != Policy::Drop {
                continue;
            }
            // Told below.
            if legacy::name(&chain.table).is_some() {
                continue;
            }
            let rules = self.view.rules(&chain.table, &chain.name)?;
            let marked = |rule: &hostnet::nft::Rule| {
                rule.comment
                    .as_ref()
                    .is_some_and(|c| c.as_str().starts_with("twill flanneld: "))
            };
            if rules.iter().any(marked) {
                continue;
            }
            let place = format!("{} {}", chain.table, chain.name);
            for network in self.networks {
                let family = network.network.family();
                if chain.table.family.is_some_and(|own| own != family) {
                    continue;
                }
                let (ip, net) = (
                    if family == Family::V4 { "ip" } else { "ip6" },
                    network.network,
                );
                self.add(
                    Severity::Warning,
                    &format!("a firewall drops what no rule of it accepts, pods' {family} packets too"),
                    format!("chain {place} has policy drop, and no rule of flanneld's"),
                    format!("`nft add rule {place} {ip} saddr {net} accept` and the same with daddr, unless such rules are there"),
                );
            }
        }
        for family in &host.legacy_drops {
            let program = if *family == Family::V4 {
                "iptables-legacy"
            } else {
                "ip6tables-legacy"
            };
            for network in self
                .networks
                .iter()
                .filter(|n| n.network.family() == *family)
            {
                let net = network.network;
                self.found.push(Finding {
                    severity: Severity::Error,
                    what: format!("a firewall drops pods' {family} packets"),
                    evidence: format!("FORWARD of {program} has policy DROP"),
                    remedy: format!(
                        "`{program} -A FORWARD -s {net} -j ACCEPT` and the same with -d"
                    ),
                    fix: None,
                });
            }
        }
        for (table, prefixes, whose, remedy) in [
            (
                "nat",
                &["KUBE-SVC-", "KUBE-SERVICES"][..],
                "kube-proxy's",
                "`kube-proxy --cleanup`, after its DaemonSet is deleted",
            ),
            (
                "nat",
                &["FLANNEL-"][..],
                "flannel's",
                "flanneld removes them at its start: restart it",
            ),
        ] {
            for family in Family::ALL {
                let id = TableId::new(family, table);
                let chains = self.view.chains(&id)?;
                let left = chains
                    .iter()
                    .filter(|c| prefixes.iter().any(|p| c.starts_with(p)))
                    .count();
                // Without a table of Services these are twill-proxy's own, in iptables mode.
                let proxy = TableId::new(family, names::TABLE_PROXY);
                let is_own =
                    prefixes.contains(&"KUBE-SERVICES") && self.view.chains(&proxy)?.is_empty();
                if left > 0 && !is_own {
                    self.add(
                        Severity::Warning,
                        &format!(
                            "rules of {whose} are still here, and translate before or after ours"
                        ),
                        format!("{left} chains of table {id}"),
                        remedy,
                    );
                }
            }
        }
        Ok(())
    }

    fn others(&mut self, host: &Host) {
        for (process, what) in [("kube-proxy", "Services"), ("firewalld", "the firewall")] {
            if host.processes.contains(process) {
                let remedy = match process {
                    "kube-proxy" => {
                        "`kubectl -n kube-system delete daemonset kube-proxy`: twill-proxy does its work"
                    }
                    _ => {
                        "put the pods' network into its zone trusted, or stop it: `firewall-cmd --permanent --zone=trusted --add-source=NETWORK`"
                    }
                };
                self.add(
                    Severity::Warning,
                    &format!("{process} runs here and changes {what} too"),
                    format!("a process is called {process}"),
                    remedy,
                );
            }
        }
        if let Some(first) = host.conflists.first()
            && first != names::CONFLIST_FILE
        {
            let ours = host
                .conflists
                .iter()
                .any(|name| name == names::CONFLIST_FILE);
            let evidence = match ours {
                true => format!("{first} comes before {}", names::CONFLIST_FILE),
                false => format!("{first} is there, {} is not", names::CONFLIST_FILE),
            };
            self.error(
                "pods get their network from another CNI configuration",
                evidence,
                format!("move {first} away: runtimes take the first file by name"),
            );
        }
    }
}

/// `flannel.1`, `flannel-v6.1`.
fn is_flannels(link: &Link) -> bool {
    let name = link.name.as_str();
    name.starts_with("flannel.") || name.starts_with("flannel-v6.")
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.severity {
            Severity::Error => "✗",
            Severity::Warning => "!",
        };
        writeln!(f, "{sign} {}", self.what)?;
        writeln!(f, "  evidence: {}", self.evidence)?;
        write!(f, "  remedy: {}", self.remedy)
    }
}

/// What was found on each node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OfNode {
    /// Its name.
    pub node: String,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub findings: Option<Vec<Finding>>,
    /// Why that is not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl OfNode {
    /// What a node has answered.
    pub fn new(node: String, answer: std::result::Result<Vec<Finding>, String>) -> OfNode {
        let (findings, missing) = match answer {
            Ok(findings) => (Some(findings), None),
            Err(why) => (None, Some(why)),
        };
        OfNode {
            node,
            findings,
            missing,
        }
    }

    /// Whether it is seen, and has no error.
    pub fn is_well(&self) -> bool {
        let is_ill = |found: &Vec<Finding>| found.iter().any(|f| f.severity == Severity::Error);
        self.findings.as_ref().is_some_and(|found| !is_ill(found))
    }
}

/// All nodes' findings for people.
#[derive(Debug)]
pub struct OfNodes<'a>(pub &'a [OfNode]);

impl fmt::Display for OfNodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for of in self.0 {
            match (&of.findings, &of.missing) {
                (Some(findings), _) if findings.is_empty() => {}
                (Some(findings), _) => writeln!(f, "node {}:\n{}", of.node, Findings(findings))?,
                (None, why) => {
                    let why = why.as_deref().unwrap_or_default();
                    writeln!(f, "✗ node {} does not answer: {why}\n", of.node)?;
                }
            }
        }
        let sound = |of: &&OfNode| of.findings.as_ref().is_some_and(Vec::is_empty);
        let sound = self.0.iter().filter(sound).count();
        writeln!(f, "nothing is wrong on {sound} of {} nodes", self.0.len())
    }
}

/// Findings for people.
#[derive(Debug)]
pub struct Findings<'a>(pub &'a [Finding]);

impl fmt::Display for Findings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in self.0 {
            writeln!(f, "{finding}")?;
        }
        match self.0.len() {
            0 => writeln!(f, "nothing is wrong that can be seen from this node"),
            1 => writeln!(f, "1 finding"),
            n => writeln!(f, "{n} findings"),
        }
    }
}
