//! A failed command: told once, on standard error.

use rust_i18n::t;

use super::output::OutputClosed;
use crate::process::exit::{Exit, eprint, exit_of};

/// Tells what went wrong, and with which code to end.
pub(super) fn report(error: &anyhow::Error) -> Exit {
    if error.is::<OutputClosed>() {
        return Exit::Done;
    }
    eprint(&t!("cli.error", cause = format!("{error:#}")));
    exit_of(error)
}
