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

/// The CNI configuration that the runtime takes in place of ours in this folder, if there is one: the first by name. One
/// that hands pods on to our network, as Multus' does, is no rival.
#[must_use]
pub fn rival(folder: &Path) -> Option<PathBuf> {
    let before_ours = |path: &PathBuf| {
        let is_read = path.extension().is_some_and(|extension| {
            ["conf", "conflist", "json"]
                .iter()
                .any(|read| extension == *read)
        });
        is_read && path.file_name() < Some(names::CONFLIST_FILE.as_ref())
    };
    let files = fs::read_dir(folder).ok()?.flatten();
    let first = files.map(|file| file.path()).filter(before_ours).min()?;
    let text = fs::read_to_string(&first).unwrap_or_default();
    let is_handed_on = [
        names::CNI_TYPE,
        names::CONFLIST_FILE,
        &format!("\"{}\"", names::CNI_NETWORK),
    ]
    .iter()
    .any(|ours| text.contains(ours));
    (!is_handed_on).then_some(first)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_before_ours_is_a_rival_unless_it_hands_pods_on() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            atomic_file::replace(folder.path().join(name), text.as_bytes(), 0o644).unwrap();
        };
        assert_eq!(rival(&folder.path().join("nowhere")), None);
        write(names::CONFLIST_FILE, "{}");
        for after_ours in [
            "10-kindnet.conflist",
            "87-podman-bridge.conflist",
            "100-crio-bridge.conf",
        ] {
            write(after_ours, "{}");
        }
        write("05-old.conflist.disabled", "{}");
        assert_eq!(rival(folder.path()), None);
        write("05-cilium.conflist", r#"{"name": "cilium"}"#);
        assert_eq!(
            rival(folder.path()),
            Some(folder.path().join("05-cilium.conflist"))
        );
        for delegate in [
            r#"{"type": "multus", "clusterNetwork": "cbr0"}"#,
            r#"{"type": "multus", "delegates": [{"name": "x", "plugins": [{"type": "twill-cni"}]}]}"#,
            r#"{"type": "multus", "clusterNetwork": "/host/etc/cni/net.d/10-flannel.conflist"}"#,
        ] {
            write("00-multus.conf", delegate);
            assert_eq!(rival(folder.path()), None, "{delegate}");
        }
    }
}
