//! What a runtime sends: understood, or refused with a code and a sentence. The first line stands for `CNI_ARGS`, the
//! rest for standard input.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use cni_plugin::attachment::Attachment;
use cni_plugin::error::CniError;
use cni_plugin::request::config::Config;
use cni_plugin::request::{Args, RawRequest, Target};
use cni_plugin::version::Version;
use hostnet::vocab::SubnetEnv;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:3::1/64\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

fuzz_target!(|text: &[u8]| {
    let end = text.iter().position(|byte| *byte == b'\n');
    let (args, config) = text.split_at(end.map_or(0, |end| end + 1));
    if let Err(error) = understand(args.trim_ascii_end(), config) {
        assert!(!error.msg.is_empty());
        let told: Value = serde_json::from_str(&error.to_json(Version::LATEST)).expect("JSON");
        assert!(matches!(told["code"].as_u64(), Some(1..=999)), "{told}");
    }
});

/// All that is done with a request before anything is touched.
fn understand(args: &[u8], config: &[u8]) -> Result<(), CniError> {
    let raw = RawRequest::from_env(|key| {
        Some(match key {
            "CNI_COMMAND" => "ADD".into(),
            "CNI_CONTAINERID" => "c1".into(),
            "CNI_IFNAME" => "eth0".into(),
            "CNI_NETNS" => "/run/netns/c1".into(),
            "CNI_ARGS" => OsString::from(std::ffi::OsStr::from_bytes(args)),
            _ => return None,
        })
    });
    let target = Target::of(&raw, true)?;
    let config = Config::decode(config).map_err(|(error, _)| error)?;
    config.unknown_keys();
    config.prev_result()?;
    config.valid_attachments()?;
    let settings = config.settings(&Args::parse(raw.args.as_deref())?)?;
    let env: SubnetEnv = ENV.parse().expect("a subnet");
    let attachment = Attachment::new(target.identity, &settings, Some(&env))?;
    let first = |set: &cni_plugin::ipam::RangeSet| set.candidates(None).next();
    let addrs: Vec<_> = attachment.sets.iter().filter_map(first).collect();
    assert_eq!(
        addrs.len(),
        attachment.sets.len(),
        "a set without an address"
    );
    attachment.with_addresses(&addrs)?.kernel_routes();
    Ok(())
}
