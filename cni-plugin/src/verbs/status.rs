//! STATUS: would the next ADD succeed?

use hostnet::netlink::Rtnl;

use super::add::{foreign_ipam, read_subnet};
use crate::attachment;
use crate::error::{CniError, Code};
use crate::ipam::{IpamError, Store};
use crate::plan;
use crate::record::{self, Record, Records};
use crate::request::config::Config;
use crate::request::settings::Settings;
use crate::request::{Args, RawRequest, Verb};

/// Looks at what ADD needs, without changing anything. What the next ADD would fail by has code
/// 50, or 51 if containers that stand have no network either; a configuration that cannot be has
/// the code of ADD.
pub fn status(config: &Config, raw: &RawRequest) -> Result<(), CniError> {
    let settings = config.settings(&Args::default())?;
    look(config, &settings, raw).map_err(|(error, own)| {
        let code = match error.code {
            _ if own => Code::NotAvailable,
            Code::TryAgain | Code::Io | Code::Kernel => Code::NotAvailable,
            other => other,
        };
        let suffers = code == Code::NotAvailable && suffers(config).unwrap_or(false);
        CniError {
            code: if suffers { Code::Limited } else { code },
            ..error
        }
    })
}

/// The error, and whether it is the node's state whatever code ADD has for it.
fn look(config: &Config, settings: &Settings, raw: &RawRequest) -> Result<(), (CniError, bool)> {
    let adds = |error: CniError| (error, false);
    let nodes = |error: CniError| (error, true);
    let env = read_subnet(settings).map_err(adds)?;
    let sets = attachment::sets(settings, env.as_ref()).map_err(adds)?;
    let store = Store::new(&config.place.ipam_dir, &config.place.network);
    match store.free(&sets) {
        // The next ADD frees what a boot before has left.
        Err(IpamError::Full { .. }) if has_void(config).map_err(adds)? => {}
        other => other.map(drop).map_err(|error| adds(error.into()))?,
    }
    let mut host = Rtnl::open().map_err(|error| adds(error.into()))?;
    let bridge = host.link(&settings.bridge.name);
    if let Some(link) = bridge.map_err(|error| adds(error.into()))? {
        plan::bridge_settings(&link).map_err(nodes)?;
    }
    if let Some(foreign) = foreign_ipam(&settings.addressing, raw).map_err(adds)? {
        foreign.forward(Verb::Status).map_err(nodes)?;
    }
    Ok(())
}

/// Whether a boot before has left something that the next ADD frees.
fn has_void(config: &Config) -> Result<bool, CniError> {
    let boot = record::boot_id()?;
    let all = Records::new(&config.place.state_dir).list_all()?;
    let of_network = |record: &&Record| record.network == config.place.network;
    Ok(all
        .iter()
        .filter(of_network)
        .any(|record| record.is_void(&boot)))
}

/// Whether a container that stands hangs on a bridge that is gone, or down.
fn suffers(config: &Config) -> Result<bool, CniError> {
    let mut host = Rtnl::open()?;
    for record in Records::new(&config.place.state_dir).list()? {
        if record.network != config.place.network {
            continue;
        }
        let bridge = host.link(&record.bridge)?;
        if !bridge.is_some_and(|link| link.up && plan::bridge_settings(&link).is_ok()) {
            return Ok(true);
        }
    }
    Ok(false)
}
