//! `twill support-dump`: what can be known of a node and its cluster, in one archive, and traces from it later.
//!
//! ```text
//!  state     the kernel's state of a namespace, written down; a View of it as of a live one
//!  objects   the objects, each by the fields that are named here: Secrets, environments and tokens have no way in
//!  daemons   what daemons say of themselves, and their logs
//!  archive   the files of a dump, as one tar.gz
//! ```

mod archive;
mod daemons;
mod objects;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, TypeMeta};
use serde::{Deserialize, Serialize};

use crate::far::{self, Query};
use crate::objects::{ApiServer, Cluster};
use crate::onward::{self, FromHere, Place, Reach};
use crate::status;
use crate::trace::PodNetwork;
use crate::view::View;

pub use archive::Archive;
pub use daemons::files_of;
pub use objects::Objects;
pub use state::{Recorded, State};

const ABOUT: &str = "about.json";
const OBJECTS: &str = "objects.json";
const STATE: &str = "node/kernel.json";

/// Of what, when and by what a dump is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// The version of twill.
    pub twill: String,
    /// The kernel's version.
    pub kernel: String,
    /// The host's name.
    pub host: String,
    /// When it was taken (RFC 3339).
    pub taken: String,
    /// The pods' networks, by flanneld's file.
    pub networks: Vec<PodNetwork>,
    /// What could not be seen.
    pub missing: Vec<String>,
}

/// A dump that was read.
#[derive(Debug)]
pub struct Dump {
    /// Of what it is.
    pub about: About,
    state: State,
    objects: Option<Objects>,
}

impl Dump {
    /// Reads the parts of an archive that traces need.
    ///
    /// # Errors
    /// It cannot be read, or is no dump.
    pub fn read(path: &Path) -> anyhow::Result<Dump> {
        let archive = Archive::read(path)?;
        let of = |name: &str| {
            let found = archive.get(name);
            found.with_context(|| {
                format!(
                    "{} has no {name}: it was taken without root, or is no dump",
                    path.display()
                )
            })
        };
        let wrong = |name: &str| format!("{}: {name}", path.display());
        Ok(Dump {
            about: serde_json::from_slice(of(ABOUT)?).with_context(|| wrong(ABOUT))?,
            state: serde_json::from_slice(of(STATE)?).with_context(|| wrong(STATE))?,
            objects: match archive.get(OBJECTS) {
                Some(text) => Some(Objects::parse(text).with_context(|| wrong(OBJECTS))?),
                None => None,
            },
        })
    }

    /// The kernel's state.
    pub fn view(&self) -> Recorded {
        Recorded::of(self.state.clone())
    }

    /// The objects, as far as they were seen.
    pub fn cluster(&self) -> Cluster {
        self.objects
            .clone()
            .map_or_else(Cluster::default, Cluster::of)
    }
}

/// Where a dump comes from.
pub struct From<'a> {
    /// This node's kernel.
    pub view: &'a mut dyn View,
    /// The pods' networks, by flanneld's file.
    pub networks: Vec<PodNetwork>,
    /// The objects.
    pub server: Option<&'a ApiServer>,
    /// How daemons are asked.
    pub reach: &'a FromHere,
    /// What lies on this node's disk.
    pub files: Vec<PathBuf>,
}

/// Takes a dump: what cannot be seen is noted in it, and the rest is there.
///
/// # Errors
/// What was seen cannot be written down.
pub fn take(from: From<'_>) -> anyhow::Result<(Archive, Vec<String>)> {
    let mut archive = Archive::default();
    let mut missing = Vec::new();
    match State::take(from.view) {
        Ok(state) => archive.add(STATE, serde_json::to_vec(&state)?),
        // Where kubectl is, there may be no root.
        Err(error) => {
            let error = anyhow::Error::from(error);
            missing.push(format!("this machine's kernel: {error:#}"));
        }
    }
    let mut cluster = Cluster::default();
    match from.server {
        Some(server) => {
            let objects = Objects::take(&mut server.clone(), &mut missing);
            archive.add(OBJECTS, serde_json::to_vec_pretty(&objects)?);
            cluster = Cluster::of(objects);
        }
        None => missing.push("objects: no API server is known".to_owned()),
    }
    let nodes = status::places(&mut cluster, from.reach.here());
    daemons::asked(from.reach, &nodes, &mut archive, &mut missing);
    daemons::kept_files(&from.files, &mut archive, &mut missing);
    daemons::logs(from.server, &mut archive, &mut missing);
    let of_kernel = |key: &str| {
        let path = Path::new("/proc/sys/kernel").join(key);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().to_owned()
    };
    let about = About {
        twill: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: of_kernel("osrelease"),
        host: of_kernel("hostname"),
        taken: Timestamp::now().to_string(),
        networks: from.networks,
        missing: missing.clone(),
    };
    archive.add(ABOUT, serde_json::to_vec_pretty(&about)?);
    Ok((archive, missing))
}

/// What was written where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// The archive.
    pub file: PathBuf,
    /// The sizes of the files in it, by their names.
    pub files: BTreeMap<String, usize>,
    /// What could not be seen.
    pub missing: Vec<String>,
}

impl Written {
    /// An archive, and what is not in it.
    pub fn of(file: &Path, archive: &Archive, missing: Vec<String>) -> Written {
        let files = archive.files().map(|(name, size)| (name.to_owned(), size));
        Written {
            file: file.to_owned(),
            files: files.collect(),
            missing,
        }
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.file.display())?;
        for (name, size) in &self.files {
            writeln!(f, "{size:>10}  {name}")?;
        }
        let mut missing = self.missing.iter();
        missing.try_for_each(|what| writeln!(f, "not seen: {what}"))
    }
}

/// Other nodes' part of a way, by their dumps.
#[derive(Debug)]
pub struct ByDumps(pub Vec<Dump>);

impl Reach for ByDumps {
    fn get(&self, node: &Place, port: u16, target: &str) -> Result<String, String> {
        let has_address = |dump: &&Dump| dump.state.has(node.address);
        let dump = self.0.iter().find(has_address);
        let dump = dump.ok_or("there is no dump of it: `--from-dump` once more")?;
        match Query::parse(target) {
            Some(Ok(query)) if port == onward::PORT => {
                far::answer_of(&mut dump.view(), &dump.about.networks, &query)
                    .and_then(|trace| Ok(serde_json::to_string(&trace)?))
                    .map_err(|error| format!("{error:#}"))
            }
            _ => Err("a dump answers traces alone".to_owned()),
        }
    }
}

/// The object, with its kind, as a list of one kind does not say it.
fn typed(mut object: DynamicObject, kind: &ApiResource) -> DynamicObject {
    object.types = Some(TypeMeta {
        api_version: kind.api_version.clone(),
        kind: kind.kind.clone(),
    });
    object
}
