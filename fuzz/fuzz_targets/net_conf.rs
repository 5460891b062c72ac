//! `net-conf.json`, whatever is in it: read, or refused with all that is wrong.
#![no_main]

use flanneld::config::NetConf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match NetConf::parse(text) {
        Ok((conf, _)) => assert!(conf.networks.iter().next().is_some(), "{text}"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
