//! The two files by which the CNI plugin and the container runtime learn of this node's subnet.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hostnet::{
    atomic_file,
    vocab::{Family, SubnetEnv, names, subnet_env::FamilyEnv},
};
use serde_json::json;

use crate::{
    ByFamily,
    backend::{self, Own},
    config::Config,
};

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder could not be made.
    #[error("cannot make the folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file.
    #[error("{}", agent::chain(.error))]
    Write {
        /// What and why.
        error: atomic_file::WriteError,
    },
}

/// What `subnet.env` shall say.
#[must_use]
pub fn subnet_env(config: &Config, own: &ByFamily<Own>) -> Option<SubnetEnv> {
    let part = |family: Family| {
        let own = own.get(family)?;
        Some(FamilyEnv {
            networks: vec![own.network],
            subnet: own.subnet.gateway()?,
        })
    };
    Some(SubnetEnv {
        v4: part(Family::V4),
        v6: part(Family::V6),
        mtu: backend::pod_mtu(&config.net.backend, own)?,
        ip_masq: config.masquerade.is_some(),
    })
}

/// The CNI configuration: one plugin, under the names that flannel's has, so that addresses given out before stay known.
#[must_use]
pub fn conflist(subnet_file: &Path) -> String {
    let list = json!({
        "cniVersion": "1.1.0",
        "name": names::CNI_NETWORK,
        "plugins": [{
            "type": names::CNI_TYPE,
            "subnetFile": subnet_file,
            "capabilities": { "portMappings": true, "bandwidth": true },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        }],
    });
    format!("{list:#}\n")
}

/// The MTU that pods have been given so far, as `subnet.env` says.
#[must_use]
pub fn pods_mtu(config: &Config) -> Option<u32> {
    let text = fs::read_to_string(&config.subnet_file).ok()?;
    Some(text.parse::<SubnetEnv>().ok()?.mtu)
}

/// Writes `subnet.env`, and then the conflist where one is asked for: a runtime that sees the conflist shall find the
/// subnet. Files that are right are left alone. Returns those that were written.
///
/// # Errors
/// A file or its folder cannot be written.
pub fn write(config: &Config, own: &ByFamily<Own>) -> Result<Vec<PathBuf>, Error> {
    let mut written = Vec::new();
    let Some(env) = subnet_env(config, own) else {
        return Ok(written);
    };
    ensure(&config.subnet_file, &env.to_string(), &mut written)?;
    if let Some(folder) = &config.cni_conf_dir {
        ensure(
            &folder.join(names::CONFLIST_FILE),
            &conflist(&config.subnet_file),
            &mut written,
        )?;
    }
    Ok(written)
}

fn ensure(path: &Path, text: &str, written: &mut Vec<PathBuf>) -> Result<(), Error> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|source| Error::Folder {
            path: folder.into(),
            source,
        })?;
    }
    atomic_file::replace(path, text.as_bytes(), 0o644).map_err(|error| Error::Write { error })?;
    written.push(path.into());
    Ok(())
}
