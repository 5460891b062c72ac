//! From what shall be and what is there to the steps in between. Pure.

mod step;

use std::net::IpAddr;

use hostnet::netlink::Addr;
use hostnet::netlink::link::{Bridge, Link, LinkKind};
use hostnet::vocab::{Cidr, Family, IfName, Mac};

use crate::attachment::{Attachment, BridgeWanted};
use crate::error::{CniError, Code};
use crate::nat;
use crate::rebuild;
use crate::record::Record;
use crate::request::Identity;
use crate::shaping::Shaping;

pub use self::step::{BridgeSpec, GatewaySpec, Step};

/// What is there before an ADD.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The bridge, if there is one of the name, with the addresses that are there: its own, or of a
    /// VLAN's gateway.
    pub bridge: Option<(Link, Vec<Addr>)>,
    /// The gateways of attachments that stand. Only asked for when the bridge has an address that
    /// may be of an earlier subnet: see [`may_be_stale`].
    pub gateways_in_use: Vec<IpAddr>,
    /// The families that are forwarded already.
    pub forwarded: Vec<Family>,
}

/// What netfilter sees of the bridge's frames: all. A pod that calls a service by its cluster
/// address and gets a pod on the same bridge is answered over the bridge alone, and the answer's
/// source has to be turned back there.
pub const NETFILTER: Bridge = Bridge {
    nf_call_iptables: true,
    nf_call_ip6tables: true,
    vlan_filtering: false,
};

/// The name of the node's end of an attachment's cable: `veth` and 44 bits of the FNV-1a hash of
/// container and interface. Known without looking, so that DEL finds it whatever has been lost.
pub fn veth_name(identity: &Identity) -> String {
    format!("veth{:011x}", hash(identity) >> 20)
}

/// The name of the port of a VLAN's gateway.
pub fn gateway_port(gateway: &IfName) -> String {
    format!("veth{:011x}", fnv1a(gateway.as_str()) >> 20)
}

/// The MAC of the node's end. Any will do, but it must be set: udev gives links without one of
/// their own another, at a moment of its choice.
pub fn veth_mac(identity: &Identity) -> Mac {
    let [a, b, c, d, e, f, ..] = hash(identity).to_le_bytes();
    Mac::local_from([a, b, c, d, e, f])
}

fn hash(identity: &Identity) -> u64 {
    fnv1a(&format!("{}/{}", identity.container_id, identity.ifname))
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The name of the device that shapes what an attachment sends: `bwp`, as the reference plugin's
/// begin, and the same bits.
pub fn ifb_name(identity: &Identity) -> String {
    format!("bwp{:011x}", hash(identity) >> 20)
}

/// The MAC of the end of a pod without addresses. (With one it is that of its first address: when
/// the address goes to another pod, the neighbours' caches stay right.)
pub fn pod_mac(identity: &Identity) -> Mac {
    let [a, b, c, d, e, f, ..] = hash(identity).to_be_bytes();
    Mac::local_from([a, b, c, d, e, f])
}

/// The MAC of a bridge without a gateway's address, and of the port of a VLAN's gateway.
pub fn name_mac(name: &IfName) -> Mac {
    let hash = fnv1a(name.as_str()).to_le_bytes();
    Mac::local_from([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5]])
}

/// Whether the bridge has an address that may be ours, of an earlier subnet: any that is not
/// wanted, but link-local ones.
pub fn may_be_stale(wanted: &BridgeWanted, addrs: &[Addr]) -> bool {
    unwanted(wanted, addrs).next().is_some()
}

