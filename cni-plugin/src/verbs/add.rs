//! ADD: attach a container, or leave everything as it was.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use hostnet::netlink::{Link, Rtnl};
use hostnet::netns::{NetNs, NetNsError};
use hostnet::nft::Nft;
use hostnet::vocab::{Cidr, IfNameError, SubnetEnv};
use serde_json::Value;

use super::reclaim;
use crate::attachment::Attachment;
use crate::error::{CniError, Code};
use crate::exec::{self, Executor, Failure};
use crate::ipam::foreign::ForeignIpam;
use crate::ipam::{IpamError, Store};
use crate::nat::{self, Seen};
use crate::plan::{self, Observed};
use crate::record::{self, Record, RecordAddress, RecordError, Records};
use crate::request::config::{Config, Place};
use crate::request::settings::{Addressing, Settings};
use crate::request::{Args, RawRequest, Target, Verb};
use crate::resolv_conf;
use crate::result::{Address, Interface, Outcome};
use crate::version::Version;

impl From<IpamError> for CniError {
    fn from(error: IpamError) -> CniError {
        let code = match error {
            IpamError::Full { .. } | IpamError::Raced { .. } | IpamError::Taken { .. } => {
                Code::TryAgain
            }
            IpamError::NotOurs { .. } => Code::InvalidConfig,
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

impl From<IfNameError> for CniError {
    fn from(error: IfNameError) -> CniError {
        CniError::of(Code::Kernel, &error)
    }
}

/// Attaches a container.
///
/// Everything is checked before anything is changed. The record is written first, then the
/// addresses are reserved, then the kernel is changed; a failure takes all of it back.
pub fn add(target: &Target, config: &Config, raw: &RawRequest) -> Result<Outcome, CniError> {
    let before = config.prev_result()?.unwrap_or_default();
    let settings = config.settings(&Args::parse(raw.args.as_deref())?)?;
    let env = read_subnet(&settings)?;
    let mut wanted = Attachment::new(target.identity.clone(), &settings, env.as_ref())?;
    let foreign = foreign_ipam(&settings.addressing, raw)?;
    if foreign.is_none() {
        Store::assign(&wanted.sets, &settings.asked.ips)?;
    }
    if let Some(file) = &settings.resolv_conf {
        wanted.dns = resolv_conf::read(file)?;
    }
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

    let mut call = Call {
        place: &config.place,
        records: Records::new(&config.place.state_dir),
        store: Store::new(&config.place.ipam_dir, &config.place.network),
        foreign,
        netns,
        boot: record::boot_id()?,
        nft: None,
    };
    call.clear_remains(&mut host, &wanted)?;
    call.refuse_early(&wanted)?;
    let (attachment, record) = call.obtain(wanted, &settings)?;
    match call.make(&mut host, &mut pod, &pod_ns, &attachment, &record) {
        Ok(bridge) => {
            let mut outcome = outcome(&attachment, &record, &bridge, netns);
            if let Some(name) = &record.ifb {
                // The pod is attached: that the device cannot be looked at is no reason to fail now.
                let found = host.link(name).unwrap_or_default();
                outcome.interfaces.extend(found.map(|link| Interface {
                    name: link.name,
                    mac: link.mac.unwrap_or_default(),
                    mtu: link.mtu,
                    sandbox: None,
                }));
            }
            outcome.before = before;
            Ok(outcome)
        }
        Err(Failure { error, undone }) => {
            // While the cable may be there its addresses stay reserved; DEL finds both by the
            // record, as it does what cannot be given back now.
            if undone && call.give_back(&attachment).is_ok() {
                let _ = call.records.remove(&target.identity);
            }
            Err(error)
        }
    }
}

/// What an ADD works with.
struct Call<'a> {
    place: &'a Place,
    records: Records,
    store: Store,
    foreign: Option<ForeignIpam<'a>>,
    netns: &'a Path,
    boot: String,
    nft: Option<(Nft, Seen)>,
}

impl Call<'_> {
    /// An earlier ADD of this attachment that was killed left a record and reservations. One whose
    /// cable is there is no remains but an attachment.
    fn clear_remains(&mut self, host: &mut Rtnl, wanted: &Attachment) -> Result<(), CniError> {
        let identity = &wanted.identity;
        let Some(record) = self.records.read(identity)? else {
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
        super::teardown::Teardown::new(host, self.store.clone(), self.records.clone()).remove(
            identity,
            Some(&record),
            &record.addrs(),
        )
    }

    /// Refuses host ports that another has, before there are addresses.
    fn refuse_early(&mut self, wanted: &Attachment) -> Result<(), CniError> {
        let families = wanted.families();
        if wanted.ports.is_empty() || families.is_empty() {
            return Ok(());
        }
        let mut probe = self.record(wanted)?;
        probe.snat = false;
        probe.masq_all = false;
        probe.masquerade_except = None;
        probe.addresses = families
            .iter()
            .map(|family| RecordAddress {
                address: Cidr::host(family.unspecified()),
                gateway: None,
            })
            .collect();
        let mut nft = Nft::open()?;
        let seen = nat::refuse_taken(&mut nft, &probe)?;
        self.nft = Some((nft, seen));
        Ok(())
    }

    fn record(&self, attachment: &Attachment) -> Result<Record, CniError> {
        let network = &self.place.network;
        Ok(Record::of(attachment, network, self.netns, &self.boot)?)
    }

    /// Gets the addresses, and writes the record that names them.
    fn obtain(
        &self,
        wanted: Attachment,
        settings: &Settings,
    ) -> Result<(Attachment, Record), CniError> {
        let Some(foreign) = &self.foreign else {
            return self.reserve(wanted, &settings.asked.ips);
        };
        let lease = foreign.add(self.place.version);
        let obtained = lease.and_then(|lease| {
            let attachment = wanted.with_lease(lease)?;
            refuse_more_than_told(&attachment, self.place.version)?;
            let record = self.record(&attachment)?;
            self.records.create(&attachment.identity, &record)?;
            Ok((attachment, record))
        });
        if obtained.is_err() {
            // The specification asks for it; the first error is the one to tell.
            let _ = foreign.forward(Verb::Del);
        }
        obtained
    }

    /// Chooses addresses, writes the record that names them, and reserves them.
    fn reserve(
        &self,
        wanted: Attachment,
        asked: &[IpAddr],
    ) -> Result<(Attachment, Record), CniError> {
        if wanted.sets.is_empty() {
            let attachment = wanted.with_addresses(&[])?;
            let record = self.record(&attachment)?;
            self.records.create(&attachment.identity, &record)?;
            return Ok((attachment, record));
        }
        let locked = self.store.lock()?;
        reclaim::after_reboot(&locked, &self.records, self.place, &self.boot)?;
        let addrs = locked.choose(&wanted.sets, asked)?;
        let attachment = wanted.with_addresses(&addrs)?;
        refuse_more_than_told(&attachment, self.place.version)?;
        let record = self.record(&attachment)?;
        self.records.create(&attachment.identity, &record)?;
        if let Err(error) = locked.commit(&attachment.identity, &addrs) {
            let _ = self.records.remove(&attachment.identity);
            return Err(error.into());
        }
        Ok((attachment, record))
    }

    fn give_back(&self, attachment: &Attachment) -> Result<(), CniError> {
        if let Some(foreign) = &self.foreign {
            return foreign.forward(Verb::Del);
        }
        let addrs: Vec<IpAddr> = attachment
            .addresses
            .iter()
            .map(|a| a.address.addr())
            .collect();
        super::teardown::release(&self.store, &attachment.identity, &addrs)
    }

    /// Changes the kernel. A DEL that came meanwhile has taken the record away: then nothing may
    /// be left.
    fn make(
        &mut self,
        host: &mut Rtnl,
        pod: &mut Rtnl,
        pod_ns: &NetNs,
        attachment: &Attachment,
        record: &Record,
    ) -> Result<Link, Failure> {
        let untouched = |error| Failure {
            error,
            undone: true,
        };
        let observed = observe(host, attachment, &self.records).map_err(untouched)?;
        let steps = plan::plan(attachment, record, &observed).map_err(untouched)?;
        let bridge = observed.bridge.map(|(link, _)| link);
        let executor = Executor::new(host, pod, pod_ns, &self.records, bridge, self.nft.take());
        executor.run(&steps, || match self.records.read(&attachment.identity) {
            Ok(Some(found)) if found == *record => Ok(()),
            Ok(_) => Err(CniError::new(
                Code::TryAgain,
                "DEL was called for this container at the same moment",
            )),
            Err(error) => Err(error.into()),
        })
    }
}

/// The IPAM plugin that gives the addresses, if one does.
pub(super) fn foreign_ipam<'a>(
    addressing: &'a Addressing,
    raw: &'a RawRequest,
) -> Result<Option<ForeignIpam<'a>>, CniError> {
    match addressing {
        Addressing::Foreign(name) => ForeignIpam::find(name, raw).map(Some),
        _ => Ok(None),
    }
}

