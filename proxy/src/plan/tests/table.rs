//! The Service contract, row by row: what is in the API, and what the plan makes of it on k8s-node-2.

use crate::fixtures;
use crate::plan::{Planner, Settings};

const READY: &str = "{ready: true, serving: true, terminating: false}";
const STOPPING: &str = "{ready: false, serving: true, terminating: true}";
const STOPPED: &str = "{ready: false, serving: false, terminating: true}";
const NOT_READY: &str = "{ready: false, serving: false, terminating: false}";

/// A Service `shop/web` with one port; `spec` is further fields, a flow mapping's inside.
fn service(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{clusterIPs: [10.96.1.1], ports: [{{name: http, port: 80, nodePort: 30080}}], {spec}}}\n---\n"
    )
}

/// A slice of `shop/web` at port 8080.
fn slice(name: &str, endpoints: &[String]) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
         endpoints: [{}]\n---\n",
        endpoints.join(", ")
    )
}

/// An endpoint on the first or the second worker; the test's own node is the second.
fn on(node: u8, address: &str, conditions: &str) -> String {
    format!("{{addresses: [{address}], conditions: {conditions}, nodeName: k8s-node-{node}}}")
}

/// The same, with hints.
fn hinted(node: u8, address: &str, hints: &str) -> String {
    format!(
        "{{addresses: [{address}], conditions: {READY}, nodeName: k8s-node-{node}, hints: {{{hints}}}}}"
    )
}

/// The plan of these objects beside a Node in zone-b, less its first lines.
#[track_caller]
fn check(objects: &str, expected: &str) {
    check_with(&fixtures::cluster_cidr("10.244.0.0/16"), objects, expected);
}

