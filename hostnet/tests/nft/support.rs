//! A namespace with a connection to its nf_tables, the `nft` program in it, and a table that uses everything.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use hostnet::netns::NetNs;
use hostnet::nft::Selector::*;
use hostnet::nft::{
    CT_DNAT, CT_ESTABLISHED, CT_RELATED, Chain, Element, FIB_LOCAL, FieldType, Hook, Key, KeyType,
    NatFlags, Nft, Observed, Proto, Rule, Set, SetDecl, Table, Verdict, goto,
};
use hostnet::vocab::{Family, Subnet};

/// An empty namespace.
pub(crate) struct Space {
    ns: NetNs,
    pub(crate) nft: Nft,
}

impl Space {
    pub(crate) fn new() -> Space {
        let ns = NetNs::new_anonymous().expect("these tests need root, to make network namespaces");
        let nft = ns.run_in(Nft::open).unwrap().unwrap();
        Space { ns, nft }
    }

    /// A namespace in which `nft -f` has loaded this script.
    pub(crate) fn loaded(script: &str) -> Space {
        let space = Space::new();
        space.run_nft(&["-f", "-"], script);
        space
    }

    /// Runs something on this thread inside.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        self.ns.run_in(work).unwrap()
    }

    /// Runs `nft` inside; panics with its complaint if it fails.
    pub(crate) fn run_nft(&self, args: &[&str], input: &str) -> String {
        let run = || {
            let mut child = Command::new("nft")
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the program `nft` is needed: install the package nftables");
            child
                .stdin
                .take()
                .unwrap()
                .write_all(input.as_bytes())
                .unwrap();
            child.wait_with_output().unwrap()
        };
        let output = self.ns.run_in(run).unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "nft {args:?}: {complaint}\ninput:\n{input}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn list(&self) -> String {
        self.run_nft(&["list", "ruleset"], "")
    }

    pub(crate) fn observe(&mut self, table: &Table) -> Observed {
        self.nft.observe(&table.id).unwrap()
    }

    /// The table as the kernel has it; it must be there.
    pub(crate) fn table(&mut self, like: &Table) -> Table {
        self.observe(like).table.expect("the table is there")
    }
}

/// An address of the family: 10.0.0.N or fd00::N.
pub(crate) fn addr(family: Family, n: u16) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 0, (n >> 8) as u8, n as u8]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]),
    }
}

pub(crate) fn subnet(family: Family, v4: &str, v6: &str) -> Subnet {
    match family {
        Family::V4 => v4.parse().unwrap(),
        Family::V6 => v6.parse().unwrap(),
    }
}

