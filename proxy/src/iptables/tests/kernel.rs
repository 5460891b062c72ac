//! What the kernel holds after each call, by both of its iptables: read back with the programs that people use.

use hostnet::testkit::{Ns, require_tool};
use hostnet::vocab::Family;

use crate::backend::Backend;
use crate::fixtures::{self, SEED};
use crate::iptables::{IptablesBackend, IptablesError, Naming, Options, Variant};
use crate::plan::{Delta, NodePortAddresses, Ruleset, Settings};

const VARIED: &str = include_str!("varied.yaml");
const VARIANTS: [Variant; 2] = [Variant::Nft, Variant::Legacy];

fn plan(yaml: &str) -> Ruleset {
    plan_at(yaml, NodePortAddresses::In(Vec::new()))
}

/// With node ports at these addresses.
fn plan_at(yaml: &str, node_port_addresses: NodePortAddresses) -> Ruleset {
    let mut index = fixtures::index(yaml);
    let settings = Settings {
        node_port_addresses,
        ..fixtures::cluster_cidr("10.244.0.0/16")
    };
    fixtures::plan(&mut index, &settings)
}

fn both() -> Ruleset {
    plan(&format!("{SEED}\n---\n{VARIED}"))
}

/// A node with a backend, and rules of somebody else's.
struct Node {
    ns: Ns,
    variant: Variant,
    options: Options,
    backend: IptablesBackend,
}

impl Node {
    fn new(variant: Variant, options: Options) -> Node {
        require_tool("iptables-nft-restore", "iptables");
        require_tool("iptables-legacy-restore", "iptables");
        let node = Node {
            ns: Ns::new("iptables"),
            variant,
            backend: IptablesBackend::new(options.clone(), variant),
            options,
        };
        for family in Family::ALL {
            node.iptables(family, "-t nat -N OTHERS");
            node.iptables(family, "-t nat -A PREROUTING -j OTHERS");
            node.iptables(family, "-A FORWARD -i lo -j DROP");
        }
        node
    }

    fn program(&self, family: Family, command: &str) -> String {
        let six = if family == Family::V6 { "6" } else { "" };
        format!("ip{six}tables-{}{command}", self.variant.as_str())
    }

    fn iptables(&self, family: Family, arguments: &str) {
        let arguments: Vec<_> = arguments.split(' ').collect();
        self.ns.sh(&self.program(family, ""), &arguments);
    }

    /// All rules and chains, without counters and comments.
    fn saved(&self) -> Vec<String> {
        let texts = Family::ALL.map(|family| self.ns.sh(&self.program(family, "-save"), &[]));
        let lines = texts.iter().flat_map(|text| text.lines());
        lines
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
            .collect()
    }

    fn replace(&mut self, plan: &Ruleset) -> Result<usize, IptablesError> {
        let backend = &mut self.backend;
        self.ns
            .run(|| backend.replace(plan))
            .map(|applied| applied.ops)
    }

    fn update(&mut self, before: &Ruleset, after: &Ruleset) -> Result<usize, IptablesError> {
        let backend = &mut self.backend;
        let delta = Delta::between(before, after);
        self.ns
            .run(|| backend.update(&delta))
            .map(|applied| applied.ops)
    }

    /// How much a process that has just been started would change.
    fn restarted(&mut self, plan: &Ruleset) -> usize {
        self.backend = IptablesBackend::new(self.options.clone(), self.variant);
        self.replace(plan).unwrap()
    }
}

fn legacy_names() -> Options {
    Options {
        naming: Naming::Legacy,
        ..Options::default()
    }
}

fn for_each(check: impl Fn(Node)) {
    for variant in VARIANTS {
        for options in [Options::default(), legacy_names()] {
            check(Node::new(variant, options));
        }
    }
}

#[test]
fn what_is_written_is_what_is_saved_so_that_a_restart_changes_nothing() {
    for_each(|mut node| {
        assert!(node.ns.run(|| node.backend.is_bare()).unwrap());
        assert!(node.replace(&both()).unwrap() > 0);
        let saved = node.saved();
        assert!(saved.iter().any(|line| line.contains("recent --rcheck")));
        assert_eq!(node.replace(&both()).unwrap(), 0, "{:?}", node.variant);
        assert_eq!(node.restarted(&both()), 0, "{:?}", node.variant);
        assert_eq!(node.saved(), saved);
        assert!(!node.ns.run(|| node.backend.is_bare()).unwrap());
    });
}

