//! Packets from every node to every other: each node sends its own, and what came of them is put side by side. Of nodes
//! that are in trouble it is told too what is wrong with them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Node, Service};
use serde::Serialize;

use crate::doctor::Finding;
use crate::objects::{Cluster, Known};
use crate::onward::Place;
use crate::probe::{Probed, Report, Twice};
use crate::table::Table;
use crate::trace::internal_ips;

/// More columns than these are no matrix that fits a screen.
const COLUMNS: usize = 12;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it is.
    pub place: Place,
    /// All its addresses in the nodes' network.
    pub addresses: Vec<IpAddr>,
    /// Its pods' subnets.
    pub subnets: Vec<String>,
}

/// All nodes, by their objects.
pub fn members(nodes: &[Node]) -> Vec<Member> {
    let member = |node: &Node| {
        let spec = node.spec.clone().unwrap_or_default();
        Member {
            place: Place::of(node),
            addresses: internal_ips(node).collect(),
            subnets: spec.pod_cidrs.unwrap_or_default(),
        }
    };
    nodes.iter().map(member).collect()
}

/// The cluster IP and port of the Service `kubernetes`, which every cluster has.
pub fn service_of_all(cluster: &mut Cluster) -> Option<SocketAddr> {
    let Known::There(service) = cluster.get::<Service>(Some("default"), "kubernetes") else {
        return None;
    };
    let spec = service.spec?;
    let port = u16::try_from(spec.ports?.first()?.port).ok()?;
    Some((spec.cluster_ip?.parse::<IpAddr>().ok()?, port).into())
}

/// What a node says of its packets.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The node that sent them.
    pub node: String,
    /// What came of them.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Why that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A pair of nodes between which something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// Who sent.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Matrix {
    /// One for each node.
    pub rows: Vec<Row>,
    /// What is wrong between nodes.
    pub troubles: Vec<Trouble>,
    /// What is wrong with the nodes in trouble, by their names.
    pub findings: BTreeMap<String, Vec<Finding>>,
}

impl Matrix {
    /// What the nodes have answered, in the order of the members, put side by side.
    pub fn of(members: &[Member], answers: Vec<Result<Report, String>>) -> Matrix {
        let name_of = |probed: &Probed| {
            let is_it = |member: &&Member| {
                let by_address = probed.node.is_some_and(|ip| member.addresses.contains(&ip));
                by_address || member.subnets.contains(&probed.subnet)
            };
            members.iter().find(is_it).map(|m| m.place.to_string())
        };
        let row = |(member, answer): (&Member, Result<Report, String>)| {
            let (mut report, missing) = match answer {
                Ok(report) => (Some(report), None),
                Err(why) => (None, Some(why)),
            };
            for probed in report.iter_mut().flat_map(|report| &mut report.peers) {
                probed.name = name_of(probed);
            }
            let node = member.place.to_string();
            Row {
                node,
                report,
                missing,
            }
        };
        let rows: Vec<Row> = members.iter().zip(answers).map(row).collect();
        Matrix {
            troubles: troubles(&rows),
            rows,
            findings: BTreeMap::new(),
        }
    }

    /// The nodes between which something is wrong.
    pub fn in_trouble(&self) -> Vec<&str> {
        let is_end = |node: &&str| {
            let mut troubles = self.troubles.iter();
            troubles.any(|trouble| trouble.from == **node || trouble.to == **node)
        };
        let nodes = self.rows.iter().map(|row| row.node.as_str());
        nodes.filter(is_end).collect()
    }

    /// Whether every node has answered, and everything got through.
    pub fn is_well(&self) -> bool {
        let is_well = |row: &Row| row.report.as_ref().is_some_and(Report::is_well);
        self.troubles.is_empty() && self.rows.iter().all(is_well)
    }

    /// Whether a node has tried a Service: one that no rule of twill-proxy's leads to is left out.
    pub fn is_of_services(&self) -> bool {
        let reports = self.rows.iter().filter_map(|row| row.report.as_ref());
        reports.into_iter().any(|report| report.service.is_some())
    }
}

fn troubles(rows: &[Row]) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for row in rows {
        let Some(report) = &row.report else {
            continue;
        };
        for probed in &report.peers {
            if let (Some(problem), Some(remedy)) = (&probed.problem, &probed.remedy) {
                troubles.push(Trouble {
                    from: row.node.clone(),
                    to: probed.name.clone().unwrap_or_else(|| probed.subnet.clone()),
                    problem: problem.clone(),
                    remedy: remedy.clone(),
                });
            }
        }
        let others = rows.iter().filter(|other| other.node != row.node);
        for other in others.filter(|other| other.report.is_some()) {
            if to(report, &other.node).next().is_none() {
                troubles.push(Trouble {
                    from: row.node.clone(),
                    to: other.node.clone(),
                    problem: format!("no route leads to the pods of {}", other.node),
                    remedy: format!(
                        "the log of flanneld on {} says whether it leaves {} out, and why; `kubectl describe node {}`",
                        row.node, other.node, other.node
                    ),
                });
            }
        }
    }
    troubles
}

