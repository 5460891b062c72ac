//! What nf_tables costs over netlink, and by the `nft` program for comparison: a verdict map of many elements put
//! in, read back, and changed by one element. In private network namespaces; needs root and `nft`.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use divan::Bencher;
use hostnet::netns::NetNs;
use hostnet::nft::{
    Chain, Changes, Element, FieldType, Key, KeyType, Nft, Op, Proto, Rule, Set, SetDecl, Table,
    diff, goto,
};
use hostnet::vocab::Family;

const SIZES: [u32; 2] = [1_000, 10_000];

fn main() {
    divan::main();
}

/// A verdict map as twill-proxy has it, of this many services.
fn table(services: u32) -> Table {
    let key = KeyType::of([
        FieldType::Ipv4Addr,
        FieldType::InetProto,
        FieldType::InetService,
    ]);
    let mut vips = Set::new(SetDecl::vmap("vips", key));
    for n in 0..services {
        vips.insert(vip(n), element(n));
    }
    Table::new(Family::V4, "bench")
        .set(vips)
        .chain("lb-2", Chain::regular().rule(Rule::new().drop()))
}

fn vip(n: u32) -> Key {
    Key::from((Ipv4Addr::from(0x0a60_0000 + n), Proto::TCP, 443_u16))
}

fn element(n: u32) -> Element {
    Element::from(goto("lb-2")).comment(format!("namespace-{}/service-{n}:https", n % 100))
}

/// A new namespace, and its nf_tables.
fn space() -> (NetNs, Nft) {
    let ns = NetNs::new_anonymous().expect("needs root, to make network namespaces");
    let nft = ns.run_in(Nft::open).unwrap().unwrap();
    (ns, nft)
}

/// With the table in it.
fn loaded(services: u32) -> (NetNs, Nft) {
    let (ns, mut nft) = space();
    nft.apply(&diff(None, table(services))).unwrap();
    (ns, nft)
}

#[divan::bench(args = SIZES, sample_count = 20)]
fn load(bencher: Bencher, services: u32) {
    let changes = diff(None, table(services));
    bencher
        .with_inputs(space)
        .bench_local_refs(|(_, nft)| nft.apply(&changes).unwrap());
}

#[divan::bench(args = SIZES, sample_count = 5)]
fn load_by_the_nft_program(bencher: Bencher, services: u32) {
    let script = diff(None, table(services)).to_string();
    bencher.with_inputs(space).bench_local_refs(|(ns, _)| {
        let mut child = ns
            .run_in(|| {
                Command::new("nft")
                    .args(["-f", "-"])
                    .stdin(Stdio::piped())
                    .spawn()
            })
            .unwrap()
            .expect("the program `nft` is needed: install the package nftables");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success());
    });
}

#[divan::bench(args = SIZES, sample_count = 20)]
fn read_back(bencher: Bencher, services: u32) {
    let table = table(services);
    let (_ns, mut nft) = loaded(services);
    bencher.bench_local(|| nft.observe(&table.id).unwrap());
}

#[divan::bench(args = SIZES, sample_count = 100)]
fn replace_one_element(bencher: Bencher, services: u32) {
    let table = table(services);
    let (_ns, mut nft) = loaded(services);
    let mut n = 0;
    bencher.bench_local(|| {
        n = (n + 1) % services;
        let decl = table.sets["vips"].decl.clone();
        let op = Op::ReplaceElement(decl, vip(n), element(n));
        nft.apply(&Changes {
            table: table.id.clone(),
            ops: vec![op],
        })
        .unwrap();
    });
}
