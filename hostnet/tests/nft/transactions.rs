//! Transactions: all or nothing, errors that name the operation, changes that others make.

use hostnet::nft::{
    Chain, Changes, Element, Error, FieldType, Hook, Key, KeyType, Monitor, Op, Proto, Rule,
    Selector, Set, SetDecl, Table, Verdict, diff, goto,
};
use hostnet::vocab::Family;
use nix::errno::Errno;

use crate::support::{Space, addr, everything};

const V4: Family = Family::V4;

/// A table with a verdict map of this many elements, each with a comment, that lead to one chain.
fn with_elements(count: u16) -> Table {
    let key = KeyType::of([
        FieldType::Ipv4Addr,
        FieldType::InetProto,
        FieldType::InetService,
    ]);
    let mut vips = Set::new(SetDecl::vmap("vips", key));
    for n in 0..count {
        let element = Element::from(goto("lb-2")).comment(format!("namespace/service-{n}:http"));
        vips.insert((addr(V4, n), Proto::TCP, 80u16), element);
    }
    Table::new(V4, "twill-test")
        .set(vips)
        .chain("lb-2", Chain::regular().rule(Rule::new().drop()))
        .chain(
            "prerouting",
            Chain::nat(Hook::Prerouting, -100).rule(Rule::new().vmap(
                [Selector::Daddr(V4), Selector::L4Proto, Selector::Dport],
                "vips",
            )),
        )
}

#[test]
fn ten_thousand_elements_go_in_by_one_transaction_and_read_back() {
    let desired = with_elements(10_000);
    let mut space = Space::new();
    let before = space.nft.generation().unwrap();
    space.nft.apply(&diff(None, desired.clone())).unwrap();
    assert_eq!(space.nft.generation().unwrap(), before + 1);
    assert_eq!(space.table(&desired), desired);
}

#[test]
fn only_what_differs_is_changed() {
    let old = with_elements(3);
    let mut new = old.clone();
    let vips = new.sets.get_mut("vips").unwrap();
    vips.insert((addr(V4, 1), Proto::TCP, 80u16), Verdict::Drop);
    vips.insert((addr(V4, 9), Proto::UDP, 53u16), Verdict::Accept);
    vips.elements
        .remove(&Key::from((addr(V4, 0), Proto::TCP, 80u16)));

    let mut space = Space::new();
    space.nft.converge(&old).unwrap();
    let done = space.nft.converge(&new).unwrap();
    assert_eq!(
        done.to_string(),
        "delete element ip twill-test vips { 10.0.0.1 . tcp . 80 }\n\
         add element ip twill-test vips { 10.0.0.1 . tcp . 80 : drop }\n\
         add element ip twill-test vips { 10.0.0.9 . udp . 53 : accept }\n\
         delete element ip twill-test vips { 10.0.0.0 . tcp . 80 }"
    );
    assert_eq!(space.table(&new), new);
}

#[test]
fn an_element_that_is_there_already_is_named() {
    let table = with_elements(2_500);
    let mut space = Space::new();
    space.nft.converge(&table).unwrap();

    // New ones around one that is there, so that it is in the middle of a list.
    let decl = table.sets["vips"].decl.clone();
    let mut changes = Changes::new(table.id.clone());
    for n in [5_000, 5_001, 2_345, 5_002] {
        let key = Key::from((addr(V4, n), Proto::TCP, 80u16));
        changes
            .ops
            .push(Op::AddElement(decl.clone(), key, goto("lb-2").into()));
    }
    let error = space.nft.apply(&changes).unwrap_err();
    assert!(error.is_surprise());
    assert_eq!(
        error.to_string(),
        "nf_tables: table ip twill-test: nothing changed, the kernel refused \
         `add element ip twill-test vips { 10.0.9.41 . tcp . 80 : goto lb-2 }`: EEXIST (File exists)"
    );
    assert_eq!(
        space.table(&table),
        table,
        "nothing of a refused transaction was done"
    );
}

#[test]
fn an_element_that_is_not_there_is_named() {
    let table = with_elements(2);
    let mut space = Space::new();
    space.nft.converge(&table).unwrap();
    let decl = table.sets["vips"].decl.clone();
    let mut changes = Changes::new(table.id.clone());
    for n in [0, 7] {
        let key = Key::from((addr(V4, n), Proto::TCP, 80u16));
        changes.ops.push(Op::DeleteElement(decl.clone(), key));
    }
    let error = space.nft.apply(&changes).unwrap_err();
    let Error::Refused { refusals, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(refusals[0].errno, Errno::ENOENT);
    assert_eq!(
        refusals[0].operation,
        "delete element ip twill-test vips { 10.0.0.7 . tcp . 80 }"
    );
    assert_eq!(space.table(&table), table);
}

#[test]
fn a_verdict_that_leads_nowhere_is_named() {
    let mut table = with_elements(1);
    let vips = table.sets.get_mut("vips").unwrap();
    vips.insert((addr(V4, 3), Proto::TCP, 80u16), goto("no-such-chain"));
    let mut space = Space::new();
    let error = space.nft.apply(&diff(None, table.clone())).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("10.0.0.3 . tcp . 80 : goto no-such-chain"),
        "{text}"
    );
    assert!(text.contains("ENOENT"), "{text}");
    assert!(space.observe(&table).table.is_none());
}

