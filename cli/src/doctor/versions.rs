//! Versions of Twill: on one node, and of flanneld on all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostnet::vocab::names;

use super::{Finding, Severity};
use crate::onward;
use crate::status::DAEMONS;

/// Where a rollout is looked at.
const ROLLOUT: &str = "finish the rollout: `kubectl -n kube-system rollout status daemonset/flanneld`, and the same of \
     daemonset/twill-proxy, say what it waits for";

/// Of this program, and of this node's daemons and plugin as far as they tell.
pub(super) fn here(cni_bin_dir: &Path) -> BTreeMap<String, String> {
    let program = std::env::args_os().next().map(PathBuf::from);
    let program = program.as_deref().and_then(Path::file_name);
    let program = program.unwrap_or_default().to_string_lossy().into_owned();
    let mut found = BTreeMap::new();
    for daemon in DAEMONS.iter().filter(|daemon| daemon.name != program) {
        if let Some(version) = daemon.version(onward::loopback) {
            found.insert(daemon.name.to_owned(), version);
        }
    }
    if let Some(version) = of_plugin(cni_bin_dir) {
        found.insert(names::CNI_TYPE.to_owned(), version);
    }
    found.insert(program, env!("CARGO_PKG_VERSION").to_owned());
    found
}

/// As `twill-cni --version` prints it.
fn of_plugin(folder: &Path) -> Option<String> {
    let mut command = Command::new(folder.join(names::CNI_TYPE));
    let output = command
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.trim().strip_prefix(names::CNI_TYPE)?.trim();
    Some(version.to_owned())
}

fn warning(what: &str, evidence: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        what: what.to_owned(),
        evidence,
        remedy: ROLLOUT.to_owned(),
        fix: None,
    }
}

/// What of one node is not of one version.
pub(super) fn differ(versions: &BTreeMap<String, String>) -> Option<Finding> {
    let mut all = versions.values();
    let first = all.next()?;
    let list: Vec<String> = (versions.iter())
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    all.any(|version| version != first)
        .then(|| warning("versions of Twill differ on this node", list.join(", ")))
}

/// Of each node whether its flanneld has another version than most have. One that does not tell has none.
pub(super) fn among(nodes: &[Option<String>]) -> Vec<Option<Finding>> {
    let told: Vec<&String> = nodes.iter().flatten().collect();
    let count = |version: &String| told.iter().filter(|other| ***other == *version).count();
    // Of two that are as frequent, the one that sorts last.
    let most = told
        .iter()
        .max_by_key(|version| (count(version), **version));
    let other = |version: &Option<String>| {
        let (version, most) = version.as_ref().zip(most)?;
        (version != *most).then(|| {
            let evidence = format!(
                "flanneld {version} here, {most} on {} of {} nodes",
                count(most),
                nodes.len()
            );
            warning("flanneld has another version than on other nodes", evidence)
        })
    };
    nodes.iter().map(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_differ_are_told_with_whose_they_are() {
        let of = |versions: &[(&str, &str)]| {
            let owned = versions.iter().map(|(n, v)| ((*n).into(), (*v).into()));
            differ(&owned.collect())
        };
        for same in [
            &[][..],
            &[("twill", "0.1.0")],
            &[("twill", "0.1.0"), ("flanneld", "0.1.0")],
        ] {
            assert_eq!(of(same), None);
        }
        let found = of(&[
            ("twill", "0.2.0"),
            ("flanneld", "0.2.0"),
            ("twill-cni", "0.1.0"),
        ])
        .unwrap();
        assert_eq!(found.severity, Severity::Warning);
        assert_eq!(
            found.evidence,
            "flanneld 0.2.0, twill 0.2.0, twill-cni 0.1.0"
        );
        assert!(found.remedy.contains("rollout status"), "{found}");
    }

    #[test]
    fn the_plugins_version_is_what_it_prints() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(of_plugin(folder.path()), None);
        std::os::unix::fs::symlink("/bin/echo", folder.path().join("twill-cni")).unwrap();
        // Another's program of that name.
        assert_eq!(of_plugin(folder.path()), None);
    }

    #[test]
    fn a_node_that_is_behind_is_told_and_not_those_that_are_as_most() {
        let of = |versions: &[&str]| {
            let owned = versions
                .iter()
                .map(|v| (!v.is_empty()).then(|| (*v).to_owned()));
            let found = among(&owned.collect::<Vec<_>>());
            let evidence = |finding: Option<Finding>| finding.map(|f| f.evidence);
            found.into_iter().map(evidence).collect::<Vec<_>>()
        };
        assert_eq!(of(&["0.1.0", "0.1.0", ""]), [None, None, None]);
        let behind = |text: &str| Some(text.to_owned());
        assert_eq!(
            of(&["0.2.0", "0.1.0", "0.2.0"]),
            [
                None,
                behind("flanneld 0.1.0 here, 0.2.0 on 2 of 3 nodes"),
                None
            ]
        );
        assert_eq!(
            of(&["0.1.0", "0.2.0"]),
            [behind("flanneld 0.1.0 here, 0.2.0 on 1 of 2 nodes"), None]
        );
        assert_eq!(of(&[]), Vec::<Option<String>>::new());
    }
}
