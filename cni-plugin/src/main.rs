//! The binary: environment and standard input in, standard output and exit code out.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use cni_plugin::help;
use cni_plugin::install::{self, InstallError, Options};
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
        Some("install") => return by_hand(install::install),
        Some("uninstall") => return by_hand(install::uninstall),
        // What holds a pod whose init containers have done the work.
        Some("pause") => loop {
            std::thread::park();
        },
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

type ByHand = fn(&Options, &mut dyn FnMut(String)) -> Result<(), InstallError>;

/// A command of a person, or of an image's start: what was done goes to standard output.
fn by_hand(command: ByHand) -> ExitCode {
    let arguments = std::env::args().skip(2);
    let mut tell = |line| {
        let _ = writeln!(io::stdout(), "{line}");
    };
    match Options::parse(arguments).and_then(|options| command(&options, &mut tell)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "twill-cni: {error}");
            ExitCode::FAILURE
        }
    }
}
