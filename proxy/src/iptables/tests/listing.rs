//! The rules as people see them, of a plan that has each kind of frontend.

use crate::fixtures::{self, SEED};
use crate::iptables::{Naming, NodePorts, Options, rules};
use crate::plan::Settings;

fn document(options: &Options, yaml: &str, settings: &Settings) -> [String; 2] {
    let mut index = fixtures::index(yaml);
    rules(options, &fixtures::plan(&mut index, settings))
}

fn legacy() -> Options {
    Options {
        naming: Naming::Legacy,
        ..Options::default()
    }
}

#[test]
fn the_worked_example() {
    let settings = fixtures::cluster_cidr("10.244.0.0/16");
    let [v4, v6] = document(&Options::default(), SEED, &settings);
    insta::assert_snapshot!("worked_example", v4);
    assert!(
        !v6.contains("-j KUBE-SVC-"),
        "the example has no IPv6: {v6}"
    );
}

#[test]
fn the_worked_example_with_the_names_of_old() {
    let settings = fixtures::cluster_cidr("10.244.0.0/16");
    let [v4, _] = document(&legacy(), SEED, &settings);
    insta::assert_snapshot!("worked_example_legacy", v4);
}

/// Policy Local with a guard and with clients that stay, a Service without endpoints, and one with none here.
const VARIED: &str = include_str!("varied.yaml");

#[test]
fn every_kind_of_frontend() {
    let settings = fixtures::cluster_cidr("10.244.0.0/16");
    insta::assert_snapshot!(
        "varied",
        document(&Options::default(), VARIED, &settings).concat()
    );
    insta::assert_snapshot!("varied_legacy", document(&legacy(), VARIED, &settings)[0]);
}

#[test]
fn node_ports_at_some_addresses() {
    let settings = fixtures::cluster_cidr("10.244.0.0/16");
    let at = |loopback, localhost_node_ports| {
        let options = Options {
            localhost_node_ports,
            node_ports: [NodePorts::Listed { loopback }; 2],
            ..Options::default()
        };
        let [v4, _] = document(&options, SEED, &settings);
        let rules = v4
            .lines()
            .filter(|line| line.ends_with("-j KUBE-NODEPORTS"));
        let addresses = rules.filter_map(|line| line.split(" -d ").nth(1)?.split(' ').next());
        let firewall = v4.contains("block incoming localnet connections");
        (
            addresses.map(str::to_owned).collect::<Vec<_>>().join(" "),
            firewall,
        )
    };
    assert_eq!(at(false, true), ("192.168.1.12/32".to_owned(), false));
    assert_eq!(at(true, false), ("192.168.1.12/32".to_owned(), false));
    assert_eq!(
        at(true, true),
        ("127.0.0.1/32 192.168.1.12/32".to_owned(), true)
    );
}

#[test]
fn above_a_thousand_endpoints_they_have_no_comments() {
    let settings = Settings::default();
    let with = |endpoints: usize| {
        let endpoints: Vec<_> = (0..endpoints)
            .map(|n| format!("{{addresses: ['10.244.{}.{}']}}", n / 250, n % 250 + 1))
            .collect();
        let yaml = format!(
            "kind: Service\n\
             metadata: {{name: web, namespace: shop}}\n\
             spec: {{clusterIPs: [10.96.0.7], ports: [{{port: 80}}]}}\n\
             ---\n\
             kind: EndpointSlice\n\
             metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: IPv4\n\
             ports: [{{port: 8080}}]\n\
             endpoints: [{}]\n",
            endpoints.join(", ")
        );
        let [v4, _] = document(&Options::default(), &yaml, &settings);
        v4.matches("shop/web").count()
    };
    // Two in each endpoint's chain, one in the one that leads there, and the cluster IP's own.
    assert_eq!(with(1000), 3001);
    assert_eq!(with(1001), 1);
}
