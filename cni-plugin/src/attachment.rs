//! What an attachment shall be: the request, the configuration and the node's subnet brought
//! together and checked, before anything is touched; then, with its addresses, complete.

use std::net::IpAddr;

use hostnet::vocab::subnet_env::FamilyEnv;
use hostnet::vocab::{Cidr, Family, IfName, Mac, Subnet, SubnetEnv};
use serde_json::Value;

use crate::error::{CniError, Code};
use crate::ipam::foreign::{self, Lease};
use crate::ipam::{Range, RangeSet};
use crate::plan;
use crate::record::RecordAddress;
use crate::request::Identity;
use crate::request::ports::PortMapping;
use crate::request::rates::Rates;
use crate::request::settings::{Addressing, ConfigRoute, Settings};
use crate::vlans::Vlans;

/// The MTU where neither configuration nor flanneld says one: Ethernet's.
const DEFAULT_MTU: u32 = 1500;

/// An attachment to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// What it is known by.
    pub identity: Identity,
    /// The pod's namespace and name, if the runtime told them.
    pub pod: Option<String>,
    /// The bridge it hangs on.
    pub bridge: BridgeWanted,
    /// The MTU of both ends of the pod's cable, in bytes.
    pub mtu: u32,
    /// The bridge may send a frame back to the port it came from.
    pub hairpin: bool,
    /// The port does not speak with other isolated ports.
    pub isolated: bool,
    /// Frames with another source MAC than the pod's are dropped.
    pub locked: bool,
    /// IPv6 addresses are used only once nobody else has them.
    pub dad: bool,
    /// The pod's end stays down.
    pub pod_down: bool,
    /// The VLANs of its port.
    pub vlans: Vlans,
    /// Where its addresses come from, one of each set; empty if from elsewhere.
    pub sets: Vec<RangeSet>,
    /// Its addresses; empty until it has them.
    pub addresses: Vec<RecordAddress>,
    /// The MAC of the pod's end.
    pub mac: Mac,
    /// The pod's routes, as the result shows them.
    pub routes: Vec<ConfigRoute>,
    /// Name servers for the result, `null` if none.
    pub dns: Value,
    /// Host ports.
    pub ports: Vec<PortMapping>,
    /// The node's 127.0.0.1 and the pod itself reach the host ports.
    pub snat: bool,
    /// Whoever reaches a host port is masqueraded.
    pub masq_all: bool,
    /// What the pod sends elsewhere than to these is masqueraded; `None`: nothing is.
    pub masquerade_except: Option<Vec<Subnet>>,
    /// Bandwidth.
    pub rates: Rates,
    is_gateway: bool,
    is_default_gateway: bool,
    asked_mac: Option<Mac>,
}

/// The bridge as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeWanted {
    /// Its name.
    pub name: IfName,
    /// The MAC that it is made with: that of its first address, [`Mac::for_ip`]. A bridge without
    /// a MAC of its own takes its lowest port's and changes it as pods come and go, and then pods
    /// send to the old one for seconds.
    pub mac: Mac,
    /// Its addresses, the gateways of the pod's; none if it is no gateway.
    pub addrs: Vec<Cidr>,
    /// The link that has them: another than the bridge if the pod is in a VLAN.
    pub gateway: IfName,
    /// Frames pass only between ports of the same VLAN.
    pub vlan_filtering: bool,
    /// The networks of the cluster: an address of ours in one of them that is not among `addrs`
    /// is of an earlier subnet. `None` where the subnet cannot change: another IPv4 address is
    /// somebody else's then, and an error without `force_address`.
    pub networks: Option<Vec<Subnet>>,
    /// Other IPv4 addresses are removed.
    pub force_address: bool,
    /// It receives frames for any MAC.
    pub promisc: bool,
}

