//! An attachment record that was torn or written by somebody else.
#![no_main]

use cni_plugin::record::Records;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    std::fs::write(dir.path().join("c1-eth0.json"), text).expect("a file");
    let records = Records::new(dir.path());
    for record in records.list_all().into_iter().flatten() {
        cni_plugin::nat::families(&record);
        cni_plugin::shaping::Shaping::of(&record);
    }
});
