//! What users get wrong: told in the log, by a pod that is not ready, and by an Event with the remedy; and no harm to
//! other nodes.

use std::net::{Ipv4Addr, SocketAddr};

use integration::machine::root;
use integration::testing::event;
use integration::traffic::{Stream, Transport};
use integration::{Daemon, Lab, Node, PodSpec, http, wait};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// What `/readyz` of flanneld's says.
fn readyz(node: &Node) -> anyhow::Result<http::Response> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 8081));
    http::get(node.machine().netns(), server, "/readyz")
}

/// Log, readiness and Event have these words.
fn told(lab: &Lab, node: &Node, reason: &str, words: &[&str]) {
    let note = event(lab, node.name(), reason);
    let log = node.log(Daemon::Flanneld);
    let ready = readyz(node).unwrap();
    assert_eq!(ready.status, 503, "{log}");
    for word in words {
        assert!(note.contains(word), "{word} in {note}");
        assert!(log.contains(word), "{word} in {log}");
        assert!(ready.body.contains(word), "{word} in {}", ready.body);
    }
}

/// flanneld on a node, with this configuration.
fn start(lab: &Lab, node: &Node, net_conf: &str) {
    node.provide(Daemon::Flanneld, lab.control_plane(), net_conf)
        .unwrap();
    node.start(Daemon::Flanneld).unwrap();
}

#[test]
fn what_users_get_wrong_is_told_and_harms_no_other_node() {
    let lab = Lab::builder()
        .node("good-1", &["10.244.1.0/24".parse().unwrap()])
        .node("good-2", &["10.244.2.0/24".parse().unwrap()])
        .node("outside-cidr", &["10.77.3.0/24".parse().unwrap()])
        .node("on-nodes", &[])
        .node("two-networks", &["10.244.6.0/24".parse().unwrap()])
        .node("no-rights", &["10.244.7.0/24".parse().unwrap()])
        .node("on-services", &[])
        .node("among-services", &[])
        .daemons(&[])
        .net_conf(NET_CONF)
        .up()
        .unwrap_or_else(|error| panic!("{error:#}"));
    let node = |name: &str| lab.node(name).unwrap();
    let good = ["good-1", "good-2"].map(node);
    for node in good {
        start(&lab, node, NET_CONF);
    }
    for node in good {
        node.wait_ready(Daemon::Flanneld).unwrap();
    }
    let pods = good.map(|node| {
        lab.run_pod(PodSpec::new(&format!("pod-{}", node.name()), node.name()))
            .unwrap()
    });
    let mut stream = Stream::start(pods[0].netns(), Transport::Tcp, pods[1].address()).unwrap();

    // spec.podCIDRs that the controller-manager took from elsewhere.
    let bad = node("outside-cidr");
    start(&lab, bad, NET_CONF);
    let words = ["10.77.3.0/24", "10.244.0.0/16", "--cluster-cidr"];
    told(&lab, bad, "SubnetUnusable", &words);

    // The pods' network is the nodes' own.
    let bad = node("on-nodes");
    start(
        &lab,
        bad,
        r#"{"Network": "172.30.0.0/16", "SubnetLen": 24}"#,
    );
    let own = bad.ip().to_string();
    let words = [&own, "172.30.0.0/16", "give Network in net-conf.json"];
    told(&lab, bad, "NetworkNotProgrammed", &words);

    // It holds the address of the Service `kubernetes`, which the lab has at the control plane's, but not the node's own.
    // Or it is part of the range of Services, which ServiceCIDRs alone tell.
    for (name, network, length, told_by) in [
        (
            "on-services",
            "172.30.0.0/28",
            30,
            "KUBERNETES_SERVICE_HOST",
        ),
        ("among-services", "10.104.0.0/16", 24, "10.96.0.0/12"),
    ] {
        let net_conf = json!({"Network": network, "SubnetLen": length});
        start(&lab, node(name), &net_conf.to_string());
        let words = [network, told_by, "give Network"];
        told(&lab, node(name), "NetworkCollision", &words);
    }

    // The runtime would make pods by another network's configuration.
    let bad = node("two-networks");
    let other = "/etc/cni/net.d/05-other.conflist";
    bad.machine().write(other, r#"{"name": "other"}"#).unwrap();
    start(&lab, bad, NET_CONF);
    told(
        &lab,
        bad,
        "OtherNetworkFirst",
        &[other, "remove it", "cbr0"],
    );
    bad.machine().run(&format!("rm {other}")).unwrap();
    bad.wait_ready(Daemon::Flanneld).unwrap();

    // Its ServiceAccount may write Events, and nothing else.
    let bad = node("no-rights");
    let token = powerless(&lab);
    bad.provide(Daemon::Flanneld, lab.control_plane(), NET_CONF)
        .unwrap();
    let account = "/var/lib/kubelet/accounts/flanneld/token";
    bad.machine().write(account, &token).unwrap();
    bad.start(Daemon::Flanneld).unwrap();
    let words = ["missing permission", "apply the RBAC"];
    told(&lab, bad, "MissingPermission", &words);
    wait::until("what cannot be listed", wait::PATIENCE, || {
        let body = readyz(bad)?.body;
        let is_told = body.contains("Nodes and Leases are not listed yet: missing permission");
        Ok(wait::holds(is_told, &body))
    })
    .unwrap();

    stream.wait_for(50, wait::PATIENCE).unwrap();
    let report = stream.finish().unwrap();
    assert!(report.lost.is_empty(), "{report:?}");
    for node in good {
        assert_eq!(readyz(node).unwrap().status, 200, "{}", node.name());
    }
}

/// The token of an account that may write Events.
fn powerless(lab: &Lab) -> String {
    let (namespace, name) = ("kube-system", "powerless");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace}});
    let rbac = "rbac.authorization.k8s.io";
    let role = json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role",
        "metadata": {"name": name, "namespace": "default"},
        "rules": [{"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}]});
    let binding: Value = json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": "default"},
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]});
    for object in [account, role, binding] {
        lab.api().apply(&object).unwrap();
    }
    let answer = lab.api().call(async move |client| {
        let api = Api::<ServiceAccount>::namespaced(client, namespace);
        let request = TokenRequest::default();
        api.create_token_request(name, &PostParams::default(), &request)
            .await
    });
    answer.unwrap().status.unwrap().token
}

