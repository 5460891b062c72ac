//! A cluster made by kind, with kubelet, containerd and systemd: `integration/kind` builds what it consists of, and the
//! box in which it runs and with which it ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::progress::Progress;
use crate::upstream::{self, Module, Program};
use crate::wait;

/// The folder of the scripts and of the cluster's configuration.
const KIND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kind");

/// The cluster's nodes: the control plane first.
pub const NODES: [&str; 3] = ["twill-control-plane", "twill-worker", "twill-worker2"];

/// What kind says of a node that did not get up in time.
const SLOW_START: &str = "could not find a log line that matches";

/// What nodes say that kind could not make: their systemd, kubelet and containerd. The machine's limit of inotify
/// instances is the first thing that many nodes run out of.
const LAST_WORDS: &str = r#"
docker ps --all
for node in $(docker ps --all --quiet --filter label=io.x-k8s.kind.cluster); do
  docker logs --tail 15 "$node" 2>&1
  docker exec "$node" journalctl --no-pager --lines 25 --unit kubelet --unit containerd 2>&1
done
echo "inotify instances: $(find /proc/[0-9]*/fd -lname anon_inode:inotify 2>/dev/null | wc -l) in the box, $(cat /proc/sys/fs/inotify/max_user_instances) at most on the machine"
"#;

/// A running cluster, without a network of its own. Dropped, all of it ends.
#[derive(Debug)]
pub struct Cluster {
    container: Child,
    run: PathBuf,
    /// The box's first process, as this machine counts.
    pid: u32,
    progress: Progress,
    start: Instant,
}

