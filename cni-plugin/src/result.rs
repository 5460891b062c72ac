//! What ADD made, in the shape of each version of the CNI specification (section 5 "Success").

use std::net::IpAddr;

use hostnet::vocab::{Cidr, Family, IfName, Mac, Subnet};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::request::prev::PrevResult;
use crate::request::settings::ConfigRoute;
use crate::version::Version;

/// What ADD made.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What the plugins before us made: passed on, with ours behind it.
    pub before: PrevResult,
    /// The links: the bridge, the node's end, the pod's end, the device that shapes.
    pub interfaces: Vec<Interface>,
    /// The pod's addresses.
    pub addresses: Vec<Address>,
    /// The pod's routes.
    pub routes: Vec<ConfigRoute>,
    /// Name servers and so on, `null` if none.
    pub dns: Value,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: IfName,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The namespace it is in, as the runtime gave it; `None` for the node's.
    pub sandbox: Option<String>,
}

/// An address of the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address with its subnet's prefix length.
    pub address: Cidr,
    /// The gateway in that subnet, if there is one.
    pub gateway: Option<IpAddr>,
    /// Which of the links has it.
    pub interface: usize,
}

#[derive(Serialize)]
struct RouteJson {
    dst: Subnet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advmss: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<u8>,
}

impl Outcome {
    /// The JSON text for a version.
    pub fn to_json(&self, version: Version) -> String {
        let mut object = if version < Version::V0_3_0 {
            self.by_family()
        } else {
            self.by_list(version)
        };
        object.insert("cniVersion".to_owned(), json!(version));
        let dns = match &self.before.dns {
            Value::Null => &self.dns,
            before => before,
        };
        if dns.as_object().is_some_and(|dns| !dns.is_empty()) {
            object.insert("dns".to_owned(), dns.clone());
        }
        Value::Object(object).to_string()
    }

    /// Versions 0.1.0 and 0.2.0: one address of each family, no links.
    fn by_family(&self) -> Map<String, Value> {
        let mut object = Map::new();
        for (family, key) in [(Family::V4, "ip4"), (Family::V6, "ip6")] {
            let mut of_family = self
                .addresses
                .iter()
                .filter(|a| a.address.family() == family);
            if let Some(address) = of_family.next() {
                let routes = self.routes(Version::V0_1_0, |r| r.dst.family() == family);
                let mut ip = json!({"ip": address.address, "routes": routes});
                if let Some(gateway) = address.gateway {
                    ip["gateway"] = json!(gateway);
                }
                object.insert(key.to_owned(), ip);
            }
        }
        object
    }

    /// From 0.3.0 on: lists.
    fn by_list(&self, version: Version) -> Map<String, Value> {
        let ours = self.interfaces.iter().map(|link| {
            let mut value = json!({"name": link.name, "mac": link.mac});
            if version >= Version::V1_1_0 {
                value["mtu"] = json!(link.mtu);
            }
            if let Some(sandbox) = &link.sandbox {
                value["sandbox"] = json!(sandbox);
            }
            value
        });
        let before = &self.before;
        let interfaces: Vec<Value> = before.interfaces.iter().cloned().chain(ours).collect();
        let ours = self.addresses.iter().map(|address| {
            let mut value = json!({
                "interface": before.interfaces.len() + address.interface,
                "address": address.address,
            });
            if let Some(gateway) = address.gateway {
                value["gateway"] = json!(gateway);
            }
            if version < Version::V1_0_0 {
                value["version"] = json!(match address.address.family() {
                    Family::V4 => "4",
                    Family::V6 => "6",
                });
            }
            value
        });
        let ips: Vec<Value> = before.ips.iter().cloned().chain(ours).collect();
        let ours = self
            .routes(version, |_| true)
            .into_iter()
            .map(|route| json!(route));
        let routes: Vec<Value> = before.routes.iter().cloned().chain(ours).collect();
        let mut object = Map::new();
        object.insert("interfaces".to_owned(), Value::Array(interfaces));
        object.insert("ips".to_owned(), Value::Array(ips));
        object.insert("routes".to_owned(), Value::Array(routes));
        object
    }

