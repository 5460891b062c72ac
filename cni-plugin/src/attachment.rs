//! What an attachment shall be: the request, the configuration and the node's subnet brought
//! together and checked, before anything is touched.

use std::net::IpAddr;

use hostnet::vocab::subnet_env::FamilyEnv;
use hostnet::vocab::{Cidr, IfName, Mac, Subnet, SubnetEnv};

use crate::error::{CniError, Code};
use crate::ipam::Range;
use crate::request::Identity;
use crate::request::config::Settings;

/// An attachment to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// What it is known by.
    pub identity: Identity,
    /// The bridge it hangs on.
    pub bridge: BridgeWanted,
    /// The MTU of both ends of the pod's cable, in bytes.
    pub mtu: u32,
    /// The bridge may send a frame back to the port it came from.
    pub hairpin: bool,
    /// The port does not speak with other isolated ports.
    pub isolated: bool,
    /// Where its addresses come from, one range for each family, IPv4 first.
    pub ranges: Vec<Range>,
    /// The pod's routes, as the result shows them.
    pub routes: Vec<PodRoute>,
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
    /// Its addresses, one for each family; none if it is no gateway.
    pub addrs: Vec<Cidr>,
    /// The networks of the cluster: an address of ours in one of them that is not among `addrs`
    /// is of an earlier subnet.
    pub networks: Vec<Subnet>,
}

/// A route inside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// Where to.
    pub dst: Subnet,
    /// The next hop; `None` leads to the gateway of the pod's address.
    pub gateway: Option<IpAddr>,
}

impl Attachment {
    /// Brings a request and the node's subnet together.
    pub fn new(
        identity: Identity,
        settings: &Settings,
        env: &SubnetEnv,
    ) -> Result<Attachment, CniError> {
        let families: Vec<&FamilyEnv> = env.families().collect();
        let ranges = ranges(settings, env)?;
        let gateways: Vec<Cidr> = ranges.iter().map(Range::gateway_cidr).collect();
        let mac = gateways
            .first()
            .map_or(Mac::ZERO, |gateway| Mac::for_ip(gateway.addr()));
        Ok(Attachment {
            identity,
            bridge: BridgeWanted {
                name: settings.bridge.clone(),
                mac,
                addrs: if settings.gateway {
                    gateways.clone()
                } else {
                    Vec::new()
                },
                networks: families
                    .iter()
                    .flat_map(|family| family.networks.clone())
                    .collect(),
            },
            mtu: settings.mtu.unwrap_or(env.mtu),
            hairpin: settings.hairpin,
            isolated: settings.isolated,
            routes: routes(settings, &families, &gateways),
            ranges,
        })
    }
}

/// Where pods' addresses come from, one range for each family, IPv4 first.
pub fn ranges(settings: &Settings, env: &SubnetEnv) -> Result<Vec<Range>, CniError> {
    let file = settings.subnet_file.display();
    // Flannel's rule: where flanneld does not masquerade, the plugin has to.
    if !env.ip_masq {
        let msg = format!(
            "{file} has FLANNEL_IPMASQ=false, which asks the plugin to masquerade: this is not \
             supported, run flanneld with --ip-masq"
        );
        return Err(CniError::new(Code::UnsupportedField, msg));
    }
    env.families()
        .map(|family| {
            Range::of_subnet(family.subnet.subnet())
                .map_err(|error| CniError::new(Code::InvalidConfig, format!("{file}: {error}")))
        })
        .collect()
}

/// The order of flannel's plugin: configured routes, the cluster's networks, then the default.
fn routes(settings: &Settings, families: &[&FamilyEnv], gateways: &[Cidr]) -> Vec<PodRoute> {
    let mut routes: Vec<PodRoute> = settings
        .routes
        .iter()
        .map(|route| PodRoute {
            dst: route.dst,
            gateway: route.gw,
        })
        .collect();
    for network in families.iter().flat_map(|family| &family.networks) {
        if !routes.iter().any(|route| route.dst == *network) {
            routes.push(PodRoute {
                dst: *network,
                gateway: None,
            });
        }
    }
    if settings.default_gateway {
        for gateway in gateways {
            let dst = Subnet::any(gateway.family());
            // A default route of the configuration's own comes first.
            if !routes.iter().any(|route| route.dst == dst) {
                routes.push(PodRoute {
                    dst,
                    gateway: Some(gateway.addr()),
                });
            }
        }
    }
    routes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::request::ContainerId;
    use crate::request::config::Config;

    pub(crate) const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:3::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    pub(crate) fn identity(id: &str) -> Identity {
        Identity {
            container_id: ContainerId::new(id).unwrap(),
            ifname: IfName::new("eth0").unwrap(),
        }
    }

    pub(crate) fn attachment(env: &str, extra: &str) -> Result<Attachment, CniError> {
        let json = format!(r#"{{"name":"cbr0"{extra}}}"#);
        let settings = Config::decode(json.as_bytes()).unwrap().settings()?;
        Attachment::new(identity("c1"), &settings, &env.parse().unwrap())
    }

    fn route_texts(attachment: &Attachment) -> Vec<String> {
        attachment
            .routes
            .iter()
            .map(|r| format!("{} {:?}", r.dst, r.gateway))
            .collect()
    }

    #[test]
    fn flannels_defaults() {
        let made = attachment(ENV, r#","delegate":{"isDefaultGateway":true}"#).unwrap();
        assert_eq!(made.mtu, 1450);
        assert_eq!(made.bridge.mac.to_string(), "0a:58:0a:f4:03:01");
        let addrs: Vec<_> = made.bridge.addrs.iter().map(Cidr::to_string).collect();
        assert_eq!(addrs, ["10.244.3.1/24", "fd00:0:0:3::1/64"]);
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
        assert_eq!(
            route_texts(&made),
            ["0.0.0.0/0 Some(10.244.3.9)", "10.244.0.0/16 None"]
        );
        assert_eq!(made.mtu, 1400);
    }

    #[test]
    fn a_bridge_that_is_no_gateway_has_no_address() {
        let made = attachment(ENV, r#","delegate":{"isGateway":false}"#).unwrap();
        assert!(made.bridge.addrs.is_empty());
        assert!(made.bridge.mac.is_unicast());
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
        let error = attachment(&ENV.replace("IPMASQ=true", "IPMASQ=false"), "").unwrap_err();
        assert!(error.msg.contains("--ip-masq"), "{error}");
    }
}
