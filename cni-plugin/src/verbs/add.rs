//! ADD: attach a container, or leave everything as it was.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use hostnet::netlink::{Link, Rtnl};
use hostnet::netns::{NetNs, NetNsError};
use hostnet::vocab::{Cidr, Family, IfName, SubnetEnv};

use crate::attachment::Attachment;
use crate::error::{CniError, Code};
use crate::exec::{self, Executor, Failure};
use crate::ipam::{IpamError, Store};
use crate::plan::{self, Observed};
use crate::record::{Record, RecordAddress, RecordError, Records};
use crate::request::Target;
use crate::request::config::{Config, Settings};
use crate::result::{Address, Interface, Outcome};

impl From<IpamError> for CniError {
    fn from(error: IpamError) -> CniError {
        let code = match error {
            IpamError::Full { .. } | IpamError::Taken { .. } => Code::TryAgain,
            _ => Code::Io,
        };
        CniError::of(code, &error)
    }
}

impl From<RecordError> for CniError {
    fn from(error: RecordError) -> CniError {
        CniError::of(Code::Io, &error)
    }
}

/// Attaches a container.
///
/// Everything is checked before anything is changed. The record is written first, then the
/// addresses are reserved, then the kernel is changed; a failure takes all of it back.
pub fn add(target: &Target, config: &Config) -> Result<Outcome, CniError> {
    config.refuse_prev_result()?;
    let settings = config.settings()?;
    let attachment = Attachment::new(target.identity.clone(), &settings, &read_subnet(&settings)?)?;
    let netns = target.netns.as_deref().unwrap_or(Path::new(""));
    let pod_ns = open_pod(netns)?;
    let mut host = Rtnl::open()?;
    let mut pod = Rtnl::open_in(&pod_ns)?;
    let ifname = &target.identity.ifname;
    if pod.link(ifname)?.is_some() {
        let msg = format!(
            "CNI_IFNAME {ifname} is there already in {}: call DEL before another ADD",
            netns.display()
        );
        return Err(CniError::new(Code::InvalidEnvironment, msg));
    }

    let records = Records::new(&config.place.state_dir);
    let store = Store::new(&config.place.ipam_dir, &config.place.network);
    clear_remains(&mut host, &records, &store, &attachment)?;
    let observed = observe(&mut host, &attachment, &records)?;
    let veth = veth_name(&attachment)?;

    let mut record = Record {
        container_id: target.identity.container_id.to_string(),
        if_name: ifname.clone(),
        network: config.place.network.clone(),
        netns: netns.to_owned(),
        bridge: attachment.bridge.name.clone(),
        veth: veth.clone(),
        mac: hostnet::vocab::Mac::ZERO,
        mtu: attachment.mtu,
        hairpin: attachment.hairpin,
        isolated: attachment.isolated,
        addresses: Vec::new(),
    };
    let addrs = reserve(&store, &records, &attachment, &mut record)?;
    let cidrs: Vec<Cidr> = record.addresses.iter().map(|a| a.address).collect();
    let bridge = observed.bridge.as_ref().map(|(link, _)| link.clone());
    let done = plan::plan(&attachment, &veth, &cidrs, &observed)
        .map_err(|error| Failure {
            error,
            undone: true,
        })
        .and_then(|steps| Executor::new(&mut host, &mut pod, &pod_ns, bridge).run(&steps));
    match done {
        Ok(bridge) => Ok(outcome(&attachment, &record, &bridge, netns)),
        Err(Failure { error, undone }) => {
            // While the cable may be there its addresses stay reserved; DEL finds both by the
            // record, as it does what cannot be given back now.
            if undone && release(&store, &attachment, &addrs).is_ok() {
                let _ = records.remove(&target.identity);
            }
            Err(error)
        }
    }
}

/// Reads what flanneld tells of the node's subnet.
pub(super) fn read_subnet(settings: &Settings) -> Result<SubnetEnv, CniError> {
    let file = settings.subnet_file.display();
    let text = std::fs::read_to_string(&settings.subnet_file).map_err(|error| {
        let (code, msg) = if error.kind() == io::ErrorKind::NotFound {
            let msg = format!(
                "{file} is not there: flanneld writes it once this node has a subnet; see whether \
                 flanneld runs on this node, and its log"
            );
            (Code::TryAgain, msg)
        } else {
            (Code::Io, format!("{file} cannot be read"))
        };
        CniError {
            details: error.to_string(),
            ..CniError::new(code, msg)
        }
    })?;
    text.parse()
        .map_err(|error| CniError::new(Code::InvalidConfig, format!("{file}: {error}")))
}

