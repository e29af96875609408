//! The `webhookctl` program: see the library's root for the map of the code.

use std::process::ExitCode;

fn main() -> ExitCode {
    webhookctl::cli::main()
}
