//! The file of `--config`: read, or refused with all that is wrong; what is read can be written and read again.
#![no_main]

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use proxy::config::{Args, Config};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    args: Args,
}

fuzz_target!(|text: &[u8]| {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
    std::fs::write(file.path(), text).expect("a file");
    let flags = ["proxy", "--hostname-override=a", "--config"];
    let mut args: Vec<_> = flags.into_iter().map(Into::into).collect();
    args.push(file.path().as_os_str().to_owned());
    let args = Flags::parse_from(args).args;
    match Config::load(&args) {
        Ok(config) => {
            let written = config.document().to_string();
            std::fs::write(file.path(), &written).expect("a file");
            let again = Config::load(&args).unwrap_or_else(|error| panic!("{written}: {error}"));
            assert_eq!(again.document(), config.document());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
