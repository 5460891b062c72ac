//! `twill-cni` beside the reference `bridge` + `host-local`: how long a runtime waits for ADD and DEL.
//!
//! Both sides do the same work in the same run, in turn, each in a node namespace of its own, with
//! their data on tmpfs; the start of the processes counts, because a runtime waits for it too.

mod report;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hostnet::netns::NetNs;
use integration::programs;
use integration::progress::Progress;
use integration::upstream::{self, Module, Program};
use report::{Samples, table};
use serde_json::{Value, json};

const PODS: usize = 100;

/// One side of the comparison: a plugin with its configuration, in a node of its own.
struct Side {
    name: &'static str,
    node: NetNs,
    plugin: PathBuf,
    bin_dir: PathBuf,
    config: Value,
    add: Samples,
    del: Samples,
}

impl Side {
    /// Runs one verb as a runtime does, and returns how long it took.
    fn run(&self, verb: &str, id: &str, pod: &Path) -> Result<Duration> {
        let mut command = Command::new(&self.plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", pod)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let config = self.config.to_string();
        let started = Instant::now();
        let mut child = self.node.run_in(|| command.spawn())??;
        let mut stdin = child.stdin.take().context("the plugin's input")?;
        stdin.write_all(config.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let took = started.elapsed();
        ensure!(
            output.status.success(),
            "{} {verb} failed: {}",
            self.name,
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(took)
    }

    fn pod(&mut self, index: usize) -> Result<()> {
        let pod = NetNs::new_anonymous()?;
        let id = format!("pod-{index}");
        self.add.push(self.run("ADD", &id, &pod.fd_path())?);
        self.del.push(self.run("DEL", &id, &pod.fd_path())?);
        Ok(())
    }
}

fn main() -> Result<()> {
    programs::check_host()?;
    let progress = Progress::shown();
    let scratch =
        tempfile::tempdir_in("/dev/shm").context("the benchmark keeps its data on tmpfs")?;
    let mut sides = [twill(scratch.path())?, reference(scratch.path(), progress)?];

    let step = progress.step(format!("{PODS} pods on each side, in turn"));
    for index in 0..=PODS {
        for side in &mut sides {
            side.pod(index)?;
        }
        if index == 0 {
            // The first pod also makes the bridge.
            for side in &mut sides {
                side.add = Samples::default();
                side.del = Samples::default();
            }
        }
    }
    step.done();

    let [ours, theirs] = &sides;
    table(
        "CNI ADD",
        [(ours.name, &ours.add), (theirs.name, &theirs.add)],
    );
    table(
        "CNI DEL",
        [(ours.name, &ours.del), (theirs.name, &theirs.del)],
    );
    Ok(())
}

fn twill(scratch: &Path) -> Result<Side> {
    let dir = scratch.join("twill");
    std::fs::create_dir(&dir)?;
    let subnet_file = dir.join("subnet.env");
    #[expect(
        clippy::disallowed_methods,
        reason = "read by nobody before it is whole"
    )]
    std::fs::write(
        &subnet_file,
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )?;
    let bin_dir = programs::binaries()?;
    Ok(Side {
        name: "twill-cni",
        node: NetNs::new_anonymous()?,
        plugin: bin_dir.join("twill-cni"),
        bin_dir,
        config: json!({
            "cniVersion": "1.0.0",
            "name": "cbr0",
            "type": "twill-cni",
            "subnetFile": subnet_file,
            "dataDir": dir.join("flannel"),
            "stateDir": dir.join("attachments"),
            "ipam": {"dataDir": dir.join("networks")},
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        }),
        add: Samples::default(),
        del: Samples::default(),
    })
}

fn reference(scratch: &Path, progress: Progress) -> Result<Side> {
    let bin_dir = upstream::assets(
        Module::CniPlugins,
        &[Program::Bridge, Program::HostLocal],
        progress,
    )?;
    Ok(Side {
        name: "bridge + host-local",
        node: NetNs::new_anonymous()?,
        plugin: bin_dir.join("bridge"),
        bin_dir,
        config: json!({
            "cniVersion": "1.0.0",
            "name": "cbr0",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "isDefaultGateway": true,
            "hairpinMode": true,
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "dataDir": scratch.join("reference"),
                "ranges": [[{"subnet": "10.244.1.0/24"}]],
                "routes": [{"dst": "10.244.0.0/16"}],
            },
        }),
        add: Samples::default(),
        del: Samples::default(),
    })
}