/// Results before 0.3.0 have room for one address of each family.
fn refuse_more_than_told(attachment: &Attachment, version: Version) -> Result<(), CniError> {
    if version < Version::V0_3_0 && attachment.addresses.len() > attachment.families().len() {
        let msg = format!(
            "cniVersion {version} has one address of each family in a result, and ipam gives more"
        );
        return Err(CniError::new(Code::InvalidConfig, msg));
    }
    Ok(())
}

/// Reads what flanneld tells of the node's subnet; `None` where addresses come from elsewhere.
pub(super) fn read_subnet(settings: &Settings) -> Result<Option<SubnetEnv>, CniError> {
    let Addressing::SubnetFile(path) = &settings.addressing else {
        return Ok(None);
    };
    let file = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
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
        .map(Some)
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

fn observe(
    host: &mut Rtnl,
    attachment: &Attachment,
    records: &Records,
) -> Result<Observed, CniError> {
    let mut observed = Observed {
        forwarded: exec::forwarded(&attachment.families())?,
        ..Observed::default()
    };
    let wanted = &attachment.bridge;
    if let Some(link) = host.link(&wanted.name)? {
        let gateway = match wanted.gateway == wanted.name {
            true => Some(link.index),
            false => host.link(&wanted.gateway)?.map(|link| link.index),
        };
        let addrs = match gateway {
            Some(index) => host.addrs(Some(index))?,
            None => Vec::new(),
        };
        if plan::may_be_stale(&attachment.bridge, &addrs) {
            let all = records.list()?;
            observed.gateways_in_use = all
                .iter()
                .flat_map(|r| &r.addresses)
                .filter_map(|a| a.gateway)
                .collect();
        }
        observed.bridge = Some((link, addrs));
    }
    Ok(observed)
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
        before: Default::default(),
        interfaces,
        addresses,
        routes: attachment.routes.clone(),
        dns: match &attachment.dns {
            Value::Object(dns) if !dns.is_empty() => attachment.dns.clone(),
            _ => Value::Null,
        },
    }
}