#[track_caller]
fn check_with(settings: &Settings, objects: &str, expected: &str) {
    let node = "kind: Node\nmetadata: {name: k8s-node-2, labels: {topology.kubernetes.io/zone: zone-b}}\n---\n";
    let mut index = fixtures::index(&format!("{node}{objects}"));
    let ruleset = fixtures::plan(&mut index, settings).to_string();
    let ports: Vec<_> = (ruleset.lines())
        .filter(|line| !line.contains(": pods "))
        .map(|line| format!("{line}\n"))
        .collect();
    let expected: String = expected
        .lines()
        .skip(1)
        .map(|line| format!("{}\n", line.trim_start()))
        .collect();
    let found: String = ports
        .concat()
        .lines()
        .map(|line| format!("{}\n", line.trim_start()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn cluster_ip_and_node_port() {
    check(
        &(service("type: NodePort")
            + &slice(
                "a",
                &[on(1, "10.244.1.1", READY), on(2, "10.244.3.1", READY)],
            )),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.1.1:8080, 10.244.3.1:8080 (local)",
    );
}

#[test]
fn masquerade_all() {
    let settings = Settings {
        masquerade_all: true,
        ..Settings::default()
    };
    check_with(
        &settings,
        &(service("") + &slice("a", &[on(1, "10.244.1.1", READY)])),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.1.1:8080",
    );
}

#[test]
fn affinity_has_the_given_or_the_usual_timeout() {
    let endpoints = slice("a", &[on(1, "10.244.1.1", READY)]);
    let expected = |seconds| {
        format!(
            "
            shop/web:http/tcp, clients stay {seconds} s
            cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
            node port 30080 -> cluster, masquerade all
            cluster: 10.244.1.1:8080"
        )
    };
    check(
        &(service("sessionAffinity: ClientIP") + &endpoints),
        &expected(10_800),
    );
    let config =
        "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}";
    check(&(service(config) + &endpoints), &expected(60));
}

#[test]
fn no_endpoints_anywhere_is_a_reject_under_every_policy() {
    for policy in [
        "",
        "internalTrafficPolicy: Local",
        "externalTrafficPolicy: Local",
    ] {
        let masquerade = if policy.starts_with("ext") {
            "this node"
        } else {
            "all"
        };
        for endpoints in [
            vec![],
            vec![on(2, "10.244.3.1", NOT_READY), on(1, "10.244.1.1", STOPPED)],
        ] {
            check(
                &(service(policy) + &slice("a", &endpoints)),
                &format!(
                    "
                    shop/web:http/tcp
                    cluster IP 10.96.1.1:80 -> reject, masquerade all but pods
                    node port 30080 -> reject, masquerade {masquerade}"
                ),
            );
        }
    }
}

#[test]
fn internal_policy_local() {
    let policy = service("internalTrafficPolicy: Local");
    check(
        &(policy.clone()
            + &slice(
                "a",
                &[on(1, "10.244.1.1", READY), on(2, "10.244.3.1", READY)],
            )),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> local, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.1.1:8080, 10.244.3.1:8080 (local)
        local: 10.244.3.1:8080 (local)",
    );
    check(
        &(policy + &slice("a", &[on(1, "10.244.1.1", READY)])),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> drop, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.1.1:8080",
    );
}

#[test]
fn external_policy_local() {
    let policy = service("externalTrafficPolicy: Local");
    check(
        &(policy.clone()
            + &slice(
                "a",
                &[on(1, "10.244.1.1", READY), on(2, "10.244.3.1", READY)],
            )),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster from inside, local from outside, masquerade this node
        cluster: 10.244.1.1:8080, 10.244.3.1:8080 (local)
        local: 10.244.3.1:8080 (local)",
    );
    check(
        &(policy + &slice("a", &[on(1, "10.244.1.1", READY)])),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster from inside, drop from outside, masquerade this node
        cluster: 10.244.1.1:8080",
    );
}

#[test]
fn terminating_endpoints_serve_while_none_is_ready() {
    check(
        &(service("")
            + &slice(
                "a",
                &[on(1, "10.244.1.1", STOPPING), on(2, "10.244.3.1", READY)],
            )),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.3.1:8080 (local)",
    );
    check(
        &(service("")
            + &slice(
                "a",
                &[on(1, "10.244.1.1", STOPPING), on(2, "10.244.3.1", STOPPED)],
            )),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.1.1:8080",
    );
}

#[test]
fn each_view_falls_back_to_terminating_endpoints_by_itself() {
    check(
        &(service("externalTrafficPolicy: Local")
            + &slice(
                "a",
                &[on(1, "10.244.1.1", READY), on(2, "10.244.3.1", STOPPING)],
            )),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster from inside, local from outside, masquerade this node
        cluster: 10.244.1.1:8080
        local: 10.244.3.1:8080 (local)",
    );
}

#[test]
fn absent_conditions_mean_ready() {
    check(
        &(service("") + &slice("a", &[on(1, "10.244.1.1", "{}")])),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.1.1:8080",
    );
}

#[test]
fn hints_narrow_to_the_node_then_to_the_zone_and_only_if_all_have_them() {
    let to = |endpoints: &[String], expected: &str| {
        check(
            &(service("") + &slice("a", endpoints)),
            &format!(
                "
                shop/web:http/tcp
                cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
                node port 30080 -> cluster, masquerade all
                cluster: {expected}"
            ),
        );
    };
    let zone =
        |node, address, zone| hinted(node, address, &format!("forZones: [{{name: {zone}}}]"));
    to(
        &[
            zone(1, "10.244.1.1", "zone-a"),
            zone(2, "10.244.3.1", "zone-b"),
        ],
        "10.244.3.1:8080 (local)",
    );
    to(
        &[
            zone(1, "10.244.1.1", "zone-a"),
            zone(2, "10.244.3.1", "zone-c"),
        ],
        "10.244.1.1:8080, 10.244.3.1:8080 (local)",
    );
    to(
        &[on(1, "10.244.1.1", READY), zone(2, "10.244.3.1", "zone-b")],
        "10.244.1.1:8080, 10.244.3.1:8080 (local)",
    );
    let both = |node, address, of| {
        hinted(
            node,
            address,
            &format!("forZones: [{{name: zone-b}}], forNodes: [{{name: k8s-node-{of}}}]"),
        )
    };
    to(
        &[both(1, "10.244.1.1", 1), both(2, "10.244.3.1", 2)],
        "10.244.3.1:8080 (local)",
    );
    to(
        &[both(1, "10.244.1.1", 1), both(2, "10.244.3.1", 3)],
        "10.244.1.1:8080, 10.244.3.1:8080 (local)",
    );
    // A hint of an endpoint that gets no traffic does not count.
    to(
        &[
            zone(1, "10.244.1.1", "zone-b"),
            on(2, "10.244.3.1", STOPPING),
        ],
        "10.244.1.1:8080",
    );
}

#[test]
fn slices_are_joined_and_duplicates_counted_once_in_their_best_state() {
    check(
        &(service("")
            + &slice(
                "a",
                &[on(1, "10.244.1.1", NOT_READY), on(2, "10.244.3.1", READY)],
            )
            + &slice(
                "b",
                &[on(1, "10.244.1.1", READY), on(1, "10.244.1.2", READY)],
            )),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.1.1:8080, 10.244.1.2:8080, 10.244.3.1:8080 (local)",
    );
}

#[test]
fn slices_of_other_families_ports_and_kinds_are_left_out() {
    let ready = slice("a", &[on(1, "10.244.1.1", READY)]);
    let others = [
        ready.replace("addressType: IPv4", "addressType: IPv6"),
        ready.replace("addressType: IPv4", "addressType: FQDN"),
        ready.replace("name: http", "name: https"),
        ready.replace("name: http,", "name: http, protocol: UDP,"),
        ready.replace("port: 8080", "port: null"),
        ready.replace("port: 8080", "port: 0"),
        ready.replace("service-name: web", "service-name: other"),
        ready.replace("labels: {", "labels: {service.kubernetes.io/headless: '', "),
        ready.replace("namespace: shop", "namespace: other"),
        ready.replace("10.244.1.1", "127.0.0.1"),
        ready.replace("10.244.1.1", "169.254.169.254"),
        ready.replace("10.244.1.1", "0.0.0.0"),
        ready.replace("10.244.1.1", "224.0.0.1"),
        ready.replace("10.244.1.1", "no-address"),
        ready.replace("[10.244.1.1]", "[]"),
    ];
    for other in others {
        check(
            &(service("") + &other),
            "
            shop/web:http/tcp
            cluster IP 10.96.1.1:80 -> reject, masquerade all but pods
            node port 30080 -> reject, masquerade all",
        );
    }
}

#[test]
fn services_that_are_not_ours_have_no_plan() {
    let ready = slice("a", &[on(1, "10.244.1.1", READY)]);
    let served = service("");
    let others = [
        served.replace("[10.96.1.1]", "[None]"),
        served.replace("clusterIPs: [10.96.1.1]", "clusterIP: None"),
        served.replace("clusterIPs: [10.96.1.1]", "clusterIP: ''"),
        service("type: ExternalName, externalName: example.com"),
        served.replace(
            "namespace: shop",
            "namespace: shop, labels: {service.kubernetes.io/service-proxy-name: x}",
        ),
        served.replace("port: 80,", "port: 0,"),
        served.replace("port: 80,", "port: 80, protocol: DCCP,"),
    ];
    for other in others {
        check(&(other + &ready), "");
    }
}

#[test]
fn a_headless_label_on_a_service_with_a_cluster_ip_changes_nothing() {
    check(
        &service("").replace(
            "namespace: shop",
            "namespace: shop, labels: {service.kubernetes.io/headless: ''}",
        ),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> reject, masquerade all but pods
        node port 30080 -> reject, masquerade all",
    );
}

#[test]
fn one_number_on_three_protocols_is_three_service_ports() {
    let ports = "ports: [{name: t, port: 53, protocol: TCP}, {name: u, port: 53, protocol: UDP}, \
                 {name: s, port: 53, protocol: SCTP}]";
    check(
        &service("").replace("ports: [{name: http, port: 80, nodePort: 30080}]", ports),
        "
        shop/web:s/sctp
        cluster IP 10.96.1.1:53 -> reject, masquerade all but pods
        shop/web:t/tcp
        cluster IP 10.96.1.1:53 -> reject, masquerade all but pods
        shop/web:u/udp
        cluster IP 10.96.1.1:53 -> reject, masquerade all but pods",
    );
}

#[test]
fn a_dual_stack_service_has_a_plan_in_each_family() {
    let v6 = slice("b", &[on(1, "'fd00:10:244:1::1'", READY)]).replace("IPv4", "IPv6");
    check(
        &(service("").replace("[10.96.1.1]", "[10.96.1.1, 'fd00:10:96::1']")
            + &slice("a", &[on(1, "10.244.1.1", READY)])
            + &v6),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: 10.244.1.1:8080
        shop/web:http/tcp
        cluster IP [fd00:10:96::1]:80 -> cluster, masquerade all but pods
        node port 30080 -> cluster, masquerade all
        cluster: [fd00:10:244:1::1]:8080",
    );
}

#[test]
fn the_older_of_two_services_has_a_node_port_that_both_claim() {
    let older = service("").replace(
        "name: web,",
        "name: web, creationTimestamp: '2026-01-01T00:00:00Z',",
    );
    let younger = service("")
        .replace(
            "name: web,",
            "name: a-web, creationTimestamp: '2026-01-02T00:00:00Z',",
        )
        .replace("10.96.1.1", "10.96.1.2");
    check(
        &(younger.clone() + &older),
        "
        shop/a-web:http/tcp
        cluster IP 10.96.1.2:80 -> reject, masquerade all but pods
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> reject, masquerade all but pods
        node port 30080 -> reject, masquerade all",
    );
    check(
        &younger,
        "
        shop/a-web:http/tcp
        cluster IP 10.96.1.2:80 -> reject, masquerade all but pods
        node port 30080 -> reject, masquerade all",
    );
}

/// The same Service with addresses outside the cluster.
fn external(spec: &str, status: &str) -> String {
    service(spec).replace(
        "\n---",
        &format!("\nstatus: {{loadBalancer: {{ingress: [{status}]}}}}\n---"),
    )
}

#[test]
fn load_balancers_and_external_addresses() {
    let both = slice(
        "a",
        &[on(1, "10.244.1.1", READY), on(2, "10.244.3.1", READY)],
    );
    // A host name and a proxying balancer have no rule; an address that is there twice is guarded if either is.
    let status = "{ip: 172.16.0.1}, {ip: 172.16.0.2, ipMode: VIP}, {ip: 172.16.0.3, ipMode: Proxy}, \
                  {hostname: lb.example}, {ip: 127.0.0.1}, {ip: 'fd00::1'}";
    let spec = "type: LoadBalancer, externalTrafficPolicy: Local, externalIPs: [172.16.0.2, 172.16.0.9, '', 10.96.1.1], \
                loadBalancerSourceRanges: [' 10.0.0.0/8', 10.1.0.0/16, 192.0.2.7/24, '::/0']";
    check(
        &(external(spec, status) + &both),
        "
        shop/web:http/tcp
        cluster IP 10.96.1.1:80 -> cluster, masquerade all but pods
        load balancer 172.16.0.1:80 -> cluster from inside, local from outside, masquerade this node, only from 10.0.0.0/8, 192.0.2.0/24
        load balancer 172.16.0.2:80 -> cluster from inside, local from outside, masquerade this node, only from 10.0.0.0/8, 192.0.2.0/24
        external IP 172.16.0.9:80 -> cluster from inside, local from outside, masquerade this node
        node port 30080 -> cluster from inside, local from outside, masquerade this node
        cluster: 10.244.1.1:8080, 10.244.3.1:8080 (local)
        local: 10.244.3.1:8080 (local)",
    );
}

#[test]
fn a_node_that_may_come_in_may_also_come_by_the_address_itself() {
    let node = "kind: Node\nmetadata: {name: k8s-node-2}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.5}]}\n---\n";
    let service = external(
        "loadBalancerSourceRanges: [10.0.0.0/24]",
        "{ip: 172.16.0.1}",
    );
    let mut index = fixtures::index(&format!("{service}{node}"));
    let plan = fixtures::plan(&mut index, &Settings::default()).to_string();
    assert!(
        plan.contains("only from 10.0.0.0/24, 172.16.0.1/32"),
        "{plan}"
    );
}

#[test]
fn udp_flows_may_go_on_to_all_that_serve() {
    let slice = slice(
        "a",
        &[
            on(1, "10.244.1.1", READY),
            on(1, "10.244.1.2", STOPPING),
            on(1, "10.244.1.3", STOPPED),
            on(1, "10.244.1.4", NOT_READY),
        ],
    );
    let serving = |protocol: &str| {
        let udp =
            |text: &str| text.replace("name: http", &format!("name: http, protocol: {protocol}"));
        let mut index = fixtures::index(&(udp(&service("type: ClusterIP")) + &udp(&slice)));
        let plan = fixtures::plan(&mut index, &Settings::default());
        let port = plan.v4.ports.values().next().unwrap().clone();
        port.serving
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(serving("UDP"), ["10.244.1.1:8080", "10.244.1.2:8080"]);
    assert_eq!(serving("TCP"), [""; 0]);
}

#[test]
fn a_cluster_ip_belongs_to_its_service_whoever_claims_it() {
    let of = |name: &str, created: &str, ip: &str, external: &str| {
        format!(
            "kind: Service\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\n\
             spec: {{clusterIPs: [{ip}], externalIPs: [{external}], ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let mut index = fixtures::index(
        &(of(
            "thief",
            "2026-01-01T00:00:00Z",
            "10.96.1.1",
            "10.96.1.2, 172.16.0.1",
        ) + &of("owner", "2026-01-02T00:00:00Z", "10.96.1.2", "172.16.0.1")),
    );
    let mut planner = Planner::new(Settings::default());
    let dirty = index.take_dirty();
    planner.update(&index, &dirty);
    let told: Vec<String> = (planner.take_new_conflicts().iter())
        .map(|c| format!("{} not at {:?}, but {}", c.loser, c.frontend.at, c.owner))
        .collect();
    assert_eq!(
        told,
        [
            "shop/owner/tcp not at ExternalIp(172.16.0.1), but shop/thief/tcp",
            "shop/thief/tcp not at ExternalIp(10.96.1.2), but shop/owner/tcp",
        ]
    );
    // They are told once, and end with what caused them.
    fixtures::removes(&of("owner", "", "10.96.1.2", ""))
        .into_iter()
        .for_each(|update| index.update(update));
    let dirty = index.take_dirty();
    planner.update(&index, &dirty);
    assert!(planner.take_new_conflicts().is_empty() && planner.conflicts().is_empty());
}

#[test]
fn load_balancers_are_told_of_ready_endpoints_of_this_node_alone() {
    let told = |slices: &str| {
        let spec = "externalTrafficPolicy: Local, healthCheckNodePort: 30100";
        let mut index = fixtures::index(&(service(spec) + slices));
        let mut planner = Planner::new(Settings::default());
        let dirty = index.take_dirty();
        planner.update(&index, &dirty);
        planner.take_checks().unwrap().services[&30_100].local_endpoints
    };
    let endpoint = |state| on(2, "10.244.3.1", state);
    let elsewhere = on(1, "10.244.1.1", READY);
    assert_eq!(told(&slice("a", &[elsewhere, endpoint(READY)])), 1);
    for state in [STOPPING, STOPPED, NOT_READY] {
        assert_eq!(told(&slice("a", &[endpoint(state)])), 0, "{state}");
    }
    // One pod is one endpoint, however many slices name it.
    let twice = slice("a", &[endpoint(READY)]) + &slice("b", &[endpoint(READY)]);
    assert_eq!(told(&twice), 1);
}
