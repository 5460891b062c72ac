//! `twill`: reads its arguments, asks the kernel, prints. All else is in the library.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use cli::args::{self, Args};

fn main() -> ExitCode {
    let args = Args::of_process();
    let mut text = String::new();
    let code = match args::run(&args, &mut text) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("twill: {error:#}");
            return ExitCode::from(2);
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough, such as `head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(code),
        Err(error) => {
            eprintln!("twill: standard output: {error}");
            ExitCode::from(2)
        }
        Ok(()) => ExitCode::from(code),
    }
}