impl Attachment {
    /// Brings a request and the node's subnet together. `env` is needed (and used) only where the
    /// addresses come from the node's subnet.
    pub fn new(
        identity: Identity,
        settings: &Settings,
        env: Option<&SubnetEnv>,
    ) -> Result<Attachment, CniError> {
        let families: Vec<&FamilyEnv> = env.into_iter().flat_map(SubnetEnv::families).collect();
        let networks = env.map(|_| {
            let networks = families.iter().flat_map(|family| family.networks.clone());
            networks.collect::<Vec<Subnet>>()
        });
        let bridge = &settings.bridge;
        let ip_masq = bridge
            .ip_masq
            // Flannel's rule: where flanneld does not masquerade, the plugin has to.
            .unwrap_or_else(|| env.is_some_and(|env| !env.ip_masq));
        let mut routes = settings.routes.clone();
        for network in networks.iter().flatten() {
            if !routes.iter().any(|route| route.dst == *network) {
                routes.push(ConfigRoute::new(*network, None));
            }
        }
        let attachment = Attachment {
            bridge: BridgeWanted {
                name: bridge.name.clone(),
                mac: Mac::ZERO,
                addrs: Vec::new(),
                gateway: (bridge.vlans.gateway(&bridge.name))
                    .unwrap_or_else(|_| bridge.name.clone()),
                vlan_filtering: !bridge.vlans.is_empty(),
                networks: networks.clone(),
                force_address: bridge.force_address,
                promisc: bridge.promisc,
            },
            pod: settings.pod.clone(),
            mtu: bridge
                .mtu
                .unwrap_or_else(|| env.map_or(DEFAULT_MTU, |env| env.mtu)),
            // A pod that reaches itself by its host port comes in and leaves by its own port.
            hairpin: bridge.hairpin || (!settings.ports.is_empty() && settings.snat),
            isolated: bridge.isolated,
            locked: bridge.mac_spoof_check,
            dad: bridge.dad,
            pod_down: bridge.pod_down,
            vlans: bridge.vlans.clone(),
            sets: sets(settings, env)?,
            addresses: Vec::new(),
            mac: Mac::ZERO,
            routes,
            dns: Value::Null,
            ports: settings.ports.clone(),
            snat: settings.snat,
            masq_all: settings.masq_all,
            masquerade_except: ip_masq.then(|| networks.unwrap_or_default()),
            rates: settings.rates,
            is_gateway: bridge.gateway,
            is_default_gateway: bridge.default_gateway,
            asked_mac: settings.asked.mac,
            identity,
        };
        if matches!(
            settings.addressing,
            Addressing::SubnetFile(_) | Addressing::Ranges(_)
        ) {
            attachment.check_ports(&attachment.families())?;
        } else if settings.addressing == Addressing::None {
            attachment.check_ports(&[])?;
        }
        Ok(attachment)
    }

    /// The families of its addresses, IPv4 first.
    pub fn families(&self) -> Vec<Family> {
        let of_sets = self.sets.iter().filter_map(RangeSet::family);
        let mut families: Vec<Family> = of_sets
            .chain(self.addresses.iter().map(|a| a.address.family()))
            .collect();
        families.sort_unstable();
        families.dedup();
        families
    }

    /// A host port at an address of a family that the pod does not have would lead nowhere.
    fn check_ports(&self, families: &[Family]) -> Result<(), CniError> {
        match self.ports.iter().find(|p| p.families(families).is_empty()) {
            None => Ok(()),
            Some(port) => {
                let family = port.host_ip.map_or(String::new(), |ip| {
                    let family = Family::of(ip);
                    format!("{family} ")
                });
                let msg = format!(
                    "runtimeConfig.portMappings has hostPort {port}: the pod has no {family}address"
                );
                Err(CniError::new(Code::InvalidConfig, msg))
            }
        }
    }

    /// With addresses of its own ranges, in the order of the sets.
    pub fn with_addresses(self, addrs: &[IpAddr]) -> Result<Attachment, CniError> {
        let of_set = |(set, addr): (&RangeSet, &IpAddr)| {
            let range = set.range_of(*addr)?;
            Some((range.cidr(*addr)?, Some(range.gateway_cidr().addr())))
        };
        let addresses = self.sets.iter().zip(addrs).filter_map(of_set).collect();
        self.with_lease(Lease {
            addresses,
            ..Lease::default()
        })
    }

