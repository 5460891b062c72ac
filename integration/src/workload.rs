//! What `manifests/` has kubelets run: the lab runs the daemons with the same arguments, rights and
//! files, so that what is missing in a manifest is missing in its tests.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, PodSpec, Volume};

use crate::manifests;

/// The container of a DaemonSet, which has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its arguments; `$(NAME)` stands for a variable.
    pub args: Vec<String>,
    /// The capabilities that it keeps, as setpriv(1) writes them: `-all,+net_admin`.
    pub capabilities: String,
    /// What it sees of its node.
    pub mounts: Vec<Mount>,
}

/// A folder of the node in a container. One line of text: `HOST INSIDE rw`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The folder's path on the node.
    pub host: String,
    /// Its path in the container.
    pub inside: String,
    /// Nothing can be written there.
    pub read_only: bool,
}

impl Container {
    /// The container of the DaemonSet `name`. An error names what the lab cannot run as a kubelet
    /// would.
    pub fn of(name: &str) -> Result<Container> {
        let daemon_set: DaemonSet = manifests::daemon_set(name)?;
        daemon_set
            .spec
            .and_then(|spec| spec.template.spec)
            .context("no pod")
            .and_then(|pod| Container::from_pod(&pod))
            .with_context(|| format!("DaemonSet {name}"))
    }

    fn from_pod(pod: &PodSpec) -> Result<Container> {
        ensure!(pod.host_network == Some(true), "hostNetwork is not on");
        let [container] = &pod.containers[..] else {
            bail!("{} containers, not one", pod.containers.len());
        };
        let volumes = pod.volumes.as_deref().unwrap_or_default();
        let mounts = container.volume_mounts.iter().flatten();
        let mounts = mounts.map(|mount| {
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            let volume = volume.with_context(|| format!("there is no volume {}", mount.name))?;
            Ok(Mount {
                host: on_node(volume, &mount.mount_path)?,
                inside: mount.mount_path.clone(),
                read_only: mount.read_only == Some(true),
            })
        });
        Ok(Container {
            args: container.args.clone().unwrap_or_default(),
            capabilities: capabilities(container)?,
            mounts: mounts.collect::<Result<_>>()?,
        })
    }

    /// The arguments, with the variables of the container in their places.
    pub fn expand(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let expand = |arg: &String| {
            variables.iter().fold(arg.clone(), |arg, (name, value)| {
                arg.replace(&format!("$({name})"), value)
            })
        };
        self.args.iter().map(expand).collect()
    }
}

/// Where a volume lies on the node. What a ConfigMap holds lies, in the lab, where its container
/// sees it.
fn on_node(volume: &Volume, inside: &str) -> Result<String> {
    match (&volume.host_path, &volume.config_map) {
        (Some(host), _) => Ok(host.path.clone()),
        (None, Some(_)) => Ok(inside.to_owned()),
        (None, None) => bail!("volume {} is neither hostPath nor configMap", volume.name),
    }
}

fn capabilities(container: &ContainerSpec) -> Result<String> {
    let context = container
        .security_context
        .as_ref()
        .context("no securityContext")?;
    ensure!(
        context.read_only_root_filesystem == Some(true),
        "readOnlyRootFilesystem is not on"
    );
    ensure!(
        context.allow_privilege_escalation == Some(false),
        "allowPrivilegeEscalation is not off"
    );
    let capabilities = context.capabilities.clone().unwrap_or_default();
    let dropped = capabilities.drop.unwrap_or_default();
    ensure!(dropped == ["ALL"], "drop is {dropped:?}, not [ALL]");
    let added = capabilities.add.unwrap_or_default();
    Ok(added.iter().fold("-all".to_owned(), |text, capability| {
        format!("{text},+{}", capability.to_lowercase())
    }))
}

impl std::fmt::Display for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.read_only { "ro" } else { "rw" };
        write!(f, "{} {} {how}", self.host, self.inside)
    }
}

impl std::str::FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Mount, String> {
        match text.split(' ').collect::<Vec<_>>()[..] {
            [host, inside, how @ ("ro" | "rw")] => Ok(Mount {
                host: host.to_owned(),
                inside: inside.to_owned(),
                read_only: how == "ro",
            }),
            _ => Err(format!("{text:?} is not `HOST INSIDE ro|rw`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_have_no_more_than_they_need() {
        for name in ["flanneld", "twill-proxy"] {
            let container = Container::of(name).unwrap();
            assert_eq!(container.capabilities, "-all,+net_admin,+net_raw", "{name}");
            let kubernetes = container
                .mounts
                .iter()
                .find(|mount| mount.host == "/etc/kubernetes");
            assert!(kubernetes.is_some_and(|mount| mount.read_only), "{name}");
        }
    }

    #[test]
    fn variables_stand_in_arguments() {
        let proxy = Container::of("twill-proxy").unwrap();
        let args = proxy.expand(&[("NODE_NAME", "one")]);
        assert!(
            args.contains(&"--hostname-override=one".to_owned()),
            "{args:?}"
        );
    }

    #[test]
    fn mounts_are_written_and_read_as_lines() {
        let text = "/proc/sys/net /host/proc/sys/net rw";
        assert_eq!(text.parse::<Mount>().unwrap().to_string(), text);
        assert!("/a /b".parse::<Mount>().is_err());
    }
}
