//! A failed command: told once, on standard error.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use super::output::{OutputClosed, may_be_coloured};
use crate::domain::failure::LocalizedError;
use crate::domain::language::{Language, Localized, text};
use crate::process::exit::{Exit, eprint, exit_of};
use crate::process::failure::text_of;

/// Tells what is wrong with the command line, as clap does: with the text of our own parsers in the language.
pub(super) fn report_usage(error: &clap::Error, language: Language) -> ExitCode {
    let told = error.source().and_then(|cause| cause.downcast_ref::<LocalizedError>());
    let Some(cause) = told else { error.exit() };
    let rendered = error.render();
    let text = if may_be_coloured(&io::stderr()) { rendered.ansi().to_string() } else { rendered.to_string() };
    // A failure to write to standard error cannot be reported anywhere.
    let _ = io::stderr().write_all(text.replace(&cause.to_string(), &cause.text(language)).as_bytes());
    Exit::Usage.into()
}

/// Tells what went wrong, and with which code to end.
pub(super) fn report(error: &anyhow::Error, language: Language) -> Exit {
    if error.is::<OutputClosed>() {
        return Exit::Done;
    }
    eprint(&text!(language, "cli.error", cause = text_of(error, language)));
    exit_of(error)
}
