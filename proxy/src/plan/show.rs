//! Owns the text form of a plan, for people and golden files.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hostnet::vocab::Family;

use super::{
    At, Change, DetectLocal, Endpoint, FamilyRuleset, Frontend, Masquerade, NodePortAddresses,
    NodeRules, PodTraffic, Ruleset, ServicePort, Settings, Verdict, View,
};

/// One block per family, then one per service port, in the order of their names.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in Family::ALL {
            writeln!(f, "{family}: {}", self.family(family))?;
        }
        Ok(())
    }
}

impl fmt::Display for FamilyRuleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.node)?;
        for (key, port) in &self.ports {
            write!(f, "\n{key}{port}")?;
        }
        Ok(())
    }
}

impl fmt::Display for NodeRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pods {
            PodTraffic::Unknown => f.write_str("pods unknown")?,
            PodTraffic::From(networks) => write!(f, "pods from {}", list(networks))?,
            PodTraffic::Interface(name) => write!(f, "pods by {name}")?,
        }
        if self.node_ports.is_empty() {
            f.write_str(", node ports nowhere")?;
        } else {
            write!(f, ", node ports at {}", list(&self.node_ports))?;
        }
        if self.service_networks.is_empty() {
            return Ok(());
        }
        write!(f, ", cluster IPs in {}", list(&self.service_networks))
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detect_local {
            DetectLocal::Nothing => f.write_str("pods unknown")?,
            DetectLocal::ClusterCidr(networks) => write!(f, "pods from {}", list(networks))?,
            DetectLocal::NodeCidr => f.write_str("pods from the Node's networks")?,
            DetectLocal::Interface(name) => write!(f, "pods by {name}")?,
        }
        match (&self.node_port_addresses, self.node_ip) {
            (NodePortAddresses::In(networks), _) => {
                write!(f, ", node ports at addresses in {}", list(networks))?;
            }
            (NodePortAddresses::Primary, Some(address)) => write!(f, ", node ports at {address}")?,
            (NodePortAddresses::Primary, None) => {
                f.write_str(", node ports at the Node's primary addresses")?;
            }
        }
        if self.masquerade_all {
            f.write_str(", masquerade all")?;
        }
        Ok(())
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(seconds) = self.affinity {
            write!(f, ", clients stay {seconds} s")?;
        }
        for frontend in &self.frontends {
            write!(f, "\n  {frontend}")?;
        }
        for (name, endpoints) in [("cluster", &self.cluster), ("local", &self.local)] {
            if !endpoints.is_empty() {
                write!(f, "\n  {name}: {}", list(endpoints.iter()))?;
            }
        }
        Ok(())
    }
}

impl Frontend {
    /// Where it answers: `external IP 192.0.2.1:80`.
    pub fn place(&self) -> impl fmt::Display {
        let kind = match self.at {
            At::ClusterIp(_) => "cluster IP",
            At::LoadBalancer(_) => "load balancer",
            At::ExternalIp(_) => "external IP",
            At::NodePort => "node port",
        };
        match self.at.address() {
            Some(address) => format!("{kind} {}", socket(address, self.port)),
            None => format!("{kind} {}", self.port),
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place())?;
        if self.inside == self.outside {
            write!(f, " -> {}", self.inside)?;
        } else {
            write!(
                f,
                " -> {} from inside, {} from outside",
                self.inside, self.outside
            )?;
        }
        write!(f, ", masquerade {}", self.masquerade)?;
        match &self.sources {
            Some(networks) => write!(f, ", only from {}", list(networks.iter())),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Balance(View::Cluster) => "cluster",
            Self::Balance(View::Local) => "local",
            Self::Reject => "reject",
            Self::Drop => "drop",
        })
    }
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "all",
            Self::NotPods => "all but pods",
            Self::ThisNode => "this node",
        })
    }
}

/// `name/protocol: came`, `went` or `changed`, and what it is now.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (&self.before, &self.after) {
            (_, None) => write!(f, "{key} went"),
            (before, Some(after)) => {
                let what = if before.is_some() { "changed" } else { "came" };
                write!(
                    f,
                    "{key} {what}: {} frontends, {} endpoints, {} of them local",
                    after.frontends.len(),
                    after.cluster.len(),
                    after
                        .cluster
                        .iter()
                        .filter(|endpoint| endpoint.local)
                        .count(),
                )
            }
        }
    }
}

/// `address:port`, with `(local)` behind it for one of this node.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.local { " (local)" } else { "" };
        write!(f, "{}{mark}", self.socket())
    }
}

fn socket(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