/// What was sent to a node: one for each family.
fn to<'a>(report: &'a Report, node: &'a str) -> impl Iterator<Item = &'a Probed> {
    let is_it = move |probed: &&Probed| probed.name.as_deref() == Some(node);
    report.peers.iter().filter(is_it)
}

fn milliseconds(time: f64) -> String {
    format!("{time:.2} ms")
}

fn cell(probed: &Probed) -> String {
    let ([small, sent], [full, _]) = (probed.lost_small, probed.lost_full);
    match (probed.latency, probed.mtu) {
        (None, _) => "✗".to_owned(),
        (Some(_), Some(mtu)) if full == sent => format!("≤ {mtu} bytes"),
        (Some(_), None) => "small ones only".to_owned(),
        (Some(time), _) if small + full > 0 => {
            format!("{}, {} lost", milliseconds(time), small + full)
        }
        (Some(time), _) => milliseconds(time),
    }
}

impl Row {
    fn cell_to(&self, node: &str) -> String {
        match &self.report {
            _ if self.node == node => "·".to_owned(),
            None => "?".to_owned(),
            Some(report) => {
                let cells: Vec<String> = to(report, node).map(cell).collect();
                match cells.is_empty() {
                    true => "no route".to_owned(),
                    false => cells.join(" / "),
                }
            }
        }
    }

    /// The largest packet that reaches all.
    fn mtu(&self) -> String {
        let peers = self.report.iter().flat_map(|report| &report.peers);
        let least = peers.filter_map(|probed| probed.mtu).min();
        least.map_or_else(|| "-".to_owned(), |mtu| mtu.to_string())
    }

    fn service(&self) -> String {
        let service = self
            .report
            .as_ref()
            .and_then(|report| report.service.as_ref());
        match service.map(|connected| connected.latency) {
            None => "-".to_owned(),
            Some(None) => "✗".to_owned(),
            Some(Some(time)) => milliseconds(time),
        }
    }