    /// All but destination and next hop came with 1.1.0.
    fn routes(&self, version: Version, pick: impl Fn(&ConfigRoute) -> bool) -> Vec<RouteJson> {
        let new = version >= Version::V1_1_0;
        self.routes
            .iter()
            .filter(|route| pick(route))
            .map(|route| RouteJson {
                dst: route.dst,
                gw: route.gw,
                mtu: route.mtu.filter(|_| new),
                advmss: route.advmss.filter(|_| new),
                priority: route.priority.filter(|_| new),
                table: route.table.filter(|_| new),
                scope: route.scope.filter(|_| new),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        let link = |name: &str, mac: &str, sandbox: Option<&str>| Interface {
            name: IfName::new(name).unwrap(),
            mac: mac.parse().unwrap(),
            mtu: 1450,
            sandbox: sandbox.map(str::to_owned),
        };
        Outcome {
            before: PrevResult::default(),
            dns: Value::Null,
            interfaces: vec![
                link("cni0", "0a:58:0a:f4:03:01", None),
                link("veth1", "02:00:00:00:00:01", None),
                link("eth0", "0a:58:0a:f4:03:51", Some("/run/netns/x")),
            ],
            addresses: vec![
                Address {
                    address: "10.244.3.81/24".parse().unwrap(),
                    gateway: Some("10.244.3.1".parse().unwrap()),
                    interface: 2,
                },
                Address {
                    address: "fd00::51/64".parse().unwrap(),
                    gateway: Some("fd00::1".parse().unwrap()),
                    interface: 2,
                },
            ],
            routes: vec![
                ConfigRoute::new("10.244.0.0/16".parse().unwrap(), None),
                ConfigRoute::new(
                    "0.0.0.0/0".parse().unwrap(),
                    Some("10.244.3.1".parse().unwrap()),
                ),
                ConfigRoute::new("::/0".parse().unwrap(), Some("fd00::1".parse().unwrap())),
            ],
        }
    }

    fn value(version: Version) -> Value {
        serde_json::from_str(&outcome().to_json(version)).unwrap()
    }

    #[test]
    fn the_oldest_have_one_address_of_each_family() {
        for version in [Version::V0_1_0, Version::V0_2_0] {
            assert_eq!(
                value(version),
                json!({
                    "cniVersion": version,
                    "ip4": {"ip": "10.244.3.81/24", "gateway": "10.244.3.1",
                            "routes": [{"dst": "10.244.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.3.1"}]},
                    "ip6": {"ip": "fd00::51/64", "gateway": "fd00::1",
                            "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
                })
            );
        }
    }

    #[test]
    fn the_middle_ones_tell_the_family() {
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let value = value(version);
            assert_eq!(value["cniVersion"], json!(version));
            assert_eq!(
                value["ips"],
                json!([
                    {"version": "4", "interface": 2, "address": "10.244.3.81/24", "gateway": "10.244.3.1"},
                    {"version": "6", "interface": 2, "address": "fd00::51/64", "gateway": "fd00::1"},
                ])
            );
            assert_eq!(
                value["interfaces"][0],
                json!({"name": "cni0", "mac": "0a:58:0a:f4:03:01"})
            );
            assert_eq!(value["routes"].as_array().unwrap().len(), 3);
        }
    }

    #[test]
    fn the_newest_tell_no_family_and_the_last_the_mtu() {
        let ip = json!({"interface": 2, "address": "10.244.3.81/24", "gateway": "10.244.3.1"});
        assert_eq!(value(Version::V1_0_0)["ips"][0], ip);
        assert_eq!(value(Version::V1_1_0)["ips"][0], ip);
        assert_eq!(value(Version::V1_0_0)["interfaces"][2]["mtu"], Value::Null);
        assert_eq!(
            value(Version::V1_1_0)["interfaces"][2],
            json!({"name": "eth0", "mac": "0a:58:0a:f4:03:51", "mtu": 1450, "sandbox": "/run/netns/x"})
        );
    }

    #[test]
    fn what_was_there_before_comes_first() {
        let mut outcome = outcome();
        outcome.before = PrevResult {
            interfaces: vec![json!({"name": "other0"})],
            ips: vec![json!({"address": "192.0.2.9/24", "interface": 0})],
            routes: vec![json!({"dst": "192.0.2.0/24"})],
            dns: json!({"nameservers": ["192.0.2.53"]}),
        };
        outcome.routes[0].mtu = Some(1400);
        let value: Value = serde_json::from_str(&outcome.to_json(Version::V1_1_0)).unwrap();
        assert_eq!(value["interfaces"][0]["name"], "other0");
        assert_eq!(value["interfaces"].as_array().unwrap().len(), 4);
        assert_eq!(value["ips"][0]["interface"], 0);
        assert_eq!(value["ips"][1]["interface"], 3);
        assert_eq!(value["routes"][0]["dst"], "192.0.2.0/24");
        assert_eq!(
            value["routes"][1],
            json!({"dst": "10.244.0.0/16", "mtu": 1400})
        );
        assert_eq!(value["dns"]["nameservers"][0], "192.0.2.53");
        let old: Value = serde_json::from_str(&outcome.to_json(Version::V1_0_0)).unwrap();
        assert_eq!(old["routes"][1], json!({"dst": "10.244.0.0/16"}));
    }
}
