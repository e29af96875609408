//! The `webhookctl` program: see the library's root for the map of the code.

use std::process::ExitCode;

/// The system's own gives memory back, and takes it again, with each batch of payments.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    webhookctl::cli::main()
}