impl Cluster {
    /// Builds what is missing, which takes minutes the first time, and makes the cluster that `config` describes, a file
    /// of `integration/kind`.
    ///
    /// # Errors
    /// No root, a Debian package that is missing (the error names it), or kind's own.
    pub fn create(config: &str, progress: Progress) -> Result<Cluster> {
        let mut container = Command::new(format!("{KIND}/box"))
            .args(["sh", "-c", r#"echo "$TWILL_KIND_RUN"; cat"#])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {KIND}/box"))?;
        let output = container.stdout.take().context("the box has no output")?;
        let mut run = String::new();
        BufReader::new(output).read_line(&mut run)?;
        ensure!(!run.is_empty(), "the box did not start: see above");
        let run = PathBuf::from(run.trim());
        let pid = first_process(&run)?;
        let cluster = Cluster {
            container,
            run,
            pid,
            progress,
            start: Instant::now(),
        };
        let step = progress.step("making a cluster of three nodes");
        cluster.make(config)?;
        step.done();
        Ok(cluster)
    }

    /// Has kind make the nodes. It gives a node's systemd 30 s from its start, whatever the machine has to do: nodes that
    /// took longer are made once more, when what they read is in memory. What does not start twice leaves its last words.
    fn make(&self, config: &str) -> Result<()> {
        let create = format!(
            "kind create cluster --retain --config {KIND}/{config} --image \"$KIND_IMAGE\""
        );
        let again = |error: anyhow::Error| {
            if !format!("{error:#}").contains(SLOW_START) {
                return Err(error);
            }
            self.progress
                .note("  the nodes' systemd took longer than kind waits: once more");
            self.shell("kind delete cluster --name twill")?;
            self.shell(&create)
        };
        self.shell(&create)
            .or_else(again)
            .map(drop)
            .map_err(|error| {
                let words = self.shell(LAST_WORDS).unwrap_or_default();
                error.context(format!("the nodes' last words:\n{words}"))
            })
    }

    /// Runs a line of shell in the box, where `kubectl`, `docker` and `kind` work.
    ///
    /// # Errors
    /// It fails; the error has what it said.
    pub fn shell(&self, line: &str) -> Result<String> {
        let output = self.command(line).output().context("cannot run nsenter")?;
        ensure!(
            output.status.success(),
            "`{line}` fails: {}{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A line of shell in the box, to run as one likes.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--net", "--pid", "--target"])
            .arg(self.pid.to_string())
            .args(["bash", "-c"])
            .arg(format!(". {}/environment; {line}", self.run.display()))
            .stdin(Stdio::null());
        command
    }

    /// `kubectl` with these arguments.
    ///
    /// # Errors
    /// As of [`Cluster::shell`].
    pub fn kubectl(&self, arguments: &str) -> Result<String> {
        self.shell(&format!("kubectl {arguments}"))
    }

    /// A line of shell on a node.
    ///
    /// # Errors
    /// As of [`Cluster::shell`].
    pub fn on(&self, node: &str, line: &str) -> Result<String> {
        let quoted = line.replace('\'', r"'\''");
        self.shell(&format!("docker exec {node} bash -c '{quoted}'"))
    }

    /// Brings an image archive to all nodes.
    ///
    /// # Errors
    /// As of [`Cluster::shell`].
    pub fn load(&self, archive: &str) -> Result<()> {
        self.shell(&format!("kind load image-archive {archive} --name twill"))?;
        Ok(())
    }

    /// Brings the image of flannel, kube-proxy and the reference plugins to all nodes.
    ///
    /// # Errors
    /// A program cannot be built, or the image not be made.
    pub fn load_upstream(&self) -> Result<()> {
        let built = |module, program: Program| -> Result<PathBuf> {
            Ok(upstream::assets(module, &[program], self.progress)?.join(program.name()))
        };
        let flannel = built(Module::Flannel, Program::Flannel)?;
        // Where all that is built once lies.
        let cache = flannel
            .parent()
            .and_then(Path::parent)
            .context("no cache")?;
        let mut command = Command::new(format!("{KIND}/upstream"));
        command.args([cache, &flannel]);
        command.arg(built(Module::Kubernetes, Program::KubeProxy)?);
        for plugin in [Program::Bridge, Program::HostLocal, Program::Portmap] {
            command.arg(built(Module::CniPlugins, plugin)?);
        }
        let image = command
            .arg(format!("{KIND}/flannel-cni"))
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run the script of upstream's image")?;
        ensure!(image.status.success(), "upstream's image cannot be made");
        self.load(String::from_utf8_lossy(&image.stdout).trim())
    }

    /// Applies a manifest of `integration/kind` that is to be told where the API server is: `flannel` or `kube-proxy`.
    ///
    /// # Errors
    /// As of [`Cluster::shell`].
    pub fn apply_upstream(&self, name: &str) -> Result<()> {
        let address = format!(
            "kubectl get node {} -o jsonpath='{{.status.addresses[0].address}}'",
            NODES[0]
        );
        self.shell(&format!(
            "sed s/API_SERVER/$({address})/ {KIND}/{name}.yaml | kubectl apply -f -"
        ))?;
        Ok(())
    }

    /// Waits until a `kubectl` question has the wished answer.
    ///
    /// # Errors
    /// It has not in `patience`; the error has the last answer.
    pub fn until(
        &self,
        what: &str,
        patience: Duration,
        question: &str,
        wish: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let step = self.progress.step(format!("waiting for {what}"));
        wait::until(what, patience, || {
            Ok(self.shell(question).and_then(|answer| {
                ensure!(wish(&answer), "`{question}` says:\n{answer}");
                Ok(())
            }))
        })?;
        step.done();
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The box waits for the end of its input, and cleans up.
        drop(self.container.stdin.take());
        let seconds = self.start.elapsed().as_secs();
        self.progress
            .note(&format!("  the cluster was there for {seconds} s"));
        if let Err(error) = self.container.wait() {
            eprintln!("the box of the cluster does not end: {error}");
        }
    }
}

/// The child of the `unshare` that the box has noted.
fn first_process(run: &Path) -> Result<u32> {
    let read = |path: String| {
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let unshare = read(format!("{}/unshare.pid", run.display()))?;
    let unshare = unshare.trim();
    let children = read(format!("/proc/{unshare}/task/{unshare}/children"))?;
    children.trim().parse().context("the box has no process")
}