fn unwanted<'a>(wanted: &'a BridgeWanted, addrs: &'a [Addr]) -> impl Iterator<Item = &'a Addr> {
    addrs.iter().filter(|addr| {
        let link_local = matches!(addr.cidr.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        !link_local && !wanted.addrs.contains(&addr.cidr)
    })
}

/// Plans an ADD of an attachment that has its addresses, and its record.
pub fn plan(
    attachment: &Attachment,
    record: &Record,
    observed: &Observed,
) -> Result<Vec<Step>, CniError> {
    let wanted = &attachment.bridge;
    let addrs: Vec<Cidr> = attachment.addresses.iter().map(|a| a.address).collect();
    let mut steps = Vec::new();
    let mut stale = Vec::new();
    match &observed.bridge {
        None => {
            steps.push(Step::CreateBridge(BridgeSpec {
                name: wanted.name.clone(),
                mac: wanted.mac,
                mtu: attachment.mtu,
                promisc: wanted.promisc,
                vlan_filtering: wanted.vlan_filtering,
            }));
            steps.extend(gateway(attachment));
            steps.extend(wanted.addrs.iter().map(|cidr| add_addr(wanted, *cidr)));
        }
        Some((link, present)) => {
            steps.extend(alter(wanted, attachment.mtu, link)?);
            steps.extend(gateway(attachment));
            let missing = wanted
                .addrs
                .iter()
                .filter(|cidr| !present.iter().any(|addr| addr.cidr == **cidr));
            steps.extend(missing.map(|cidr| add_addr(wanted, *cidr)));
            for addr in unwanted(wanted, present) {
                if in_the_way(wanted, addr)? || is_stale(wanted, addr, &observed.gateways_in_use) {
                    stale.push(*addr);
                }
            }
        }
    }
    let ifname = attachment.identity.ifname.clone();
    steps.push(Step::CreateVeth {
        veth: record.veth.clone(),
        mac: veth_mac(&attachment.identity),
        bridge: wanted.name.clone(),
        ifname: ifname.clone(),
        pod_mac: attachment.mac,
        mtu: attachment.mtu,
    });
    if !attachment.pod_down {
        steps.push(Step::ConfigurePod {
            ifname,
            addrs: addrs.clone(),
            routes: attachment.kernel_routes(),
            dad: attachment.dad,
        });
    }
    steps.extend(Shaping::of(record).map(Step::Shape));
    steps.push(Step::OpenPort {
        veth: record.veth.clone(),
        port: rebuild::port(record),
        only: attachment.locked.then_some(attachment.mac),
        vlans: attachment.vlans.clone(),
        wait: !attachment.pod_down,
    });
    if !nat::families(record).is_empty() {
        steps.push(Step::Publish(Box::new(record.clone())));
    }
    // These come last: others rely upon them at once, so they are not undone.
    if !wanted.addrs.is_empty() {
        let mut families: Vec<Family> = addrs.iter().map(|addr| addr.family()).collect();
        families.dedup();
        steps.extend(
            families
                .into_iter()
                .filter(|f| !observed.forwarded.contains(f))
                .map(Step::Forward),
        );
    }
    steps.extend(stale.into_iter().map(Step::RemoveBridgeAddr));
    Ok(steps)
}

/// Whether an address of the bridge's has to go before it can be the gateway: where the subnet
/// cannot change, any other IPv4 address, and an IPv6 address in one of its subnets (the bridge
/// plugin's rule).
///
/// # Errors
/// Code 7 if it has to, and `forceAddress` does not allow it.
pub fn in_the_way(wanted: &BridgeWanted, addr: &Addr) -> Result<bool, CniError> {
    let overlaps = |ours: &Cidr| match ours.family() {
        Family::V4 => addr.cidr.family() == Family::V4,
        Family::V6 => ours.subnet().overlaps(addr.cidr.subnet()),
    };
    let conflicts = wanted.addrs.iter().any(overlaps);
    if !conflicts || (wanted.networks.is_some() && !wanted.force_address) {
        return Ok(false);
    }
    if wanted.force_address {
        return Ok(true);
    }
    let msg = format!(
        "{} has the address {} already, which is not its gateway address: take it away, name \
         another bridge, or set forceAddress",
        wanted.gateway, addr.cidr
    );
    Err(CniError::new(Code::InvalidConfig, msg))
}

/// The gateway's own link, if the pod is in a VLAN and has a gateway.
fn gateway(attachment: &Attachment) -> Option<Step> {
    let wanted = &attachment.bridge;
    let first = wanted.addrs.first()?;
    (wanted.gateway != wanted.name).then(|| {
        Step::Gateway(GatewaySpec {
            link: wanted.gateway.clone(),
            mac: Mac::for_ip(first.addr()),
            mtu: attachment.mtu,
            vlans: attachment.vlans.of_gateway(),
        })
    })
}

fn add_addr(wanted: &BridgeWanted, cidr: Cidr) -> Step {
    Step::AddBridgeAddr {
        bridge: wanted.gateway.clone(),
        cidr,
    }
}

fn alter(wanted: &BridgeWanted, mtu: u32, link: &Link) -> Result<Option<Step>, CniError> {
    let settings = bridge_settings(link)?;
    // A MAC of its own is one that was given to it; of a bridge that others made this cannot be
    // read, so it is given the one that it has now.
    let mac = match link.mac {
        Some(mac) if mac.is_for_ip() => None,
        Some(mac) if mac.is_unicast() => Some(mac),
        _ => Some(wanted.mac),
    };
    let mtu = Some(mtu).filter(|mtu| link.mtu < *mtu);
    // Another pod may have turned VLANs on.
    let settings_wanted = Bridge {
        vlan_filtering: wanted.vlan_filtering || settings.vlan_filtering,
        ..NETFILTER
    };
    let settings = (settings != settings_wanted).then_some(settings_wanted);
    let promisc = wanted.promisc && !link.promisc;
    let nothing = mac.is_none() && mtu.is_none() && settings.is_none() && !promisc && link.up;
    Ok((!nothing).then(|| Step::AlterBridge {
        bridge: wanted.name.clone(),
        mac,
        mtu,
        settings,
        promisc,
        up: !link.up,
    }))
}

/// The settings of what must be a bridge.
pub fn bridge_settings(link: &Link) -> Result<Bridge, CniError> {
    let LinkKind::Bridge(settings) = link.kind else {
        let kind = match link.kind.name() {
            "" => "a network card",
            other => other,
        };
        let msg = format!(
            "{} is not a bridge but {kind}: rename it, or name another bridge with the key bridge",
            link.name
        );
        return Err(CniError::new(Code::InvalidConfig, msg));
    };
    Ok(settings)
}

/// Ours is what stands in the cluster's networks with the length of a node's subnet, or what a
/// pod was told as its gateway. It stays while such a pod lives.
fn is_stale(wanted: &BridgeWanted, addr: &Addr, in_use: &[IpAddr]) -> bool {
    let subnet = addr.cidr.subnet();
    let of_ours = wanted
        .networks
        .iter()
        .flatten()
        .any(|network| network.contains_subnet(subnet))
        && wanted
            .addrs
            .iter()
            .any(|ours| ours.prefix() == addr.cidr.prefix())
        && subnet.gateway() == Some(addr.cidr);
    of_ours && !in_use.contains(&addr.cidr.addr())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::attachment::tests::{ENV, attachment, identity, ips, plain};

    const CONF: &str = r#","delegate":{"isDefaultGateway":true,"hairpinMode":true}"#;

    fn v4() -> String {
        ENV.replace("IPV6_", "OTHER_")
    }

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn planned(
        made: Attachment,
        addrs: &[IpAddr],
        observed: &Observed,
    ) -> Result<Vec<String>, CniError> {
        let made = made.with_addresses(addrs).unwrap();
        let mut record = Record::of(&made, "cbr0", "/run/netns/x".as_ref(), "boot").unwrap();
        record.veth = IfName::new("veth1").unwrap();
        let steps = plan(&made, &record, observed)?;
        Ok(steps.iter().map(Step::to_string).collect())
    }

    fn texts(env: &str, addrs: &[&str], observed: &Observed) -> Vec<String> {
        planned(attachment(env, CONF).unwrap(), &ips(addrs), observed).unwrap()
    }

    fn bridge(mac: &str) -> Link {
        Link {
            index: 7,
            name: IfName::new("cni0").unwrap(),
            kind: LinkKind::Bridge(NETFILTER),
            mac: Some(mac.parse().unwrap()),
            mtu: 1450,
            up: true,
            promisc: false,
            carrier: true,
            operational: true,
            master: None,
            port: None,
            peer: None,
            addr_gen_mode: None,
        }
    }

    fn on_bridge(link: Link, addrs: &[&str], in_use: &[&str]) -> Observed {
        Observed {
            bridge: Some((
                link,
                cidrs(addrs).into_iter().map(|c| Addr::new(7, c)).collect(),
            )),
            gateways_in_use: in_use.iter().map(|text| text.parse().unwrap()).collect(),
            forwarded: vec![Family::V4],
        }
    }

    const POD: [&str; 3] = [
        "create veth veth1 on cni0, in the pod eth0 mac 0a:58:0a:f4:03:51 mtu 1450",
        "in the pod: eth0 address 10.244.3.81/24, route 10.244.0.0/16 via 10.244.3.1, route 0.0.0.0/0 via 10.244.3.1",
        "open port veth1 hairpin true isolated false",
    ];

    #[test]
    fn the_first_pod_of_a_node() {
        let steps = texts(
            ENV,
            &["10.244.3.81", "fd00:0:0:3::51"],
            &Observed::default(),
        );
        assert_eq!(
            steps,
            [
                "create bridge cni0 mac 0a:58:0a:f4:03:01 mtu 1450",
                "add address 10.244.3.1/24 to cni0",
                "add address fd00:0:0:3::1/64 to cni0",
                "create veth veth1 on cni0, in the pod eth0 mac 0a:58:0a:f4:03:51 mtu 1450",
                "in the pod: eth0 address 10.244.3.81/24 address fd00:0:0:3::51/64, \
                 route 10.244.0.0/16 via 10.244.3.1, route fd00::/48 via fd00:0:0:3::1, \
                 route 0.0.0.0/0 via 10.244.3.1, route ::/0 via fd00:0:0:3::1",
                "open port veth1 hairpin true isolated false",
                "forward IPv4",
                "forward IPv6",
            ]
        );
    }

    #[test]
    fn a_later_pod_touches_nothing_but_its_cable() {
        let observed = on_bridge(
            bridge("0a:58:0a:f4:03:01"),
            &["10.244.3.1/24", "fe80::1/64"],
            &[],
        );
        assert_eq!(texts(&v4(), &["10.244.3.81"], &observed), POD);
    }

    #[test]
    fn a_bridge_that_others_made_is_completed() {
        let mut link = bridge("9e:00:00:00:00:01");
        link.kind = LinkKind::Bridge(Bridge::default());
        link.mtu = 1400;
        link.up = false;
        let observed = on_bridge(link, &["10.244.3.1/24"], &[]);
        let steps = texts(&v4(), &["10.244.3.81"], &observed);
        assert_eq!(
            steps[0],
            "alter bridge cni0 mac 9e:00:00:00:00:01 mtu 1450 netfilter up"
        );
        let empty = on_bridge(bridge("00:00:00:00:00:00"), &["10.244.3.1/24"], &[]);
        let steps = texts(&v4(), &["10.244.3.81"], &empty);
        assert_eq!(steps[0], "alter bridge cni0 mac 0a:58:0a:f4:03:01");
    }

    #[test]
    fn the_bridge_follows_a_changed_subnet() {
        let addrs = [
            "10.244.9.1/24",
            "192.0.2.1/24",
            "10.244.8.1/24",
            "10.244.7.5/24",
        ];
        let observed = on_bridge(bridge("0a:58:0a:f4:09:01"), &addrs, &["10.244.8.1"]);
        let steps = texts(&v4(), &["10.244.3.81"], &observed);
        assert_eq!(steps[0], "add address 10.244.3.1/24 to cni0");
        // What old pods still use, what is another's, and what is no gateway's stays.
        assert_eq!(steps.last().unwrap(), "remove address 10.244.9.1/24 dev #7");
        assert_eq!(steps.len(), POD.len() + 2);
        let made = attachment(&v4(), CONF).unwrap();
        let made = made.with_addresses(&ips(&["10.244.3.81"])).unwrap();
        assert!(may_be_stale(&made.bridge, &observed.bridge.unwrap().1));
    }

    #[test]
    fn a_name_that_is_taken_by_something_else() {
        let mut link = bridge("0a:58:0a:f4:03:01");
        link.kind = LinkKind::Veth;
        let made = attachment(&v4(), CONF).unwrap();
        let observed = on_bridge(link, &[], &[]);
        let error = planned(made, &ips(&["10.244.3.81"]), &observed).unwrap_err();
        assert!(
            error.msg.starts_with("cni0 is not a bridge but veth"),
            "{error}"
        );
    }

    #[test]
    fn a_cluster_of_one_subnet_needs_no_route_to_it() {
        let env = v4().replace("10.244.0.0/16", "10.244.3.0/24");
        let steps = texts(&env, &["10.244.3.81"], &Observed::default());
        assert!(
            steps[3].ends_with("eth0 address 10.244.3.81/24, route 0.0.0.0/0 via 10.244.3.1"),
            "{}",
            steps[3]
        );
    }

    #[test]
    fn veths_are_named_by_their_attachment() {
        let name = veth_name(&identity("c1"));
        assert_eq!(name, veth_name(&identity("c1")));
        assert_ne!(name, veth_name(&identity("c2")));
        assert_eq!(IfName::new(&name).unwrap().len(), 15);
        assert!(veth_mac(&identity("c1")).is_unicast());
    }

    #[test]
    fn a_foreign_address_of_a_plain_bridge() {
        let keys = r#""isGateway":true,"bridge":"cni0","ipam":{"ranges":[[{"subnet":"10.9.0.0/24"}],[{"subnet":"fd09::/64"}]]}"#;
        let addrs = ips(&["10.9.0.5", "fd09::5"]);
        let there = |present: &[&str]| on_bridge(bridge("0a:58:0a:f4:03:01"), present, &[]);
        // Another IPv6 subnet is nobody's business.
        let steps = planned(plain(keys).unwrap(), &addrs, &there(&["fd77::1/64"])).unwrap();
        assert!(
            !steps.iter().any(|step| step.starts_with("remove")),
            "{steps:?}"
        );
        for present in ["192.0.2.1/24", "fd09::9/64"] {
            let error = planned(plain(keys).unwrap(), &addrs, &there(&[present])).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(
                error.msg.contains(present) && error.msg.contains("forceAddress"),
                "{error}"
            );
            let forced = keys.replace("\"isGateway\"", "\"forceAddress\":true,\"isGateway\"");
            let steps = planned(plain(&forced).unwrap(), &addrs, &there(&[present])).unwrap();
            assert_eq!(
                steps.last().unwrap(),
                &format!("remove address {present} dev #7")
            );
        }
    }

    #[test]
    fn every_further_wish_is_a_step() {
        let keys = r#""bridge":"cni0","promiscMode":true,"macspoofchk":true,"enabledad":true,"ipMasq":true,
            "ingressRate":8000,"ingressBurst":8000,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080}]},
            "ipam":{"subnet":"10.9.0.0/24","routes":[{"dst":"10.0.0.0/8"}]}"#;
        let steps = planned(
            plain(keys).unwrap(),
            &ips(&["10.9.0.5"]),
            &Observed::default(),
        );
        let mac = plan_bridge_mac();
        assert_eq!(
            steps.unwrap(),
            [
                format!("create bridge cni0 mac {mac} mtu 1500 promisc"),
                "create veth veth1 on cni0, in the pod eth0 mac 0a:58:0a:09:00:05 mtu 1500"
                    .to_owned(),
                "in the pod: eth0 address 10.9.0.5/24, route 10.0.0.0/8 via 10.9.0.1, wait for DAD"
                    .to_owned(),
                "limit the bandwidth of veth1".to_owned(),
                "open port veth1 hairpin true isolated false only for 0a:58:0a:09:00:05".to_owned(),
                "publish 80/tcp masquerade".to_owned(),
            ]
        );
        let bare = plain(r#""bridge":"cni0","disableContainerInterface":true"#).unwrap();
        let steps = planned(bare, &[], &Observed::default()).unwrap();
        assert!(
            !steps.iter().any(|step| step.starts_with("in the pod")),
            "{steps:?}"
        );
    }

    /// With a gateway there is its MAC, also where the bridge does not have its address.
    fn plan_bridge_mac() -> Mac {
        Mac::for_ip("10.9.0.1".parse().unwrap())
    }
}
