//! Reservations against files that others left, and against a model.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::attachment::tests::identity;
use crate::ipam::Range;

fn range(text: &str) -> RangeSet {
    Range::of_subnet(text.parse().unwrap()).unwrap().into()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn reserve(store: &Store, owner: &Identity, ranges: &[RangeSet]) -> Result<Vec<IpAddr>, IpamError> {
    let locked = store.lock()?;
    let addrs = locked.choose(ranges, &[])?;
    locked.commit(owner, &addrs)?;
    Ok(addrs)
}

#[test]
fn files_are_host_locals() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "cbr0");
    let owner = identity("0c1d2e");
    let addrs = reserve(
        &store,
        &owner,
        &[range("10.244.3.0/24"), range("fd00::/64")],
    )
    .unwrap();
    assert_eq!(addrs, [ip("10.244.3.2"), ip("fd00::2")]);
    let network = dir.path().join("cbr0");
    let file = network.join("10.244.3.2");
    assert_eq!(fs::read(&file).unwrap(), b"0c1d2e\r\neth0");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        fs::read(network.join("last_reserved_ip.0")).unwrap(),
        b"10.244.3.2"
    );
    assert_eq!(
        fs::read(network.join("last_reserved_ip.1")).unwrap(),
        b"fd00::2"
    );
    let mut names: Vec<_> = fs::read_dir(&network)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "10.244.3.2",
            "fd00::2",
            "last_reserved_ip.0",
            "last_reserved_ip.1",
            "lock"
        ]
    );
}

#[test]
fn host_locals_files_are_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "cbr0");
    drop(store.lock().unwrap());
    let put = |addr: &str, text: &str| {
        atomic_file::replace(dir.path().join("cbr0").join(addr), text.as_bytes(), 0o600).unwrap();
    };
    put("10.0.0.2", "other\r\neth0");
    put("10.0.0.3", " old-format \n");
    put("10.0.0.4", "mine\r\neth0");
    put("10.0.0.5", "mine\r\neth1");
    assert_eq!(store.owned_by(&identity("mine")).unwrap(), [ip("10.0.0.4")]);
    assert_eq!(
        store.owned_by(&identity("old-format")).unwrap(),
        [ip("10.0.0.3")]
    );
    let ranges = [range("10.0.0.0/29")];
    assert_eq!(
        reserve(&store, &identity("new"), &ranges).unwrap(),
        [ip("10.0.0.6")]
    );
    let error = reserve(&store, &identity("late"), &ranges)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("10.0.0.0/29") && error.contains("cbr0"),
        "{error}"
    );
    let locked = store.lock().unwrap();
    locked.release(&identity("mine"), ip("10.0.0.2")).unwrap();
    assert!(
        store.is_owner(&identity("other"), ip("10.0.0.2")).unwrap(),
        "not ours to give back"
    );
}

#[test]
fn an_empty_file_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "cbr0");
    drop(store.lock().unwrap());
    fs::File::create(dir.path().join("cbr0/10.0.0.2")).unwrap();
    assert_eq!(
        reserve(&store, &identity("a"), &[range("10.0.0.0/30")]).unwrap(),
        [ip("10.0.0.2")]
    );
    assert!(store.is_owner(&identity("a"), ip("10.0.0.2")).unwrap());
}

#[test]
fn a_file_of_zeroes_is_nobodys_when_there_is_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "cbr0");
    drop(store.lock().unwrap());
    for (addr, contents) in [("10.0.0.2", "a\r\neth0"), ("10.0.0.3", "\0\0\0\0\0\0\0")] {
        let path = dir.path().join("cbr0").join(addr);
        atomic_file::replace(path, contents.as_bytes(), 0o600).unwrap();
    }
    assert_eq!(store.reservations().unwrap().len(), 1);
    let ranges = [range("10.0.0.0/29")];
    let got: Vec<IpAddr> = (0..4)
        .map(|n| reserve(&store, &identity(&format!("n{n}")), &ranges).unwrap()[0])
        .collect();
    assert_eq!(
        got,
        ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.3"].map(ip)
    );
    assert!(store.is_owner(&identity("n3"), ip("10.0.0.3")).unwrap());
    reserve(&store, &identity("late"), &ranges).unwrap_err();
}