#[test]
fn changes_lead_to_what_a_full_pass_would_make() {
    let plans = [
        both(),
        plan(SEED),
        plan(&SEED.replace("10.244.3.81", "10.244.3.82")),
        plan_at(SEED, NodePortAddresses::Primary),
        plan_at(
            &SEED.replace("192.168.1.12", "192.168.1.13"),
            NodePortAddresses::Primary,
        ),
        plan(VARIED),
        Ruleset::default(),
        both(),
    ];
    for options in [Options::default(), legacy_names()] {
        let mut node = Node::new(Variant::Nft, options);
        node.replace(&plans[0]).unwrap();
        for pair in plans.windows(2) {
            assert!(node.update(&pair[0], &pair[1]).unwrap() > 0);
            let mut other = Node::new(Variant::Nft, node.options.clone());
            other.replace(&pair[1]).unwrap();
            let sorted = |node: &Node| {
                let mut lines = node.saved();
                lines.sort();
                lines
            };
            assert_eq!(sorted(&node), sorted(&other));
        }
        assert_eq!(node.restarted(&plans[plans.len() - 1]), 0);
    }
}

#[test]
fn another_endpoint_changes_no_chain_but_its_services_own() {
    let (before, after) = (
        plan(SEED),
        plan(&SEED.replace("10.244.3.81", "10.244.3.82")),
    );
    let mut node = Node::new(Variant::Nft, Options::default());
    node.replace(&before).unwrap();
    // The chain that balances, the new endpoint's, and the old one's, which goes.
    assert_eq!(node.update(&before, &after).unwrap(), 3);
}

#[test]
fn what_others_changed_is_repaired_and_what_is_theirs_stays() {
    for_each(|mut node| {
        node.replace(&both()).unwrap();
        let saved = node.saved();
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        for drift in [
            "-t nat -F",
            "-t nat -F KUBE-SERVICES",
            "-t nat -I KUBE-MARK-MASQ -j RETURN",
            "-t nat -D POSTROUTING 1",
            "-D FORWARD 1",
            "-A INPUT -j KUBE-SERVICES",
        ] {
            for family in Family::ALL {
                node.iptables(family, drift);
                if drift == "-t nat -F" {
                    node.iptables(family, "-t nat -A PREROUTING -j OTHERS");
                }
            }
            assert!(node.replace(&both()).unwrap() > 0, "{drift}");
            assert_eq!(sorted(node.saved()), sorted(saved.clone()), "{drift}");
        }
        // Order matters where a packet may end: ours comes first again.
        let first = |chain: &str| {
            let rule = format!("-A {chain} ");
            node.saved()
                .into_iter()
                .find(|line| line.starts_with(&rule))
                .unwrap()
        };
        assert!(first("PREROUTING").ends_with("-j KUBE-SERVICES"));
        assert!(first("FORWARD").ends_with("-j KUBE-PROXY-FIREWALL"));
    });
}

#[test]
fn cleanup_leaves_what_is_others_and_nothing_else() {
    for_each(|mut node| {
        let before = node.saved();
        node.replace(&both()).unwrap();
        let cleanup = |node: &mut Node| {
            let backend = &mut node.backend;
            node.ns.run(|| backend.cleanup()).unwrap().ops
        };
        assert!(cleanup(&mut node) > 0);
        let rules = |lines: Vec<String>| -> Vec<String> {
            // Tables that were loaded for us stay, empty.
            let is_rule = |line: &String| {
                line.starts_with("-A") || line.contains("KUBE") || line.contains("OTHERS")
            };
            lines.into_iter().filter(is_rule).collect()
        };
        assert_eq!(rules(node.saved()), rules(before));
        assert_eq!(cleanup(&mut node), 0);
    });
}

#[test]
fn a_kubelets_firewall_stays_after_cleanup() {
    let mut node = Node::new(Variant::Nft, Options::default());
    node.iptables(Family::V4, "-t mangle -N KUBE-KUBELET-CANARY");
    node.replace(&both()).unwrap();
    let backend = &mut node.backend;
    node.ns.run(|| backend.cleanup()).unwrap();
    let kept: Vec<_> = node
        .saved()
        .into_iter()
        .filter(|line| line.contains("KUBE-"))
        .collect();
    assert_eq!(kept.len(), 5, "{kept:#?}");
    assert!(
        kept.iter()
            .filter(|line| line.contains("KUBE-FIREWALL"))
            .count()
            == 4
    );
}

