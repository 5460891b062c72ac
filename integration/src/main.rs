//! The `lab` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    integration::cli::main()
}