#[test]
fn a_full_second_range_costs_no_address_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "cbr0");
    let ranges = [range("10.0.0.0/29"), range("10.1.0.0/30")];
    reserve(&store, &identity("a"), &ranges).unwrap();
    reserve(&store, &identity("b"), &ranges).unwrap_err();
    assert_eq!(
        store.owned_by(&identity("b")).unwrap(),
        Vec::<IpAddr>::new()
    );
    // Also when the second is taken between choice and commitment.
    let locked = store.lock().unwrap();
    let error = locked
        .commit(&identity("b"), &[ip("10.0.0.3"), ip("10.1.0.2")])
        .unwrap_err();
    assert!(matches!(error, IpamError::Raced { .. }));
    assert_eq!(
        store.owned_by(&identity("b")).unwrap(),
        Vec::<IpAddr>::new()
    );
}

#[test]
fn without_a_directory_there_is_nothing_to_release() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "cbr0");
    assert!(store.lock_existing().unwrap().is_none());
    assert!(!dir.path().join("cbr0").exists());
}

#[test]
fn addresses_that_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "cbr0");
    let sets = [range("10.0.0.0/24"), range("fd00::/64")];
    let ask = |asked: &[&str]| {
        let asked: Vec<IpAddr> = asked.iter().map(|text| ip(text)).collect();
        store.lock().unwrap().choose(&sets, &asked)
    };
    // In any order, and only for some of the sets.
    let both = ask(&["fd00::9", "10.0.0.9"]).unwrap();
    assert_eq!(both, [ip("10.0.0.9"), ip("fd00::9")]);
    assert_eq!(ask(&["10.0.0.9"]).unwrap()[1], ip("fd00::2"));
    let locked = store.lock().unwrap();
    locked.commit(&identity("mine"), &both).unwrap();
    drop(locked);
    for (asked, text) in [
        (
            &["10.0.0.9"][..],
            "is reserved for container mine interface eth0",
        ),
        (&["10.1.0.9"], "is not in 10.0.0.2-10.0.0.254; fd00::2-"),
        (&["10.0.0.1"], "is not in"),
        (&["10.0.0.255"], "is not in"),
        (&["10.0.0.7", "10.0.0.8"], "so is 10.0.0.7, in the same set"),
    ] {
        let error = ask(asked).unwrap_err().to_string();
        assert!(error.contains(text), "{text}: {error}");
    }
}

#[derive(Clone, Debug)]
enum Act {
    Reserve(u8),
    Release(u8),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn behaves_as_the_model(acts in prop::collection::vec(
        prop_oneof![(0u8..12).prop_map(Act::Reserve), (0u8..12).prop_map(Act::Release)], 1..60)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), "net");
        let range = range("10.0.0.0/29");
        let size = range.candidates(None).count();
        let mut model: BTreeMap<u8, IpAddr> = BTreeMap::new();
        let mut last = None;
        for act in acts {
            match act {
                Act::Reserve(id) if !model.contains_key(&id) => {
                    let owner = identity(&format!("c{id}"));
                    let expected = range
                        .candidates(last)
                        .find(|addr| !model.values().any(|taken| taken == addr));
                    match reserve(&store, &owner, std::slice::from_ref(&range)) {
                        Ok(addrs) => {
                            prop_assert_eq!(Some(addrs[0]), expected);
                            last = Some(addrs[0]);
                            model.insert(id, addrs[0]);
                        }
                        Err(IpamError::Full { .. }) => prop_assert_eq!(model.len(), size),
                        Err(other) => return Err(TestCaseError::fail(other.to_string())),
                    }
                }
                Act::Reserve(_) => {}
                Act::Release(id) => {
                    let owner = identity(&format!("c{id}"));
                    let locked = store.lock().unwrap();
                    for addr in store.owned_by(&owner).unwrap() {
                        locked.release(&owner, addr).unwrap();
                    }
                    model.remove(&id);
                }
            }
            for (id, addr) in &model {
                let owner = identity(&format!("c{id}"));
                prop_assert!(store.is_owner(&owner, *addr).unwrap());
            }
        }
    }
}