/// Opens the container's namespace; the node's own is refused.
pub(super) fn open_pod(netns: &Path) -> Result<NetNs, CniError> {
    let of = |error: &NetNsError| match error {
        NetNsError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let msg = format!("CNI_NETNS {} does not exist", netns.display());
            CniError::new(Code::UnknownContainer, msg)
        }
        NetNsError::NotANetNs { .. } => {
            let msg = format!("CNI_NETNS {} is not a network namespace", netns.display());
            CniError::new(Code::InvalidEnvironment, msg)
        }
        other => CniError::of(Code::Io, other),
    };
    let pod = NetNs::open(netns).map_err(|error| of(&error))?;
    if pod == NetNs::current().map_err(|error| CniError::of(Code::Io, &error))? {
        let msg = format!(
            "CNI_NETNS {} is the node's own namespace: the container must have one of its own",
            netns.display()
        );
        return Err(CniError::new(Code::InvalidEnvironment, msg));
    }
    Ok(pod)
}

/// An earlier ADD of this attachment that was killed left a record and reservations. One whose
/// cable is there is no remains but an attachment.
fn clear_remains(
    host: &mut Rtnl,
    records: &Records,
    store: &Store,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let identity = &attachment.identity;
    let Some(record) = records.read(identity)? else {
        return Ok(());
    };
    if host.link(&record.veth)?.is_some() {
        let msg = format!(
            "container {} has an interface {} already, in {}: call DEL before another ADD",
            identity.container_id,
            identity.ifname,
            record.netns.display()
        );
        return Err(CniError::new(Code::InvalidEnvironment, msg));
    }
    let addrs: Vec<IpAddr> = record.addresses.iter().map(|a| a.address.addr()).collect();
    release(store, attachment, &addrs)?;
    Ok(records.remove(identity)?)
}

fn observe(
    host: &mut Rtnl,
    attachment: &Attachment,
    records: &Records,
) -> Result<Observed, CniError> {
    let families: Vec<Family> = attachment
        .ranges
        .iter()
        .map(|range| range.subnet().family())
        .collect();
    let mut observed = Observed {
        forwarded: exec::forwarded(&families)?,
        ..Observed::default()
    };
    if let Some(link) = host.link(&attachment.bridge.name)? {
        let addrs = host.addrs(Some(link.index))?;
        if plan::may_be_stale(&attachment.bridge, &addrs) {
            let all = records.list()?;
            observed.gateways_in_use = all
                .iter()
                .flat_map(|r| &r.addresses)
                .map(|a| a.gateway)
                .collect();
        }
        observed.bridge = Some((link, addrs));
    }
    Ok(observed)
}

fn veth_name(attachment: &Attachment) -> Result<IfName, CniError> {
    IfName::new(&plan::veth_name(&attachment.identity))
        .map_err(|error| CniError::of(Code::Kernel, &error))
}

/// Chooses addresses, writes the record that names them, and reserves them.
fn reserve(
    store: &Store,
    records: &Records,
    attachment: &Attachment,
    record: &mut Record,
) -> Result<Vec<IpAddr>, CniError> {
    let locked = store.lock()?;
    let addrs = locked.choose(&attachment.ranges)?;
    record.addresses = attachment
        .ranges
        .iter()
        .zip(&addrs)
        .filter_map(|(range, addr)| {
            let gateway = range.gateway_cidr().addr();
            Some(RecordAddress {
                address: range.cidr(*addr)?,
                gateway,
            })
        })
        .collect();
    let cidrs: Vec<Cidr> = record.addresses.iter().map(|a| a.address).collect();
    record.mac = plan::pod_mac(&cidrs);
    records.create(&attachment.identity, record)?;
    if let Err(error) = locked.commit(&attachment.identity, &addrs) {
        let _ = records.remove(&attachment.identity);
        return Err(error.into());
    }
    Ok(addrs)
}

fn release(store: &Store, attachment: &Attachment, addrs: &[IpAddr]) -> Result<(), CniError> {
    let locked = store.lock()?;
    for addr in addrs {
        locked.release(&attachment.identity, *addr)?;
    }
    Ok(())
}

fn outcome(attachment: &Attachment, record: &Record, bridge: &Link, netns: &Path) -> Outcome {
    let mtu = attachment.mtu;
    let interfaces = vec![
        Interface {
            name: bridge.name.clone(),
            mac: bridge.mac.unwrap_or(attachment.bridge.mac),
            mtu: bridge.mtu,
            sandbox: None,
        },
        Interface {
            name: record.veth.clone(),
            mac: plan::veth_mac(&attachment.identity),
            mtu,
            sandbox: None,
        },
        Interface {
            name: record.if_name.clone(),
            mac: record.mac,
            mtu,
            sandbox: Some(netns.display().to_string()),
        },
    ];
    let addresses = record
        .addresses
        .iter()
        .map(|a| Address {
            address: a.address,
            gateway: a.gateway,
            interface: 2,
        })
        .collect();
    Outcome {
        interfaces,
        addresses,
        routes: attachment.routes.clone(),
    }
}