#[test]
fn a_refused_document_names_the_rule_and_leaves_the_table_as_it_was() {
    for variant in VARIANTS {
        let mut node = Node::new(variant, Options::default());
        node.replace(&both()).unwrap();
        // Somebody else leads into a chain of ours, which then cannot go.
        node.iptables(Family::V4, "-t nat -A OTHERS -j KUBE-SVC-I6CTHWSTJGL5RHWT");
        let saved = node.saved();
        let error = node.update(&both(), &plan(VARIED)).unwrap_err();
        let text = crate::run::chain(&error);
        let wanted = match variant {
            Variant::Nft => {
                "CHAIN_DEL failed (Device or resource busy): chain KUBE-SVC-I6CTHWSTJGL5RHWT"
            }
            Variant::Legacy => "`-X KUBE-SVC-I6CTHWSTJGL5RHWT`",
        };
        assert!(text.contains(wanted), "{text}");
        assert!(
            text.starts_with("program IPv4 services: iptables-"),
            "{text}"
        );
        let nat = |lines: Vec<String>| -> Vec<String> {
            lines
                .into_iter()
                .filter(|line| line.contains("KUBE-SV") || line.contains("KUBE-SEP"))
                .collect()
        };
        assert!(nat(node.saved()) == nat(saved), "the table was changed");
        assert!(matches!(
            node.update(&both(), &plan(SEED)),
            Err(IptablesError::Unknown(Family::V4))
        ));
        node.iptables(Family::V4, "-t nat -F OTHERS");
        assert!(node.replace(&plan(VARIED)).unwrap() > 0);
        assert_eq!(node.restarted(&plan(VARIED)), 0);
    }
}

#[test]
fn the_hosts_own_iptables_is_chosen() {
    let of = |prepare: &[(&str, &str)]| {
        let ns = Ns::new("variant");
        for (program, arguments) in prepare {
            ns.sh(program, &arguments.split(' ').collect::<Vec<_>>());
        }
        ns.run(Variant::of_host)
    };
    assert_eq!(of(&[]), Variant::Nft);
    let legacy = ("iptables-legacy", "-t nat -N DOCKER");
    let nft = ("iptables-nft", "-t nat -N DOCKER");
    assert_eq!(of(&[legacy]), Variant::Legacy);
    assert_eq!(of(&[legacy, nft]), Variant::Nft);
    let hint = ("iptables-legacy", "-t mangle -N KUBE-IPTABLES-HINT");
    assert_eq!(of(&[nft, hint]), Variant::Legacy);
    let kubelet = ("iptables-nft", "-t mangle -N KUBE-KUBELET-CANARY");
    assert_eq!(of(&[hint, kubelet]), Variant::Nft);
}

#[test]
fn a_variant_that_the_hosts_hints_speak_against_is_found() {
    let of = |hints: &[&str]| {
        let ns = Ns::new("variant");
        for program in hints {
            ns.sh(program, &["-t", "mangle", "-N", "KUBE-KUBELET-CANARY"]);
        }
        ns.run(|| VARIANTS.map(Variant::contradicted))
    };
    let (nft, legacy) = ("iptables-nft", "iptables-legacy");
    assert_eq!(of(&[]), [None, None]);
    assert_eq!(of(&[nft]), [None, Some(Variant::Nft)]);
    assert_eq!(of(&[legacy]), [Some(Variant::Legacy), None]);
    assert_eq!(of(&[nft, legacy]), [None, None]);
}

#[test]
fn a_chain_of_our_name_that_iptables_cannot_change_is_named_and_nothing_is_done() {
    require_tool("nft", "nftables");
    let mut node = Node::new(Variant::Nft, Options::default());
    let chain = "KUBE-SERVICES { type nat hook prerouting priority -100; }";
    node.ns.sh("nft", &["add", "chain", "ip", "nat", chain]);
    let rules = |node: &Node| {
        ["nat", "filter"].map(|table| node.ns.sh("nft", &["list", "table", "ip", table]))
    };
    let before = rules(&node);
    let text = crate::run::chain(&node.replace(&both()).unwrap_err());
    assert!(
        text.contains("chain KUBE-SERVICES is another program's, which iptables cannot change: rename or delete it"),
        "{text}"
    );
    assert_eq!(rules(&node), before);
    // The other family is served all the same.
    assert!(
        node.saved()
            .iter()
            .any(|line| line.contains("-A KUBE-SERVICES -d fd00:"))
    );
    node.ns
        .sh("nft", &["delete", "chain", "ip", "nat", "KUBE-SERVICES"]);
    assert!(node.replace(&both()).unwrap() > 0);
    assert_eq!(node.restarted(&both()), 0);
}
