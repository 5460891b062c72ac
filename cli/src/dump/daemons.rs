//! What the daemons say of themselves, what they have left on disk, and their logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hostnet::vocab::names;

use super::Archive;
use crate::objects::ApiServer;
use crate::onward::{Place, Reach};
use crate::status::{DAEMONS, Daemon};

/// So many lines of a log at its end.
const LINES: usize = 5_000;

/// The logs of pods on a node.
const POD_LOGS: &str = "/var/log/pods";

/// Puts in what the daemons of nodes answer, and notes who does not.
pub(super) fn asked(
    reach: &dyn Reach,
    nodes: &[Place],
    archive: &mut Archive,
    missing: &mut Vec<String>,
) {
    for node in nodes {
        for daemon in DAEMONS {
            for (port, target) in [(daemon.metrics, "/metrics"), (daemon.health, daemon.ready)] {
                match reach.get(node, port, target) {
                    Ok(text) => {
                        let name = target.trim_start_matches('/');
                        let name = format!("daemons/{node}/{}.{name}.txt", daemon.name);
                        archive.add(name, text);
                    }
                    Err(why) => {
                        missing.push(format!("{target} of {} on node {node}: {why}", daemon.name))
                    }
                }
            }
        }
    }
}

/// Puts in the files by which this node's daemons and plugin go on.
pub(super) fn kept_files(files: &[PathBuf], archive: &mut Archive, missing: &mut Vec<String>) {
    for path in files {
        let name = format!("node/files{}", path.display());
        match fs::read(path) {
            Ok(contents) => archive.add(name, contents),
            Err(error) => missing.push(format!("{}: {error}", path.display())),
        }
    }
}

/// Puts in the daemons' logs: of all nodes through the API server, else of this node.
pub(super) fn logs(server: Option<&ApiServer>, archive: &mut Archive, missing: &mut Vec<String>) {
    let found = match server {
        Some(server) => server.logs_of_daemons(LINES),
        None => of_this_node(Path::new(POD_LOGS)),
    };
    match found {
        Ok(logs) if logs.is_empty() => missing.push("logs: no pod of the daemons".to_owned()),
        Ok(logs) => {
            for (name, log) in logs {
                archive.add(format!("logs/{name}.log"), log);
            }
        }
        Err(why) => missing.push(format!("logs: {why}")),
    }
    for daemon in DAEMONS {
        if let Some(log) = of_unit(daemon.name) {
            archive.add(format!("logs/{}.service.log", daemon.name), log);
        }
    }
}

/// A log with the name of its pod or container.
type Log = (String, String);

fn of_this_node(folder: &Path) -> Result<Vec<Log>, String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut logs = Vec::new();
    for pod in fs::read_dir(folder).map_err(wrong)? {
        let pod = pod.map_err(wrong)?.path();
        let name = pod
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let is_ours = |daemon: &Daemon| name.starts_with(&format!("kube-system_{}-", daemon.name));
        if !DAEMONS.iter().any(is_ours) {
            continue;
        }
        let containers = fs::read_dir(&pod).map_err(wrong)?.flatten();
        for file in containers
            .filter_map(|of| fs::read_dir(of.path()).ok())
            .flatten()
            .flatten()
        {
            // Older ones are packed.
            if file
                .path()
                .extension()
                .is_some_and(|extension| extension == "log")
                && let Ok(text) = fs::read_to_string(file.path())
            {
                let number = file.file_name().to_string_lossy().into_owned();
                logs.push((format!("{name}.{number}"), last_lines(&text)));
            }
        }
    }
    Ok(logs)
}

/// What the journal has of a daemon that systemd runs.
fn of_unit(daemon: &str) -> Option<String> {
    let lines = LINES.to_string();
    let arguments = ["--quiet", "--no-pager", "--unit", daemon, "--lines", &lines];
    let output = Command::new("journalctl").args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n") + "\n"
}

/// The files that [`kept_files`] takes: what flanneld tells twill-cni, the CNI configuration, the daemons' last state.
pub fn files_of(subnet_file: &Path, cni_conf_dir: &Path, snapshots: &Path) -> Vec<PathBuf> {
    vec![
        subnet_file.to_owned(),
        cni_conf_dir.join(names::CONFLIST_FILE),
        snapshots.join(crate::saved::FILE),
        snapshots.join("flanneld.json"),
    ]
}
