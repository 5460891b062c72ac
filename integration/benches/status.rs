//! What `twill status` takes on a cluster of many nodes: time until it has printed, and memory at most. The API server, its
//! etcd, the objects and one node with its daemons are real; the kubelets of the other nodes are one server that forwards
//! ports as kubelets do, and answers with what that node's daemons have said.

mod report;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{SinkExt as _, StreamExt as _};
use integration::machine::Machine;
use integration::progress::Progress;
use integration::{Lab, http, wait};
use report::{Samples, table};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

/// Nodes that are objects, with a kubelet that is none.
const NODES: u8 = 100;
/// What a kubelet says of a node's images, in bytes.
const IMAGES: usize = 50_000;
/// What a kubelet and its runtime take until they have connected to a port in a pod.
const DELAY: Duration = Duration::from_millis(10);
/// How often it is measured.
const RUNS: usize = 10;
/// Where a kubelet listens.
const KUBELET: u16 = 10_250;
/// Where the daemons answer, with what.
const QUESTIONS: [(&str, u16, &str); 4] = [
    ("flanneld", 8082, "/metrics"),
    ("flanneld", 8081, "/readyz"),
    ("twill-proxy", 10_249, "/metrics"),
    ("twill-proxy", 10_256, "/healthz"),
];

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn main() -> Result<()> {
    let progress = Progress::shown();
    let lab = Lab::builder()
        .progress(progress)
        .node("real", &["10.244.200.0/24".parse()?])
        .up()?;
    let real = lab.node("real")?.machine();
    let step = progress.step(format!("{NODES} Nodes with the pods of their daemons"));
    for n in 1..=NODES {
        lab.api().apply(&node(n))?;
        for (daemon, port, _) in QUESTIONS {
            if port != 8081 && port != 10_256 {
                lab.api().apply(&pod(n, daemon))?;
            }
        }
    }
    step.done();
    let step = progress.step("peers, and what the daemons say");
    let programmed = format!("flanneld_peers{{family=\"ipv4\"}} {NODES}\n");
    wait::until("all peers", wait::PATIENCE, || {
        let said = ask(real, 8082, "/metrics")?;
        Ok(wait::holds(said.contains(&programmed), &said))
    })?;
    let answers: Result<BTreeMap<u16, String>> = (QUESTIONS.iter())
        .map(|(_, port, path)| Ok((*port, ask(real, *port, path)?)))
        .collect();
    let machine = &lab.control_plane().machine;
    // The other nodes' addresses, from where the API server looks.
    machine.run("ip route add local 172.31.0.0/16 dev lo")?;
    let kubelets = Kubelets::start(machine, answers?)?;
    step.done();

    let (mut times, mut most) = (Samples::default(), 0);
    for _ in 0..RUNS {
        let (took, memory) = status(real)?;
        times.push(took);
        most = most.max(memory);
    }
    drop(kubelets);
    table(&format!("status, {} nodes", NODES + 1), [("twill", &times)]);
    println!("  peak RSS {:.1} MiB", most as f64 / 1024.0);
    Ok(())
}

/// Runs `twill status`: how long it takes, and the KiB that it has at most.
fn status(machine: &Machine) -> Result<(Duration, u64)> {
    let mut command = machine.command("/opt/twill/twill");
    command
        .arg("status")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn()?;
    let mut output = child.stdout.take().context("no output")?;
    let reading = std::thread::spawn(move || -> std::io::Result<(String, Duration)> {
        let mut text = String::new();
        output.read_to_string(&mut text)?;
        Ok((text, started.elapsed()))
    });
    let mut memory = 0;
    let status = loop {
        memory = memory.max(peak(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        #[expect(clippy::disallowed_methods, reason = "how exact the memory is")]
        std::thread::sleep(Duration::from_millis(5));
    };
    let (text, took) = reading
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let all = format!("{0} of {0} nodes are well", NODES + 1);
    ensure!(status.success() && text.contains(&all), "{text}");
    Ok((took, memory))
}

/// What the child of this process has had at most: `nsenter` runs the program in a child of its own.
fn peak(of: u32) -> Option<u64> {
    let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    let child = children.split_whitespace().next()?;
    let status = std::fs::read_to_string(format!("/proc/{child}/status")).ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim_end_matches("kB").trim().parse().ok()
}

fn ask(machine: &Machine, port: u16, path: &str) -> Result<String> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(http::get(machine.netns(), server, path)?.body)
}

/// A Node as its kubelet and flanneld write it.
fn node(n: u8) -> Value {
    let subnet = format!("10.244.{n}.0/24");
    let address = Ipv4Addr::new(172, 31, 0, n);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("node-{n}"), "annotations": {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:{n:02x}\"}}"),
            "flannel.alpha.coreos.com/public-ip": address,
        }},
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "images": [{"names": ["i".repeat(IMAGES)], "sizeBytes": 1}],
        },
    })
}

