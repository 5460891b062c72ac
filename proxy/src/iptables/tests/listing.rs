//! The rules as people see them, of a plan that has each kind of frontend.

use crate::fixtures::{self, SEED};
use crate::iptables::{Naming, Options, rules};
use crate::plan::{NodePortAddresses, Planner, Settings};

fn document(options: &Options, yaml: &str, settings: &Settings) -> [String; 2] {
    let mut index = fixtures::index(yaml);
    rules(options, &fixtures::plan(&mut index, settings))
}

/// Pods are known by their network; node ports answer everywhere, as is this mode's default.
fn settings() -> Settings {
    Settings {
        node_port_addresses: NodePortAddresses::In(Vec::new()),
        ..fixtures::cluster_cidr("10.244.0.0/16")
    }
}

fn legacy() -> Options {
    Options {
        naming: Naming::Legacy,
        ..Options::default()
    }
}

#[test]
fn the_worked_example() {
    let settings = settings();
    let [v4, v6] = document(&Options::default(), SEED, &settings);
    insta::assert_snapshot!("worked_example", v4);
    assert!(
        !v6.contains("-j KUBE-SVC-"),
        "the example has no IPv6: {v6}"
    );
}

#[test]
fn the_worked_example_with_the_names_of_old() {
    let settings = settings();
    let [v4, _] = document(&legacy(), SEED, &settings);
    insta::assert_snapshot!("worked_example_legacy", v4);
}

/// Policy Local with a guard and with clients that stay, a Service without endpoints, and one with none here.
const VARIED: &str = include_str!("varied.yaml");

#[test]
fn every_kind_of_frontend() {
    let settings = settings();
    insta::assert_snapshot!(
        "varied",
        document(&Options::default(), VARIED, &settings).concat()
    );
    insta::assert_snapshot!("varied_legacy", document(&legacy(), VARIED, &settings)[0]);
}

#[test]
fn node_ports_at_some_addresses() {
    let at = |networks: &[&str], localhost_node_ports| {
        let options = Options {
            localhost_node_ports,
            ..Options::default()
        };
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        let mut planner = Planner::new(Settings {
            node_port_addresses: NodePortAddresses::In(networks),
            ..Settings::default()
        });
        planner.set_interfaces(
            ["127.0.0.1", "192.168.1.12", "10.9.0.1"]
                .map(|a| a.parse().unwrap())
                .into(),
        );
        let mut index = fixtures::index(SEED);
        let dirty = index.take_dirty();
        planner.update(&index, &dirty);
        let [v4, _] = rules(&options, planner.ruleset());
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
    let far: &[&str] = &["192.168.0.0/16"];
    assert_eq!(at(far, true), ("192.168.1.12/32".to_owned(), false));
    let near: &[&str] = &["192.168.0.0/16", "127.0.0.0/8"];
    assert_eq!(at(near, false), ("192.168.1.12/32".to_owned(), false));
    assert_eq!(
        at(near, true),
        ("127.0.0.1/32 192.168.1.12/32".to_owned(), true)
    );
    // By default at all of them, of which iptables knows by itself.
    assert_eq!(at(&[], true), (String::new(), true));
    assert_eq!(at(&[], false), ("127.0.0.0/8".to_owned(), false));
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