    /// With addresses, routes and name servers that another program gave.
    pub fn with_lease(mut self, lease: Lease) -> Result<Attachment, CniError> {
        let gateway_of = |address, gateway: Option<IpAddr>| {
            let usual = || self.is_gateway.then(|| foreign::usual_gateway(address))?;
            gateway.or_else(usual)
        };
        self.addresses = lease
            .addresses
            .into_iter()
            .map(|(address, gateway)| RecordAddress {
                address,
                gateway: gateway_of(address, gateway),
            })
            .collect();
        self.check_ports(&self.families())?;
        let gateways: Vec<Cidr> = self
            .addresses
            .iter()
            .filter_map(|a| Cidr::new(a.gateway?, a.address.prefix()).ok())
            .collect();
        self.bridge.mac = match gateways.first() {
            Some(gateway) if self.bridge.gateway == self.bridge.name => Mac::for_ip(gateway.addr()),
            _ => plan::name_mac(&self.bridge.name),
        };
        self.routes.extend(lease.routes);
        if self.is_default_gateway {
            for gateway in &gateways {
                // A default route of the configuration's own comes first.
                if !foreign::has_default(&self.routes, gateway.family()) {
                    let dst = Subnet::any(gateway.family());
                    self.routes
                        .push(ConfigRoute::new(dst, Some(gateway.addr())));
                }
            }
        }
        if self.is_gateway {
            self.bridge.addrs = gateways;
            self.bridge.addrs.dedup();
        }
        let own = self.addresses.iter().map(|a| a.address.subnet());
        if let Some(except) = &mut self.masquerade_except {
            except.extend(own);
            // Ranges in a set must not overlap.
            let all = except.clone();
            let mut n = 0;
            except.retain(|subnet| {
                n += 1;
                let wider = |(other_n, other): (usize, &Subnet)| {
                    other.contains_subnet(*subnet) && (other != subnet || other_n < n - 1)
                };
                !all.iter().enumerate().any(wider)
            });
        }
        self.mac = self
            .asked_mac
            .unwrap_or_else(|| match self.addresses.first() {
                Some(first) => Mac::for_ip(first.address.addr()),
                None => plan::pod_mac(&self.identity),
            });
        if !lease.dns.is_null() {
            self.dns = lease.dns;
        }
        Ok(self)
    }

    /// The routes as the kernel has them: each with its next hop, and without those that are there
    /// with the addresses.
    pub fn kernel_routes(&self) -> Vec<ConfigRoute> {
        let gateway_for = |family| {
            let of_family = |a: &&RecordAddress| a.address.family() == family;
            self.addresses
                .iter()
                .filter(of_family)
                .find_map(|a| a.gateway)
        };
        let is_own = |route: &&ConfigRoute| {
            let plain = ConfigRoute::new(route.dst, route.gw) == **route;
            plain
                && self
                    .addresses
                    .iter()
                    .any(|a| a.address.subnet() == route.dst)
        };
        self.routes
            .iter()
            .filter(|route| !is_own(route))
            .map(|route| ConfigRoute {
                gw: route.gw.or_else(|| match route.scope {
                    // A destination on the link needs no next hop.
                    Some(scope) if scope >= hostnet::netlink::addr::Scope::LINK.0 => None,
                    _ => gateway_for(route.dst.family()),
                }),
                ..*route
            })
            .collect()
    }
}