    /// Where there are too many columns: how many are well, and the median and longest time to them.
    fn summary(&self) -> [String; 2] {
        let Some(report) = &self.report else {
            return ["?", "?"].map(str::to_owned);
        };
        let well = report.peers.iter().filter(|p| p.problem.is_none()).count();
        let mut times: Vec<f64> = report.peers.iter().filter_map(|p| p.latency).collect();
        times.sort_by(f64::total_cmp);
        let times = match (times.get(times.len() / 2), times.last()) {
            (Some(median), Some(longest)) => {
                format!("{} / {}", milliseconds(*median), milliseconds(*longest))
            }
            _ => "-".to_owned(),
        };
        [format!("{well} of {}", report.peers.len()), times]
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<&str> = self.rows.iter().map(|row| row.node.as_str()).collect();
        let is_matrix = nodes.len() <= COLUMNS;
        let mut heading = vec!["FROM"];
        match is_matrix {
            true => heading.extend(&nodes),
            false => heading.extend(["WELL", "LATENCY (MEDIAN / LONGEST)"]),
        }
        heading.push("MTU");
        if self.is_of_services() {
            heading.push("TCP TO SERVICE");
        }
        let mut table = Table::new(heading);
        for row in &self.rows {
            let mut cells = vec![row.node.clone()];
            match is_matrix {
                true => cells.extend(nodes.iter().map(|node| row.cell_to(node))),
                false => cells.extend(row.summary()),
            }
            cells.push(row.mtu());
            if self.is_of_services() {
                cells.push(row.service());
            }
            table.row(cells);
        }
        write!(f, "{table}")?;
        for row in &self.rows {
            if let Some(why) = &row.missing {
                writeln!(f, "✗ {}: what it sends is not seen: {why}", row.node)?;
            }
            for twice in row.report.iter().flat_map(|report| &report.twice) {
                writeln!(f, "✗ {}: {twice}\n  remedy: {}", row.node, Twice::REMEDY)?;
            }
            let service = row
                .report
                .as_ref()
                .and_then(|report| report.service.as_ref());
            if let Some((to, problem)) = service.and_then(|s| Some((s.to, s.problem.as_ref()?))) {
                writeln!(f, "✗ {}: TCP to {to}: {problem}", row.node)?;
                writeln!(f, "  remedy: `twill trace node {to}` there")?;
            }
        }
        for trouble in &self.troubles {
            let Trouble {
                from,
                to,
                problem,
                remedy,
            } = trouble;
            writeln!(f, "✗ {from} → {to}: {problem}")?;
            writeln!(f, "  remedy: {remedy}")?;
        }
        for (node, findings) in &self.findings {
            for finding in findings {
                writeln!(f, "{finding}")?;
                writeln!(f, "  on node: {node}")?;
            }
        }
        let pairs = |row: &Row| row.report.as_ref().map_or(0, |report| report.peers.len());
        let sent: usize = self.rows.iter().map(pairs).sum();
        let answered = self.rows.iter().filter(|row| row.report.is_some()).count();
        writeln!(
            f,
            "{answered} of {} nodes have sent to {sent} others in all, {} times with trouble",
            self.rows.len(),
            self.troubles.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Connected;

    fn member(n: u8) -> Member {
        let address = IpAddr::from([172, 30, 0, n]);
        Member {
            place: Place {
                name: Some(format!("node-{n}")),
                address,
            },
            addresses: vec![address],
            subnets: vec![format!("10.244.{n}.0/24")],
        }
    }

    fn probed(n: u8) -> Probed {
        Probed {
            subnet: format!("10.244.{n}.0/24"),
            target: [10, 244, n, 0].into(),
            node: Some([172, 30, 0, n].into()),
            name: None,
            lost_small: [0, 3],
            lost_full: [0, 3],
            latency: Some(0.25),
            mtu: Some(1450),
            problem: None,
            remedy: None,
        }
    }

    fn report(peers: impl IntoIterator<Item = Probed>) -> Result<Report, String> {
        Ok(Report {
            peers: peers.into_iter().collect(),
            service: Some(Connected {
                to: ([10, 96, 0, 1], 443).into(),
                latency: Some(0.5),
                problem: None,
            }),
            twice: Vec::new(),
        })
    }

    #[test]
    fn what_is_well_is_a_matrix_of_times() {
        let members = [1, 2].map(member);
        let matrix = Matrix::of(&members, vec![report([probed(2)]), report([probed(1)])]);
        assert!(matrix.is_well());
        let text = "\
FROM    node-1   node-2   MTU   TCP TO SERVICE
node-1  ·        0.25 ms  1450  0.50 ms
node-2  0.25 ms  ·        1450  0.50 ms
2 of 2 nodes have sent to 2 others in all, 0 times with trouble
";
        assert_eq!(matrix.to_string(), text);
    }

    #[test]
    fn each_kind_of_trouble_has_its_cell_and_its_words() {
        let members = [1, 2, 3, 4].map(member);
        let broken = |n, change: fn(&mut Probed)| {
            let mut probed = probed(n);
            change(&mut probed);
            probed.problem = Some(format!("problem {n}"));
            probed.remedy = Some("remedy".to_owned());
            probed
        };
        let silent = broken(2, |p| {
            (p.latency, p.mtu, p.lost_small, p.lost_full) = (None, None, [3, 3], [3, 3])
        });
        let narrow = broken(3, |p| (p.mtu, p.lost_full) = (Some(1400), [3, 3]));
        let lossy = broken(1, |p| p.lost_small = [1, 3]);
        let mut copied = report([probed(1), probed(2), probed(4)]);
        copied.as_mut().unwrap().twice = vec![Twice {
            address: [172, 30, 0, 3].into(),
            device: "eth0".to_owned(),
            mac: "0e:00:00:00:00:77".parse().unwrap(),
        }];
        let answers = vec![
            report([silent, narrow, probed(4)]),
            report([lossy, probed(4)]),
            copied,
            Err("no pod of flanneld runs there".to_owned()),
        ];
        let matrix = Matrix::of(&members, answers);
        assert!(!matrix.is_well());
        assert_eq!(matrix.in_trouble(), ["node-1", "node-2", "node-3"]);
        let text = "\
FROM    node-1           node-2   node-3        node-4   MTU   TCP TO SERVICE
node-1  ·                ✗        ≤ 1400 bytes  0.25 ms  1400  0.50 ms
node-2  0.25 ms, 1 lost  ·        no route      0.25 ms  1450  0.50 ms
node-3  0.25 ms          0.25 ms  ·             0.25 ms  1450  0.50 ms
node-4  ?                ?        ?             ·        -     -
✗ node-3: 172.30.0.3 is another machine's too: 0e:00:00:00:00:77 on eth0 says that it has it
  remedy: find the machine of that MAC (the switches' tables, the hypervisor, DHCP leases), and give one of the two another address
✗ node-4: what it sends is not seen: no pod of flanneld runs there
✗ node-1 → node-2: problem 2
  remedy: remedy
✗ node-1 → node-3: problem 3
  remedy: remedy
✗ node-2 → node-1: problem 1
  remedy: remedy
✗ node-2 → node-3: no route leads to the pods of node-3
  remedy: the log of flanneld on node-2 says whether it leaves node-3 out, and why; `kubectl describe node node-3`
3 of 4 nodes have sent to 8 others in all, 4 times with trouble
";
        assert_eq!(matrix.to_string(), text);
    }

    #[test]
    fn where_nodes_are_many_each_is_one_line() {
        let members: Vec<Member> = (1..=20).map(member).collect();
        let answers = (1..=20).map(|n| report((1..=20).filter(|m| *m != n).map(probed)));
        let text = Matrix::of(&members, answers.collect()).to_string();
        let mut lines = text.lines();
        assert_eq!(
            lines
                .next()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")),
            Some("FROM WELL LATENCY (MEDIAN / LONGEST) MTU TCP TO SERVICE".to_owned())
        );
        let row: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            row.join(" "),
            "node-1 19 of 19 0.25 ms / 0.25 ms 1450 0.50 ms"
        );
    }
}
