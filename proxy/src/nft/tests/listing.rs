//! What an administrator reads: the table of the worked example in `nft`'s words.

use std::io::Write as _;

use hostnet::testkit::{Ns, require_tool};

use super::super::NftBackend;
use crate::backend::{Applied, Backend};
use crate::fixtures::{SEED, cluster_cidr, index, plan};

#[test]
fn the_worked_example_is_readable_and_loads_again() {
    require_tool("nft", "nftables");
    let plan = plan(&mut index(SEED), &cluster_cidr("10.244.0.0/16"));
    let node = Ns::new("node");
    let mut backend = node.run(NftBackend::open).unwrap();
    backend.replace(&plan).unwrap();
    let listing = node.sh("nft", &["list", "table", "ip", "twill-proxy"]);
    insta::assert_snapshot!(listing);

    let everything = node.sh("nft", &["list", "ruleset"]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(everything.as_bytes()).unwrap();
    let copy = Ns::new("copy");
    copy.sh("nft", &["-f", file.path().to_str().unwrap()]);
    assert_eq!(copy.sh("nft", &["list", "ruleset"]), everything);

    // A node whose saved ruleset was loaded at boot is right already.
    let mut backend = copy.run(NftBackend::open).unwrap();
    assert_eq!(backend.replace(&plan).unwrap(), Applied::default());
}
