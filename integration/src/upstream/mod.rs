//! Other projects' programs: found where the user has them, in the cache, or built from Go
//! modules, whose `go.mod` alone decides the versions.

mod build;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::progress::Progress;

/// A Go module of ours that names the programs of one project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// etcd and Kubernetes: `integration/k8s`.
    Kubernetes,
    /// The reference CNI plugins: `integration/cni-plugins`.
    CniPlugins,
    /// flannel, by a main of ours: `integration/flannel`.
    Flannel,
    /// What installs charts: `integration/helm`.
    Helm,
}

impl Module {
    /// The project's name, for people and for the cache.
    fn name(self) -> &'static str {
        match self {
            Module::Kubernetes => "kubernetes",
            Module::CniPlugins => "cni-plugins",
            Module::Flannel => "flannel",
            Module::Helm => "helm",
        }
    }

    /// Its version, such as `v1.37.2`.
    fn version(self) -> &'static str {
        let module = match self {
            Module::Kubernetes => "k8s.io/kubernetes",
            Module::CniPlugins => "github.com/containernetworking/plugins",
            Module::Flannel => "github.com/flannel-io/flannel",
            Module::Helm => "helm.sh/helm/v3",
        };
        self.required(module)
            .unwrap_or_else(|| panic!("go.mod of {} requires none of its programs", self.name()))
    }

    /// The version of a module in the `require` lines of go.mod.
    fn required(self, module: &str) -> Option<&'static str> {
        let lines = self.go_mod().lines().map(str::trim);
        lines
            .filter_map(|line| {
                let line = line.strip_prefix("require ").unwrap_or(line);
                line.strip_prefix(module)?.strip_prefix(' ')
            })
            .find(|rest| rest.starts_with('v'))
            .and_then(|rest| rest.split(' ').next())
    }

    fn go_mod(self) -> &'static str {
        match self {
            Module::Kubernetes => include_str!("../../k8s/go.mod"),
            Module::CniPlugins => include_str!("../../cni-plugins/go.mod"),
            Module::Flannel => include_str!("../../flannel/go.mod"),
            Module::Helm => include_str!("../../helm/go.mod"),
        }
    }

    /// The folder of its go.mod.
    fn dir(self) -> &'static str {
        match self {
            Module::Kubernetes => concat!(env!("CARGO_MANIFEST_DIR"), "/k8s"),
            Module::CniPlugins => concat!(env!("CARGO_MANIFEST_DIR"), "/cni-plugins"),
            Module::Flannel => concat!(env!("CARGO_MANIFEST_DIR"), "/flannel"),
            Module::Helm => concat!(env!("CARGO_MANIFEST_DIR"), "/helm"),
        }
    }
}

/// A program of another project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The store.
    Etcd,
    /// The API.
    ApiServer,
    /// The command for people.
    Kubectl,
    /// What gives Nodes their subnets on many clusters.
    ControllerManager,
    /// What turns Services into NAT on other clusters.
    KubeProxy,
    /// The reference plugin that does what `twill-cni` does, save for addresses.
    Bridge,
    /// The reference plugin for addresses.
    HostLocal,
    /// The reference plugin for host ports.
    Portmap,
    /// The reference plugin that shapes.
    Bandwidth,
    /// The daemon that gives nodes their subnets on other clusters.
    Flannel,
    /// What renders a chart.
    Helm,
}

impl Program {
    /// What a lab cannot do without.
    pub const CONTROL_PLANE: [Program; 2] = [Program::Etcd, Program::ApiServer];

    /// The file's name.
    pub fn name(self) -> &'static str {
        match self {
            Program::Etcd => "etcd",
            Program::ApiServer => "kube-apiserver",
            Program::Kubectl => "kubectl",
            Program::ControllerManager => "kube-controller-manager",
            Program::KubeProxy => "kube-proxy",
            Program::Bridge => "bridge",
            Program::HostLocal => "host-local",
            Program::Portmap => "portmap",
            Program::Bandwidth => "bandwidth",
            Program::Flannel => "flannel",
            Program::Helm => "helm",
        }
    }

    /// The Go package that it is built from.
    fn package(self) -> &'static str {
        match self {
            Program::Etcd => "go.etcd.io/etcd/server/v3",
            Program::ApiServer => "k8s.io/kubernetes/cmd/kube-apiserver",
            Program::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Program::ControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Program::KubeProxy => "k8s.io/kubernetes/cmd/kube-proxy",
            Program::Bridge => "github.com/containernetworking/plugins/plugins/main/bridge",
            Program::HostLocal => "github.com/containernetworking/plugins/plugins/ipam/host-local",
            Program::Portmap => "github.com/containernetworking/plugins/plugins/meta/portmap",
            Program::Bandwidth => "github.com/containernetworking/plugins/plugins/meta/bandwidth",
            Program::Flannel => ".",
            Program::Helm => "helm.sh/helm/v3/cmd/helm",
        }
    }
}

