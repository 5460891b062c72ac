//! The binary: environment and standard input in, standard output and exit code out.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use cni_plugin::help;
use cni_plugin::request::RawRequest;

fn main() -> ExitCode {
    let raw = RawRequest::from_env(|key| std::env::var_os(key));
    if raw.command.is_none() {
        return explain();
    }
    let (text, code) = match cni_plugin::serve(raw, io::stdin().lock()) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    // A runtime that does not listen any more has no use for another error.
    let _ = io::stdout().write_all(text.as_bytes());
    code
}

/// For a person; the reference plugins too tell of themselves and succeed.
fn explain() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--version" | "-V") => {
            let _ = writeln!(io::stdout(), "{}", help::VERSION);
        }
        Some("--help" | "-h") => {
            let _ = write!(io::stdout(), "{}", help::HELP);
        }
        None => {
            let _ = write!(io::stderr(), "{}\n\n{}", help::VERSION, help::HELP);
        }
        Some(other) => {
            let _ = writeln!(
                io::stderr(),
                "{other:?} is not an option: see twill-cni --help"
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
