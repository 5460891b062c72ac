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

/// What [`write`] has found and done.
#[derive(Debug, Default)]
pub struct Written {
    /// The files that were not as they shall be.
    pub files: Vec<PathBuf>,
    /// The MTU that pods have been given so far and that of new ones, if they differ.
    pub mtu: Option<(u32, u32)>,
}

/// Writes `subnet.env`, and then the conflist where one is asked for: a runtime that sees the conflist shall find the
/// subnet. Files that are right are left alone.
///
/// # Errors
/// A file or its folder cannot be written.
pub fn write(config: &Config, own: &ByFamily<Own>) -> Result<Written, Error> {
    let mut written = Written::default();
    let Some(env) = subnet_env(config, own) else {
        return Ok(written);
    };
    let found = ensure(&config.subnet_file, &env.to_string(), &mut written.files)?;
    let was = found.and_then(|text| text.parse::<SubnetEnv>().ok());
    written.mtu = was
        .map(|was| (was.mtu, env.mtu))
        .filter(|(was, is)| was != is);
    if let Some(folder) = &config.cni_conf_dir {
        let list = conflist(&config.subnet_file);
        ensure(
            &folder.join(names::CONFLIST_FILE),
            &list,
            &mut written.files,
        )?;
    }
    Ok(written)
}

/// Makes a file read so. Returns what it read before.
fn ensure(path: &Path, text: &str, written: &mut Vec<PathBuf>) -> Result<Option<String>, Error> {
    let found = fs::read_to_string(path).ok();
    if found.as_deref() == Some(text) {
        return Ok(found);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|source| Error::Folder {
            path: folder.into(),
            source,
        })?;
    }
    atomic_file::replace_watched(path, text.as_bytes(), 0o644)
        .map_err(|error| Error::Write { error })?;
    written.push(path.into());
    Ok(found)
}