#[test]
fn a_chain_of_a_type_that_does_not_fit_its_hook_is_named() {
    let table = Table::new(V4, "twill-test").chain("bad", Chain::nat(Hook::Forward, 0));
    let error = Space::new()
        .nft
        .apply(&diff(None, table.clone()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`add chain ip twill-test bad { type nat hook forward"),
        "{error}"
    );
    assert!(error.contains("EOPNOTSUPP"), "{error}");
}

#[test]
fn a_transaction_for_another_generation_is_refused() {
    let table = with_elements(1);
    let mut space = Space::new();
    let observed = space.observe(&table);
    space.run_nft(&["add", "table", "ip", "foreign"], "");
    let error = space
        .nft
        .apply_at(observed.generation, &diff(None, table.clone()))
        .unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    assert!(error.is_surprise());
    assert!(space.observe(&table).table.is_none());
}

#[test]
fn a_table_declared_differently_is_replaced_in_one_transaction() {
    let new = with_elements(2);
    let mut old_shape = new.clone();
    old_shape.sets.remove("vips");
    let other_key = KeyType::of([FieldType::Ipv4Addr]);
    for old in [
        old_shape.clone().set(SetDecl::vmap("vips", other_key)),
        new.clone()
            .chain("prerouting", Chain::nat(Hook::Prerouting, -99)),
        new.clone().comment("of another version"),
    ] {
        let mut space = Space::new();
        space
            .nft
            .apply(&diff(None, old.clone()))
            .unwrap_or_else(|e| panic!("{e}"));
        let before = space.nft.generation().unwrap();
        let changes = space.nft.converge(&new).unwrap();
        assert_eq!(changes.ops[0], Op::DeleteTable);
        assert_eq!(space.table(&new), new);
        assert_eq!(space.nft.generation().unwrap(), before + 1);
    }
}

#[test]
fn what_others_change_in_the_table_is_mended() {
    let table = everything(V4);
    for foreign in [
        "flush ruleset",
        "delete table ip everything",
        "flush chain ip everything postrouting",
        "insert rule ip everything prerouting drop",
        "add rule ip everything prerouting tcp dport { 22, 80 } accept",
        "add rule ip everything postrouting limit rate 5/second log prefix \"x\" counter",
        "delete element ip everything node-ips { 10.0.0.7 }",
        "add element ip everything node-ips { 10.0.0.99 }",
        "flush map ip everything vips",
        "add chain ip everything mine; add rule ip everything input jump mine",
        "add set ip everything mine { type ether_addr; }",
        "add table ip everything { flags dormant; }",
        "add element ip everything nets { 10.0.0.64/26 }",
    ] {
        let mut space = Space::new();
        space.nft.converge(&table).unwrap();
        space.run_nft(&["-f", "-"], foreign);
        let changes = space.nft.converge(&table).unwrap();
        assert!(!changes.is_empty(), "{foreign}");
        assert_eq!(space.table(&table), table, "{foreign}");
        assert!(!space.list().contains("mine"), "{foreign}");
    }
}

#[test]
fn the_tables_of_others_are_left_alone() {
    let foreign = "table ip foreign {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t}\n}\n";
    let mut space = Space::loaded(foreign);
    let table = with_elements(1);
    space.nft.converge(&table).unwrap();
    space.nft.remove(&table.id).unwrap();
    assert_eq!(space.list(), foreign);
}

#[test]
fn the_monitor_tells_who_changed_which_table() {
    let mut space = Space::new();
    let mut monitor = space.run(Monitor::open).unwrap();
    assert_eq!(monitor.next(false).unwrap(), None);

    let table = with_elements(1_500);
    space.nft.converge(&table).unwrap();
    let ours = monitor.next(true).unwrap().unwrap();
    assert_eq!(ours.port, space.nft.port());
    assert_eq!(ours.tables, [table.id.clone()].into());

    space.run_nft(&["flush", "ruleset"], "");
    let foreign = monitor.next(true).unwrap().unwrap();
    assert_ne!(foreign.port, space.nft.port());
    assert_eq!(foreign.tables, [table.id].into());
    assert_eq!(foreign.process.as_deref(), Some("nft"));
    assert_eq!(foreign.generation, ours.generation + 1);
    assert_eq!(monitor.next(false).unwrap(), None);
}
