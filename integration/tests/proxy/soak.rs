//! Random changes through the API, random kills, random drift, for a bounded time, with traffic to a Service that
//! nobody touches. `TWILL_SOAK_STEPS` makes it longer, `TWILL_SOAK_SEED` repeats one.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use fastrand::Rng;
use serde_json::Value;

use super::*;

const STEPS: usize = 60;
/// After so many steps the kernel is compared with the objects.
const CHECK: usize = 15;

fn setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// A Service such as a user might write, one of few.
fn any_service(rng: &mut Rng) -> Value {
    let number = rng.u8(0..6);
    let kind = ["ClusterIP", "NodePort", "LoadBalancer"][rng.usize(0..3)];
    let is_local = rng.bool();
    let policy = |is_local| if is_local { "Local" } else { "Cluster" };
    let ports: Vec<Value> = (0..rng.u16(1..4))
        .map(|port| {
            let protocol = ["TCP", "UDP", "SCTP"][rng.usize(0..3)];
            json!({"name": format!("p{port}"), "port": 80 + port, "protocol": protocol})
        })
        .collect();
    let mut spec = json!({
        "type": kind,
        "ports": ports,
        "internalTrafficPolicy": policy(rng.u8(0..4) == 0),
        "sessionAffinity": if rng.u8(0..3) == 0 { "ClientIP" } else { "None" },
        "externalIPs": (0..rng.u8(0..3)).map(|_| format!("203.0.113.{}", rng.u8(1..5))).collect::<Vec<_>>(),
    });
    if kind != "ClusterIP" {
        spec["externalTrafficPolicy"] = policy(is_local).into();
    }
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": format!("soak-{number}"), "namespace": "default"},
        "spec": spec,
    });
    if kind == "LoadBalancer" {
        if rng.bool() {
            let ranges: Vec<String> = (0..rng.u8(1..4))
                .map(|n| format!("172.{}.0.0/{}", 16 + n, rng.u8(8..25)))
                .collect();
            service["spec"]["loadBalancerSourceRanges"] = ranges.into();
        }
        let ingress = json!([{"ip": format!("198.51.100.{number}"), "ipMode": if rng.u8(0..4) == 0 { "Proxy" } else { "VIP" }}]);
        service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    }
    service
}

/// A slice of one of these Services; it may move from one to another.
fn any_slice(rng: &mut Rng) -> Value {
    let name = format!("soak-{}", rng.u8(0..8));
    let endpoints: Vec<Value> = (0..rng.u8(0..7))
        .map(|_| {
            let address = format!("10.244.{}.{}", rng.u8(0..2), rng.u8(1..6));
            let (ready, serving) = (rng.u8(0..4) > 0, rng.bool());
            json!({
                "addresses": [address],
                "nodeName": if rng.bool() { "one" } else { "two" },
                "conditions": {"ready": ready, "serving": ready || serving, "terminating": !ready},
            })
        })
        .collect();
    let protocol = ["TCP", "UDP", "SCTP"][rng.usize(0..3)];
    let ports: Vec<Value> = (0..3)
        .map(|port| json!({"name": format!("p{port}"), "port": 8080 + port, "protocol": protocol}))
        .collect();
    let labels = json!({"kubernetes.io/service-name": format!("soak-{}", rng.u8(0..6))});
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    })
}

/// Waits until the kernel holds what the objects in the API make.
fn wait_equal(lab: &Lab, node: &Node) {
    let machine = node.machine();
    let render = "/opt/twill/twill-proxy render --diff --objects /tmp/soak --node one --cluster-cidr=10.244.0.0/16";
    machine.run("mkdir -p /tmp/soak").unwrap();
    wait::until("the kernel as the objects say", wait::PATIENCE * 2, || {
        for (name, path) in [
            ("services", "/api/v1/services"),
            ("slices", "/apis/discovery.k8s.io/v1/endpointslices"),
            ("nodes", "/api/v1/nodes"),
            ("cidrs", "/apis/networking.k8s.io/v1/servicecidrs"),
        ] {
            let list = lab.api().get_raw(path)?;
            machine.write(&format!("/tmp/soak/{name}.json"), &list)?;
        }
        Ok(machine.run(render))
    })
    .unwrap();
}

#[test]
fn random_changes_and_kills_harm_no_other_service() {
    let seed = setting("TWILL_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = setting("TWILL_SOAK_STEPS").unwrap_or(STEPS);
    eprintln!("TWILL_SOAK_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let lab = lab();
    let one = lab.node("one").unwrap();
    let stable = web(&lab, &["two"]);
    for transport in Transport::ALL {
        wait_for(one.machine(), transport, cluster_ip(&stable), "two");
    }

    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut applied, mut kills) = (0, 0);
    let errors = std::thread::scope(|scope| {
        let ask = |transport| {
            let mut errors = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match answer_from(one.machine(), transport, cluster_ip(&stable), "two") {
                    Ok(_) => drop(answers.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => errors.push(format!("{transport}: {error:#}")),
                }
            }
            errors
        };
        let streams = Transport::ALL.map(|transport| scope.spawn(move || ask(transport)));
        let _stopped = Stopped(&stop);
        for step in 1..=steps {
            let done = match rng.u8(0..20) {
                0..6 => lab.api().apply(&any_service(&mut rng)).is_ok(),
                6..14 => lab.api().apply(&any_slice(&mut rng)).is_ok(),
                14..16 => {
                    let name = format!("soak-{}", rng.u8(0..6));
                    lab.api().delete::<Service>(Some("default"), &name).is_ok()
                }
                16 => {
                    let name = format!("soak-{}", rng.u8(0..8));
                    lab.api()
                        .delete::<EndpointSlice>(Some("default"), &name)
                        .is_ok()
                }
                17 => {
                    let drift = format!(
                        "nft add element ip twill-proxy nodeport-ips '{{ 192.0.2.{} }}'",
                        rng.u8(1..9)
                    );
                    one.machine().run(&drift).is_ok()
                }
                _ => {
                    one.stop(Daemon::Proxy, Signal::SIGKILL).unwrap();
                    one.start(Daemon::Proxy).unwrap();
                    kills += 1;
                    true
                }
            };
            applied += usize::from(done);
            if step % CHECK == 0 || step == steps {
                one.wait_ready(Daemon::Proxy).unwrap();
                wait_equal(&lab, one);
            }
        }
        stop.store(true, Ordering::Relaxed);
        streams.map(|stream| stream.join().unwrap()).concat()
    });
    let answers = answers.into_inner();
    eprintln!(
        "{applied} of {steps} changes were taken, {kills} of them kills; {answers} answers meanwhile"
    );
    assert_eq!(errors, [] as [&str; 0], "TWILL_SOAK_SEED={seed}");
    assert!(
        applied > steps / 2 && answers > steps,
        "{applied} {answers}"
    );
}

/// Ends the traffic also where a step fails.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
