//! `twill-cni`, the CNI plugin of Twill: what the container runtime calls for each pod.
//!
//! A call goes through these rooms: [`request`] (environment and configuration, raw and then
//! validated) → [`attachment`] (what shall be) → [`plan`] (the steps there; pure) → [`exec`]
//! (does them, and undoes them when one fails) → [`result`] (told in the version asked for).
//! [`ipam`] gives the addresses, [`record`] remembers what was made, [`nat`] has the host ports
//! and the masquerade, [`shaping`] the bandwidth, [`vlans`] the VLANs of the bridge's ports. [`rebuild`] puts back, from the records, what
//! somebody took away; flanneld calls it. [`install`] is for people; [`remains`] goes with the
//! program.
#![forbid(unsafe_code)]

pub mod attachment;
pub mod error;
pub mod exec;
pub mod help;
pub mod install;
pub mod ipam;
pub mod nat;
pub mod plan;
pub mod rebuild;
pub mod record;
pub mod remains;
pub mod request;
pub mod resolv_conf;
pub mod result;
pub mod shaping;
pub mod verbs;
pub mod version;
pub mod vlans;

use std::io::Read;

use error::{CniError, Code};
use request::config::Config;
use request::{RawRequest, Target, Verb};
use version::Version;

/// Serves one call: the text for standard output, and whether it went well.
///
/// `config` gives standard input; it is read only for verbs that need it.
pub fn serve(mut raw: RawRequest, mut config: impl Read) -> Result<String, String> {
    let tell = |(error, version): (CniError, Version)| error.to_json(version);
    let verb = request::verb(&raw).map_err(|error| tell((error, Version::LATEST)))?;
    if verb == Verb::Version {
        return Ok(version::answer());
    }
    config.read_to_end(&mut raw.config).map_err(|error| {
        let msg = "the network configuration cannot be read from standard input";
        let told = CniError {
            details: error.to_string(),
            ..CniError::new(Code::Io, msg)
        };
        tell((told, Version::LATEST))
    })?;
    let config = Config::decode(&raw.config).map_err(tell)?;
    if raw.debug {
        for key in config.unknown_keys() {
            eprintln!("debug: the key {key} of the configuration is not known, and passed over");
        }
    }
    let version = config.place.version;
    dispatch(verb, &raw, &config).map_err(|error| tell((error, version)))
}

fn dispatch(verb: Verb, raw: &RawRequest, config: &Config) -> Result<String, CniError> {
    let (since, version) = (verb.since(), config.place.version);
    if version < since {
        let msg = format!("{verb:?} came with cniVersion {since}, the configuration has {version}");
        return Err(CniError::new(Code::IncompatibleVersion, msg));
    }
    match verb {
        Verb::Add => {
            let outcome = verbs::add::add(&Target::of(raw, true)?, config, raw)?;
            Ok(outcome.to_json(version))
        }
        Verb::Del => {
            verbs::del::del(&Target::of(raw, false)?, &config.place, raw)?;
            Ok(String::new())
        }
        Verb::Check => {
            verbs::check::check(&Target::of(raw, true)?, config, raw)?;
            Ok(String::new())
        }
        Verb::Status => {
            verbs::status::status(config, raw)?;
            Ok(String::new())
        }
        Verb::Gc => {
            verbs::gc::gc(config, raw)?;
            Ok(String::new())
        }
        Verb::Version => Ok(version::answer()),
    }
}
