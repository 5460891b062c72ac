//! What is written reads back equal, by us and by `nft`.

use hostnet::nft::{Changes, Table, diff};
use hostnet::vocab::Family;

use crate::support::{Space, everything};

fn for_both_families(check: impl Fn(Table)) {
    for family in Family::ALL {
        check(everything(family));
    }
}

#[test]
fn what_is_written_reads_back_equal() {
    for_both_families(|desired| {
        let mut space = Space::new();
        space.nft.apply(&diff(None, desired.clone())).unwrap();
        assert_eq!(space.table(&desired), desired);
    });
}

#[test]
fn a_second_pass_has_nothing_to_do() {
    for_both_families(|desired| {
        let mut space = Space::new();
        assert!(!space.nft.converge(&desired).unwrap().is_empty());
        let generation = space.nft.generation().unwrap();
        assert!(space.nft.converge(&desired).unwrap().is_empty());
        assert_eq!(
            space.nft.generation().unwrap(),
            generation,
            "nothing was written"
        );
    });
}

#[test]
fn the_listing_of_nft_loads_again_and_is_the_same_table() {
    for_both_families(|desired| {
        let mut space = Space::new();
        space.nft.apply(&diff(None, desired.clone())).unwrap();
        let listing = space.list();
        let mut copy = Space::loaded(&listing);
        assert_eq!(copy.list(), listing);
        assert_eq!(
            diff(copy.observe(&desired).table.as_ref(), desired.clone()).to_string(),
            ""
        );
    });
}

#[test]
fn the_script_of_the_changes_does_with_nft_what_they_do_over_netlink() {
    for_both_families(|desired| {
        let changes = diff(None, desired.clone());
        let mut space = Space::loaded(&changes.to_string());
        assert_eq!(
            diff(space.observe(&desired).table.as_ref(), desired.clone()).to_string(),
            ""
        );
    });
}

#[test]
fn a_removed_table_leaves_nothing() {
    for_both_families(|desired| {
        let mut space = Space::new();
        space.nft.converge(&desired).unwrap();
        assert_eq!(
            space.nft.tables().unwrap(),
            std::slice::from_ref(&desired.id)
        );
        assert!(space.nft.remove(&desired.id).unwrap());
        assert!(!space.nft.remove(&desired.id).unwrap());
        assert_eq!(space.list(), "");
        assert!(space.observe(&desired).table.is_none());
    });
}

#[test]
fn the_tables_of_both_families_live_side_by_side() {
    let mut space = Space::new();
    for family in Family::ALL {
        space.nft.converge(&everything(family)).unwrap();
    }
    for family in Family::ALL {
        assert_eq!(space.table(&everything(family)), everything(family));
    }
}

#[test]
fn no_changes_are_no_transaction() {
    let mut space = Space::new();
    let generation = space.nft.generation().unwrap();
    space
        .nft
        .apply(&Changes::new(everything(Family::V4).id))
        .unwrap();
    assert_eq!(space.nft.generation().unwrap(), generation);
}