/// A table with one of everything that the model has.
pub(crate) fn everything(family: Family) -> Table {
    let f = family;
    let addr_type = FieldType::addr(f);
    let a = |n| addr(f, n);
    let pods = subnet(f, "10.244.0.0/16", "fd01::/64");
    let odd = subnet(f, "172.16.0.0/12", "fe80::/10");
    let frontend = [addr_type, FieldType::InetProto, FieldType::InetService];

    let slots = SetDecl::map(
        "endpoints",
        KeyType::typeof_([Daddr(f), L4Proto, Dport, Random(1)]),
        KeyType::typeof_([Daddr(f), Dport]),
    );
    let vips = SetDecl::vmap("vips", KeyType::of(frontend)).comment("frontends");
    let ranges = [addr_type, FieldType::InetService, addr_type];
    Table::new(f, "everything")
        .comment("one of each")
        .set(
            Set::new(slots)
                .with(
                    (a(1), Proto::UDP, 53u16, 0u32),
                    Element::value((a(1000), 5353u16)).comment("kube-system/kube-dns:dns"),
                )
                .with(
                    (a(1), Proto::UDP, 53u16, 1u32),
                    Element::value((a(1001), 5353u16)),
                ),
        )
        .set(
            Set::new(vips)
                .with(
                    (a(1), Proto::UDP, 53u16),
                    Element::from(goto("lb-2")).comment("kube-dns"),
                )
                .with((a(1), Proto::TCP, 80u16), Verdict::Drop)
                .with((a(1), Proto::SCTP, 81u16), Verdict::Accept),
        )
        .set(
            Set::new(SetDecl::set("node-ips", KeyType::of([addr_type])))
                .with(a(7), ())
                .with(a(8), ()),
        )
        .set(
            Set::new(SetDecl::set(
                "protocols",
                KeyType::of([FieldType::InetProto]),
            ))
            .with(Proto::TCP, ())
            .with(Proto(47), ()),
        )
        .set(
            Set::new(
                SetDecl::set("ports", KeyType::of([FieldType::InetService])).comment("one field"),
            )
            .with(80u16, Element::new().comment("http")),
        )
        .set(
            Set::new(SetDecl::set(
                "masq-tcp",
                KeyType::of([addr_type, FieldType::InetService]),
            ))
            .with((a(1), 80u16), ()),
        )
        .set(
            Set::new(SetDecl::set(
                "device-marks",
                KeyType::of([FieldType::IfName, FieldType::Mark]),
            ))
            .with(("cni0", 0x4000u32), ()),
        )
        .set(
            Set::new(SetDecl::set("nets", KeyType::of([addr_type])).interval())
                .with(range(odd), Element::new().comment("odd"))
                .with(Key::range(a(20), a(29)), ())
                .with(a(31), ())
                .with(range(subnet(f, "255.0.0.0/8", "ff00::/8")), ()),
        )
        .set(
            Set::new(SetDecl::set("sources", KeyType::of(ranges)).interval())
                .with(
                    Key::range((a(1), 80u16, odd.base()), (a(1), 80u16, odd.last())),
                    (),
                )
                .with((a(1), 81u16, a(30)), Element::new().comment("only one")),
        )
        .set(
            SetDecl::set("clients", KeyType::typeof_([Saddr(f)]))
                .dynamic(Duration::from_secs(10_800), 65_536),
        )
        .chain(
            "prerouting",
            Chain::nat(Hook::Prerouting, -100)
                .comment("comes in")
                .rule(Rule::new().vmap([Daddr(f), L4Proto, Dport], "vips"))
                .rule(
                    Rule::new()
                        .eq(FibDaddrType, FIB_LOCAL)
                        .counter()
                        .accept()
                        .comment("ours"),
                ),
        )
        .chain(
            "postrouting",
            Chain::nat(Hook::Postrouting, 95)
                .rule(
                    Rule::new()
                        .eq(L4Proto, Proto::TCP)
                        .has(CtStatus, CT_DNAT)
                        .outside(Saddr(f), pods)
                        .in_set([CtOriginalDaddr(f), CtOriginalDport], "masq-tcp")
                        .masquerade(NatFlags::FULLY_RANDOM),
                )
                .rule(Rule::new().within(Saddr(f), odd).masquerade(NatFlags::NONE))
                .rule(
                    Rule::new()
                        .ne(OifName, "cni0")
                        .eq(IifName, "eth*")
                        .return_(),
                )
                .rule(
                    Rule::new()
                        .masked_eq(Mark, 0x4000, 0x4000)
                        .eq(Mark, 7u32)
                        .accept(),
                )
                .rule(
                    Rule::new()
                        .in_set([Saddr(f)], "nets")
                        .not_in_set([Daddr(f)], "node-ips")
                        .accept(),
                ),
        )
        .chain(
            "input",
            Chain::filter(Hook::Input, 0)
                .rule(
                    Rule::new()
                        .has(CtState, CT_ESTABLISHED | CT_RELATED)
                        .accept(),
                )
                .rule(
                    Rule::new()
                        .eq(L4Proto, Proto::UDP)
                        .in_set([Dport], "ports")
                        .drop(),
                )
                .rule(Rule::new().eq(L4Proto, Proto::TCP).reject_tcp_reset())
                .rule(Rule::new().within(CtOriginalSaddr(f), odd).reject(f)),
        )
        .chain(
            "lb-2",
            Chain::regular()
                .rule(Rule::new().dnat_to_map(
                    f,
                    [Daddr(f), L4Proto, Dport, Random(2)],
                    "endpoints",
                ))
                .rule(Rule::new().reject(f)),
        )
        .chain(
            "one",
            Chain::regular()
                .rule(
                    Rule::new()
                        .eq(L4Proto, Proto::TCP)
                        .in_set([Saddr(f)], "clients")
                        .update([Saddr(f)], "clients")
                        .dnat_to(a(9), Some(8080)),
                )
                .rule(Rule::new().eq(L4Proto, Proto::TCP).redirect(Some(80)))
                .rule(Rule::new().redirect(None)),
        )
        .chain(
            "output",
            Chain::nat(Hook::Output, -100)
                .rule(Rule::new().jump("lb-2"))
                .rule(Rule::new().goto("one")),
        )
}

/// All addresses of a subnet, as the key of an interval set.
pub(crate) fn range(subnet: Subnet) -> Key {
    Key::range(subnet.base(), subnet.last())
}
