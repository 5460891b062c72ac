//! What nf_tables answers is taken apart without a panic, whatever it is.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| hostnet::nft::decode_all(datagram));
