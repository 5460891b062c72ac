//! STATUS: would the next ADD succeed?

use hostnet::netlink::Rtnl;

use super::add::read_subnet;
use crate::attachment;
use crate::error::{CniError, Code};
use crate::ipam::Store;
use crate::plan;
use crate::request::config::Config;

/// Looks at what ADD needs, without changing anything. What may pass by itself (no subnet yet, a
/// full range) has code 50; what a person has to set right has the code of ADD.
pub fn status(config: &Config) -> Result<(), CniError> {
    look(config).map_err(|error| match error.code {
        Code::TryAgain | Code::Io | Code::Kernel => CniError {
            code: Code::NotAvailable,
            ..error
        },
        _ => error,
    })
}

fn look(config: &Config) -> Result<(), CniError> {
    let settings = config.settings()?;
    let ranges = attachment::ranges(&settings, &read_subnet(&settings)?)?;
    Store::new(&config.place.ipam_dir, &config.place.network).free(&ranges)?;
    match Rtnl::open()?.link(&settings.bridge)? {
        Some(link) => plan::bridge_settings(&link).map(drop),
        None => Ok(()),
    }
}