/// What tests run of other projects.
pub const OF_TESTS: &[(Module, &[Program])] = &[
    (
        Module::Kubernetes,
        &[
            Program::Etcd,
            Program::ApiServer,
            Program::ControllerManager,
            Program::KubeProxy,
            Program::Kubectl,
        ],
    ),
    (
        Module::CniPlugins,
        &[Program::Bridge, Program::HostLocal, Program::Portmap],
    ),
    (Module::Flannel, &[Program::Flannel]),
    (Module::Helm, &[Program::Helm]),
];

/// The version of Kubernetes that the lab runs, such as `v1.37.2`.
pub fn version() -> &'static str {
    Module::Kubernetes.version()
}

/// The folder that holds the wanted programs of a project: for Kubernetes `$KUBEBUILDER_ASSETS`
/// if that is set; else the user's cache, where what is missing is built first.
pub fn assets(module: Module, wanted: &[Program], progress: Progress) -> Result<PathBuf> {
    let given = match module {
        Module::Kubernetes => std::env::var_os("KUBEBUILDER_ASSETS"),
        Module::CniPlugins | Module::Flannel | Module::Helm => None,
    };
    match given {
        Some(dir) if !dir.is_empty() => {
            let dir = PathBuf::from(dir);
            check_given(&dir, wanted)?;
            Ok(dir)
        }
        _ => {
            let dir = cache(module)?;
            build::missing(module, &dir, wanted, progress)?;
            Ok(dir)
        }
    }
}

/// `$XDG_CACHE_HOME/twill/PROJECT-VERSION`: a fresh clone finds it again.
fn cache(module: Module) -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) if Path::new(&dir).is_absolute() => PathBuf::from(dir),
        _ => std::env::home_dir()
            .context("cannot tell where to keep built programs: set XDG_CACHE_HOME")?
            .join(".cache"),
    };
    let mut folder = format!("{}-{}", module.name(), module.version());
    if let Some(etcd) = module.required("go.etcd.io/etcd/server/v3") {
        folder.push_str("-etcd-");
        folder.push_str(etcd);
    }
    if module == Module::Flannel {
        // Its main is ours, and changes with us.
        let mut hasher = DefaultHasher::new();
        include_str!("../../flannel/main.go").hash(&mut hasher);
        folder.push_str(&format!("-{:016x}", hasher.finish()));
    }
    Ok(base.join("twill").join(folder))
}

/// Binaries that the user gave must be there and be of our version: the tests' expectations are
/// made for that one.
fn check_given(dir: &Path, wanted: &[Program]) -> Result<()> {
    for program in wanted {
        let path = dir.join(program.name());
        // People's programs are a convenience: what is given may lack them.
        ensure!(
            path.is_file() || *program == Program::Kubectl,
            "KUBEBUILDER_ASSETS={} has no {}: add it, or unset KUBEBUILDER_ASSETS to have it built",
            dir.display(),
            program.name()
        );
    }
    let path = dir.join(Program::ApiServer.name());
    let output = Command::new(&path)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", path.display()))?;
    let found = String::from_utf8_lossy(&output.stdout);
    let found = found.trim().trim_start_matches("Kubernetes ");
    ensure!(
        found == version(),
        "{} is version {found}, the lab needs {}: replace it, or unset KUBEBUILDER_ASSETS to have it built",
        path.display(),
        version()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn given(apiserver: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, script) in [("etcd", ""), ("kube-apiserver", apiserver)] {
            let path = dir.path().join(name);
            #[expect(clippy::disallowed_methods, reason = "a test's own file")]
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        dir
    }

    #[test]
    fn versions_come_from_go_mod() {
        assert!(version().starts_with("v1."), "{}", version());
        assert!(Module::CniPlugins.version().starts_with("v1."));
        assert!(Module::Flannel.version().starts_with("v0."));
        let etcd = Module::Kubernetes.required("go.etcd.io/etcd/server/v3");
        assert!(etcd.unwrap().starts_with("v3."));
    }

    #[test]
    fn given_binaries_of_another_version_are_refused_in_one_line() {
        let dir = given("echo Kubernetes v1.19.0");
        let error = check_given(dir.path(), &Program::CONTROL_PLANE)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("is version v1.19.0, the lab needs v1."),
            "{error}"
        );
        assert!(!error.contains('\n'));
        let dir = given(&format!("echo Kubernetes {}", version()));
        check_given(dir.path(), &Program::CONTROL_PLANE).unwrap();
    }

    #[test]
    fn a_given_folder_without_a_binary_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_given(dir.path(), &Program::CONTROL_PLANE)
            .unwrap_err()
            .to_string();
        assert!(error.contains("has no etcd"), "{error}");
    }
}
