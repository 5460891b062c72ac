//! Host ports that are asked for: `runtimeConfig.portMappings` (capability `portMappings`).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use hostnet::nft::Proto;
use hostnet::vocab::Family;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::fields::Fields;
use crate::error::CniError;

/// A port of the node that leads to a port of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The node's address at which it answers; `None` for all. `0.0.0.0` and `::` stand for all of
    /// their family.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// A transport protocol that can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// Its number.
    pub fn proto(self) -> Proto {
        match self {
            Protocol::Tcp => Proto::TCP,
            Protocol::Udp => Proto::UDP,
            Protocol::Sctp => Proto::SCTP,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    fn parse(text: &str) -> Option<Protocol> {
        let text = text.to_ascii_lowercase();
        Protocol::ALL.into_iter().find(|p| p.word() == text)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
        let text = String::deserialize(deserializer)?;
        Protocol::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no protocol")))
    }
}

impl PortMapping {
    /// The families in which it holds for a pod with these.
    pub fn families(&self, pod: &[Family]) -> Vec<Family> {
        let mut families = pod.to_vec();
        families.retain(|family| self.host_ip.is_none_or(|ip| Family::of(ip) == *family));
        families
    }

    /// The address at which it answers; `None` for all of the node's.
    pub fn at(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether both are the same port at the same address.
    fn is_at_place_of(&self, other: &PortMapping) -> bool {
        let shares_family = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => Family::of(a) == Family::of(b),
            _ => true,
        };
        (self.host_port, self.protocol, self.at()) == (other.host_port, other.protocol, other.at())
            && shares_family
    }

    /// Whether two pods cannot both have theirs: the same port at an address that both cover. (In
    /// one pod, a port at one address beats that at all of them.)
    pub fn collides(&self, other: &PortMapping) -> bool {
        let of_all = |port: &PortMapping| PortMapping {
            host_ip: port.host_ip.map(Family::of).map(Family::unspecified),
            ..*port
        };
        self.is_at_place_of(other)
            || (self.at().is_none() || other.at().is_none())
                && of_all(self).is_at_place_of(&of_all(other))
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

const KEY: &str = "portMappings";

/// Reads the list. A host port of 0 means none: runtimes list a container's other ports so.
pub(super) fn read(runtime: &Fields<'_>) -> Result<Vec<PortMapping>, CniError> {
    let list = match runtime.value(KEY) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(runtime.wrong(KEY, other, "a list")),
    };
    let mut ports: Vec<PortMapping> = Vec::new();
    for (index, item) in list.iter().enumerate() {
        let path = format!("runtimeConfig.{KEY}[{index}]");
        let Value::Object(object) = item else {
            return Err(Fields::wrong_at(&path, item, "an object"));
        };
        let fields = Fields::at(&path, object);
        let Some(port) = one(&fields)? else { continue };
        match ports.iter().find(|other| other.is_at_place_of(&port)) {
            Some(other) if other.container_port == port.container_port => {}
            Some(other) => {
                let expected = format!("another port: {other} is in the list already");
                return Err(Fields::wrong_at(&path, item, &expected));
            }
            None => ports.push(port),
        }
    }
    Ok(ports)
}

fn one(fields: &Fields<'_>) -> Result<Option<PortMapping>, CniError> {
    let port = |key: &str, least: u16| {
        let expected = "a port from 1 to 65535";
        match fields.get::<u16>(key, expected)? {
            Some(port) if port < least => Err(fields.wrong(key, &port.into(), expected)),
            other => Ok(other.unwrap_or(0)),
        }
    };
    let host_port = port("hostPort", 0)?;
    if host_port == 0 {
        return Ok(None);
    }
    let container_port = match fields.value("containerPort") {
        Some(_) => port("containerPort", 1)?,
        None => return Err(fields.missing("containerPort", "a port from 1 to 65535")),
    };
    let expected = "tcp, udp or sctp";
    let protocol = match fields.get::<String>("protocol", expected)?.as_deref() {
        None | Some("") => Protocol::Tcp,
        Some(text) => {
            Protocol::parse(text).ok_or_else(|| fields.wrong("protocol", &text.into(), expected))?
        }
    };
    let expected = "an address of this node";
    let host_ip = match fields.get::<String>("hostIP", expected)?.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let wrong = |expected| fields.wrong("hostIP", &text.into(), expected);
            let ip: IpAddr = text.parse().map_err(|_| wrong(expected))?;
            if ip == IpAddr::V6(Ipv6Addr::LOCALHOST) {
                return Err(wrong(
                    "another address: the kernel routes nothing from ::1 to a pod",
                ));
            }
            Some(ip)
        }
    };
    Ok(Some(PortMapping {
        host_port,
        container_port,
        protocol,
        host_ip,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(list: Value) -> Result<Vec<PortMapping>, CniError> {
        let object = json!({"portMappings": list});
        let Value::Object(object) = object else {
            unreachable!()
        };
        read(&Fields::at("runtimeConfig", &object))
    }

    /// containerd 2.4 writes Go's own field names, which Go's reader takes in any case.
    #[test]
    fn what_containerd_sends() {
        let ports = parse(json!([
            {"HostPort": 18080, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": ""},
            {"HostPort": 53, "ContainerPort": 54, "Protocol": "udp", "HostIP": "127.0.0.1"},
        ]));
        let texts: Vec<_> = ports.unwrap().iter().map(PortMapping::to_string).collect();
        assert_eq!(texts, ["18080/tcp", "127.0.0.1:53/udp"]);
    }

    #[test]
    fn what_runtimes_send() {
        let ports = parse(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""},
            {"hostPort": 0, "containerPort": 81},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"},
            {"hostPort": 53, "containerPort": 53, "protocol": "sctp", "hostIP": "::"},
        ]))
        .unwrap();
        let texts: Vec<_> = ports.iter().map(PortMapping::to_string).collect();
        assert_eq!(texts, ["8080/tcp", "127.0.0.1:8080/udp", "[::]:53/sctp"]);
        assert_eq!(ports[0].families(&Family::ALL), Family::ALL);
        assert_eq!(ports[1].families(&Family::ALL), [Family::V4]);
        assert_eq!(
            (ports[2].at(), ports[2].families(&[Family::V4])),
            (None, vec![])
        );
        let json = serde_json::to_string(&ports[1]).unwrap();
        assert_eq!(
            json,
            r#"{"hostPort":8080,"containerPort":80,"protocol":"udp","hostIP":"127.0.0.1"}"#
        );
        assert_eq!(
            serde_json::from_str::<PortMapping>(&json).unwrap(),
            ports[1]
        );
    }

    #[test]
    fn the_same_port_twice() {
        // In one pod, and in two.
        for (a, b, refused, collide) in [
            ("", "", true, true),
            ("", "127.0.0.1", false, true),
            ("0.0.0.0", "::", false, false),
            ("", "::", true, true),
            ("0.0.0.0", "10.0.0.1", false, true),
            ("10.0.0.1", "10.0.0.1", true, true),
            ("10.0.0.2", "10.0.0.1", false, false),
            ("::", "10.0.0.1", false, false),
        ] {
            let one = |ip, to| json!({"hostPort": 80, "containerPort": to, "hostIP": ip});
            let both = parse(json!([one(a, 80), one(b, 81)]));
            assert_eq!(both.is_err(), refused, "{a} {b}");
            let ports = [a, b].map(|ip| parse(json!([one(ip, 80)])).unwrap()[0]);
            assert_eq!(ports[0].collides(&ports[1]), collide, "{a} {b}");
            assert_eq!(ports[1].collides(&ports[0]), collide, "{a} {b}");
        }
        let one = json!({"hostPort": 80, "containerPort": 80});
        assert_eq!(parse(json!([one, one])).unwrap().len(), 1);
    }

    #[test]
    fn wrong_values_are_named() {
        for (item, text) in [
            (
                json!({"hostPort": 65536, "containerPort": 1}),
                "runtimeConfig.portMappings[0].hostPort is 65536",
            ),
            (
                json!({"hostPort": -1, "containerPort": 1}),
                "hostPort is -1: expected a port from 1 to 65535",
            ),
            (
                json!({"hostPort": 80}),
                "portMappings[0].containerPort is missing",
            ),
            (
                json!({"hostPort": 80, "containerPort": 0}),
                "containerPort is 0",
            ),
            (
                json!({"hostPort": 80, "containerPort": 1, "protocol": "icmp"}),
                r#"protocol is "icmp": expected tcp, udp or sctp"#,
            ),
            (
                json!({"hostPort": 80, "containerPort": 1, "hostIP": "nine"}),
                r#"hostIP is "nine""#,
            ),
            (
                json!({"hostPort": 80, "containerPort": 1, "hostIP": "::1"}),
                r#"hostIP is "::1""#,
            ),
            (
                json!(5),
                "runtimeConfig.portMappings[0] is 5: expected an object",
            ),
        ] {
            let error = parse(json!([item])).unwrap_err();
            assert!(error.msg.contains(text), "{text}: {error}");
        }
    }
}
