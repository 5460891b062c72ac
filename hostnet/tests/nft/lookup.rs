//! Single elements are found by key, as packets find them.

use std::net::IpAddr;

use hostnet::nft::{AnyTable, BaseChain, Contents, Hook, Key, TableId, diff};
use hostnet::vocab::Family;

use crate::support::{Space, everything};

#[test]
fn every_element_is_found_by_its_key_and_no_other() {
    for family in Family::ALL {
        let table = everything(family);
        let mut space = Space::new();
        space.nft.apply(&diff(None, table.clone())).unwrap();
        let id = AnyTable::from(table.id.clone());
        let mut found = 0;
        for (name, set) in &table.sets {
            let decl = space.nft.declaration(&id, name).unwrap().unwrap();
            assert_eq!(decl, set.decl);
            for (key, element) in &set.elements {
                // Of a range any key inside finds it; its first bytes are the first key.
                let asked = Key::from_bytes(&key.as_bytes()[..decl.key.width()]);
                let got = space.nft.element(&id, &decl, &asked).unwrap().unwrap();
                assert_eq!(got.1, *element, "{name} {}", decl.key.show(key));
                let all = space.nft.elements(&id, &decl).unwrap();
                assert_eq!(decl.find(&all, &asked), Some(got), "{name}");
                found += 1;
            }
            let nothing = Key::from_bytes(&vec![0xfe; decl.key.width()]);
            assert_eq!(
                space.nft.element(&id, &decl, &nothing).unwrap(),
                None,
                "{name}"
            );
            let all = space.nft.elements(&id, &decl).unwrap();
            assert_eq!(decl.find(&all, &nothing), None, "{name}");
            if !decl.dynamic {
                assert!(all.into_iter().eq(set.elements.clone()), "{name}");
            }
        }
        assert!(found > 5, "the table has elements");
        for (name, chain) in &table.chains {
            assert_eq!(space.nft.rules(&id, name).unwrap(), chain.rules);
        }
        assert_eq!(space.nft.all_tables().unwrap(), std::slice::from_ref(&id));
        let contents = space.nft.contents(&id).unwrap();
        let told = serde_json::to_string(&contents).unwrap();
        assert_eq!(serde_json::from_str::<Contents>(&told).unwrap(), contents);
        let chains = contents.chains.into_iter();
        assert!(
            chains.eq((table.chains.iter()).map(|(name, of)| (name.clone(), of.rules.clone())))
        );
        assert_eq!(contents.sets.len(), table.sets.len());
        let names = space.nft.chain_names(&table.id).unwrap();
        assert_eq!(names.len(), table.chains.len());
        let bases = table.chains.values().filter(|chain| chain.base.is_some());
        assert_eq!(space.nft.base_chains().unwrap().len(), bases.count());
        assert_eq!(space.nft.declaration(&id, "none").unwrap(), None);
        assert_eq!(space.nft.rules(&id, "none").unwrap(), []);
    }
}

#[test]
fn tables_of_family_inet_are_read_too() {
    let mut space = Space::loaded(
        "table inet wall {
           set bad { type ipv4_addr; elements = { 192.0.2.9 }; }
           chain forward { type filter hook forward priority 0; policy drop; ip saddr @bad drop; }
         }",
    );
    let chains = space.nft.base_chains().unwrap();
    let [BaseChain { table, name, base }] = &chains[..] else {
        panic!("{chains:?}")
    };
    assert_eq!(
        (table.to_string().as_str(), &**name),
        ("inet wall", "forward")
    );
    assert_eq!(base.hook, Hook::Forward);
    assert_eq!(space.nft.rules(table, name).unwrap().len(), 1);
    let decl = space.nft.declaration(table, "bad").unwrap().unwrap();
    let find = |space: &mut Space, addr: [u8; 4]| {
        let key = Key::from(IpAddr::from(addr));
        space.nft.element(table, &decl, &key).unwrap().is_some()
    };
    assert!(find(&mut space, [192, 0, 2, 9]));
    assert!(!find(&mut space, [192, 0, 2, 8]));
    assert_eq!(space.nft.all_tables().unwrap(), std::slice::from_ref(table));
    let contents = space.nft.contents(table).unwrap();
    assert_eq!(
        (contents.chains.len(), contents.sets[0].elements.len()),
        (1, 1)
    );
    let absent = AnyTable::from(TableId::new(Family::V4, "absent"));
    assert_eq!(space.nft.rules(&absent, "x").unwrap(), []);
}
