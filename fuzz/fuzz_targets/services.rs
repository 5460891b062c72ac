//! A dump of objects, as whoever may write to the API can make them: rules come of it, or a reason.
#![no_main]

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use proxy::render::{RenderArgs, render};

fuzz_target!(|text: &[u8]| {
    let file = tempfile::NamedTempFile::with_suffix_in(".json", "/dev/shm").expect("a file");
    std::fs::write(file.path(), text).expect("a file");
    for mode in ["nftables", "iptables"] {
        let flags = ["render", "--node=a", "--mode", mode, "--objects"];
        let mut args: Vec<_> = flags.into_iter().map(Into::into).collect();
        args.push(file.path().as_os_str().to_owned());
        if let Err(error) = render(&RenderArgs::parse_from(args)) {
            assert!(!error.to_string().is_empty());
        }
    }
});