#[test]
fn what_keeps_services_from_a_node_is_told_and_harms_no_other() {
    let lab = Lab::builder()
        .node("good", &[])
        .node("incapable", &[])
        .node("refused", &[])
        .daemons(&[])
        .up()
        .unwrap();
    let [good, bad, refused] = ["good", "incapable", "refused"].map(|name| lab.node(name).unwrap());
    // A manifest without the capability that nf_tables asks for.
    let argv = bad.proxy_argv(Daemon::Proxy.name(), "nftables");
    let argv: Vec<&str> = ["setpriv", "--bounding-set=-net_admin"]
        .into_iter()
        .chain(argv.iter().map(String::as_str))
        .collect();
    bad.machine()
        .spawn(Daemon::Proxy.name(), &argv, &[])
        .unwrap();
    good.provide(Daemon::Proxy, lab.control_plane(), NET_CONF)
        .unwrap();
    good.start(Daemon::Proxy).unwrap();

    // Its ServiceAccount may write Events, and nothing else.
    refused
        .provide(Daemon::Proxy, lab.control_plane(), NET_CONF)
        .unwrap();
    let account = "/var/lib/kubelet/accounts/twill-proxy/token";
    refused.machine().write(account, &powerless(&lab)).unwrap();
    refused.start(Daemon::Proxy).unwrap();

    for (node, reason, remedy) in [
        (bad, "RulesNotProgrammed", "CAP_NET_ADMIN is needed"),
        (refused, "MissingPermission", "apply the RBAC"),
    ] {
        let note = event(&lab, node.name(), reason);
        for said in [note, node.log(Daemon::Proxy)] {
            assert!(said.contains(remedy), "{said}");
        }
        let healthz = SocketAddr::from((Ipv4Addr::LOCALHOST, 10256));
        let answer = http::get(node.machine().netns(), healthz, "/healthz").unwrap();
        assert_eq!(answer.status, 503, "{}", answer.body);
    }
    good.wait_ready(Daemon::Proxy).unwrap();
}

#[test]
fn an_old_kernel_is_named_at_the_start() {
    let lab = Lab::builder().node("old", &[]).daemons(&[]).up().unwrap();
    let machine = lab.nodes()[0].machine();
    machine.write("/tmp/net-conf.json", NET_CONF).unwrap();
    for daemon in [
        "flanneld --node-name=old --net-config-path=/tmp/net-conf.json --kube-api-url=none",
        "twill-proxy --hostname-override=old --init-only",
    ] {
        let script = format!("exec setarch --uname-2.6 {}/{daemon}", root::BINARIES);
        let output = machine.command("sh").args(["-c", &script]).output();
        let output = output.unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("this is Linux 2.6."), "{said}");
        assert!(said.contains("5.13 or later is needed"), "{said}");
    }
}
