//! Properties of the difference between any two tables, against the model and against the kernel.

use hostnet::nft::{
    Chain, Element, FieldType, Hook, Key, KeyType, Proto, Rule, Selector, Set, SetDecl, Table,
    Verdict, diff, goto, model,
};
use hostnet::vocab::Family;
use proptest::prelude::*;

use crate::support::{Space, addr, everything};

const V4: Family = Family::V4;

fn element() -> impl Strategy<Value = Element> {
    let verdict = prop_oneof![
        Just(Verdict::Drop),
        Just(Verdict::Accept),
        Just(goto("target-a")),
        Just(goto("target-b")),
    ];
    (verdict, prop::option::of("[a-z]{1,4}")).prop_map(|(verdict, comment)| match comment {
        Some(comment) => Element::from(verdict).comment(comment),
        None => Element::from(verdict),
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        Just(Rule::new().eq(Selector::L4Proto, Proto::UDP).accept()),
        Just(Rule::new().vmap([Selector::Daddr(V4), Selector::L4Proto], "vips")),
        Just(
            Rule::new()
                .in_set([Selector::Saddr(V4)], "nets")
                .drop()
                .comment("nets")
        ),
        Just(Rule::new().counter().jump("target-a")),
    ]
}

/// Tables that differ in elements, rules, comments, ranges, and in which chains and sets there are.
fn table() -> impl Strategy<Value = Table> {
    let elements = prop::collection::btree_map((0..12_u16, 0..2_u8), element(), 0..20);
    let nets = prop::collection::btree_set(0..6_u16, 0..4);
    let parts = (
        elements,
        nets,
        prop::collection::vec(rule(), 0..4),
        prop::collection::vec(rule(), 0..4),
        any::<[bool; 3]>(),
    );
    parts.prop_map(
        |(elements, nets, first, second, [extra_chain, other_hook, comment])| {
            let key = KeyType::of([FieldType::Ipv4Addr, FieldType::InetProto]);
            let mut vips = Set::new(SetDecl::vmap("vips", key));
            for ((n, proto), element) in elements {
                vips.insert((addr(V4, n), Proto(proto)), element);
            }
            // Ranges whose ends depend on which others there are: so that new ones overlap old ones.
            let mut ranges =
                Set::new(SetDecl::set("nets", KeyType::of([FieldType::Ipv4Addr])).interval());
            let starts: Vec<_> = nets.into_iter().collect();
            for (i, start) in starts.iter().enumerate() {
                let end = starts.get(i + 1).unwrap_or(&9) * 100 - 1;
                ranges.insert(Key::range(addr(V4, start * 100), addr(V4, end)), ());
            }
            let priority = if other_hook { -99 } else { -100 };
            let mut table = Table::new(V4, "any")
                .set(vips)
                .set(ranges)
                .chain("target-a", Chain::regular())
                .chain("target-b", Chain::regular().rules([Rule::new().drop()]))
                .chain(
                    "prerouting",
                    Chain::nat(Hook::Prerouting, priority).rules(first),
                );
            if extra_chain {
                table = table
                    .set(SetDecl::set("extra", KeyType::of([FieldType::InetService])))
                    .chain(
                        "extra",
                        Chain::regular().rules(second).rule(
                            Rule::new()
                                .eq(Selector::L4Proto, Proto::TCP)
                                .in_set([Selector::Dport], "extra")
                                .goto("target-b"),
                        ),
                    )
                    .chain(
                        "input",
                        Chain::filter(Hook::Input, 0).rule(Rule::new().jump("extra")),
                    );
            }
            if comment {
                table.comment("hello")
            } else {
                table
            }
        },
    )
}

proptest! {
    #[test]
    fn from_a_table_to_itself_there_is_nothing_to_do(table in table()) {
        prop_assert!(diff(Some(&table), table.clone()).is_empty());
    }

    #[test]
    fn the_difference_leads_from_any_table_to_any_other(a in prop::option::of(table()), b in table()) {
        let changes = diff(a.as_ref(), b.clone());
        let after = model::replay(a, &changes).map_err(TestCaseError::fail)?;
        prop_assert_eq!(after, Some(b));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_takes_every_difference_and_ends_up_equal(a in table(), b in table()) {
        let mut space = Space::new();
        space.nft.apply(&diff(None, a.clone())).unwrap();
        let observed = space.table(&a);
        prop_assert_eq!(&observed, &a);
        space.nft.apply(&diff(Some(&observed), b.clone())).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(space.table(&b), b);
    }
}

#[test]
fn the_model_holds_a_table_with_everything() {
    for family in Family::ALL {
        let table = everything(family);
        assert_eq!(
            model::replay(None, &diff(None, table.clone())),
            Ok(Some(table))
        );
    }
}
