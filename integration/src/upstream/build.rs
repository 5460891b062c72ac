//! Builds programs with Go, once per machine: into the cache, one after another
//! (a build uses all cores by itself), each moved into place whole.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Module, Program};
use crate::progress::Progress;

/// Builds those of `wanted` that `dir` lacks. Two processes do not build at once.
pub(super) fn missing(
    module: Module,
    dir: &Path,
    wanted: &[Program],
    progress: Progress,
) -> Result<()> {
    let lacks = |program: &&Program| !dir.join(program.name()).is_file();
    if !wanted.iter().any(|program| lacks(&program)) {
        return Ok(());
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let _lock = lock(dir, progress)?;
    // Another process may have built them while we waited.
    for program in wanted.iter().filter(lacks) {
        build(module, *program, dir, progress)?;
    }
    Ok(())
}

fn lock(dir: &Path, progress: Progress) -> Result<File> {
    let path = dir.join(".lock");
    let failed = || format!("cannot lock {}", path.display());
    let lock = File::create(&path).with_context(failed)?;
    if lock.try_lock().is_err() {
        let waiting = progress.step("waiting for another process that builds the same programs");
        lock.lock().with_context(failed)?;
        waiting.done();
    }
    Ok(lock)
}

fn build(module: Module, program: Program, dir: &Path, progress: Progress) -> Result<()> {
    let name = program.name();
    let step = progress.step(format!(
        "building {name} (once; {} {})",
        module.name(),
        module.version()
    ));
    let unfinished = dir.join(format!(".{name}.new"));
    let output = Command::new("go")
        .args(["build", "-trimpath", "-ldflags", &ldflags(module)])
        .arg("-o")
        .arg(&unfinished)
        .arg(program.package())
        .current_dir(module.dir())
        .env("CGO_ENABLED", "0")
        .stdin(Stdio::null())
        .output()
        .context("cannot run `go`: install Go, or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver")?;
    ensure!(
        output.status.success(),
        "{name} does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(&unfinished, dir.join(name))
        .with_context(|| format!("cannot move {name} into {}", dir.display()))?;
    step.done();
    Ok(())
}

/// Kubernetes' programs learn their version from the linker.
fn ldflags(module: Module) -> String {
    let version = module.version();
    let numbers: Vec<_> = version.trim_start_matches('v').split('.').collect();
    let (major, minor) = (numbers[0], numbers[1]);
    let component = "k8s.io/component-base/version";
    match module {
        Module::Kubernetes => format!(
            "-s -w -X {component}.gitVersion={version} -X {component}.gitMajor={major} \
             -X {component}.gitMinor={minor} -X {component}.gitTreeState=clean \
             -X k8s.io/client-go/pkg/version.gitVersion={version}"
        ),
        Module::CniPlugins | Module::Flannel | Module::Helm => "-s -w".to_owned(),
    }
}
