//! What a person finds in `kubectl describe`: what was left out, and why.

use super::*;

/// Waits until the proxy of `one` has written an Event of that reason about an object of that UID. Returns its note.
fn wait_event(lab: &Lab, reason: &str, uid: &str) -> String {
    wait::until(&format!("Event {reason}"), wait::PATIENCE, || {
        let events = lab.api().list::<Event>(None)?;
        let found = events.iter().find(|event| {
            event.reason.as_deref() == Some(reason)
                && event.reporting_instance.as_deref() == Some("one")
                && event.regarding.as_ref().and_then(|of| of.uid.as_deref()) == Some(uid)
        });
        let note = found.and_then(|event| event.note.clone());
        Ok(note.with_context(|| format!("{events:?}")))
    })
    .unwrap()
}

#[test]
fn what_cannot_be_had_is_an_event_and_had_once_it_is_free() {
    let lab = lab();
    let one = lab.node("one").unwrap();
    // A Node's Events are found by its name in place of its UID.
    wait_event(&lab, "Starting", "one");

    // Somebody else has the proxy's own ports.
    one.stop(Daemon::Proxy, Signal::SIGTERM).unwrap();
    let others = ["/opt/twill/lab", "serve", "other", "10256", "10249"];
    one.machine().spawn("other", &others, &[]).unwrap();
    let ours = |port: u16| {
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        http::get(one.machine().netns(), server, "/livez")
    };
    wait::until("another server", wait::PATIENCE, || Ok(ours(10_249))).unwrap();
    one.start(Daemon::Proxy).unwrap();
    for (reason, port) in [
        ("FailedToStartProxierHealthcheck", "10256"),
        ("FailedToStartMetricServer", "10249"),
    ] {
        let note = wait_event(&lab, reason, "one");
        assert!(note.contains(port), "{note}");
    }
    one.machine().stop("other", Signal::SIGKILL).unwrap();
    one.wait_ready(Daemon::Proxy).unwrap();
    wait::until("metrics", wait::PATIENCE, || Ok(one.metrics(Daemon::Proxy))).unwrap();

    // A Service's port for load balancers is another's, and its node port a pod's host port.
    let check = 30_090;
    let argv = ["/opt/twill/lab", "serve", "other", &check.to_string()];
    one.machine().spawn("other", &argv, &[]).unwrap();
    let load_balancer = SocketAddr::new(one.ip(), check);
    wait::until("another server", wait::PATIENCE, || {
        Ok(traffic::ask(
            lab.outside().netns(),
            Transport::Tcp,
            load_balancer,
        ))
    })
    .unwrap();
    let host_port = format!(
        "add table ip twill-cni; \
         add map ip twill-cni hostports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}; \
         add element ip twill-cni hostports {{ tcp . {NODE_PORT} comment \"a-pod\" : 10.244.1.9 . 80 }}\n"
    );
    one.machine().write("/tmp/host-port", &host_port).unwrap();
    one.machine().run("nft -f /tmp/host-port").unwrap();
    let spec = json!({
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": check,
        "ports": [{"port": 80, "targetPort": TARGET, "nodePort": NODE_PORT}],
    });
    let service = web_with(&lab, &spec, &["one"]);
    let uid = service.metadata.uid.unwrap();
    // It is said of the Service by its name, as kube-proxy does.
    let note = wait::until("Event about the health check", wait::PATIENCE, || {
        let events = lab.api().list::<Event>(Some("default"))?;
        let found = events.iter().find(|event| {
            event.reason.as_deref() == Some("FailedToStartServiceHealthcheck")
                && event.reporting_instance.as_deref() == Some("one")
        });
        Ok(found
            .and_then(|event| event.note.clone())
            .with_context(|| format!("{events:?}")))
    })
    .unwrap();
    assert!(
        note.contains("default/web") && note.contains(&check.to_string()),
        "{note}"
    );
    let note = wait_event(&lab, "NodePortIsHostPort", &uid);
    assert!(
        note.contains("a-pod") && note.contains(&NODE_PORT.to_string()),
        "{note}"
    );
    one.machine().stop("other", Signal::SIGKILL).unwrap();
    wait::until("answer to the load balancer", wait::PATIENCE, || {
        let answer = http::get(lab.outside().netns(), load_balancer, "/");
        Ok(answer.and_then(|answer| wait::holds(answer.status == 200, &answer.body)))
    })
    .unwrap();
}