/// A pod of a daemon, as its kubelet reports it.
fn pod(n: u8, daemon: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{daemon}-{n}"), "namespace": "kube-system", "labels": {
            "app.kubernetes.io/name": "twill", "app.kubernetes.io/component": daemon,
        }},
        "spec": {
            "nodeName": format!("node-{n}"), "hostNetwork": true,
            "containers": [{"name": daemon, "image": "twill:0.1.0"}],
        },
        "status": {"phase": "Running"},
    })
}

/// What stands in for the kubelets. It ends when dropped.
struct Kubelets(#[expect(dead_code, reason = "held")] tokio::runtime::Runtime);

impl Kubelets {
    /// On all addresses of a machine, with the certificate of its API server.
    fn start(machine: &Machine, answers: BTreeMap<u16, String>) -> Result<Kubelets> {
        let file = |name: &str| machine.path(format!("/etc/kubernetes/pki/apiserver.{name}"));
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file("crt"))?.collect();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain?, PrivateKeyDer::from_pem_file(file("key"))?)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, KUBELET));
        let listener = machine.netns().run_in(bind)??;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let answers = Arc::new(answers);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                let (acceptor, answers) = (acceptor.clone(), Arc::clone(&answers));
                tokio::spawn(async move {
                    if let Err(error) = forward(stream, acceptor, &answers).await {
                        eprintln!("kubelet: {error:#}");
                    }
                });
            }
            #[expect(unreachable_code, reason = "the type of the errors")]
            Ok::<(), std::io::Error>(())
        });
        Ok(Kubelets(runtime))
    }
}

/// Forwards the ports of one pod: two channels for each, which begin with the port's number.
async fn forward(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    answers: &BTreeMap<u16, String>,
) -> Result<()> {
    // As Go's servers do.
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let mut asked = String::new();
    #[expect(clippy::result_large_err, reason = "it is the library's")]
    let agree = |request: &Request, mut response: Response| {
        let query = request.uri().query().unwrap_or_default();
        let ports = query.split('&').find_map(|pair| pair.strip_prefix("port="));
        asked = ports.unwrap_or_default().replace("%2C", ",");
        let protocol = "v4.channel.k8s.io".parse().expect("it is one");
        response
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, agree).await?;
    let ports: Result<Vec<u16>, _> = asked.split(',').map(str::parse).collect();
    let ports = ports.with_context(|| format!("ports {asked:?}"))?;
    #[expect(clippy::disallowed_methods, reason = "it is what a kubelet takes")]
    tokio::time::sleep(DELAY).await;
    for (n, port) in (0_u8..).zip(&ports) {
        let [low, high] = port.to_le_bytes();
        for channel in [2 * n, 2 * n + 1] {
            let first = Message::binary(vec![channel, low, high]);
            socket.send(first).await?;
        }
    }
    let mut requests: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    // Who has asked enough just goes.
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(data) = message else {
            continue;
        };
        let (channel, text) = data.split_first().context("no channel")?;
        let request = requests.entry(*channel).or_default();
        request.extend(text);
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        request.clear();
        let port = ports
            .get(usize::from(channel / 2))
            .context("no port's channel")?;
        let body = answers.get(port).with_context(|| format!("port {port}"))?;
        let mut answer = vec![*channel];
        answer.extend(
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .bytes(),
        );
        socket.send(Message::binary(answer)).await?;
    }
    Ok(())
}