/// Where pods' addresses come from: a set for each address that a pod gets, IPv4 first where they
/// come from the node's subnet.
pub fn sets(settings: &Settings, env: Option<&SubnetEnv>) -> Result<Vec<RangeSet>, CniError> {
    let file = match &settings.addressing {
        Addressing::Ranges(sets) => return Ok(sets.clone()),
        Addressing::Foreign(_) | Addressing::None => return Ok(Vec::new()),
        Addressing::SubnetFile(file) => file.display(),
    };
    env.into_iter()
        .flat_map(SubnetEnv::families)
        .map(|family| {
            Range::of_subnet(family.subnet.subnet())
                .map(RangeSet::from)
                .map_err(|error| CniError::new(Code::InvalidConfig, format!("{file}: {error}")))
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::request::config::Config;
    use crate::request::{Args, ContainerId};

    pub(crate) const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:3::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    pub(crate) fn identity(id: &str) -> Identity {
        Identity {
            container_id: ContainerId::new(id).unwrap(),
            ifname: IfName::new("eth0").unwrap(),
        }
    }

    /// An attachment of flannel's form.
    pub(crate) fn attachment(env: &str, extra: &str) -> Result<Attachment, CniError> {
        let json = format!(r#"{{"name":"cbr0"{extra}}}"#);
        let config = Config::decode(json.as_bytes()).unwrap();
        let settings = config.settings(&Args::default())?;
        Attachment::new(identity("c1"), &settings, Some(&env.parse().unwrap()))
    }

    /// An attachment of the bridge plugin's form.
    pub(crate) fn plain(keys: &str) -> Result<Attachment, CniError> {
        let json = format!(r#"{{"name":"net",{keys}}}"#);
        let config = Config::decode(json.as_bytes()).unwrap();
        Attachment::new(identity("c1"), &config.settings(&Args::default())?, None)
    }

    pub(crate) fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn route_texts(attachment: &Attachment) -> Vec<String> {
        attachment
            .routes
            .iter()
            .map(|r| format!("{} {:?}", r.dst, r.gw))
            .collect()
    }

    #[test]
    fn flannels_defaults() {
        let made = attachment(ENV, r#","delegate":{"isDefaultGateway":true}"#).unwrap();
        let made = made
            .with_addresses(&ips(&["10.244.3.81", "fd00:0:0:3::51"]))
            .unwrap();
        assert_eq!(made.mtu, 1450);
        assert_eq!(made.bridge.mac.to_string(), "0a:58:0a:f4:03:01");
        assert_eq!(made.mac.to_string(), "0a:58:0a:f4:03:51");
        let addrs: Vec<_> = made.bridge.addrs.iter().map(Cidr::to_string).collect();
        assert_eq!(addrs, ["10.244.3.1/24", "fd00:0:0:3::1/64"]);
        assert_eq!(made.masquerade_except, None);
        assert_eq!(
            route_texts(&made),
            [
                "10.244.0.0/16 None",
                "fd00::/48 None",
                "0.0.0.0/0 Some(10.244.3.1)",
                "::/0 Some(fd00:0:0:3::1)"
            ]
        );
    }

    #[test]
    fn configured_routes_come_first_and_are_not_doubled() {
        let extra = r#","ipam":{"routes":[{"dst":"0.0.0.0/0","gw":"10.244.3.9"},{"dst":"10.244.0.0/16"}]},"delegate":{"isDefaultGateway":true,"mtu":1400}"#;
        let v4 = ENV.replace("IPV6_", "OTHER_");
        let made = attachment(&v4, extra).unwrap();
        let made = made.with_addresses(&ips(&["10.244.3.81"])).unwrap();
        assert_eq!(
            route_texts(&made),
            ["0.0.0.0/0 Some(10.244.3.9)", "10.244.0.0/16 None"]
        );
        assert_eq!(made.mtu, 1400);
    }

    #[test]
    fn a_bridge_that_is_no_gateway_has_no_address() {
        let made = attachment(ENV, r#","delegate":{"isGateway":false}"#).unwrap();
        let made = made.with_addresses(&ips(&["10.244.3.81"])).unwrap();
        assert!(made.bridge.addrs.is_empty());
        assert!(made.bridge.mac.is_unicast());
    }

    #[test]
    fn the_bridge_plugins_form() {
        let made = plain(r#""bridge":"br7","ipMasq":true,"ipam":{"subnet":"10.9.0.0/24","routes":[{"dst":"0.0.0.0/0","mtu":1400,"priority":5}]}"#)
            .unwrap();
        assert_eq!((made.mtu, made.bridge.name.as_str()), (1500, "br7"));
        let made = made.with_addresses(&ips(&["10.9.0.2"])).unwrap();
        assert!(made.bridge.addrs.is_empty(), "isGateway is off here");
        assert_eq!(
            made.masquerade_except,
            Some(vec!["10.9.0.0/24".parse().unwrap()])
        );
        let kernel = made.kernel_routes();
        assert_eq!(kernel[0].gw, Some("10.9.0.1".parse().unwrap()));
        assert_eq!((kernel[0].mtu, kernel[0].priority), (Some(1400), Some(5)));
        let bare = plain(r#""bridge":"br7""#).unwrap();
        let bare = bare.with_lease(Lease::default()).unwrap();
        assert!(bare.addresses.is_empty() && bare.mac.is_unicast() && bare.bridge.mac.is_unicast());
    }

    #[test]
    fn where_flanneld_does_not_masquerade_the_plugin_does() {
        let env = ENV.replace("IPMASQ=true", "IPMASQ=false");
        let made = attachment(&env, "").unwrap();
        let made = made
            .with_addresses(&ips(&["10.244.3.81", "fd00:0:0:3::51"]))
            .unwrap();
        // The cluster's networks hold the pod's own subnets.
        let except: Vec<_> = made.masquerade_except.unwrap();
        let texts: Vec<_> = except.iter().map(Subnet::to_string).collect();
        assert_eq!(texts, ["10.244.0.0/16", "fd00::/48"]);
        let off = attachment(&env, r#","delegate":{"ipMasq":false}"#).unwrap();
        assert_eq!(off.masquerade_except, None);
        let made = attachment(&env.replace("10.244.0.0/16", "10.244.3.0/24"), "").unwrap();
        let made = made.with_addresses(&ips(&["10.244.3.81"])).unwrap();
        let except = made.masquerade_except.unwrap();
        assert_eq!(except.len(), 2, "{except:?}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let error = attachment(&ENV.replace("/24", "/32"), "").unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(
            error
                .msg
                .starts_with("/run/flannel/subnet.env: the subnet 10.244.3.1/32 is too small"),
            "{error}"
        );
        let v4 = ENV.replace("IPV6_", "OTHER_");
        let port = r#","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"fd00::1"}]}"#;
        let error = attachment(&v4, port).unwrap_err();
        assert!(
            error
                .msg
                .ends_with("hostPort [fd00::1]:80/tcp: the pod has no IPv6 address"),
            "{error}"
        );
    }
}
